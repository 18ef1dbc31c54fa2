"""Recommend what is popular, or what most often followed the last item: plain methods for what comes next of events."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fmeco.core import Baseline, Data, Inputs, Samples, pad
from fmeco.objectives._ranking import Catalogue

Scoring = Callable[[Tensor], Tensor]  # the last items of histories (B,) -> scores of all ids (B, ids)


def baselines(catalogue: Catalogue | None) -> dict[str, Baseline]:
    """Offer the methods for a catalogue; none for data without one."""
    if catalogue is None:
        return {}
    return {
        "popularity": functools.partial(popularity, catalogue),
        "transition": functools.partial(transition, catalogue),
    }


def popularity(
    catalogue: Catalogue, data: Data, samples: Samples, rows: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Recommend to everyone what came next most often, whatever was before."""
    pairs, ids = _followed(data)
    score = _popularity(pairs, ids)
    return _ranked(catalogue, samples, rows["index"], lambda last: score.expand(len(last), -1)), len(pairs)


def transition(
    catalogue: Catalogue, data: Data, samples: Samples, rows: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Recommend what came most often right after the last item (a Markov chain), then the most popular."""
    pairs, ids = _followed(data)
    popular = _popularity(pairs, ids)
    after: dict[int, list[tuple[int, int]]] = defaultdict(list)
    each, times = pairs.unique(dim=0, return_counts=True)
    for (before, item), count in zip(each.tolist(), times.tolist(), strict=True):
        after[before].append((item, count))

    def score(last: Tensor) -> Tensor:
        scores = popular.repeat(len(last), 1)
        for row, item in enumerate(last.tolist()):
            if item in after:
                items, counts = torch.tensor(after[item]).T
                scores[row, items] += counts * ids  # a time more outweighs any popularity
        return scores

    return _ranked(catalogue, samples, rows["index"], score), len(pairs)


def _followed(data: Data) -> tuple[Tensor, int]:
    """Give each training step as (item, the next one) (N, 2), and how many ids there are."""
    train = data.split("train")
    each = [train[i]["tokens"] for i in range(len(train))]
    pairs = torch.cat([torch.stack([tokens[:-1], tokens[1:]], 1) for tokens in each])
    return pairs, int(data.spec.preprocessing["ids"])


def _popularity(pairs: Tensor, ids: int) -> Tensor:
    """Score the ids (ids,) from 0 to ids - 1, each once: by how often an item came next, of equal ones the lower id
    first."""
    order = pairs[:, 1].bincount(minlength=ids).argsort(descending=True, stable=True)
    return torch.empty(ids, dtype=torch.float64).index_put_((order,), torch.arange(ids - 1, -1, -1).double())


def _ranked(catalogue: Catalogue, samples: Samples, index: Tensor, score: Scoring) -> dict[str, Tensor]:
    """Make the rows that the objective would have by these scores."""
    rows: list[dict[str, Tensor]] = []
    for at in index.split(64):
        each = [samples[i] for i in at.tolist()]
        wanted = torch.stack([one["tokens"][-1] for one in each])
        last = torch.stack([one["tokens"][-2] for one in each])
        history: Inputs = {
            name: pad([one[name][:-1] if name == "tokens" else one[name] for one in each]) for name in each[0]
        }
        rows.append(catalogue.answers(score(last), history, wanted))
    return {name: torch.cat([one[name] for one in rows]) for name in rows[0]}
