"""Learn the outputs of a teacher, another checkpoint: its class probabilities or its vectors. Needs no labels."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    Objective,
    Ref,
    Teacher,
    clean,
    known,
    listing,
    nfc,
)
from fmeco.nn.layers import Head
from fmeco.objectives import _boosted_trees


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    teacher: Annotated[
        Ref, Doc("the teacher: a checkpoint, or published weights such as torchvision/resnet50@DEFAULT")
    ],
    on: Annotated[
        Literal["logits", "features"] | None,
        Doc("what to learn; null = logits if the teacher predicts the classes of one target, else features"),
    ] = None,
    temperature: Annotated[
        float,
        Doc("with logits: softmax temperature; a higher one teaches more about the order of wrong classes"),
        Gt(0),
    ] = 4.0,
    labels: Annotated[
        float, Doc("with logits: weight of the labels in the loss of samples that have one"), Ge(0), Le(1)
    ] = 0.0,
    classes: Annotated[list[str] | None, Doc("with logits: the teacher's classes; filled in by the run")] = None,
    width: Annotated[int | None, Doc("with features: the teacher's width; filled in by the run"), Gt(0)] = None,
) -> Objective:
    if classes is None and width is None:
        raise ConfigError("objective distill cannot be one of several tasks", "use it as the only objective")
    loaded: Teacher | None = teacher  # type: ignore[assignment]  # the Ref is passed loaded; None when nothing is trained
    if loaded is not None:
        _same_inputs(spec, loaded)
    if classes is None:
        assert width is not None
        return Features(backbone, loaded, width)
    target = next((name for name, described in spec.targets.items() if described.kind == "class"), None)
    if target is not None and nfc(spec.targets[target].classes) != nfc(classes):
        raise ConfigError(
            f"objective.teacher predicts {listing(classes)}, and the target '{clean(target)}' has {listing(spec.targets[target].classes)}",
            "objective.on: features learns the teacher's vectors instead",
        )
    if labels and target is None:
        raise ConfigError("objective.labels: this dataset has no classes", "leave the key out")
    return Logits(backbone, loaded, tuple(classes), target, temperature, labels)


def complete(options: dict[str, Any], teacher: Teacher) -> dict[str, Any]:
    """Add the teacher's classes or width to the options, so that the objective can be rebuilt without loading the teacher.

    Raises ConfigError for `on: logits` with a teacher that predicts no classes.
    """
    classes = _classes(teacher)
    on = options["on"] or ("features" if classes is None else "logits")
    if on == "features":
        return {**options, "on": on, "classes": None, "width": teacher.backbone.width}
    if classes is None:
        raise ConfigError(
            f"objective.on: logits: {clean(teacher.ref)} predicts no classes",
            "objective.on: features learns its vectors",
        )
    return {**options, "on": on, "classes": classes, "width": None}


def _classes(teacher: Teacher) -> list[str] | None:
    """Return the classes of the teacher's logits; None unless it predicts the classes of exactly one target."""
    kinds = {described.kind for described in teacher.spec.targets.values()}
    if teacher.objective is None or not hasattr(teacher.objective, "logits") or kinds - {"class"}:
        return None
    lists = set(teacher.objective.class_rows().values())
    return list(lists.pop()) if len(lists) == 1 else None


def _same_inputs(spec: DataSpec, teacher: Teacher) -> None:
    """Check that the dataset prepares inputs as the teacher was trained on. Raises ConfigError."""
    theirs = teacher.spec
    keys = dict.fromkeys([*spec.preprocessing, *theirs.preprocessing])
    keys.pop("mirror", None)  # about augmentation, not about inputs
    odd = [key for key in keys if spec.preprocessing.get(key) != theirs.preprocessing.get(key)]
    if odd or spec.seen != theirs.seen:
        raise ConfigError(
            f"objective.teacher: {clean(teacher.ref)} was trained with other preprocessing: {listing(odd or list(theirs.inputs))}",
            "leave these keys of the dataset out: without a checkpoint to start from, the teacher's preprocessing is used",
        )


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T^2 KL(teacher || student) (B,) of the probabilities at temperature T, from logits (B, C).

    https://arxiv.org/abs/1503.02531 section 2.
    """
    wanted, learned = (x.div(temperature).log_softmax(1) for x in (teacher, student))
    return F.kl_div(learned, wanted, reduction="none", log_target=True).sum(1) * temperature**2


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute half the squared distance (B,) of normalised vectors (B, D): 1 - their cosine.

    https://arxiv.org/abs/1412.6550 equation (3). Vectors are normalised, so that the student need not learn their scale.
    """
    return 1 - F.cosine_similarity(student, teacher, dim=1)


