"""Transfer strategies: which parameters of a loaded model train, and how fast.

A strategy is handed `depths`: every parameter of the objective by name, with its depth in the backbone, or None for
parameters outside of it (heads). It returns each one's scale on the learning rate; 0 freezes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fmeco.plugins import Doc, Gt, Le

Depths = Mapping[str, int | None]


def full(
    depths: Depths,
    *,
    backbone_lr: Annotated[float, Doc("factor on the learning rate of the backbone"), Gt(0), Le(1)] = 1.0,
) -> dict[str, float]:
    """Train everything."""
    return {name: 1.0 if depth is None else backbone_lr for name, depth in depths.items()}


def probe(depths: Depths) -> dict[str, float]:
    """Train the head only: how good are the features as they are?"""
    return {name: 1.0 if depth is None else 0.0 for name, depth in depths.items()}
