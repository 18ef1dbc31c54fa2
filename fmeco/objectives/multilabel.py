"""Any number of labels per sample, each learned with binary cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fmeco.core import Backbone, Batch, ConfigError, DataSpec, Doc, Ge, Gt, Loss, Lt, Objective, Part
from fmeco.nn import linear_head
from fmeco.nn.class_report import per_class
from fmeco.nn.layers import Head
from fmeco.nn.metrics import average_precision, roc_auc

DEFAULT_FOR = ("multilabel",)  # kinds of targets


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    target: Annotated[str, Doc("name of the dataset's target to learn")] = "label",
    pos_weight: Annotated[
        Annotated[float, Gt(0)] | Literal["balanced"] | None,
        Doc("weight of a present label in the loss; balanced = absent / present samples, per label; null = 1"),
    ] = None,
    threshold: Annotated[float, Doc("probability from which a label is predicted"), Gt(0), Lt(1)] = 0.5,
    dropout: Annotated[float, Doc("dropout before the head"), Ge(0), Lt(1)] = 0.0,
) -> Objective:
    described = spec.targets.get(target)
    if described is None or described.kind != "multilabel":
        kind = "no such target" if described is None else f"it is of kind {described.kind}"
        raise ConfigError(f"objective multilabel needs a multilabel target '{target}': {kind}")
    samples, weights = spec.sizes.get("train", 0) - described.missing, None
    if pos_weight == "balanced" and described.counts:
        weights = [min(100.0, (samples - n) / n) if n else 1.0 for n in described.counts]
    elif isinstance(pos_weight, float | int):
        weights = [float(pos_weight)] * len(described.classes)
    return Multilabel(backbone, described.classes, target, weights, threshold, dropout)


class Multilabel(Objective):
    vectors_only = True
    directions: Mapping[str, Literal["max", "min"]] = {
        "mean_ap": "max",
        "loss": "min",
        "macro_f1": "max",
        "exact_match": "max",
        "auc": "max",
    }

    weights: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        classes: tuple[str, ...],
        target: str,
        weights: list[float] | None,
        threshold: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.backbone, self.classes, self.target, self.threshold = backbone, classes, target, threshold
        self.head = Head(backbone.width, len(classes), dropout)
        self.register_buffer("weights", None if weights is None else torch.tensor(weights), persistent=False)

    def logits(self, batch: Batch) -> Tensor:
        scores: Tensor = self.head(self.backbone(batch.views[0]).vector)
        return scores.float()  # (B, C)

    def loss(self, batch: Batch) -> Loss:
        logits, label = self.logits(batch), batch.target[self.target]
        assert isinstance(label, Tensor)
        total = F.binary_cross_entropy_with_logits(logits, label.float(), pos_weight=self.weights, reduction="sum")
        return Loss(total / logits.shape[1], len(logits))

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        label = batch.target[self.target]
        assert isinstance(label, Tensor)
        return {"logits": self.logits(batch), "label": label}

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        logits, label = rows["logits"].double(), rows["label"].bool()  # (N, C) both
        predicted = logits.sigmoid() >= self.threshold
        present = label.any(0) & ~label.all(0)
        both = [c for c in range(len(self.classes)) if present[c]]
        out = {
            "loss": float(F.binary_cross_entropy_with_logits(logits, label.double())),
            "exact_match": float((predicted == label).all(1).double().mean()),
        }
        hits, total = (predicted & label).sum(0).double(), (predicted.sum(0) + label.sum(0)).double()
        seen = total > 0
        out["macro_f1"] = float((2 * hits / total.clamp_min(1))[seen].mean()) if seen.any() else 0.0
        if both:
            out["mean_ap"] = sum(average_precision(logits[:, c], label[:, c]) for c in both) / len(both)
            out["auc"] = sum(roc_auc(logits[:, c], label[:, c]) for c in both) / len(both)
        return out | {
            f"recall/{name}": float(hits[c] / label[:, c].sum())
            for c, name in enumerate(self.classes)
            if label[:, c].any()
        }

    def solve(self, rows: Mapping[str, Tensor], penalties: Mapping[str, float]) -> dict[str, float]:
        label = rows[f"target/{self.target}"].float()
        weight = rows["weight"][:, None]
        if self.weights is not None:
            weight = weight * (1 + (self.weights.cpu() - 1) * label)
        data = linear_head.examples(rows["vector"], label, "sigmoid", weight)
        return linear_head.solve(self.head, data, self.target, penalties)

    def page(self, rows: dict[str, Tensor]) -> list[Part]:
        predicted, label = rows["logits"].double().sigmoid() >= self.threshold, rows["label"].bool()
        hits, support, claimed = (each.sum(0).tolist() for each in (predicted & label, label, predicted))
        return [per_class(self.classes, hits, support, claimed)]

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"probability": self.logits(batch).sigmoid()}

    def class_probabilities(self, outputs: dict[str, Tensor]) -> tuple[tuple[str, ...], Tensor]:
        return self.classes, outputs["probability"]

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, str | float]]:
        """Return the predicted labels of each sample.

        prediction: the labels, joined by |.
        probability: that of the least certain predicted label; without one, that of no label being present.
        """
        rows: list[dict[str, str | float]] = []
        for probability in outputs["probability"]:
            chosen = [c for c in range(len(self.classes)) if probability[c] >= self.threshold]
            sure = min(float(probability[c]) for c in chosen) if chosen else float(1 - probability.max())
            rows.append({"prediction": "|".join(self.classes[c] for c in chosen), "probability": sure})
        return rows

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        return {"head.weight": self.classes, "head.bias": self.classes}
