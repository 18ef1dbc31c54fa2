"""Predict each token from the ones before it: causal language model, or next item of a user. Needs no labels."""

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

FULL, SAMPLED = 100_000, 1000  # most items for a loss over all of them; number of items drawn if there are more
_NEGATIVES = 0x6E6567


def suits(spec: DataSpec, backbone: Backbone) -> bool:
    """Tell whether this is the default objective for data without targets: yes for causal backbones of ids."""
    return backbone.vocabulary > 0 and backbone.causal and not backbone.numbers


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    negatives: Annotated[
        int | None,
        Doc(
            "for events: number of random items per sequence that the loss compares with; null = all items, or 1,000 of them "
            "if there are more than 100,000"
        ),
        Gt(0),
    ] = None,
) -> Objective:
    if not backbone.vocabulary or backbone.numbers:
        raise ConfigError(
            f"objective next needs text or events and a backbone of ids, such as transformer, not {type(backbone).__name__}"
        )
    if not backbone.causal:
        raise ConfigError("objective next needs a causal backbone", "set backbone.causal: true")
    catalogue = _ranking.catalogue(spec)
    if catalogue is None and negatives is not None:
        raise ConfigError(
            "objective.negatives is for events; on text the loss is always over the whole vocabulary",
            "leave the key out",
        )
    if catalogue is not None:
        count = len(catalogue.items)
        negatives = negatives or (SAMPLED if count > FULL else None)
        if negatives is not None and negatives >= count:
            raise ConfigError(
                f"objective.negatives: {negatives:,}, but there are only {count:,} items",
                "objective.negatives: null uses all of them, at less cost",
            )
    return Next(backbone, catalogue, negatives)


def losses(logits: Tensor, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the losses -log p(id at t + 1 | ids up to t).

    logits: (B, T, C).
    ids: (B, T).
    real: which ids are not padding (B, T).
    Returns (losses (B, T - 1), 0 at the end of a sequence; which positions have a next id (B, T - 1)).
    """
    wanted, valid = ids[:, 1:], real[:, 1:] & real[:, :-1]
    entropies = F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
    return entropies * valid, valid


def draw(keys: Tensor, count: int, items: int) -> Tensor:
    """Draw ids (B, count) of items uniformly. They depend on keys (B,) only, not on the rest of the batch."""
    return FIRST_ITEM + (mix(_NEGATIVES, keys[:, None], torch.arange(count)) >> 1) % items


def sampled_losses(right: Tensor, others: Tensor, same: Tensor, items: int) -> Tensor:
    """Compute -log p (B, T) of the right item against K items drawn uniformly from all.

    right: score of the right item (B, T).
    others: scores of the drawn items (B, T, K).
    same: which drawn items are the right one (B, T, K); they are left out.
    items: number of all items.
    Each drawn item stands for items / K items: with log(items / K) added to its score, the expected sum of exponentials is
    that over all items. https://arxiv.org/abs/1412.2007 section 3; importance sampling of a softmax:
    https://doi.org/10.1109/TNN.2007.912312.
    """
    others = (others + math.log(items / others.shape[-1])).masked_fill(same, -torch.inf)
    return torch.cat([right.unsqueeze(-1), others], -1).logsumexp(-1) - right


class Next(Recommends):
    """Predict the next token.

    events: SASRec (https://arxiv.org/abs/1808.09781) with cross-entropy over all items, which closes its gap to BERT4Rec
        (https://arxiv.org/abs/2309.07602).
    """

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
        """Compute the losses (B, T - 1), and which of them count (B, T - 1)."""
        tokens = self.backbone.tokenize(batch.views[0])
        features = self.backbone(batch.views[0]).tokens
        assert features is not None and tokens.ids is not None
        if self.negatives is None or self.catalogue is None:
            return losses((self.backbone.scores(features) + self.bias).float(), tokens.ids, tokens.mask)
        items, features = len(self.catalogue.items), features[:, :-1]
        wanted, valid = tokens.ids[:, 1:], tokens.mask[:, 1:]
        drawn = draw(batch.keys[0], self.negatives, items).to(wanted.device)  # (B, K)
        right = (features * self.backbone.embedded(wanted)).sum(-1) + self.bias[wanted]  # (B, T - 1)
        others = features @ self.backbone.embedded(drawn).mT + self.bias[drawn].unsqueeze(1)  # (B, T - 1, K)
        same = wanted.unsqueeze(-1) == drawn.unsqueeze(1)
        return sampled_losses(right.float(), others.float(), same, items) * valid, valid

    def scores(self, history: Inputs) -> Tensor:
        features = self.backbone(history).tokens
        assert features is not None
        last = history["tokens"].ne(0).sum(1).sub(1).clamp_min(0)  # (B,)
        with torch.autocast(features.device.type, enabled=False):
            newest = features[torch.arange(len(last), device=last.device), last].float()
            return self.backbone.scores(newest) + self.bias

    def loss(self, batch: Batch) -> Loss:
        losses, valid = self.guess(batch)
        return Loss(losses.sum(), valid.sum().clamp_min(1))

    def guessed(self, batch: Batch) -> dict[str, Tensor]:
        losses, valid = self.guess(batch)
        return {"loss": losses.sum(1), "tokens": valid.sum(1)}

    def measured(self, rows: dict[str, Tensor]) -> dict[str, float]:
        loss = float(rows["loss"].double().sum() / rows["tokens"].sum().clamp_min(1))
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}
