"""What changes while a run trains, beside weights and optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fmeco.data.loader import Loader


@dataclass
class State:
    """The progress of a run. Saved in trainer.json."""

    step: int = 0
    total: int = 0  # steps of the whole run
    phase: int = 0  # of the transfer strategy
    phase_start: float = 0.0  # the step, or in a budget the second, that it began at
    phase_history: int = 0  # evaluations before it
    seconds: float = 0.0  # of training so far, over all resumes
    spent: dict[str, float] = field(default_factory=lambda: {"data": 0.0, "evaluate": 0.0, "save": 0.0})  # of them
    samples: int = 0  # trained on so far
    history: list[float] = field(default_factory=list)  # validation scores, higher is better
    best: float | None = None  # the highest of them
    best_step: int = 0  # of the checkpoint that is kept as the best
    waited: int = 0  # evaluations since the highest
    bad_samples: list[str] = field(default_factory=list)
    window: list[tuple[float, float, int]] = field(default_factory=list)  # loss, norm, samples of unlogged steps
    finished: bool = False


class Outcome(NamedTuple):
    """Results of one step, still on the device (not synchronised).

    loss: a sum. over: what it is a sum over. factor: on the learning rate.
    """

    step: int
    loss: Tensor | float
    over: Tensor | float
    norm: Tensor | float
    factor: float


class Measured(NamedTuple):
    """Results of one evaluation.

    bad: samples that could not be read. error: one standard error of the metric that picks the best checkpoint, 0 where
    it is not known.
    """

    metrics: dict[str, float]
    bad: list[str]
    error: float


class PhaseSetup(NamedTuple):
    """What one phase of a run trains with.

    trained: the parameters of the optimizer. validate: measures the validation split, None without one.
    """

    optimizer: torch.optim.Optimizer
    trained: list[torch.nn.Parameter]
    loader: Loader
    validate: Callable[[], Measured] | None
