"""Compute the linear warm-up that several schedules begin with."""

from __future__ import annotations


def warm_up(step: float, total: float, warmup: float) -> tuple[float, float]:
    """Compute the warm-up factor and the progress after it.

    warmup: share of the run, in [0, 1).
    Returns (factor of the linear warm-up, 0..1; share of the steps after the warm-up that are done, 0..1).
    """
    rise = warmup * total
    warm = min(1.0, (step + 1) / (rise + 1))
    return warm, min(1.0, max(0.0, (step - rise) / max(total - rise, 1e-9)))
