"""Bring the two views of a sample together while every dimension keeps varying, and none repeats another. Needs no labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import Backbone, Doc, Ge, Gt, Objective
from fmeco.objectives._pairs import Pairs, projector

EPS = 1e-4


def build(
    backbone: Backbone,
    *,
    invariance: Annotated[float, Doc("weight of the distance of two views"), Ge(0)] = 25.0,
    variance: Annotated[float, Doc("weight of what keeps dimensions from becoming constant"), Ge(0)] = 25.0,
    covariance: Annotated[float, Doc("weight of what keeps dimensions apart"), Ge(0)] = 1.0,
    projection: Annotated[int, Doc("width of the projector's layers"), Gt(0)] = 512,
) -> Objective:
    head = projector(backbone.width, projection, projection, layers=3)
    return VICReg(backbone, head, invariance, variance, covariance)


def terms(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Projections of two views (B, D) -> the squared distance of each pair, a mean over D (B,); and of both views together how
    far deviations are below 1, a mean over D, and the squared covariances of different dimensions, a sum over D.

    https://arxiv.org/abs/2105.04906 equations (1), (3) and (5).
    """
    distance = (one - other).square().mean(1)
    short, shared = one.new_zeros(()), one.new_zeros(())
    for z in (one, other):
        short = short + F.relu(1 - (z.var(0) + EPS).sqrt()).mean()
        centred = z - z.mean(0)
        square = (centred.T @ centred / (len(z) - 1)).square()
        shared = shared + (square.sum() - square.diagonal().sum()) / z.shape[1]
    return distance, short, shared


class VICReg(Pairs):
    cause = "objective.variance may be too small"
    directed = False

    def __init__(
        self, backbone: Backbone, head: nn.Module, invariance: float, variance: float, covariance: float
    ) -> None:
        super().__init__(backbone, head)
        self.weights = (invariance, variance, covariance)

    def losses(self, one: Tensor, other: Tensor, *rest: Tensor, target: Mapping[str, Tensor | list[Any]]) -> Tensor:
        distance, short, shared = terms(one, other)
        invariance, variance, covariance = self.weights
        return invariance * distance + variance * short + covariance * shared
