"""Check the betas of Adam and its variants."""

from __future__ import annotations

from collections.abc import Sequence

from fmeco.core import ConfigError


def pair(betas: Sequence[float]) -> tuple[float, float]:
    """Return the two betas as a tuple. Raises ConfigError unless there are two, both in [0, 1)."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"optimizer.betas: expected two numbers >= 0 and < 1, got {list(betas)}")
    return betas[0], betas[1]
