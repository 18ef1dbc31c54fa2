"""Each class is a point among the vectors; a sample is of the class whose point is nearest.

https://arxiv.org/abs/1805.03438 section 3.3: cross-entropy of distances. How far a sample is from every point tells
samples of no known class apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import Backbone, Batch, ConfigError, DataSpec, Doc, Gt, Loss, Objective

KIND = "objective"


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    target: Annotated[str, Doc("which target of the dataset")] = "label",
    sharpness: Annotated[float, Doc("factor on squared distances, before they become probabilities"), Gt(0)] = 1.0,
) -> Objective:
    if target not in spec.targets or not spec.targets[target].traits.one_class:
        raise ConfigError(f"the objective prototypes needs a target '{target}' of one class per sample")
    return Prototypes(backbone, target, spec.targets[target].classes, sharpness)


class Prototypes(Objective):
    directions = {"accuracy": "max", "loss": "min"}
    vectors_only = True  # a frozen backbone's vectors are computed once

    def __init__(self, backbone: Backbone, target: str, classes: tuple[str, ...], sharpness: float) -> None:
        super().__init__()
        self.backbone, self.target, self.classes, self.sharpness = backbone, target, classes, sharpness
        self.points = nn.Parameter(0.1 * torch.randn(len(classes), backbone.width))

    def distances(self, batch: Batch) -> Tensor:
        """Squared distances (B, C) from each point, per dimension."""
        vector = self.backbone(batch.views[0]).vector.float()  # (B, D)
        return (vector[:, None] - self.points).square().mean(-1)

    def logits(self, batch: Batch) -> Tensor:
        return -self.sharpness * self.backbone.width * self.distances(batch)

    def loss(self, batch: Batch) -> Loss:
        labels = batch.target[self.target]
        assert isinstance(labels, Tensor)
        return Loss(F.cross_entropy(self.logits(batch), labels, reduction="sum"), len(batch))

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        labels = batch.target[self.target]
        assert isinstance(labels, Tensor)
        return {"logits": self.logits(batch), "label": labels}

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        right = self.correct(rows).double().mean()
        return {"accuracy": float(right), "loss": float(F.cross_entropy(rows["logits"].double(), rows["label"]))}

    def correct(self, rows: dict[str, Tensor]) -> Tensor:
        return rows["logits"].argmax(1) == rows["label"]

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"probability": self.logits(batch).softmax(1), "distance": self.distances(batch).amin(1)}

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, str | float]]:
        best, at = outputs["probability"].max(1)
        each = zip(at.tolist(), best.tolist(), outputs["distance"].tolist(), strict=True)
        return [{"prediction": self.classes[c], "probability": p, "distance": far} for c, p, far in each]

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        return {"points": self.classes}
