"""Find numbers that stand for missing values, such as -9999 or 1e30."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

FAR = 10  # such a number lies outside of all others by at least so many times their range
HUGE = 1e20  # programs of climate and weather fill gaps with 1e20, 1e30 or 9.97e36
LIMITS = frozenset([-(2.0**15), 2.0**15 - 1, 2.0**16 - 1, -(2.0**31), 2.0**31 - 1, 2.0**32 - 1, -(2.0**63), 2.0**63])
_ONE_DIGIT = re.compile(r"-?(?:99+(?:\.9+)?|88+(?:\.8+)?|77+(?:\.7+)?)")


def find(values: NDArray[np.float64]) -> dict[float, int]:
    """Find the numbers of a column that stand for missing values. values: its numbers (N,). Returns number -> its count.

    Such a number looks like one: nines, eights or sevens, the limit of a type, or 1e20 and more. It is there at least twice.
    It is far outside of all others, so that an ordinary price of 999 is none: by FAR times their range; or it is negative, ten
    times as far from zero as any other negative number, and by half of their range below all others.
    """
    counts: dict[float, int] = {}
    others = values
    while len(others):
        ends = {float(others.min()), float(others.max())}
        outer = [x for x in ends if _looks_like_one(x) and np.count_nonzero(others == x) > 1]
        if not outer:
            break
        counts |= {x: int(np.count_nonzero(others == x)) for x in outer}
        others = others[~np.isin(others, outer)]
    if not counts or not len(others) or others.min() == others.max():
        return {}
    low, high = float(others.min()), float(others.max())
    return {x: count for x, count in counts.items() if _is_far(x, low, high)}


def _looks_like_one(x: float) -> bool:
    return abs(x) >= HUGE or x in LIMITS or _ONE_DIGIT.fullmatch(f"{x:.15g}") is not None


def _is_far(x: float, low: float, high: float) -> bool:
    """Tell whether a number is far outside of the range of the others, low to high."""
    outside = max(low - x, x - high)
    return outside > FAR * (high - low) or (x < 0 and FAR * min(low, 0) >= x and outside > (high - low) / 2)
