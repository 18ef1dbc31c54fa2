"""Experimental. Make dimensions agree across the two views of a sample, and with no other dimension. Needs no labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import Backbone, Doc, Ge, Gt, Objective
from fmeco.objectives._pairs import Pairs, projector

EPS = 1e-5  # the least length of a dimension's column: one that is constant correlates with nothing


def build(
    backbone: Backbone,
    *,
    redundancy: Annotated[float, Doc("weight of the correlations of different dimensions"), Ge(0)] = 5e-3,
    projection: Annotated[int, Doc("width of the projector's layers"), Gt(1)] = 512,
) -> Objective:
    head = projector(backbone.width, projection, projection, layers=3)
    return BarlowTwins(backbone, head, redundancy)


def correlation_loss(one: Tensor, other: Tensor, redundancy: float) -> Tensor:
    """Projections of two views (B, D) -> the loss of the batch (): how far their correlations over the batch (D, D) are
    from the identity, squared and summed, off the diagonal times `redundancy`.

    https://arxiv.org/abs/2103.03230 equations (1) and (2); projections are centred over the batch, as section 2 says.
    """
    one, other = (F.normalize(z - z.mean(0), dim=0, eps=EPS) for z in (one, other))
    found = one.T @ other  # (D, D)
    same = found.diagonal()
    different = found.square().sum() - same.square().sum()
    return (1 - same).square().sum() + redundancy * different


class BarlowTwins(Pairs):
    cause = "objective.redundancy may be too small, or the learning rate too high"

    def __init__(self, backbone: Backbone, head: nn.Module, redundancy: float) -> None:
        super().__init__(backbone, head)
        self.redundancy = redundancy

    def losses(self, one: Tensor, other: Tensor, *rest: Tensor, target: Mapping[str, Tensor | list[Any]]) -> Tensor:
        """Divided by D, so that the gradient's size does not grow with the width."""
        return correlation_loss(one, other, self.redundancy).div(one.shape[1]).expand(len(one))
