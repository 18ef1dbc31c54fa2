"""Learning rate that drops when the validation score stops improving, after a linear warm-up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from fmeco.core import Doc, Ge, Gt, Lt
from fmeco.schedules._warmup import warm_up


def build(
    step: float,
    total: float,
    history: Sequence[float],  # validation score of each evaluation so far; higher is better
    *,
    warmup: Annotated[float, Doc("share of the run with linear warm-up"), Ge(0), Lt(1)] = 0.0,
    patience: Annotated[int, Doc("number of evaluations without a better score after which the rate drops"), Gt(0)] = 3,
    gamma: Annotated[float, Doc("factor on the learning rate at each drop"), Gt(0), Lt(1)] = 0.1,
) -> float:
    best, waited, drops = -math.inf, 0, 0
    for score in history:
        if score > best:
            best, waited = score, 0
        else:
            waited += 1
            if waited >= patience:
                drops, waited = drops + 1, 0
    return warm_up(step, total, warmup)[0] * gamma**drops
