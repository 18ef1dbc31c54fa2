"""What to recommend next: the whole catalogue ranked for each history, and how well that foretells what was taken.

Ranks are among all items, not among a few that are drawn: such samples can order methods wrongly
(https://doi.org/10.1145/3394486.3403226). Each sample has one right answer, its last item.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fmeco.core import Batch, DataSpec, Inputs, Objective
from fmeco.nn.ids import FIRST_ITEM

TOP = 10  # items that are recommended, and that metrics look at

DIRECTIONS: Mapping[str, Literal["max", "min"]] = {
    f"ndcg@{TOP}": "max",
    f"hr@{TOP}": "max",
    "mrr": "max",
    f"coverage@{TOP}": "max",
}


def asked(inputs: Inputs) -> tuple[Inputs, Tensor]:
    """Sequences -> the histories without their last item, and that item (B,)."""
    tokens = inputs["tokens"]
    last = tokens.ne(0).sum(1, keepdim=True) - 1  # (B, 1)
    return {**inputs, "tokens": tokens.scatter(1, last, 0)}, tokens.gather(1, last)[:, 0]


def rank(scores: Tensor, wanted: Tensor) -> Tensor:
    """The rank (B,) of ids (B,) by scores (B, ids), from 1; ties go to the lower id. 0 where the score is -inf: the item
    cannot be recommended, which is a miss."""
    own = scores.gather(1, wanted[:, None])  # (B, 1)
    earlier = torch.arange(scores.shape[1], device=scores.device) < wanted[:, None]
    ahead = (scores > own) | ((scores == own) & earlier)
    return torch.where(own[:, 0].isinf(), 0, 1 + ahead.sum(1))


class Catalogue(NamedTuple):
    """What may be recommended. items: by id, the first one has FIRST_ITEM. repeats: also what a history holds already."""

    items: tuple[str, ...]
    repeats: bool

    @property
    def rows(self) -> tuple[str, ...]:
        """A name for each id. Names of items have no space at their ends."""
        return (" padding", " unknown", *self.items)

    def allowed(self, scores: Tensor, history: Inputs) -> Tensor:
        """Scores (B, ids) with -inf where there is nothing to recommend."""
        scores = scores.clone()
        scores[:, :FIRST_ITEM] = -torch.inf
        if not self.repeats:
            for name in ("tokens", "seen"):
                if name in history:
                    scores.scatter_(1, history[name], -torch.inf)  # padding is of id 0
        return scores

    def best(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The TOP ids with the highest of the allowed scores (B, ids), 0 where there are fewer, and their probabilities."""
        found, ids = scores.topk(min(TOP, len(self.items)), 1)
        none = found.isinf()
        shares = (found - scores.logsumexp(1, keepdim=True)).exp()
        return ids.masked_fill(none, 0), shares.masked_fill(none, 0.0)

    def answers(self, scores: Tensor, history: Inputs, wanted: Tensor) -> dict[str, Tensor]:
        """Rows for `metrics`, from scores (B, ids) of histories and what came next (B,)."""
        scores = self.allowed(scores, history)
        return {"rank": rank(scores, wanted), "top": self.best(scores)[0]}

    def metrics(self, rows: Mapping[str, Tensor]) -> dict[str, float]:
        """With one right answer of rank r: NDCG is 1 / log2(1 + r) and the hit rate 1 where r is at most TOP, the reciprocal
        rank 1 / r; all are 0 for a miss. coverage: the share of the catalogue that is recommended to anyone."""
        place = rows["rank"].double()
        there, high = place > 0, (place > 0) & (place <= TOP)
        place = place.clamp_min(1)
        used = rows["top"].flatten().bincount(minlength=FIRST_ITEM)[FIRST_ITEM:].count_nonzero()
        found = (
            torch.where(high, 1 / (1 + place).log2(), 0.0).mean(),
            high.double().mean(),
            torch.where(there, 1 / place, 0.0).mean(),
            used / len(self.items),
        )
        return {name: float(value) for name, value in zip(DIRECTIONS, found, strict=True)}

    def predict(self, scores: Tensor, history: Inputs) -> dict[str, Tensor]:
        top, probability = self.best(self.allowed(scores, history))
        return {"top": top, "probability": probability}

    def decode(self, outputs: Mapping[str, Tensor]) -> list[dict[str, str | float]]:
        """The best item, and all that are recommended, the best one first."""
        rows: list[dict[str, str | float]] = []
        for ids, probability in zip(outputs["top"].tolist(), outputs["probability"].tolist(), strict=True):
            names = [self.items[i - FIRST_ITEM] for i in ids if i >= FIRST_ITEM]
            shares = "|".join(f"{p:.6f}" for p in probability[: len(names)])
            best: dict[str, str | float] = {"prediction": "|".join(names[:1]), "probability": probability[0]}
            rows.append({**best, "top": "|".join(names), "top_probabilities": shares})
        return rows


def catalogue(spec: DataSpec) -> Catalogue | None:
    """What may be recommended, where the data is of events."""
    if spec.modality != "events":
        return None
    return Catalogue(tuple(spec.preprocessing["items"]), bool(spec.preprocessing["repeats"]))


class Recommends(Objective):
    """An objective over ids that, of events, is asked what comes next: evaluated and used by ranking the `catalogue`, which
    is None of other data."""

    catalogue: Catalogue | None

    @abstractmethod
    def scores(self, history: Inputs) -> Tensor:
        """How well each id fits as what comes next (B, ids), in full precision: half would give many items one score."""

    @abstractmethod
    def guessed(self, batch: Batch) -> dict[str, Tensor]:
        """`rows` of data that is no events."""

    @abstractmethod
    def measured(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """`metrics` of data that is no events."""

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
