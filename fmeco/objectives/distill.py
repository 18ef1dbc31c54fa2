"""Learn what a teacher, another checkpoint, makes of the samples: its classes' probabilities, or its vectors. Needs no labels."""

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
)
from fmeco.nn.layers import Head
from fmeco.objectives import _boosted_trees


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    teacher: Annotated[Ref, Doc("a checkpoint, or published weights such as torchvision/resnet50@DEFAULT")],
    on: Annotated[
        Literal["logits", "features"] | None,
        Doc("null = logits where the teacher tells one target's classes, else features"),
    ] = None,
    temperature: Annotated[float, Doc("of logits: higher also teaches which wrong answers are near"), Gt(0)] = 4.0,
    labels: Annotated[
        float, Doc("of logits: share of the loss that labels have, where there are any"), Ge(0), Le(1)
    ] = 0.0,
    classes: Annotated[list[str] | None, Doc("of logits: the teacher's; filled in by a run")] = None,
    width: Annotated[int | None, Doc("of features: the teacher's; filled in by a run"), Gt(0)] = None,
) -> Objective:
    if classes is None and width is None:
        raise ConfigError("objective distill stands alone: it cannot be one of several tasks")
    known_to: Teacher | None = teacher  # type: ignore[assignment]  # a Ref is handed in loaded; None where nothing is trained
    if known_to is not None:
        _same_inputs(spec, known_to)
    if classes is None:
        assert width is not None
        return Features(backbone, known_to, width)
    target = next((name for name, one in spec.targets.items() if one.kind == "class"), None)
    if target is not None and spec.targets[target].classes != tuple(classes):
        raise ConfigError(
            f"objective.teacher tells {listing(classes)}, and the target '{clean(target)}' has {listing(spec.targets[target].classes)}",
            "objective.on: features learns its vectors instead",
        )
    if labels and target is None:
        raise ConfigError("objective.labels: this dataset has no classes")
    return Logits(backbone, known_to, tuple(classes), target, temperature, labels)


def complete(options: dict[str, Any], teacher: Teacher) -> dict[str, Any]:
    """The options with what the teacher says, so that a checkpoint can be used without it."""
    classes = _classes(teacher)
    on = options["on"] or ("features" if classes is None else "logits")
    if on == "features":
        return {**options, "on": on, "classes": None, "width": teacher.backbone.width}
    if classes is None:
        raise ConfigError(
            f"objective.on: logits: {clean(teacher.ref)} tells no classes", "on: features learns its vectors"
        )
    return {**options, "on": on, "classes": classes, "width": None}


def _classes(teacher: Teacher) -> list[str] | None:
    """What the teacher's logits stand for; None where it has none of exactly one target."""
    kinds = {one.kind for one in teacher.spec.targets.values()}
    if teacher.objective is None or not hasattr(teacher.objective, "logits") or kinds - {"class"}:
        return None
    told = set(teacher.objective.class_rows().values())
    return list(told.pop()) if len(told) == 1 else None


def _same_inputs(spec: DataSpec, teacher: Teacher) -> None:
    """A teacher must see what it was trained on."""
    theirs = teacher.spec
    keys = dict.fromkeys([*spec.preprocessing, *theirs.preprocessing])
    keys.pop("mirror", None)  # says how samples may vary, not how inputs are made
    odd = [key for key in keys if spec.preprocessing.get(key) != theirs.preprocessing.get(key)]
    if odd or dict(spec.inputs) != dict(theirs.inputs):
        raise ConfigError(
            f"objective.teacher: {clean(teacher.ref)} was trained on inputs that are made differently: {listing(odd or list(theirs.inputs))}",
            "leave the keys of the dataset that say so out: without a checkpoint to start from, inputs are made the teacher's way",
        )


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of softened probabilities, from logits (B, C): (B,).
    https://arxiv.org/abs/1503.02531 section 2."""
    wanted, found = (x.div(temperature).log_softmax(1) for x in (teacher, student))
    return F.kl_div(found, wanted, reduction="none", log_target=True).sum(1) * temperature**2


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared distance (B,) of vectors (B, D) of length 1: 1 - their cosine.
    https://arxiv.org/abs/1412.6550 equation (3), of normalised vectors, so that the teacher's scale is none of the student's."""
    return 1 - F.cosine_similarity(student, teacher, dim=1)


class _Taught:
    """The teacher, beside the student and no part of it: it is neither saved nor trained, and comes from its Ref again."""

    def __init__(self, teacher: Teacher | None) -> None:
        self.teacher = teacher

    def __call__(self, batch: Batch, what: Literal["logits", "vector"]) -> Tensor:
        """Logits (B, C) or vectors (B, D) of the first view."""
        if self.teacher is None:
            raise ConfigError("a teacher is there in training alone")
        module: nn.Module = self.teacher.objective or self.teacher.backbone
        device = next(iter(batch.views[0].values())).device
        if next(module.parameters()).device != device:
            module.to(device)
        with torch.no_grad():
            if what == "vector":
                return self.teacher.backbone(batch.views[0]).vector.float()
            found: Tensor = module.logits(batch.views[0])  # type: ignore[operator]
            return found


class Logits(Objective):
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
        found = divergence(logits, self.taught(batch, "logits"), self.temperature)
        if self.labels and self.target is not None:
            label = batch.target[self.target]
            assert isinstance(label, Tensor)
            own = F.cross_entropy(logits, label, reduction="none", ignore_index=-1)
            # A sample without a label learns from the teacher alone.
            share = self.labels * known(label)
            found = (1 - share) * found + share * own
        return Loss(found.sum(), len(found))

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        out = {"logits": self.logits(batch.views[0])}
        if self.taught.teacher is not None:
            out["teacher"] = self.taught(batch, "logits")
        return out if self.target is None else {**out, "label": batch.target[self.target]}  # type: ignore[dict-item]

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        logits, out = rows["logits"].double(), {}
        if "label" in rows and (here := known(rows["label"])).any():
            label = rows["label"][here]
            out = {
                "accuracy": float((logits[here].argmax(1) == label).double().mean()),
                "loss": float(F.cross_entropy(logits[here], label)),
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
    directions: Mapping[str, Literal["max", "min"]] = {"distance": "min"}
    probes = ("knn",)

    def __init__(self, backbone: Backbone, teacher: Teacher | None, width: int) -> None:
        super().__init__()
        self.backbone, self.taught = backbone, _Taught(teacher)
        self.head = nn.Linear(backbone.width, width)

    def distances(self, batch: Batch) -> Tensor:
        return distance(self.head(self.backbone(batch.views[0]).vector).float(), self.taught(batch, "vector"))

    def loss(self, batch: Batch) -> Loss:
        found = self.distances(batch)
        return Loss(found.sum(), len(found))

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        return {"distance": self.distances(batch)}

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        return {"distance": float(rows["distance"].double().mean())}
