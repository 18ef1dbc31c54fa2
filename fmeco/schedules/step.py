"""Learning rate that drops at fixed shares of the run, after a linear warm-up."""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Ge, Gt, Lt
from fmeco.schedules._warmup import warm_up


def build(
    step: float,
    total: float,
    *,
    warmup: Annotated[float, Doc("share of the run with linear warm-up"), Ge(0), Lt(1)] = 0.0,
    at: Annotated[list[float], Doc("shares of the run after which the rate drops")] = [0.5, 0.75],
    gamma: Annotated[float, Doc("factor on the learning rate at each drop"), Gt(0), Lt(1)] = 0.1,
) -> float:
    return warm_up(step, total, warmup)[0] * gamma ** sum(step >= share * total for share in at)
