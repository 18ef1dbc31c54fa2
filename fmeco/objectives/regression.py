"""One number per sample, learned in units of its standard deviation over the training split."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fmeco.core import (
    SHOWN,
    Backbone,
    Batch,
    Cases,
    ConfigError,
    Curves,
    DataSpec,
    Doc,
    Ge,
    Gt,
    Loss,
    Lt,
    Objective,
    Part,
    Target,
)
from fmeco.nn import linear_head
from fmeco.nn.layers import Head
from fmeco.objectives import _boosted_trees

DEFAULT_FOR = ("number",)  # kinds of targets
DRAWN = 1000  # most answers of a report's plot


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    target: Annotated[str, Doc("name of the dataset's target to learn")] = "label",
    loss: Literal["mse", "mae", "huber"] = "mse",
    delta: Annotated[
        float, Doc("error at which huber turns from squared to linear, in standard deviations"), Gt(0)
    ] = 1.0,
    dropout: Annotated[float, Doc("dropout before the head"), Ge(0), Lt(1)] = 0.0,
) -> Objective:
    described = spec.targets.get(target)
    if described is None or described.kind != "number":
        kind = "no such target" if described is None else f"it is of kind {described.kind}"
        raise ConfigError(f"objective regression needs a number target '{target}': {kind}")
    return Regression(backbone, described, target, loss, delta, dropout)


class Regression(Objective):
    vectors_only = True
    directions: Mapping[str, Literal["max", "min"]] = {"rmse": "min", "mae": "min", "r2": "max"}

    def __init__(self, backbone: Backbone, scale: Target, target: str, kind: str, delta: float, dropout: float) -> None:
        super().__init__()
        self.backbone, self.scale, self.target, self.kind, self.delta = backbone, scale, target, kind, delta
        self.head = Head(backbone.width, 1, dropout)
        self.baselines = {"gbdt": functools.partial(_boosted_trees.regress, target)}

    def scaled(self, batch: Batch) -> Tensor:
        """Predict the target (B,), in standard deviations from its mean."""
        scores: Tensor = self.head(self.backbone(batch.views[0]).vector)
        return scores.float()[:, 0]

    def unscaled(self, scaled: Tensor) -> Tensor:
        """Turn predictions (B,) into the target's units: in float64 for targets in float64, whose mean may be large."""
        return scaled * self.scale.std + self.scale.mean

    def loss(self, batch: Batch) -> Loss:
        value = batch.target[self.target]
        assert isinstance(value, Tensor)
        wanted = ((value - self.scale.mean) / self.scale.std).float()
        got = self.scaled(batch)
        if self.kind == "mse":
            return Loss(F.mse_loss(got, wanted, reduction="sum"), len(got))
        if self.kind == "mae":
            return Loss(F.l1_loss(got, wanted, reduction="sum"), len(got))
        return Loss(F.huber_loss(got, wanted, reduction="sum", delta=self.delta), len(got))

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        value = batch.target[self.target]
        assert isinstance(value, Tensor)
        return {"value": value, "predicted": self.unscaled(self.scaled(batch).to("cpu", value.dtype))}

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        value, error = rows["value"].double(), (rows["predicted"] - rows["value"]).double()  # (N,)
        out = {"rmse": float(error.square().mean().sqrt()), "mae": float(error.abs().mean())}
        spread = float((value - value.mean()).square().sum())
        return out | ({"r2": 1 - float(error.square().sum()) / spread} if spread > 0 else {})

    def solve(self, rows: Mapping[str, Tensor], penalties: Mapping[str, float]) -> dict[str, float]:
        """Write the head by ridge regression, whichever loss training has."""
        wanted = (rows[f"target/{self.target}"] - self.scale.mean) / self.scale.std
        data = linear_head.examples(rows["vector"], wanted, "squares", rows["weight"])
        return linear_head.solve(self.head, data, self.target, penalties)

    def page(self, rows: dict[str, Tensor]) -> list[Part]:
        value, predicted = rows["value"].double(), rows["predicted"].double()
        drawn = torch.arange(0, len(value), -(-len(value) // DRAWN))
        points = tuple(sorted(zip(value[drawn].tolist(), predicted[drawn].tolist(), strict=True)))
        worst = (predicted - value).abs().argsort(descending=True, stable=True)[:SHOWN].tolist()
        captions = tuple(f"{float(value[i]):.4g}: answered {float(predicted[i]):.4g}" for i in worst)
        return [
            Curves("Answers", "true value", "answer", {"": points}, connected=False, diagonal=True),
            Cases("Largest errors", tuple(worst), captions),
        ]

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"value": self.unscaled(self.scaled(batch).to("cpu", torch.float64))}

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, str | float]]:
        return [{"prediction": value} for value in outputs["value"].tolist()]
