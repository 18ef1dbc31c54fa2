"""Experimental. Predict one view's projection from the other view, with a stop-gradient. Needs no labels and no large batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import Backbone, Batch, Doc, Gt, Objective
from fmeco.objectives._pairs import Pairs, projector


def build(
    backbone: Backbone,
    *,
    projection: Annotated[
        int, Doc("width of the projector's layers; the predictor's hidden layer is a quarter of it"), Gt(3)
    ] = 512,
) -> Objective:
    head = nn.Sequential(
        projector(backbone.width, projection, projection, layers=3), nn.BatchNorm1d(projection, affine=False)
    )
    return SimSiam(backbone, head, projector(projection, projection // 4, projection, layers=2))


def similarity(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Compute the negative cosine similarity (B,) of predictions and targets (B, D); the targets get no gradient.

    https://arxiv.org/abs/2011.10566 equations (1) and (3).
    """
    return -F.cosine_similarity(predicted, wanted.detach(), dim=1)


class SimSiam(Pairs):
    cause = "the learning rate may be too high"

    def __init__(self, backbone: Backbone, head: nn.Module, predictor: nn.Module) -> None:
        super().__init__(backbone, head)
        self.predictor = predictor

    def represent(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute the projections (B, D) of the two views, and the prediction of the other view from each."""
        first, second = super().represent(batch)
        return first, second, self.predictor(first).float(), self.predictor(second).float()

    def losses(self, first: Tensor, second: Tensor, *rest: Tensor, target: Mapping[str, Tensor | list[Any]]) -> Tensor:
        of_second, of_first = rest
        return (similarity(of_second, second) + similarity(of_first, first)) / 2
