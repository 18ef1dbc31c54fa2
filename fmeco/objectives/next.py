"""Guess each token from those before it: a causal language model, or what a user takes next. Needs no labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import Backbone, Batch, ConfigError, DataSpec, Doc, Gt, Inputs, Loss, Objective, mix
from fmeco.nn.ids import FIRST_ITEM
from fmeco.objectives import _popular_items, _ranking
from fmeco.objectives._ranking import Catalogue, Recommends

FULL, SAMPLED = 100_000, 1000  # items up to which the loss is over all of them, and how many are drawn of more
_NEGATIVES = 0x6E6567


def suits(spec: DataSpec, backbone: Backbone) -> bool:
    """Say whether this objective is the default for data without targets: a causal backbone of ids learns what comes next."""
    return backbone.vocabulary > 0 and backbone.causal and not backbone.numbers


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    negatives: Annotated[
        int | None,
        Doc("of events: the loss is over so many items, drawn for each sequence; null = over all, up to 100,000 items"),
        Gt(0),
    ] = None,
) -> Objective:
    if not backbone.vocabulary or backbone.numbers:
        raise ConfigError(
            f"objective next needs text or events, and a backbone for them, such as transformer, not {type(backbone).__name__}"
        )
    if not backbone.causal:
        raise ConfigError("objective next needs a backbone that does not look ahead", "backbone.causal: true")
    catalogue = _ranking.catalogue(spec)
    if catalogue is None and negatives is not None:
        raise ConfigError("objective.negatives is for events: of text, the loss is over the whole vocabulary")
    if catalogue is not None:
        count = len(catalogue.items)
        negatives = negatives or (SAMPLED if count > FULL else None)
        if negatives is not None and negatives >= count:
            raise ConfigError(
                f"objective.negatives: {negatives:,} of {count:,} items", "null takes all of them, at less cost"
            )
    return Next(backbone, catalogue, negatives)


def losses(logits: Tensor, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """-log p(id of t + 1 | ids up to t), from logits (B, T, C), ids and which of them are real (B, T): (B, T - 1), 0 where
    there is no next one; and where there is one (B, T - 1)."""
    wanted, there = ids[:, 1:], real[:, 1:] & real[:, :-1]
    found = F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
    return found * there, there


def draw(keys: Tensor, count: int, items: int) -> Tensor:
    """Ids (B, count) of items, each as likely as any other, by keys (B,) alone: who shares a batch changes nothing."""
    return FIRST_ITEM + (mix(_NEGATIVES, keys[:, None], torch.arange(count)) >> 1) % items


def sampled_losses(right: Tensor, others: Tensor, same: Tensor, items: int) -> Tensor:
    """-log p (B, T) of what has the score `right` (B, T), by the scores (B, T, K) of items drawn uniformly from all.

    Each of them stands for items / K: with log(items / K) added, the sum of exponentials is in expectation that of all
    items. `same` (B, T, K): those that are the right one, which is there already. https://arxiv.org/abs/1412.2007 section 3;
    importance sampling of a softmax is https://doi.org/10.1109/TNN.2007.912312.
    """
    others = (others + math.log(items / others.shape[-1])).masked_fill(same, -torch.inf)
    return torch.cat([right.unsqueeze(-1), others], -1).logsumexp(-1) - right


class Next(Recommends):
    """Of events it is SASRec (https://arxiv.org/abs/1808.09781) with cross-entropy over all items, which made the difference
    to BERT4Rec (https://arxiv.org/abs/2309.07602)."""

    def __init__(self, backbone: Backbone, catalogue: Catalogue | None = None, negatives: int | None = None) -> None:
        super().__init__()
        self.backbone, self.catalogue, self.negatives = backbone, catalogue, negatives
        self.bias = nn.Parameter(torch.zeros(backbone.vocabulary))
        text: Mapping[str, Literal["max", "min"]] = {"perplexity": "min", "loss": "min"}
        self.directions = text if catalogue is None else _ranking.DIRECTIONS
        self.baselines = _popular_items.baselines(catalogue)
        if catalogue is not None and negatives is not None:
            self.about = {"loss": f"over {negatives:,} items, drawn for each sequence from {len(catalogue.items):,}"}

    def guess(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (B, T - 1), and which of them count."""
        tokens = self.backbone.tokenize(batch.views[0])
        features = self.backbone(batch.views[0]).tokens
        assert features is not None and tokens.ids is not None
        if self.negatives is None or self.catalogue is None:
            return losses((self.backbone.scores(features) + self.bias).float(), tokens.ids, tokens.mask)
        items, features = len(self.catalogue.items), features[:, :-1]
        wanted, there = tokens.ids[:, 1:], tokens.mask[:, 1:]
        drawn = draw(batch.keys[0], self.negatives, items).to(wanted.device)  # (B, K)
        right = (features * self.backbone.embedded(wanted)).sum(-1) + self.bias[wanted]  # (B, T - 1)
        others = features @ self.backbone.embedded(drawn).mT + self.bias[drawn].unsqueeze(1)  # (B, T - 1, K)
        same = wanted.unsqueeze(-1) == drawn.unsqueeze(1)
        return sampled_losses(right.float(), others.float(), same, items) * there, there

    def scores(self, history: Inputs) -> Tensor:
        features = self.backbone(history).tokens
        assert features is not None
        last = history["tokens"].ne(0).sum(1).sub(1).clamp_min(0)  # (B,)
        with torch.autocast(features.device.type, enabled=False):
            found = features[torch.arange(len(last), device=last.device), last].float()
            return self.backbone.scores(found) + self.bias

    def loss(self, batch: Batch) -> Loss:
        found, there = self.guess(batch)
        return Loss(found.sum(), there.sum().clamp_min(1))

    def guessed(self, batch: Batch) -> dict[str, Tensor]:
        found, there = self.guess(batch)
        return {"loss": found.sum(1), "tokens": there.sum(1)}

    def measured(self, rows: dict[str, Tensor]) -> dict[str, float]:
        loss = float(rows["loss"].double().sum() / rows["tokens"].sum().clamp_min(1))
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}
