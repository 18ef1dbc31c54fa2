"""The values that the stages of assembly hand on: RunSource -> RunData -> RunModel -> Training.

Each holds the one before it, and a config that is more complete: a stage writes what it chose into its own `config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fmeco.checkpoints.format import Checkpoint
from fmeco.checkpoints.refs import Source
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
    """What a run starts from.

    config: with the backbone's section completed.
    source: weights to start from; None for new ones, and on resuming.
    teachers: what the objective's section names by a REF, loaded and frozen.
    resumed: the run's own checkpoint, whose weights are restored later.
    backbone: a backbone that was handed in as an object.
    known: how the inputs of these weights are made; None where the dataset decides.
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
    """The data of a run: cached, cut to its share of the labels, and described."""

    start: RunSource
    data: Data


@dataclass(frozen=True)
class Origin:
    """Where the weights of a run come from, as its checkpoints say it.

    parents: the ids of checkpoints. transplanted: the report of the transplant. licence: of the weights, where stated.
    """

    parents: list[str]
    transplanted: dict[str, Any] | None
    licence: str | None


@dataclass(frozen=True)
class RunModel:
    """The model of a run, with the weights that it starts from.

    config: with the backbone, objective and augmentation that were chosen.
    roles: what each parameter is.
    fresh: whether its weights are new, so that nothing was loaded.
    report: of the transplant just done.
    """

    given: RunData
    config: RunConfig
    objective: Objective
    augment: Augment
    roles: Roles
    transfer: Transfer
    fresh: bool
    report: Report | None
    origin: Origin


@dataclass(frozen=True)
class Measures:
    """What evaluations measure.

    probes: of the backbone's vectors.
    directions: of every metric, "max" or "min".
    best: the metric that picks the best checkpoint.
    sign: +1 where a higher `best` is better, else -1.
    """

    probes: tuple[str, ...]
    directions: Mapping[str, Literal["max", "min"]]
    best: str
    sign: int


@dataclass(frozen=True)
class Training:
    """A run, ready to train.

    config: complete; everything that was chosen automatically is filled in.
    objective, data, ranks: of the stages before, for short.
    constraint: what binds weights while they train.
    total: steps of the run. evaluate_every: steps between evaluations.
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
