"""Define what changes during a run besides weights and optimizer state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fmeco.data.loader import Loader


@dataclass
class State:
    """Hold the progress of a run; trainer.json stores it.

    step: steps taken.
    total: steps of the whole run.
    phase: number of the transfer strategy's phase.
    phase_start: position at which the phase began: a step, or a second with a time budget.
    phase_history: evaluations before the phase.
    seconds: training time so far, over all resumes.
    spent: seconds of that for reading data, evaluating and saving.
    samples: samples trained on so far.
    history: validation scores; higher is better.
    best: the highest score.
    best_step: step of the checkpoint that is kept as the best.
    kept: its score and, where there is one, its loss.
    source: score of the solved head before any training; or, if it cannot be solved, of the best head that was trained alone.
        None for other strategies, and without a validation split.
    source_step: step of its checkpoint, which is kept; None for other strategies.
    waited: evaluations since the highest score.
    bad_samples: samples that could not be read.
    window: loss, gradient norm and samples of the steps that are not logged yet.
    finished: whether the run reached its end.
    """

    step: int = 0
    total: int = 0
    phase: int = 0
    phase_start: float = 0.0
    phase_history: int = 0
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=lambda: {"data": 0.0, "evaluate": 0.0, "save": 0.0})
    samples: int = 0
    history: list[float] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    kept: list[float] | None = None
    source: float | None = None
    source_step: int | None = None
    waited: int = 0
    bad_samples: list[str] = field(default_factory=list)
    window: list[tuple[float, float, int]] = field(default_factory=list)
    finished: bool = False


class Outcome(NamedTuple):
    """Hold the results of one step, still on the device (not synchronised).

    loss: a sum.
    over: number of terms in that sum.
    norm: of the gradient.
    factor: on the learning rate.
    """

    step: int
    loss: Tensor | float
    over: Tensor | float
    norm: Tensor | float
    factor: float


class Measured(NamedTuple):
    """Hold the results of one evaluation.

    metrics: by name.
    bad: samples that could not be read.
    error: standard error of the metric that selects the best checkpoint; 0 if it is not known.
    rows: outputs (N, ...) of each sample.
    """

    metrics: dict[str, float]
    bad: list[str]
    error: float
    rows: dict[str, Tensor]


class PhaseSetup(NamedTuple):
    """Hold what one phase of a run trains with.

    optimizer: over the parameters of the phase.
    trained: these parameters.
    loader: training batches.
    validate: evaluates on the validation split; None without one.
    """

    optimizer: torch.optim.Optimizer
    trained: list[torch.nn.Parameter]
    loader: Loader
    validate: Callable[[], Measured] | None
