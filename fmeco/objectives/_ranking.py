"""Rank the whole catalogue for each history, and measure how high the true next item ranks.

Ranks are among all items: metrics on sampled items can order methods wrongly (https://doi.org/10.1145/3394486.3403226).
Each sample has one right answer, its last item.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fmeco.core import Batch, DataSpec, Inputs, Objective
from fmeco.nn.ids import FIRST_ITEM

TOP = 10  # number of items that are recommended, and the cut-off of the metrics

DIRECTIONS: Mapping[str, Literal["max", "min"]] = {
    f"ndcg@{TOP}": "max",
    f"hr@{TOP}": "max",
    "mrr": "max",
    f"coverage@{TOP}": "max",
}


def asked(inputs: Inputs) -> tuple[Inputs, Tensor]:
    """Split each sequence into its history and its last item. Returns (inputs without the last item, last item (B,))."""
    tokens = inputs["tokens"]
    last = tokens.ne(0).sum(1, keepdim=True) - 1  # (B, 1)
    return {**inputs, "tokens": tokens.scatter(1, last, 0)}, tokens.gather(1, last)[:, 0]


def rank(scores: Tensor, wanted: Tensor) -> Tensor:
    """Compute the rank (B,) of the ids `wanted` (B,) by scores (B, ids), from 1; on ties the lower id ranks higher.

    The rank is 0 if the score is -inf: the item cannot be recommended, which counts as a miss.
    """
    own = scores.gather(1, wanted[:, None])  # (B, 1)
    earlier = torch.arange(scores.shape[1], device=scores.device) < wanted[:, None]
    ahead = (scores > own) | ((scores == own) & earlier)
    return torch.where(own[:, 0].isinf(), 0, 1 + ahead.sum(1))


class Catalogue(NamedTuple):
    """Hold the items that can be recommended.

    items: names by id; the first item has id FIRST_ITEM.
    repeats: whether to recommend items that the history already holds.
    """

    items: tuple[str, ...]
    repeats: bool

    @property
    def rows(self) -> tuple[str, ...]:
        """Return a name for each id; the space in front keeps the first two apart from items' names."""
        return (" padding", " unknown", *self.items)

    def allowed(self, scores: Tensor, history: Inputs) -> Tensor:
        """Set the scores (B, ids) of ids that must not be recommended to -inf."""
        scores = scores.clone()
        scores[:, :FIRST_ITEM] = -torch.inf
        if not self.repeats:
            for name in ("tokens", "seen"):
                if name in history:
                    scores.scatter_(1, history[name], -torch.inf)  # padding has id 0
        return scores

    def best(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the TOP ids with the highest allowed scores (B, ids), and their probabilities; 0 if there are fewer."""
        highest, ids = scores.topk(min(TOP, len(self.items)), 1)
        none = highest.isinf()
        shares = (highest - scores.logsumexp(1, keepdim=True)).exp()
        return ids.masked_fill(none, 0), shares.masked_fill(none, 0.0)

    def answers(self, scores: Tensor, history: Inputs, wanted: Tensor) -> dict[str, Tensor]:
        """Compute the rows for `metrics` from scores (B, ids) of histories and the true next items (B,)."""
        scores = self.allowed(scores, history)
        return {"rank": rank(scores, wanted), "top": self.best(scores)[0]}

    def metrics(self, rows: Mapping[str, Tensor]) -> dict[str, float]:
        """Compute NDCG, hit rate, reciprocal rank and coverage.

        For the rank r of the one right answer, means over samples, with 0 for a miss:
        ndcg: 1 / log2(1 + r) if r <= TOP, else 0.
        hr: 1 if r <= TOP, else 0.
        mrr: 1 / r.
        coverage: share of the catalogue that is among the TOP items of at least one sample.
        """
        position = rows["rank"].double()
        hit, high = position > 0, (position > 0) & (position <= TOP)
        position = position.clamp_min(1)
        used = rows["top"].flatten().bincount(minlength=FIRST_ITEM)[FIRST_ITEM:].count_nonzero()
        values = (
            torch.where(high, 1 / (1 + position).log2(), 0.0).mean(),
            high.double().mean(),
            torch.where(hit, 1 / position, 0.0).mean(),
            used / len(self.items),
        )
        return {name: float(value) for name, value in zip(DIRECTIONS, values, strict=True)}

    def predict(self, scores: Tensor, history: Inputs) -> dict[str, Tensor]:
        top, probability = self.best(self.allowed(scores, history))
        return {"top": top, "probability": probability}

    def decode(self, outputs: Mapping[str, Tensor]) -> list[dict[str, str | float]]:
        """Name the best item, and all recommended items in descending order."""
        rows: list[dict[str, str | float]] = []
        for ids, probability in zip(outputs["top"].tolist(), outputs["probability"].tolist(), strict=True):
            names = [self.items[i - FIRST_ITEM] for i in ids if i >= FIRST_ITEM]
            shares = "|".join(f"{p:.6f}" for p in probability[: len(names)])
            best: dict[str, str | float] = {"prediction": "|".join(names[:1]), "probability": probability[0]}
            rows.append({**best, "top": "|".join(names), "top_probabilities": shares})
        return rows


def catalogue(spec: DataSpec) -> Catalogue | None:
    """Return the catalogue of a dataset of events; None for other data."""
    if spec.modality != "events":
        return None
    return Catalogue(tuple(spec.preprocessing["items"]), bool(spec.preprocessing["repeats"]))


class Recommends(Objective):
    """Base of objectives over ids that recommend the next item if the data is events.

    On events they are evaluated, and predict, by ranking the `catalogue`; it is None for other data.
    """

    catalogue: Catalogue | None

    @abstractmethod
    def scores(self, history: Inputs) -> Tensor:
        """Score each id as the next item (B, ids), in float32: half precision would give many items the same score."""

    @abstractmethod
    def guessed(self, batch: Batch) -> dict[str, Tensor]:
        """Compute `rows` for data other than events."""

    @abstractmethod
    def measured(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Compute `metrics` for data other than events."""

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        if self.catalogue is None:
            return self.guessed(batch)
        history, wanted = asked(batch.views[0])
        return self.catalogue.answers(self.scores(history), history, wanted)

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        return self.measured(rows) if self.catalogue is None else self.catalogue.metrics(rows)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        if self.catalogue is None:
            return super().predict(batch)
        return self.catalogue.predict(self.scores(batch.views[0]), batch.views[0])

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, str | float]]:
        return super().decode(outputs) if self.catalogue is None else self.catalogue.decode(outputs)

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        return {} if self.catalogue is None else {"bias": self.catalogue.rows}
