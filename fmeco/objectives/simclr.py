"""Contrastive learning: identify the other view of each sample among all views of the batch. Needs no labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fmeco.core import Backbone, Doc, Gt, Objective
from fmeco.objectives._pairs import Pairs, projector


def build(
    backbone: Backbone,
    *,
    temperature: Annotated[float, Doc("softmax temperature of the similarities"), Gt(0)] = 0.2,
    hidden: Annotated[int | None, Doc("width of the projector's hidden layer; null = the backbone's"), Gt(0)] = None,
    projection: Annotated[int, Doc("width of the projections"), Gt(0)] = 128,
) -> Objective:
    head = projector(backbone.width, hidden or backbone.width, projection, layers=2)
    return SimCLR(backbone, head, temperature)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Compute the NT-Xent loss of each sample (B,) from the projections of two views (B, D).

    It is the mean cross-entropy of the sample's two views, each against the 2B - 1 other views of the batch.
    https://arxiv.org/abs/2002.05709 equation (1).
    """
    z = F.normalize(torch.cat([first, second]), dim=1)  # (2B, D)
    alike = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(first))
    return F.cross_entropy(alike, partner, reduction="none").view(2, -1).mean(0)


class SimCLR(Pairs):
    cause = "batches may be too small, or the augmentation too weak"

    def __init__(self, backbone: Backbone, head: torch.nn.Module, temperature: float) -> None:
        super().__init__(backbone, head)
        self.temperature = temperature

    def losses(self, first: Tensor, second: Tensor, *rest: Tensor, target: Mapping[str, Tensor | list[Any]]) -> Tensor:
        return nt_xent(first, second, self.temperature)
