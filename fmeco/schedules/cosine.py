"""Cosine decay of the learning rate after a linear warm-up, https://arxiv.org/abs/1608.03983 equation (5)."""

from __future__ import annotations

import math
from typing import Annotated

from fmeco.core import Doc, Ge, Le, Lt
from fmeco.schedules._warmup import warm_up


def build(
    step: float,
    total: float,
    *,
    warmup: Annotated[float, Doc("share of the run with linear warm-up"), Ge(0), Lt(1)] = 0.05,
    final: Annotated[float, Doc("factor on the learning rate at the end"), Ge(0), Le(1)] = 0.0,
) -> float:
    warm, progress = warm_up(step, total, warmup)
    return warm * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)
