"""The promises of a schedule: a pure function, finite and not negative over a run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from fmeco.config.run_config import Choice
from fmeco.testing.bench import Bench
from fmeco.testing.report import Broken, Checks

TOTAL = 100  # steps of the run


def checks(choice: Choice, bench: Bench) -> Checks:
    """Check a schedule over a run of steps, and over one with a budget of seconds."""
    schedule = choice.plugin.bound(choice.options)
    schedule(step=0, total=TOTAL, history=[])
    yield "over a run", functools.partial(_run, schedule)
    yield "twice the same", functools.partial(_pure, schedule)


def _history(step: float) -> list[float]:
    """Validation scores so far: one every ten steps, rising at first."""
    return [min(0.1 * n, 0.5) for n in range(int(step) // 10)]


def _run(schedule: Callable[..., float]) -> str | None:
    factors = []
    for step in [*range(TOTAL), *(n * 0.37 for n in range(TOTAL))]:  # in a budget of time, seconds
        factor = schedule(step=step, total=TOTAL, history=_history(step))
        if not isinstance(factor, int | float):
            raise Broken(f"step {step:g} of {TOTAL}: it must return a number, not {type(factor).__name__}")
        if not math.isfinite(factor) or factor < 0:
            raise Broken(f"step {step:g} of {TOTAL}: the factor on the learning rate is {factor}")
        factors.append(float(factor))
    if max(factors) == 0:
        raise Broken("the factor on the learning rate is 0 at every step")
    return f"from {min(factors):.3g} to {max(factors):.3g}"


def _pure(schedule: Callable[..., float]) -> str | None:
    steps = [0, 50, 10, TOTAL - 1, 50]
    first = {step: schedule(step=step, total=TOTAL, history=_history(step)) for step in steps}
    for step in reversed(steps):
        history = _history(step)
        if schedule(step=step, total=TOTAL, history=history) != first[step]:
            raise Broken(f"step {step} of {TOTAL}: another factor the second time; a resumed run asks again")
        if history != _history(step):
            raise Broken("it changes `history`")
    return None
