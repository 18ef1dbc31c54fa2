"""Several targets at once: a head for each on one backbone, their losses added."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Set
from typing import Annotated, Literal

from torch import Tensor, nn

from fmeco.core import (
    STORED,
    Backbone,
    Batch,
    ConfigError,
    DataSpec,
    Doc,
    Features,
    Inputs,
    Loss,
    Objective,
    ObjectiveSection,
    known,
    listing,
    nearest,
)

COMBINES = "tasks"  # the default for several targets


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    tasks: Annotated[
        dict[str, ObjectiveSection],
        Doc("target -> its objective, as in {species: classification, age: {name: regression, loss: mae}}"),
    ],
    weights: Annotated[dict[str, float], Doc("target -> factor on its loss; 1 unless given")] = {},
) -> Objective:
    if not tasks:
        raise ConfigError("objective.tasks: name the targets to learn", f"the data has {listing(list(spec.targets))}")
    for name in (*tasks, *weights):
        valid = spec.targets if name in tasks else tasks
        if name not in valid:
            key = "tasks" if name in tasks else "weights"
            raise ConfigError(
                f"objective.{key}: no target '{name}'{nearest(name, valid)}", f"there are {listing(list(valid))}"
            )
    if wrong := [name for name, weight in weights.items() if weight < 0]:
        raise ConfigError(f"objective.weights: {listing(wrong)} must not be negative")
    parts: dict[str, Objective] = {}
    for name, make in tasks.items():
        alone = dataclasses.replace(spec, targets={"label": spec.targets[name]})
        part: Objective = make(backbone=Given(backbone.width, name), spec=alone)
        if not part.vectors_only or part.coupled or len(part.views) > 1:
            raise ConfigError(
                f"objective.tasks.{name}: {type(part).__name__}, as it is set, asks for more than the backbone's vectors",
                "mixup, cutmix and test_flip are for an objective of its own",
            )
        parts[name] = part
    lacking = {name for name in parts if spec.targets[name].missing}
    return MultiTask(backbone, parts, {name: weights.get(name, 1.0) for name in parts}, lacking)


OF = "of_"  # before a task's name: a module cannot be called `type` or `float`


class Given(Backbone):
    """Stands for the backbone in each task: its vectors come as an input."""

    def __init__(self, width: int, task: str) -> None:
        super().__init__()
        self.width, self.task = width, task

    def forward(self, inputs: Inputs) -> Features:
        """Only an objective that looks for more than vectors calls it, while it is built."""
        raise ConfigError(
            f"objective.tasks.{self.task}: this objective asks for more than the backbone's vectors",
            "make it the objective of a run of its own",
        )


class MultiTask(Objective):
    """Each task is an objective over the backbone's vectors. A sample without a task's label does not count in its loss;
    a task's loss is divided by the number of all samples, so that one label weighs the same everywhere."""

    vectors_only = True

    def __init__(
        self, backbone: Backbone, parts: dict[str, Objective], weights: Mapping[str, float], lacking: Set[str]
    ) -> None:
        """lacking: the tasks that some training samples have no label of; only there are they looked for."""
        super().__init__()
        self.backbone, self.weights, self.lacking = backbone, weights, lacking
        self.parts = nn.ModuleDict({f"{OF}{name}": part for name, part in parts.items()})
        self.directions: Mapping[str, Literal["max", "min"]] = {
            "score": "max",
            **{f"{name}_{metric}": way for name, part in parts.items() for metric, way in part.directions.items()},
        }
        self.about = {f"{name}_{key}": value for name, part in parts.items() for key, value in part.about.items()}
        self.main = {
            name: next((metric for metric, way in part.directions.items() if way == "max"), "")
            for name, part in parts.items()
        }

    def _named(self) -> Iterator[tuple[str, Objective]]:
        for name, part in self.parts.items():
            assert isinstance(part, Objective)
            yield name.removeprefix(OF), part

    def _tasks(self, batch: Batch) -> list[tuple[str, Objective, Batch]]:
        """Each task with the batch as it sees it."""
        vectors = self.backbone(batch.views[0]).vector.float()[:, None]  # (B, 1, D)
        found = []
        for name, part in self._named():
            target = {"label": batch.target[name]} if name in batch.target else {}
            found.append((name, part, Batch([{STORED: vectors}], target, batch.index, batch.keys)))
        return found

    def loss(self, batch: Batch) -> Loss:
        total: Tensor | float = 0.0
        for name, part, its in self._tasks(batch):
            labelled = _labelled(its) if name in self.lacking else its
            if len(labelled):
                total = total + self.weights[name] * part.loss(labelled).sum
            else:  # ranks and steps see the same parameters whatever is labelled
                vectors = its.views[0][STORED]
                total = total + 0.0 * (vectors.sum() + sum(p.sum() for p in part.parameters()))
        assert isinstance(total, Tensor)
        return Loss(total, float(len(batch)))

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, part, its in self._tasks(batch):
            label = its.target["label"]
            assert isinstance(label, Tensor)
            out |= {f"{name}/{key}": value for key, value in part.rows(its).items()} | {f"{name}/known": known(label)}
        return out

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Each task's over the samples that have its label, as TASK_METRIC; and `score`, the mean over tasks of the first
        one that is to be high: accuracy, mean AP or R2."""
        out: dict[str, float] = {}
        scores: list[float] = []
        for name, part in self._named():
            here = rows[f"{name}/known"]
            if not here.any():
                continue
            own = {key.removeprefix(f"{name}/"): x[here] for key, x in rows.items() if key.startswith(f"{name}/")}
            measured = part.metrics(own)
            out |= {f"{name}_{metric}": value for metric, value in measured.items()}
            if self.main[name] in measured:
                scores.append(measured[self.main[name]])
        return ({"score": sum(scores) / len(scores)} if scores else {}) | out

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        blind = dataclasses.replace(batch, target={})
        return {
            f"{name}/{key}": value for name, part, its in self._tasks(blind) for key, value in part.predict(its).items()
        }

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, str | float]]:
        """`prediction` tells all tasks; each also has columns of its own, TASK and TASK_probability."""
        each: list[list[dict[str, str | float]]] = []
        for name, part in self._named():
            own = {key.removeprefix(f"{name}/"): x for key, x in outputs.items() if key.startswith(f"{name}/")}
            each.append(part.decode(own))
        rows: list[dict[str, str | float]] = []
        for answers in zip(*each, strict=True):
            row: dict[str, str | float] = {
                "prediction": ", ".join(
                    f"{name}={answer['prediction']}" for name, answer in zip(self.main, answers, strict=True)
                )
            }
            for name, answer in zip(self.main, answers, strict=True):
                row[name] = answer["prediction"]
                if "probability" in answer:
                    row[f"{name}_probability"] = answer["probability"]
            rows.append(row)
        return rows

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        return {
            f"parts.{OF}{name}.{tensor}": classes
            for name, part in self._named()
            for tensor, classes in part.class_rows().items()
        }


def _labelled(batch: Batch) -> Batch:
    """The samples of a task's batch that have its label."""
    label = batch.target["label"]
    assert isinstance(label, Tensor)
    here = known(label)
    views = [{name: x[here] for name, x in view.items()} for view in batch.views]
    on_cpu = here.cpu()
    return Batch(views, {"label": label[here]}, batch.index[on_cpu], batch.keys[:, on_cpu])