class _Taught:
    """Run the teacher. It is not a submodule, so it is neither saved nor trained; a resumed run loads it from its Ref."""

    def __init__(self, teacher: Teacher | None) -> None:
        self.teacher = teacher

    def __call__(self, batch: Batch, what: Literal["logits", "vector"]) -> Tensor:
        """Compute the teacher's logits (B, C) or vectors (B, D) of the first view."""
        if self.teacher is None:
            raise ConfigError("objective distill: the teacher is loaded only in training")
        module: nn.Module = self.teacher.objective or self.teacher.backbone
        device = next(iter(batch.views[0].values())).device
        if next(module.parameters()).device != device:
            module.to(device)
        with torch.no_grad():
            if what == "vector":
                return self.teacher.backbone(batch.views[0]).vector.float()
            logits: Tensor = module.logits(batch.views[0])  # type: ignore[operator]
            return logits


class Logits(Objective):
    """Learn the teacher's class probabilities, and the labels with a weight of `labels`."""

    def __init__(
        self,
        backbone: Backbone,
        teacher: Teacher | None,
        classes: tuple[str, ...],
        target: str | None,
        temperature: float,
        labels: float,
    ) -> None:
        super().__init__()
        self.backbone, self.classes, self.target = backbone, classes, target
        self.temperature, self.labels, self.taught = temperature, labels, _Taught(teacher)
        self.head = Head(backbone.width, len(classes), 0.0)
        own: dict[str, Literal["max", "min"]] = {} if target is None else {"accuracy": "max", "loss": "min"}
        self.directions: Mapping[str, Literal["max", "min"]] = {**own, "agreement": "max", "divergence": "min"}
        if target is not None:
            self.baselines = {"gbdt": functools.partial(_boosted_trees.classify, target)}

    def logits(self, inputs: Inputs) -> Tensor:
        scores: Tensor = self.head(self.backbone(inputs).vector)
        return scores.float()  # (B, C)

    def loss(self, batch: Batch) -> Loss:
        logits = self.logits(batch.views[0])
        losses = divergence(logits, self.taught(batch, "logits"), self.temperature)
        if self.labels and self.target is not None:
            label = batch.target[self.target]
            assert isinstance(label, Tensor)
            own = F.cross_entropy(logits, label, reduction="none", ignore_index=-1)
            # A sample without a label learns from the teacher only.
            share = self.labels * known(label)
            losses = (1 - share) * losses + share * own
        return Loss(losses.sum(), len(losses))

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        out = {"logits": self.logits(batch.views[0])}
        if self.taught.teacher is not None:
            out["teacher"] = self.taught(batch, "logits")
        return out if self.target is None else {**out, "label": batch.target[self.target]}  # type: ignore[dict-item]

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        logits, out = rows["logits"].double(), {}
        if "label" in rows and (labelled := known(rows["label"])).any():
            label = rows["label"][labelled]
            out = {
                "accuracy": float((logits[labelled].argmax(1) == label).double().mean()),
                "loss": float(F.cross_entropy(logits[labelled], label)),
            }
        if "teacher" in rows:
            teacher = rows["teacher"].double()
            out["agreement"] = float((logits.argmax(1) == teacher.argmax(1)).double().mean())
            out["divergence"] = float(divergence(logits, teacher, self.temperature).mean())
        return out

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return {"probability": self.logits(batch.views[0]).softmax(1)}

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, str | float]]:
        sure, at = outputs["probability"].max(1)
        return [
            {"prediction": self.classes[i], "probability": p} for i, p in zip(at.tolist(), sure.tolist(), strict=True)
        ]

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        return {"head.weight": self.classes, "head.bias": self.classes}


class Features(Objective):
    """Learn the directions of the teacher's vectors, through a linear head."""

    directions: Mapping[str, Literal["max", "min"]] = {"distance": "min"}
    probes = ("knn",)

    def __init__(self, backbone: Backbone, teacher: Teacher | None, width: int) -> None:
        super().__init__()
        self.backbone, self.taught = backbone, _Taught(teacher)
        self.head = nn.Linear(backbone.width, width)

    def distances(self, batch: Batch) -> Tensor:
        """Compute the distance (B,) of each sample's projected vector from the teacher's vector."""
        return distance(self.head(self.backbone(batch.views[0]).vector).float(), self.taught(batch, "vector"))

    def loss(self, batch: Batch) -> Loss:
        distances = self.distances(batch)
        return Loss(distances.sum(), len(distances))

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        return {"distance": self.distances(batch)}

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        return {"distance": float(rows["distance"].double().mean())}
