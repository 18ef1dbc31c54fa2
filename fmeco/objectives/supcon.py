"""Supervised contrastive learning: pull views of the same class together; a sample without a label is a class of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fmeco.core import Backbone, ConfigError, DataSpec, Doc, Gt, Objective
from fmeco.objectives._pairs import Pairs, projector


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    temperature: Annotated[float, Doc("softmax temperature of the similarities"), Gt(0)] = 0.1,
    hidden: Annotated[int | None, Doc("width of the projector's hidden layer; null = the backbone's"), Gt(0)] = None,
    projection: Annotated[int, Doc("width of the projections"), Gt(0)] = 128,
) -> Objective:
    name = next((name for name, described in spec.targets.items() if described.kind == "class"), None)
    if name is None:
        raise ConfigError(
            "objective supcon needs a class target, and this dataset has none", "objective: simclr needs no classes"
        )
    head = projector(backbone.width, hidden or backbone.width, projection, layers=2)
    return SupCon(backbone, head, name, temperature)


def supervised(first: Tensor, second: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compute the supervised contrastive loss of each sample (B,), the mean over its two views.

    first, second: projections of the two views (B, D).
    labels: classes (B,); -1 = unknown.
    https://arxiv.org/abs/2004.11362 equation (2).
    """
    z = F.normalize(torch.cat([first, second]), dim=1)  # (2B, D)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    likely = (z @ z.T / temperature).masked_fill(itself, -torch.inf).log_softmax(1)
    own = torch.where(labels < 0, -1 - torch.arange(len(labels), device=labels.device), labels).repeat(2)
    positive = own[:, None].eq(own) & ~itself
    losses = -likely.masked_fill(~positive, 0.0).sum(1) / positive.sum(1)
    return losses.view(2, -1).mean(0)


class SupCon(Pairs):
    cause = "the learning rate may be too high, or the temperature too low"
    flat = 0.0  # no lower bound: with two classes the projections span only one direction

    def __init__(self, backbone: Backbone, head: torch.nn.Module, target: str, temperature: float) -> None:
        super().__init__(backbone, head)
        self.target, self.temperature = target, temperature

    def losses(self, first: Tensor, second: Tensor, *rest: Tensor, target: Mapping[str, Tensor | list[Any]]) -> Tensor:
        labels = target[self.target]
        assert isinstance(labels, Tensor)
        return supervised(first, second, labels, self.temperature)
