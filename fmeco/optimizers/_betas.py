"""The two decay rates of Adam and its kin."""

from __future__ import annotations

from collections.abc import Sequence

from fmeco.core import ConfigError


def pair(betas: Sequence[float]) -> tuple[float, float]:
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"optimizer.betas: expected two numbers from 0 to 1, got {list(betas)}")
    return betas[0], betas[1]
