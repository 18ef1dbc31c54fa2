"""Where a run stands in time: how far it is, and what its seconds went to."""

from __future__ import annotations

import itertools
import math
import time

from fmeco.assembly.stages import Training
from fmeco.config.sections import seconds
from fmeco.training.state import State

EVALUATING = 0.1  # share of a budget's time, at most, for evaluations on the way


class Pace:
    """How far a run is: in steps, or in a budget of time, of which the last evaluation must have its part."""

    def __init__(self, state: State, training: Training) -> None:
        budget = training.config.train.budget
        self.state, self.size = state, training.validation_size
        self.timed = budget is not None
        self.budget = seconds(budget) if budget is not None else math.inf
        self.evaluating = self.state.spent["evaluate"]  # seconds; as ranks agree on it
        self.shares = list(itertools.accumulate(phase.share for phase in training.model.transfer.phases))
        self.enter()

    def enter(self) -> None:
        """Begin a phase. What was measured is forgotten: it may train and evaluate on something else."""
        self.last = self.state.phase == len(self.shares) - 1
        self.start = self.state.phase_start
        self.length = max(self.end - self.start, 1.0) if not self.timed else math.nan  # in steps
        self.evaluation = 0.0  # seconds that one takes, as far as is known
        self.measured = False
        self.first: tuple[float, int] | None = None  # seconds and samples after the first step, which pays for all else

    @property
    def position(self) -> float:
        return self.state.seconds if self.timed else float(self.state.step)

    @property
    def end(self) -> float:
        """The position at which this phase ends."""
        whole = self.budget if self.timed else self.state.total
        if self.last:
            return whole - self.evaluation if self.timed else whole
        end = self.shares[self.state.phase] / self.shares[-1] * whole
        return end if self.timed else round(end)

    @property
    def place(self) -> tuple[float, float]:
        """(done, whole) of this phase: a schedule is a function of the finished share."""
        if self.timed:
            return self.state.seconds - self.start, max(self.end - self.start, 1.0)
        return self.state.step - self.start, self.length

    @property
    def progress(self) -> float:
        """The finished share of the run."""
        return min(1.0, self.position / (self.budget if self.timed else self.state.total))

    def stepped(self) -> bool:
        """After a step: whether the run is at its end."""
        if self.timed and not self.measured:
            if self.first is None:
                self.first = (self.state.seconds, self.state.samples)
            else:  # no evaluation was timed yet: a forward pass is about a third of a step
                guess = (self.state.seconds - self.first[0]) / (self.state.samples - self.first[1]) / 3 * self.size
                self.evaluation = min(guess, self.budget / 2)
        return self.over()

    def evaluated(self, took: float) -> None:
        self.evaluation, self.measured = took, True
        self.evaluating += took

    def over(self, more: int = 1) -> bool:
        """Whether the run is at its end, when `more` evaluations are to come."""
        late = self.timed and self.state.seconds + (more * self.evaluation if self.last else 0.0) >= self.budget
        return late or self.state.step >= self.state.total

    def measured_enough(self) -> bool:
        """In a budget: whether one more evaluation would make them more than a tenth of the time so far."""
        return self.timed and self.evaluating + self.evaluation > EVALUATING * self.state.seconds

    def phase_over(self) -> bool:
        return self.position >= self.end


class Clock:
    """Charges the time of a run to what it went to; what is not charged is computing."""

    def __init__(self, state: State) -> None:
        self.state, self.since = state, time.monotonic()
        self.before = dict(state.spent)

    def charge(self, what: str, began: float) -> None:
        """Everything since `began` was for this."""
        self.state.spent[what] += time.monotonic() - began

    def lap(self) -> tuple[float, float]:
        """Since the last lap: seconds of training, evaluations and saves not counted; of them waiting for data."""
        now, spent = time.monotonic(), self.state.spent
        data, evaluate, save = (spent[what] - self.before[what] for what in ("data", "evaluate", "save"))
        training = max(now - self.since - evaluate - save, 1e-9)
        self.since, self.before = now, dict(spent)
        return training, data
