"""One cycle: the learning rate rises along half a cosine, then falls along another, https://arxiv.org/abs/1708.07120."""

from __future__ import annotations

import math
from typing import Annotated

from fmeco.core import Doc, Ge, Gt, Le, Lt


def build(
    step: float,
    total: float,
    *,
    warmup: Annotated[float, Doc("share of the run in which the learning rate rises"), Gt(0), Lt(1)] = 0.3,
    start: Annotated[float, Doc("factor on the learning rate at the start"), Gt(0), Le(1)] = 0.04,
    final: Annotated[float, Doc("factor on the learning rate at the end"), Ge(0), Le(1)] = 0.0,
) -> float:
    rise = warmup * total
    if step < rise:
        return start + (1 - start) * (1 - math.cos(math.pi * step / rise)) / 2
    progress = (step - rise) / max(total - rise, 1e-9)
    return final + (1 - final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
