"""Put differences between models into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SOURCE = "source"  # name of the control that is no strategy, but the source as it is


def better(difference: Sequence[float], digits: int = 4) -> tuple[str, str]:
    """Describe a difference as "better by" or "worse by" a positive number.

    difference: how much better (negative: worse), and the ends of its interval.
    Returns (words, interval of the number in the words).
    """
    value, low, high = difference
    word = "better"
    if value < 0:
        word, value, low, high = "worse", -value, -high, -low
    return f"{word} by {value:z.{digits}f}", f"{low:z.{digits}f} to {high:z.{digits}f}"


def verdict(row: Mapping[str, Any], change: str, metric: str) -> str:
    """Describe a difference between two runs in one sentence: helped, hurt, or not significant."""
    _, low, high = row["difference"]
    words, interval = better(row["difference"], 3)
    numbers = f"{metric} {words}, 95% interval {interval}" + (f", p {row['p']:.3g}" if "p" in row else "")
    if low > 0:
        return f"{change} helped: {numbers}"
    if high < 0:
        return f"{change} hurt: {numbers}"
    return f"{change}: no significant difference on these samples: {numbers}"
