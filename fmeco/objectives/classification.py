"""One class per sample: cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fmeco.augment._mixing import mix_batch
from fmeco.core import Backbone, Batch, ConfigError, DataSpec, Doc, Ge, Inputs, Loss, Lt, Objective, listing, nearest
from fmeco.nn import Head, mirrored, roc_auc


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    target: Annotated[str, Doc("which target of the dataset")] = "label",
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
    class_weights: Annotated[
        Literal["balanced"] | dict[str, float] | None,
        Doc("weight of each class in the loss, by name; balanced = inverse to its count"),
    ] = None,
    dropout: Annotated[float, Doc("before the head"), Ge(0), Lt(1)] = 0.0,
    mixup: Annotated[float, Doc("alpha of mixup, 0 = off"), Ge(0)] = 0.0,
    cutmix: Annotated[float, Doc("alpha of cutmix (images), 0 = off"), Ge(0)] = 0.0,
    test_flip: Annotated[bool, Doc("evaluate and predict with the mean of an image and its mirror image")] = False,
) -> Objective:
    described = spec.targets.get(target)
    if described is None or described.kind != "class":
        kind = "no such target" if described is None else f"it is of kind {described.kind}"
        raise ConfigError(f"objective classification needs a class target '{target}': {kind}")
    if (cutmix or test_flip) and any(len(one.shape) != 3 for one in spec.inputs.values()):
        key = "cutmix" if cutmix else "test_flip"
        raise ConfigError(f"objective.{key} is for images", *(["mixup works on any numeric input"] if cutmix else []))
    classes, counts = described.classes, described.counts
    if class_weights == "balanced":
        weights = [sum(counts) / (len(classes) * n) if n else 0.0 for n in counts] or None
    elif class_weights is not None:
        if strange := [name for name in class_weights if name not in classes]:
            raise ConfigError(
                f"objective.class_weights names {listing(strange)}, not a class of this dataset{nearest(strange[0], classes)}"
            )
        weights = [float(class_weights.get(name, 1.0)) for name in classes]
    else:
        weights = None
    return Classification(backbone, classes, target, label_smoothing, weights, dropout, mixup, cutmix, test_flip)


def cross_entropy(
    logits: Tensor, label: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | float]:
    """Cross-entropy of logits (B, C) for labels (B,): the weighted sum over samples, and the sum of their weights.

    Smoothing as in https://arxiv.org/abs/1512.00567 section 7; sum / weights equals torch's F.cross_entropy mean.
    """
    total = F.cross_entropy(logits, label, weights, reduction="sum", label_smoothing=smoothing)
    return total, float(len(label)) if weights is None else weights[label].sum()


class Classification(Objective):
    directions: Mapping[str, Literal["max", "min"]] = {
        "accuracy": "max",
        "loss": "min",
        "macro_f1": "max",
        "top5": "max",
        "auc": "max",
    }

    weights: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        classes: tuple[str, ...],
        target: str,
        smoothing: float,
        weights: list[float] | None,
        dropout: float,
        mixup: float,
        cutmix: float,
        test_flip: bool,
    ) -> None:
        super().__init__()
        self.test_flip = test_flip
        self.vectors_only = not (mixup or cutmix or test_flip)
        self.backbone, self.classes, self.target = backbone, classes, target
        self.smoothing, self.mixup, self.cutmix = smoothing, mixup, cutmix
        self.head = Head(backbone.width, len(classes), dropout)
        # Not a weight to learn nor to share: it is a setting, made anew from the config.
        self.register_buffer("weights", None if weights is None else torch.tensor(weights), persistent=False)

    def logits(self, inputs: Inputs) -> Tensor:
        scores: Tensor = self.head(self.backbone(inputs).vector)
        return scores.float()  # (B, C); the loss is not for half precision

    def answer(self, batch: Batch) -> Tensor:
        """The logits (B, C) that are evaluated and used."""
        logits = self.logits(batch.views[0])
        return (logits + self.logits(mirrored(batch.views[0]))) / 2 if self.test_flip else logits

    def loss(self, batch: Batch) -> Loss:
        label = batch.target[self.target]
        assert isinstance(label, Tensor)
        if not (self.mixup or self.cutmix) or len(batch) < 2:
            return Loss(*cross_entropy(self.logits(batch.views[0]), label, self.smoothing, self.weights))
        inputs, partner, lam = mix_batch(batch.views[0], batch.keys[0], self.mixup, self.cutmix)
        logits = self.logits(inputs)
        own, own_count = cross_entropy(logits, label, self.smoothing, self.weights)
        other, other_count = cross_entropy(logits, label[partner.to(label.device)], self.smoothing, self.weights)
        return Loss(lam * own + (1 - lam) * other, lam * own_count + (1 - lam) * other_count)

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        label = batch.target[self.target]
        assert isinstance(label, Tensor)
        return {"logits": self.answer(batch), "label": label}

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        logits, label = rows["logits"], rows["label"]  # (N, C), (N,)
        predicted = logits.argmax(1)
        classes = logits.shape[1]
        out = {
            "accuracy": float((predicted == label).double().mean()),
            "loss": float(F.cross_entropy(logits.double(), label)),
        }
        support = label.bincount(minlength=classes)
        hits = label[predicted == label].bincount(minlength=classes)
        claimed = predicted.bincount(minlength=classes)
        seen = (support + claimed) > 0  # as scikit-learn: classes neither present nor predicted do not count
        out["macro_f1"] = float((2 * hits.double() / (support + claimed).clamp_min(1))[seen].mean())
        if classes > 5:
            out["top5"] = float((logits.topk(5).indices == label[:, None]).any(1).double().mean())
        probability = logits.double().softmax(1)
        if classes == 2:
            auc = roc_auc(probability[:, 1], label == 1)
        else:
            auc = sum(roc_auc(probability[:, c], label == c) for c in range(classes)) / classes
        if auc == auc:  # not a number when a class has no samples
            out["auc"] = auc
        return out | {
            f"recall/{name}": int(hits[c]) / int(support[c]) for c, name in enumerate(self.classes) if support[c]
        }

    def correct(self, rows: dict[str, Tensor]) -> Tensor:
        return rows["logits"].argmax(1) == rows["label"]

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"probability": self.answer(batch).softmax(1)}

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, str | float]]:
        best, at = outputs["probability"].max(1)
        return [
            {"prediction": self.classes[i], "probability": p} for i, p in zip(at.tolist(), best.tolist(), strict=True)
        ]

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        return {"head.weight": self.classes, "head.bias": self.classes}
