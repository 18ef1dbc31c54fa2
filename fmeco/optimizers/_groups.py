"""Groups of parameters, as few as possible."""

from __future__ import annotations

from typing import Any

from fmeco.core import Groups


def merged(params: Groups, lr: float) -> Groups:
    """Join groups with the same learning rate and weight decay into one: each group costs a call per step.

    Moments are saved by position, so the order of groups and parameters must stay as it is.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for g in params:
        empty = {"params": [], "names": [], "weight_decay": g["weight_decay"]}
        group = groups.setdefault((lr * g["scale"], g["weight_decay"]), empty)
        group["params"] += g["params"]
        group["names"] += g["names"]
    return list(groups.values())
