"""Experimental. Correlate each dimension across two views of a sample, and decorrelate different dimensions. Needs no labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import Backbone, Doc, Ge, Gt, Objective
from fmeco.objectives._pairs import Pairs, projector

EPS = 1e-5  # smallest norm of a dimension over the batch, so that a constant dimension has correlation 0


def build(
    backbone: Backbone,
    *,
    redundancy: Annotated[float, Doc("weight of the correlations of different dimensions"), Ge(0)] = 5e-3,
    projection: Annotated[int, Doc("width of the projector's layers"), Gt(1)] = 512,
) -> Objective:
    head = projector(backbone.width, projection, projection, layers=3)
    return BarlowTwins(backbone, head, redundancy)


def correlation_loss(first: Tensor, second: Tensor, redundancy: float) -> Tensor:
    """Compute the loss of a batch () from the projections of two views (B, D).

    With C (D, D) the correlations of the two views over the batch, the loss is
    sum_i (1 - C_ii)^2 + redundancy * sum_(i != j) C_ij^2: https://arxiv.org/abs/2103.03230 equations (1) and (2).
    Projections are centred over the batch (section 2).
    """
    first, second = (F.normalize(z - z.mean(0), dim=0, eps=EPS) for z in (first, second))
    correlation = first.T @ second  # (D, D)
    same = correlation.diagonal()
    different = correlation.square().sum() - same.square().sum()
    return (1 - same).square().sum() + redundancy * different


class BarlowTwins(Pairs):
    cause = "objective.redundancy may be too small, or the learning rate too high"

    def __init__(self, backbone: Backbone, head: nn.Module, redundancy: float) -> None:
        super().__init__(backbone, head)
        self.redundancy = redundancy

    def losses(self, first: Tensor, second: Tensor, *rest: Tensor, target: Mapping[str, Tensor | list[Any]]) -> Tensor:
        """Divide the batch's loss by D, so that the size of the gradient does not grow with the width."""
        return correlation_loss(first, second, self.redundancy).div(first.shape[1]).expand(len(first))
