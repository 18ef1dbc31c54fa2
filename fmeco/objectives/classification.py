"""One class per sample, learned with cross-entropy."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fmeco.core import (
    Backbone,
    Batch,
    ConfigError,
    DataSpec,
    Doc,
    Ge,
    Gt,
    Inputs,
    Le,
    Loss,
    Lt,
    Objective,
    Part,
    clean,
    listing,
    nearest,
    nfc,
)
from fmeco.nn import linear_head
from fmeco.nn.class_report import class_report
from fmeco.nn.layers import Head
from fmeco.nn.metrics import average_precision, calibration_error, recall_at_precision, roc_auc
from fmeco.nn.mixing import mix_batch
from fmeco.objectives import _boosted_trees

DEFAULT_FOR = ("class",)  # kinds of targets

IGNORED = -100  # label of samples that torch's cross_entropy leaves out


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    target: Annotated[str, Doc("name of the dataset's target to learn")] = "label",
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
    class_weights: Annotated[
        Literal["balanced"] | dict[str, Annotated[float, Ge(0)]] | None,
        Doc(
            "weight of each class in the loss, by name; 0 = samples of the class are left out of the loss; balanced = inverse "
            "to its count; null = equal"
        ),
    ] = None,
    dropout: Annotated[float, Doc("dropout before the head"), Ge(0), Lt(1)] = 0.0,
    mixup: Annotated[float, Doc("alpha of mixup, 0 = off"), Ge(0)] = 0.0,
    cutmix: Annotated[float, Doc("alpha of cutmix (images), 0 = off"), Ge(0)] = 0.0,
    test_flip: Annotated[
        bool, Doc("evaluate and predict with the mean logits of an image and its mirror image")
    ] = False,
    positive: Annotated[
        str | int | None, Doc("with two classes, the positive one; null = the rarer one of the training split")
    ] = None,
    recall_at_precision: Annotated[
        float | None, Doc("with two classes, also measure the recall at this precision"), Gt(0), Le(1)
    ] = None,
    cost: Annotated[
        dict[str, float] | None,
        Doc(
            "with two classes, the cost of each mistake, {false_negative: 5, false_positive: 1}; sets the probability from "
            "which the positive class is predicted"
        ),
    ] = None,
) -> Objective:
    described = spec.targets.get(target)
    if described is None or described.kind != "class":
        kind = "no such target" if described is None else f"it is of kind {described.kind}"
        raise ConfigError(f"objective classification needs a class target '{target}': {kind}")
    if test_flip and spec.modality != "image":
        raise ConfigError(
            f"objective.test_flip is for images; this dataset holds {spec.modality} data", "leave the key out"
        )
    if spec.riders and (mixup or cutmix or test_flip):
        key = "mixup" if mixup else "cutmix" if cutmix else "test_flip"
        raise ConfigError(
            f"objective.{key} would leave the {listing(spec.riders)} of an image behind", "leave the key out"
        )
    if cutmix and any(len(described.shape) != 3 for described in spec.seen.values()):
        raise ConfigError("objective.cutmix is for images", "mixup works on any numeric input")
    classes, counts = described.classes, described.counts
    if class_weights == "balanced":
        weights = [sum(counts) / (len(classes) * n) if n else 0.0 for n in counts] or None
    elif class_weights is not None:
        if strange := [name for name in class_weights if name not in classes]:
            raise ConfigError(
                f"objective.class_weights names {listing(strange)}, not classes of this dataset{nearest(strange[0], classes)}"
            )
        weights = [float(class_weights.get(name, 1.0)) for name in classes]
        if not any(weights):
            raise ConfigError("objective.class_weights: all weights are 0, so there is no loss to learn from")
    else:
        weights = None
    two = _two_classes(classes, counts, positive, recall_at_precision, cost)
    return Classification(backbone, classes, target, label_smoothing, weights, dropout, mixup, cutmix, test_flip, two)


class Two(NamedTuple):
    """Hold the settings of a task with two classes.

    positive: index of the positive class.
    precision: the precision at which recall is measured.
    costs: the cost of a false negative, and of a false positive.
    """

    positive: int
    precision: float | None = None
    costs: tuple[float, float] | None = None

    @property
    def threshold(self) -> float | None:
        """Compute the probability from which the positive class is predicted; None = predict the more probable class.

        It is c_fp / (c_fp + c_fn), where both answers cost the same on average if probabilities are calibrated.
        https://doi.org/10.5555/1642194.1642224 (Elkan 2001), equation 2, with right answers at no cost.
        """
        return None if self.costs is None else self.costs[1] / sum(self.costs)


def _two_classes(
    classes: tuple[str, ...],
    counts: tuple[int, ...],
    positive: str | int | None,
    precision: float | None,
    cost: dict[str, float] | None,
) -> Two | None:
    """Check the keys that are for two classes. Returns None for another number of classes; raises ConfigError."""
    keys = {"positive": positive, "recall_at_precision": precision, "cost": cost}
    if len(classes) != 2:
        if present := [key for key, value in keys.items() if value is not None]:
            raise ConfigError(f"objective.{present[0]} is for two classes, and there are {len(classes)}")
        return None
    names = nfc(classes)
    wanted = None if positive is None else nfc([str(positive)])[0]
    if wanted is not None and wanted not in names:
        raise ConfigError(f"objective.positive: {clean(positive)} is not a class of this dataset: {listing(classes)}")
    if cost is not None and (set(cost) != {"false_negative", "false_positive"} or min(cost.values()) <= 0):
        raise ConfigError("objective.cost: expected two costs above 0, as in {false_negative: 5, false_positive: 1}")
    rarer = 0 if counts and counts[0] < counts[1] else 1
    at = rarer if wanted is None else names.index(wanted)
    return Two(at, precision, None if cost is None else (cost["false_negative"], cost["false_positive"]))


def cross_entropy(
    logits: Tensor, label: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | float]:
    """Compute the cross-entropy of logits (B, C) for labels (B,). Returns (weighted sum over samples, sum of the weights).

    A weight of 0 leaves out the samples of a class, smoothing included.
    Smoothing as in https://arxiv.org/abs/1512.00567 section 7; sum / weights equals the mean of torch's F.cross_entropy.
    """
    if weights is None:
        total = F.cross_entropy(logits, label, reduction="sum", label_smoothing=smoothing)
        return total, float(len(label))
    count = weights[label]
    label = label.masked_fill(count == 0, IGNORED)
    return F.cross_entropy(logits, label, weights, reduction="sum", label_smoothing=smoothing), count.sum()


def mirrored(inputs: Inputs) -> Inputs:
    """Flip the images (B, C, H, W) of a batch horizontally."""
    return {name: x.flip(-1) if x.ndim == 4 else x for name, x in inputs.items()}


class Classification(Objective):
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
        two: Two | None,
    ) -> None:
        super().__init__()
        self.two = two
        self.directions: Mapping[str, Literal["max", "min"]] = {
            "accuracy": "max",
            "loss": "min",
            "macro_f1": "max",
            "top5": "max",
            "auc": "max",
            "ece": "min",
        }
        if two is not None:
            self.directions = {**self.directions, "average_precision": "max", "brier": "min"}
            self.about = {"positive class": classes[two.positive]}
            if two.precision is not None:
                self.recall_at = f"recall_at_p{100 * two.precision:g}"
                self.directions = {**self.directions, self.recall_at: "max"}
            if two.threshold is not None:
                self.directions = {**self.directions, "cost": "min"}
                self.about |= {"threshold": f"{two.threshold:.4g}"}
        self.baselines = {"gbdt": functools.partial(_boosted_trees.classify, target)}
        self.test_flip = test_flip
        self.vectors_only = not (mixup or cutmix or test_flip)
        self.backbone, self.classes, self.target = backbone, classes, target
        self.smoothing, self.mixup, self.cutmix = smoothing, mixup, cutmix
        self.head = Head(backbone.width, len(classes), dropout)
        # Not saved in checkpoints: it is rebuilt from the config.
        self.register_buffer("weights", None if weights is None else torch.tensor(weights), persistent=False)

    def logits(self, inputs: Inputs) -> Tensor:
        scores: Tensor = self.head(self.backbone(inputs).vector)
        return scores.float()  # (B, C); the loss needs full precision

    def answer(self, batch: Batch) -> Tensor:
        """Compute the logits (B, C) for evaluation and prediction: with test_flip, the mean over both mirror images."""
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
        probability = logits.double().softmax(1)
        predicted = self.answers(probability)
        classes = logits.shape[1]
        out = {
            "accuracy": float((predicted == label).double().mean()),
            "loss": float(F.cross_entropy(logits.double(), label)),
        }
        support = label.bincount(minlength=classes)
        hits = label[predicted == label].bincount(minlength=classes)
        claimed = predicted.bincount(minlength=classes)
        seen = (support + claimed) > 0  # like scikit-learn: leave out classes that are neither present nor predicted
        out["macro_f1"] = float((2 * hits.double() / (support + claimed).clamp_min(1))[seen].mean())
        if classes > 5:
            out["top5"] = float((logits.topk(5).indices == label[:, None]).any(1).double().mean())
        if classes == 2:
            auc = roc_auc(probability[:, 1], label == 1)
        else:
            auc = sum(roc_auc(probability[:, c], label == c) for c in range(classes)) / classes
        if auc == auc:  # nan if a class has no samples
            out["auc"] = auc
        sure, first = probability.max(1)
        out["ece"] = calibration_error(sure, first == label)
        if self.two is not None:
            out |= self.of_two(self.two, logits.double(), label == self.two.positive)
        return out | {
            f"recall/{name}": int(hits[c]) / int(support[c]) for c, name in enumerate(self.classes) if support[c]
        }

    def of_two(self, two: Two, logits: Tensor, positive: Tensor) -> dict[str, float]:
        """Compute the metrics for two classes. logits: (N, 2); positive: (N,) bool."""
        # The same order as the probability's, but without its ties near 1.
        scores = logits[:, two.positive] - logits[:, 1 - two.positive]
        probability = logits.softmax(1)
        claimed = self.answers(probability) == two.positive
        out = {f"answered/{self.classes[two.positive]}": float(claimed.double().mean())}
        out |= {"brier": float((probability[:, two.positive] - positive.double()).square().mean())}
        if positive.any():
            out["average_precision"] = average_precision(scores, positive)
            if two.precision is not None:
                out[self.recall_at] = recall_at_precision(scores, positive, two.precision)
        if two.costs is not None:
            misses, alarms = int((positive & ~claimed).sum()), int((claimed & ~positive).sum())
            out["cost"] = (two.costs[0] * misses + two.costs[1] * alarms) / len(positive)
        return out

    def answers(self, probability: Tensor) -> Tensor:
        """Choose the predicted classes (N,) from probabilities (N, C)."""
        if self.two is None or self.two.threshold is None:
            return probability.argmax(1)
        claimed = probability[:, self.two.positive] >= self.two.threshold
        return torch.where(claimed, self.two.positive, 1 - self.two.positive)

    def solve(self, rows: Mapping[str, Tensor], penalties: Mapping[str, float]) -> dict[str, float]:
        label = rows[f"target/{self.target}"]
        weight = rows["weight"] if self.weights is None else rows["weight"] * self.weights.cpu()[label]
        wanted = linear_head.one_hot(label, len(self.classes), self.smoothing)
        in_loss = weight > 0
        data = linear_head.examples(rows["vector"][in_loss], wanted[in_loss], "softmax", weight[in_loss])
        return linear_head.solve(self.head, data, self.target, penalties)

    def correct(self, rows: dict[str, Tensor]) -> Tensor:
        return self.answers(rows["logits"].double().softmax(1)) == rows["label"]

    def page(self, rows: dict[str, Tensor]) -> list[Part]:
        probability = rows["logits"].double().softmax(1)
        margin = None
        if self.two is not None and self.two.threshold is not None:
            margin = (probability[:, self.two.positive] - self.two.threshold).abs()
        return class_report(probability, self.answers(probability), rows["label"], self.classes, margin)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"probability": self.answer(batch).softmax(1)}

    def class_probabilities(self, outputs: dict[str, Tensor]) -> tuple[tuple[str, ...], Tensor]:
        return self.classes, outputs["probability"]

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, str | float]]:
        at = self.answers(outputs["probability"])
        sure = outputs["probability"].gather(1, at[:, None])[:, 0]
        return [
            {"prediction": self.classes[i], "probability": p} for i, p in zip(at.tolist(), sure.tolist(), strict=True)
        ]

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        return {"head.weight": self.classes, "head.bias": self.classes}
