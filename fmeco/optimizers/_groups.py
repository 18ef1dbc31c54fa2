"""Join parameter groups, so that an optimizer has few of them."""

from __future__ import annotations

from typing import Any

from fmeco.core import Groups


def merged(params: Groups, lr: float) -> Groups:
    """Join groups that have the same learning rate (`lr` times `scale`) and weight decay: each group costs a call per step.

    Keep the order of groups and parameters: a state dict numbers parameters by position, and checkpoints without parameter
    names are resumed by that number.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for part in params:
        empty = {"params": [], "names": [], "weight_decay": part["weight_decay"]}
        group = groups.setdefault((lr * part["scale"], part["weight_decay"]), empty)
        group["params"] += part["params"]
        group["names"] += part["names"]
    return list(groups.values())
