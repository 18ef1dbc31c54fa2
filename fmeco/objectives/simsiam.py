"""Experimental. Predict one view's projection from the other's, which is held still. Needs no labels, and no large batches."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import Backbone, Batch, DataSpec, Doc, Gt, Objective
from fmeco.objectives._pairs import Pairs, projector


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    projection: Annotated[int, Doc("width of the projector's layers; the predictor's is a quarter"), Gt(3)] = 512,
) -> Objective:
    head = nn.Sequential(
        projector(backbone.width, projection, projection, layers=3), nn.BatchNorm1d(projection, affine=False)
    )
    return SimSiam(backbone, spec, head, projector(projection, projection // 4, projection, layers=2))


def similarity(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Minus the cosine similarity (B,) of predictions (B, D) and what they are to be, which gets no gradient.
    https://arxiv.org/abs/2011.10566 equations (1) and (3)."""
    return -F.cosine_similarity(predicted, wanted.detach(), dim=1)


class SimSiam(Pairs):
    cause = "the learning rate may be too high"

    def __init__(self, backbone: Backbone, spec: DataSpec, head: nn.Module, predictor: nn.Module) -> None:
        super().__init__(backbone, spec, head)
        self.predictor = predictor

    def compare(self, one: Tensor, other: Tensor, batch: Batch) -> Tensor:
        return (similarity(self.predictor(one), other) + similarity(self.predictor(other), one)) / 2
