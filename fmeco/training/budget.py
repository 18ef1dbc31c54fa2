"""Track a run's progress in steps and time, what its seconds were spent on, and what more of them would do."""

from __future__ import annotations

import itertools
import math
import time

from fmeco.assembly.stages import Training
from fmeco.config.sections import seconds
from fmeco.training.state import State

EVALUATING = 0.1  # largest share of the time for evaluations before the last one, with a time budget
# Fewest evaluations, steps and validation samples from which to predict what more time would do: the standard error of a
# share of 100 samples is up to 5 points.
ENOUGH_EVALUATIONS, ENOUGH_STEPS, ENOUGH_SAMPLES = 4, 100, 100


class Pace:
    """Track how far a run is: in steps, or in a time budget, which must leave time for the last evaluation."""

    def __init__(self, state: State, training: Training) -> None:
        budget = training.config.train.budget
        self.state, self.size = state, training.validation_size
        self.timed = budget is not None
        self.budget = seconds(budget) if budget is not None else math.inf
        self.evaluating = self.state.spent["evaluate"]  # seconds, the same on all ranks
        self.shares = list(itertools.accumulate(phase.share for phase in training.model.transfer.phases))
        self.enter()

    def enter(self) -> None:
        """Begin a phase. Timings are reset, as the phase may train and evaluate on other data."""
        self.last = self.state.phase == len(self.shares) - 1
        self.start = self.state.phase_start
        self.length = max(self.end - self.start, 1.0) if not self.timed else math.nan  # in steps
        self.evaluation = 0.0  # estimated seconds of one evaluation
        self.measured = False
        self.first: tuple[float, int] | None = None  # seconds and samples after the first step, which includes set-up

    @property
    def position(self) -> float:
        """Steps taken, or seconds with a time budget."""
        return self.state.seconds if self.timed else float(self.state.step)

    @property
    def end(self) -> float:
        """Position at which this phase ends."""
        whole = self.budget if self.timed else self.state.total
        if self.last:
            return whole - self.evaluation if self.timed else whole
        end = self.shares[self.state.phase] / self.shares[-1] * whole
        if self.timed:
            return end
        return max(round(end), min(self.start + 1, whole - 1))  # a step at least, if the next phase has one, too

    @property
    def place(self) -> tuple[float, float]:
        """Position in this phase, and its length. The schedule is a function of their ratio."""
        if self.timed:
            return self.state.seconds - self.start, max(self.end - self.start, 1.0)
        return self.state.step - self.start, self.length

    @property
    def progress(self) -> float:
        """Finished share of the run, from 0 to 1."""
        return min(1.0, self.position / (self.budget if self.timed else self.state.total))

    def stepped(self) -> bool:
        """Account for a step. Returns whether the run is at its end."""
        if self.timed and not self.measured:
            if self.first is None:
                self.first = (self.state.seconds, self.state.samples)
            else:  # no evaluation was timed yet: estimate a forward pass as a third of a step
                estimate = (self.state.seconds - self.first[0]) / (self.state.samples - self.first[1]) / 3 * self.size
                self.evaluation = min(estimate, self.budget / 2)
        return self.over()

    def evaluated(self, took: float) -> None:
        """Account for an evaluation that took so many seconds."""
        self.evaluation, self.measured = took, True
        self.evaluating += took

    def over(self, more: int = 1) -> bool:
        """Whether the run is at its end, if it must leave time for `more` evaluations."""
        late = self.timed and self.state.seconds + (more * self.evaluation if self.last else 0.0) >= self.budget
        return late or self.state.step >= self.state.total

    def measured_enough(self) -> bool:
        """Whether another evaluation would exceed EVALUATING's share of a budgeted run's time so far."""
        return self.timed and self.evaluating + self.evaluation > EVALUATING * self.state.seconds

    def phase_over(self) -> bool:
        """Whether the phase is at its end."""
        return self.position >= self.end


class Clock:
    """Account for a run's time by activity. Time that is not charged is computing."""

    def __init__(self, state: State) -> None:
        self.state, self.since = state, time.monotonic()
        self.before = dict(state.spent)

    def charge(self, what: str, began: float) -> None:
        """Charge the time since `began` to an activity: "data", "evaluate" or "save"."""
        self.state.spent[what] += time.monotonic() - began

    def lap(self) -> tuple[float, float]:
        """Start a new lap. Returns two numbers of seconds of the last one.

        training: without evaluations and saves.
        data: part of it that was spent waiting for data.
        """
        now, spent = time.monotonic(), self.state.spent
        data, evaluate, save = (spent[what] - self.before[what] for what in ("data", "evaluate", "save"))
        training = max(now - self.since - evaluate - save, 1e-9)
        self.since, self.before = now, dict(spent)
        return training, data


def more_time(
    history: list[float], sign: int, metric: str, epochs: float, error: float = 0.0, *, steps: int, samples: int
) -> str:
    """Predict from its evaluations what more time would do for a run that a budget ended.

    history: scores of the evaluations; higher is better.
    sign: -1 if a lower metric is better, else +1.
    error: standard error of the metric; smaller differences are noise.
    steps: of the run.
    samples: of the validation split.
    """
    passed = f"the budget was enough for {epochs:.3g} epochs"
    if len(history) < ENOUGH_EVALUATIONS:
        return f"{passed}; too few evaluations to predict what more time would do"
    if samples < ENOUGH_SAMPLES:
        return f"{passed}; {samples} validation samples are too few to tell what more time would do"
    late = len(history) * 3 // 4
    before, after = max(history[:late]), max(history[late:])
    if after <= before + error and steps < ENOUGH_STEPS:
        return (
            f"{passed}; {metric} did not improve lately, but {steps} steps are too few to tell what more time would do"
        )
    if after < before - error:
        at = history.index(before) + 1
        return f"{passed}; {metric} was best in evaluation {at} of {len(history)}: more time would not help, but more or other data might"
    if f"{after:.4f}" == f"{before:.4f}" or after <= before + error:
        return (
            f"{passed}; {metric} did not improve in the last quarter of the evaluations: more time would change little"
        )
    return f"{passed}; {metric} improved from {sign * before:.4f} to {sign * after:.4f} in the last quarter of the evaluations: more time is likely to help"
