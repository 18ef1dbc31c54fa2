"""Constant learning rate after a linear warm-up."""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Ge, Lt
from fmeco.schedules._warmup import warm_up


def build(
    step: float,
    total: float,
    *,
    warmup: Annotated[float, Doc("share of the run with linear warm-up"), Ge(0), Lt(1)] = 0.0,
) -> float:
    return warm_up(step, total, warmup)[0]
