"""The warm-up that schedules share."""

from __future__ import annotations


def warm_up(step: float, total: float, warmup: float) -> tuple[float, float]:
    """(the factor of a linear warm-up, the finished share of what comes after it)."""
    rise = warmup * total
    warm = min(1.0, (step + 1) / (rise + 1))
    return warm, min(1.0, max(0.0, (step - rise) / max(total - rise, 1e-9)))
