"""Bring two views of a sample together, while each dimension keeps its variance and dimensions stay uncorrelated. Needs no labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import Backbone, Doc, Ge, Gt, Objective
from fmeco.objectives._pairs import Pairs, projector

EPS = 1e-4  # added to variances before the square root


def build(
    backbone: Backbone,
    *,
    invariance: Annotated[float, Doc("weight of the distance of the two views"), Ge(0)] = 25.0,
    variance: Annotated[
        float, Doc("weight of the variance term, which keeps dimensions from becoming constant"), Ge(0)
    ] = 25.0,
    covariance: Annotated[float, Doc("weight of the covariance term, which decorrelates dimensions"), Ge(0)] = 1.0,
    projection: Annotated[int, Doc("width of the projector's layers"), Gt(0)] = 512,
) -> Objective:
    head = projector(backbone.width, projection, projection, layers=3)
    return VICReg(backbone, head, invariance, variance, covariance)


def terms(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the three terms of the loss from the projections of two views (B, D).

    Returns, in this order:
    distance: squared distance of each pair, mean over D (B,); equation (5).
    short: how far standard deviations are below 1, mean over D, summed over both views (); equation (1).
    shared: squared covariances of different dimensions, summed and divided by D, summed over both views (); equation (3).
    https://arxiv.org/abs/2105.04906
    """
    distance = (first - second).square().mean(1)
    short, shared = first.new_zeros(()), first.new_zeros(())
    for z in (first, second):
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

    def losses(self, first: Tensor, second: Tensor, *rest: Tensor, target: Mapping[str, Tensor | list[Any]]) -> Tensor:
        distance, short, shared = terms(first, second)
        invariance, variance, covariance = self.weights
        return invariance * distance + variance * short + covariance * shared
