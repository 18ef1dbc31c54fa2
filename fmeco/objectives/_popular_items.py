"""Recommend the most popular items, or those that most often followed the last item: baselines for next-item objectives."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fmeco.core import Baseline, Data, Inputs, Samples, pad
from fmeco.objectives._ranking import Catalogue

Scoring = Callable[[Tensor], Tensor]  # last item of each history (B,) -> scores of all ids (B, ids)


def baselines(catalogue: Catalogue | None) -> dict[str, Baseline]:
    """Return the baselines for a catalogue, by name; none for data without a catalogue."""
    if catalogue is None:
        return {}
    return {
        "popularity": functools.partial(popularity, catalogue),
        "transition": functools.partial(transition, catalogue),
    }


def popularity(
    catalogue: Catalogue, data: Data, samples: Samples, rows: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Recommend the items that came next most often, whatever the history. Returns (rows, number of training pairs)."""
    pairs, ids = _followed(data)
    score = _popularity(pairs, ids)
    return _ranked(catalogue, samples, rows["index"], lambda last: score.expand(len(last), -1)), len(pairs)


def transition(
    catalogue: Catalogue, data: Data, samples: Samples, rows: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Recommend the items that most often followed the last one (a Markov chain), then the most popular items.

    Returns (rows, number of training pairs).
    """
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
                scores[row, items] += counts * ids  # one more occurrence outweighs any popularity
        return scores

    return _ranked(catalogue, samples, rows["index"], score), len(pairs)


def _followed(data: Data) -> tuple[Tensor, int]:
    """Return all pairs (item, next item) of the training split (N, 2), and the number of ids."""
    train = data.split("train")
    sequences = [train[i]["tokens"] for i in range(len(train))]
    pairs = torch.cat([torch.stack([tokens[:-1], tokens[1:]], 1) for tokens in sequences])
    return pairs, int(data.spec.preprocessing["ids"])


def _popularity(pairs: Tensor, ids: int) -> Tensor:
    """Rank the ids by how often they came next: distinct scores (ids,) from 0 to ids - 1; on ties the lower id is higher."""
    order = pairs[:, 1].bincount(minlength=ids).argsort(descending=True, stable=True)
    return torch.empty(ids, dtype=torch.float64).index_put_((order,), torch.arange(ids - 1, -1, -1).double())


def _ranked(catalogue: Catalogue, samples: Samples, index: Tensor, score: Scoring) -> dict[str, Tensor]:
    """Compute the objective's rows for the scores of a baseline."""
    rows: list[dict[str, Tensor]] = []
    for at in index.split(64):
        read = [samples[i] for i in at.tolist()]
        wanted = torch.stack([sample["tokens"][-1] for sample in read])
        last = torch.stack([sample["tokens"][-2] for sample in read])
        history: Inputs = {
            name: pad([sample[name][:-1] if name == "tokens" else sample[name] for sample in read]) for name in read[0]
        }
        rows.append(catalogue.answers(score(last), history, wanted))
    return {name: torch.cat([part[name] for part in rows]) for name in rows[0]}
