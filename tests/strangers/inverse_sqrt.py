"""Rise in a line, then fall with the square root of the step. https://arxiv.org/abs/1706.03762 equation (3)"""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Gt

KIND = "schedule"


def build(step: float, *, rise: Annotated[float, Doc("steps until the full rate"), Gt(0)] = 4.0) -> float:
    at = step + 1
    return min(at / rise, (rise / at) ** 0.5)
