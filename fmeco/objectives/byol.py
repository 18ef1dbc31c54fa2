"""Experimental. Predict a momentum teacher's projection of the other view. Needs no labels and no large batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import Backbone, Batch, Doc, Gt, Objective, TeacherMomentum
from fmeco.objectives._pairs import Pairs, projector
from fmeco.objectives._teacher import MovingTeacher, momentum


def build(
    backbone: Backbone,
    *,
    momentum: TeacherMomentum = 0.99,
    hidden: Annotated[int, Doc("width of the hidden layers of projector and predictor"), Gt(0)] = 1024,
    projection: Annotated[int, Doc("width of the projections"), Gt(0)] = 256,
) -> Objective:
    head = projector(backbone.width, hidden, projection, layers=2)
    return BYOL(backbone, head, projector(projection, hidden, projection, layers=2), momentum)


def distance(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Compute the squared distance (...) of normalised predictions and targets (..., D): 2 - 2 cosine.

    https://arxiv.org/abs/2006.07733 equation (2).
    """
    return 2 - 2 * F.cosine_similarity(predicted, wanted, dim=-1)


class BYOL(Pairs):
    """Train a student to predict the projections of its moving average.

    Not coupled: the loss of a sample depends on the rest of the batch through batch norm only.
    """

    coupled = False
    cause = "the learning rate may be too high, or objective.momentum too small"

    def __init__(self, backbone: Backbone, head: nn.Module, predictor: nn.Module, momentum: float) -> None:
        super().__init__(backbone, head)
        self.predictor, self.momentum = predictor, momentum
        self.teacher = MovingTeacher(backbone, head)

    def represent(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute the predictions (B, 2, D) from each view, and the teacher's projections (B, 2, D) of the other view."""
        first, second = batch.views
        wanted = torch.stack([self.teacher(second), self.teacher(first)], 1)
        predicted = [self.predictor(self.projector(self.backbone(view).vector)) for view in (first, second)]
        return torch.stack(predicted, 1).float(), wanted

    def losses(self, first: Tensor, second: Tensor, *rest: Tensor, target: Mapping[str, Tensor | list[Any]]) -> Tensor:
        return distance(first, second).sum(1)

    def begin(self) -> None:
        self.teacher.begin(self.backbone, self.projector)

    def after_step(self, progress: float) -> None:
        """Move the teacher. https://arxiv.org/abs/2006.07733 equation (1)."""
        self.teacher.follow(self.backbone, self.projector, momentum(self.momentum, progress))
