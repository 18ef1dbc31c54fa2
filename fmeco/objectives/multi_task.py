"""Several targets at once: one head per target on a shared backbone; their losses are added."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Set
from typing import Annotated, Literal

from torch import Tensor, nn

from fmeco.core import (
    STORED,
    Backbone,
    Batch,
    Cases,
    ConfigError,
    DataSpec,
    Doc,
    Features,
    Ge,
    Inputs,
    Loss,
    Objective,
    ObjectiveSection,
    Part,
    known,
    listing,
    nearest,
)

COMBINES = "tasks"  # makes this the default objective for several targets; names the key that lists them


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    tasks: Annotated[
        dict[str, ObjectiveSection],
        Doc("target -> its objective, as in {species: classification, age: {name: regression, loss: mae}}"),
    ],
    weights: Annotated[
        dict[str, Annotated[float, Ge(0)]],
        Doc("target -> factor on its loss; 0 = leave the target out of the loss; 1 for targets that are not named"),
    ] = {},
) -> Objective:
    if not tasks:
        raise ConfigError(
            "objective.tasks: is empty; name the targets to learn", f"the dataset has {listing(list(spec.targets))}"
        )
    for name in (*tasks, *weights):
        valid = spec.targets if name in tasks else tasks
        if name not in valid:
            key = "tasks" if name in tasks else "weights"
            raise ConfigError(
                f"objective.{key}: no target '{name}'{nearest(name, valid)}", f"valid names: {listing(list(valid))}"
            )
    parts: dict[str, Objective] = {}
    for name, make in tasks.items():
        alone = dataclasses.replace(spec, targets={"label": spec.targets[name]})
        part: Objective = make(backbone=Given(backbone.width, name), spec=alone)
        if not part.vectors_only or part.coupled or len(part.views) > 1:
            raise ConfigError(
                f"objective.tasks.{name}: {type(part).__name__} with these keys needs more than the backbone's vectors",
                "mixup, cutmix and test_flip work only if it is the only objective",
            )
        parts[name] = part
    lacking = {name for name in parts if spec.targets[name].missing}
    return MultiTask(backbone, parts, {name: weights.get(name, 1.0) for name in parts}, lacking)


OF = "of_"  # prefix of the submodules' names: a submodule cannot be called `type` or `float`


class Given(Backbone):
    """Stand in for the backbone in each task, whose vectors are passed as an input."""

    def __init__(self, width: int, task: str) -> None:
        super().__init__()
        self.width, self.task = width, task

    def forward(self, inputs: Inputs) -> Features:
        """Refuse to run: only an objective that needs more than vectors calls it, while it is built."""
        raise ConfigError(
            f"objective.tasks.{self.task}: this objective needs more than the backbone's vectors",
            "make it the objective of a run of its own",
        )


class MultiTask(Objective):
    """Train several objectives on the vectors of one backbone.

    A sample without a task's label is left out of that task's loss. The loss of each task is divided by the number of all
    samples, so that each label has the same weight.
    """

    vectors_only = True

    def __init__(
        self, backbone: Backbone, parts: dict[str, Objective], weights: Mapping[str, float], lacking: Set[str]
    ) -> None:
        """Build the objective. lacking: tasks for which some training samples have no label; only these are filtered."""
        super().__init__()
        self.backbone, self.weights, self.lacking = backbone, weights, lacking
        self.parts = nn.ModuleDict({f"{OF}{name}": part for name, part in parts.items()})
        self.directions: Mapping[str, Literal["max", "min"]] = {
            "score": "max",
            **{f"{name}_{metric}": way for name, part in parts.items() for metric, way in part.directions.items()},
        }
        self.about = {f"{key} of {name}": value for name, part in parts.items() for key, value in part.about.items()}
        self.main = {
            name: next((metric for metric, way in part.directions.items() if way == "max"), "")
            for name, part in parts.items()
        }

    def _named(self) -> Iterator[tuple[str, Objective]]:
        """Yield each task's name and objective."""
        for name, part in self.parts.items():
            assert isinstance(part, Objective)
            yield name.removeprefix(OF), part

    def _tasks(self, batch: Batch) -> list[tuple[str, Objective, Batch]]:
        """Run the backbone. Returns (name, objective, batch of vectors with that task's label) for each task."""
        vectors = self.backbone(batch.views[0]).vector.float()[:, None]  # (B, 1, D)
        tasks = []
        for name, part in self._named():
            target = {"label": batch.target[name]} if name in batch.target else {}
            tasks.append((name, part, Batch([{STORED: vectors}], target, batch.index, batch.keys)))
        return tasks

    def loss(self, batch: Batch) -> Loss:
        total: Tensor | float = 0.0
        for name, part, part_batch in self._tasks(batch):
            labelled = _labelled(part_batch) if name in self.lacking else part_batch
            if len(labelled):
                total = total + self.weights[name] * part.loss(labelled).sum
            else:  # zero loss, so that all parameters get a gradient on every rank and in every step
                vectors = part_batch.views[0][STORED]
                total = total + 0.0 * (vectors.sum() + sum(p.sum() for p in part.parameters()))
        assert isinstance(total, Tensor)
        return Loss(total, float(len(batch)))

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, part, part_batch in self._tasks(batch):
            label = part_batch.target["label"]
            assert isinstance(label, Tensor)
            out |= {f"{name}/{key}": value for key, value in part.rows(part_batch).items()} | {
                f"{name}/known": known(label)
            }
        return out

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Compute each task's metrics over the samples that have its label.

        TASK_METRIC: a metric of a task.
        score: mean over tasks of their first metric that is better when higher, such as accuracy, mean AP or R2.
        """
        out: dict[str, float] = {}
        scores: list[float] = []
        for name, part in self._named():
            labelled = rows[f"{name}/known"]
            if not labelled.any():
                continue
            own = _of_task(name, rows, labelled)
            measured = part.metrics(own)
            out |= {f"{name}_{metric}": value for metric, value in measured.items()}
            if self.main[name] in measured:
                scores.append(measured[self.main[name]])
        return ({"score": sum(scores) / len(scores)} if scores else {}) | out

    def page(self, rows: dict[str, Tensor]) -> list[Part]:
        parts: list[Part] = []
        for name, part in self._named():
            labelled = rows[f"{name}/known"]
            own = _of_task(name, rows, labelled)
            at = labelled.nonzero()[:, 0].tolist()
            for each in part.page(own) if at else []:
                if isinstance(each, Cases):
                    each = dataclasses.replace(each, at=tuple(at[i] for i in each.at))
                parts.append(dataclasses.replace(each, title=f"{name}: {each.title}"))
        return parts

    def solve(self, rows: Mapping[str, Tensor], penalties: Mapping[str, float]) -> dict[str, float]:
        """Write the head of each task, from the samples that have its label."""
        solved: dict[str, float] = {}
        for name, part in self._named():
            label = rows[f"target/{name}"]
            labelled = known(label)
            own = {key: rows[key][labelled] for key in ("vector", "weight")} | {"target/label": label[labelled]}
            given = {"label": penalties[name]} if name in penalties else {}
            if found := part.solve(own, given):
                solved[name] = next(iter(found.values()))
        return solved if len(solved) == len(self.main) else {}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        blind = dataclasses.replace(batch, target={})
        return {
            f"{name}/{key}": value
            for name, part, part_batch in self._tasks(blind)
            for key, value in part.predict(part_batch).items()
        }

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, str | float]]:
        """Return `prediction`, which lists all tasks, and for each task the columns TASK and TASK_probability."""
        by_task: list[list[dict[str, str | float]]] = []
        for name, part in self._named():
            by_task.append(part.decode(_of_task(name, outputs)))
        rows: list[dict[str, str | float]] = []
        for answers in zip(*by_task, strict=True):
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
    """Keep only the samples of a task's batch that have its label."""
    label = batch.target["label"]
    assert isinstance(label, Tensor)
    labelled = known(label)
    views = [{name: x[labelled] for name, x in view.items()} for view in batch.views]
    on_cpu = labelled.cpu()
    return Batch(views, {"label": label[labelled]}, batch.index[on_cpu], batch.keys[:, on_cpu])


def _of_task(name: str, values: Mapping[str, Tensor], at: Tensor | None = None) -> dict[str, Tensor]:
    """Take the tensors of a task under its own names. at: mask (N,) of the samples to take; None = all."""
    own = {key.removeprefix(f"{name}/"): x for key, x in values.items() if key.startswith(f"{name}/")}
    return own if at is None else {key: x[at] for key, x in own.items()}
