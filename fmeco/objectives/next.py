"""Guess each token from those before it: a causal language model. Needs no labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import Backbone, Batch, ConfigError, Loss, Objective


def build(backbone: Backbone) -> Objective:
    if not backbone.vocabulary or backbone.numbers:
        raise ConfigError(
            f"objective next needs text and a backbone for it, such as transformer, not {type(backbone).__name__}"
        )
    if not backbone.causal:
        raise ConfigError("objective next needs a backbone that does not look ahead", "backbone.causal: true")
    return Next(backbone)


def losses(logits: Tensor, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """-log p(id of t + 1 | ids up to t), from logits (B, T, C), ids and which of them are real (B, T): (B, T - 1), 0 where
    there is no next one; and where there is one (B, T - 1)."""
    wanted, there = ids[:, 1:], real[:, 1:] & real[:, :-1]
    found = F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
    return found * there, there


class Next(Objective):
    directions: Mapping[str, Literal["max", "min"]] = {"perplexity": "min", "loss": "min"}

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.bias = nn.Parameter(torch.zeros(backbone.vocabulary))

    def guess(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (B, T - 1), and which of them count."""
        tokens = self.backbone.tokenize(batch.views[0])
        features = self.backbone(batch.views[0]).tokens
        assert features is not None and tokens.ids is not None
        return losses((self.backbone.scores(features) + self.bias).float(), tokens.ids, tokens.mask)

    def loss(self, batch: Batch) -> Loss:
        found, there = self.guess(batch)
        return Loss(found.sum(), there.sum().clamp_min(1))

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        found, there = self.guess(batch)
        return {"loss": found.sum(1), "tokens": there.sum(1)}

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        loss = float(rows["loss"].double().sum() / rows["tokens"].sum().clamp_min(1))
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}
