"""Define the result of each stage of assembly: RunSource -> RunData -> RunModel -> Training.

Each holds the result before it. Each `config` is more complete than the last, as a stage writes its choices into its
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fmeco.checkpoints.format import Checkpoint
from fmeco.checkpoints.sources import Source
from fmeco.checkpoints.transplant import Report
from fmeco.config.run_config import RunConfig
from fmeco.core.augment import Augment
from fmeco.core.data import Data, DataSpec
from fmeco.core.model import Backbone, Objective, Teacher
from fmeco.core.training import Constraint, Roles, Transfer
from fmeco.data.loader import Loader
from fmeco.distributed.ranks import Ranks


@dataclass(frozen=True)
class RunSource:
    """Hold what a run starts from.

    config: with the backbone's section completed.
    source: weights to start from; None for new weights, and on resuming.
    teachers: models that the objective's section names, by REF; loaded and frozen.
    resumed: the run's own checkpoint, whose weights are restored later; None for a new run.
    backbone: a backbone that was passed as an object.
    known: preprocessing that the weights were trained with, and of a resumed run its whole spec; None if the dataset decides.
    """

    config: RunConfig
    ranks: Ranks
    source: Source | None
    teachers: Mapping[str, Teacher]
    resumed: Checkpoint | None
    backbone: Backbone | None
    known: DataSpec | None


@dataclass(frozen=True)
class RunData:
    """Hold the data of a run: cached, cut to `train.label_fraction`, and with target statistics.

    run_source: the stage before.
    """

    run_source: RunSource
    data: Data


@dataclass(frozen=True)
class Origin:
    """Record where a run's weights come from, for its checkpoints.

    parents: ids of the checkpoints that the weights or teachers come from.
    transplanted: report of the transplant, as JSON.
    licence: of the weights, if it is stated.
    """

    parents: list[str]
    transplanted: dict[str, Any] | None
    licence: str | None


@dataclass(frozen=True)
class RunModel:
    """Hold the model of a run, with its initial weights.

    run_data: the stage before.
    config: with the backbone, objective and augmentation that were chosen.
    roles: the role of each parameter that can learn, by name.
    fresh: whether no weights were loaded.
    report: of the transplant, if weights were loaded.
    """

    run_data: RunData
    config: RunConfig
    objective: Objective
    augment: Augment
    roles: Roles
    transfer: Transfer
    fresh: bool
    report: Report | None
    origin: Origin

    @property
    def only_solves(self) -> bool:
        """Whether the run takes no step: its only phase fits a head that the objective solves, unless that fails."""
        can_solve = type(self.objective).solve is not Objective.solve
        return self.transfer.penalties is not None and len(self.transfer.phases) == 1 and can_solve


@dataclass(frozen=True)
class Measures:
    """Hold what evaluations measure.

    probes: of the backbone's vectors.
    directions: "max" or "min" for every metric.
    best: metric that selects the best checkpoint.
    sign: +1 if a higher `best` is better, else -1.
    """

    probes: tuple[str, ...]
    directions: Mapping[str, Literal["max", "min"]]
    best: str
    sign: int


@dataclass(frozen=True)
class Training:
    """Hold a run that is ready to train.

    model: the stage before.
    config: complete; everything that was chosen automatically is filled in.
    objective, data, ranks: shortcuts to those of the earlier stages.
    constraint: changes gradients and weights in training, as the transfer strategy requires.
    total: steps of the run.
    solved: whether the head was solved, so that the run begins after its first phase.
    train_vectors: features (N, D) of the training samples that the head was solved on, if the first phase uses them again.
    source_head: the source's own head, by name, if it has the same classes; the better one of both begins the run.
    new_head: the head before it was solved, by name, if training begins with it.
    evaluate_every: steps between evaluations.
    validation_size: samples.
    """

    model: RunModel
    config: RunConfig
    objective: Objective
    data: Data
    ranks: Ranks
    loader: Loader
    constraint: Constraint | None
    measures: Measures
    device: torch.device
    total: int
    evaluate_every: int
    validation_size: int
    solved: bool = False
    source_head: Mapping[str, Tensor] | None = None
    train_vectors: Tensor | None = None
    new_head: Mapping[str, Tensor] | None = None
