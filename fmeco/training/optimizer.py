"""Build the optimizer of a run's phase."""

from __future__ import annotations

import torch

from fmeco.config.run_config import Choice
from fmeco.core import Groups
from fmeco.errors import ConfigError, listing


def build_optimizer(choice: Choice, groups: Groups) -> torch.optim.Optimizer:
    """Build the optimizer that a config's section describes over groups that `parameter_groups` made.

    Each of its own groups then has as `lr` the rate it was built with times the scale of its parameters, and the same as
    `base_lr`, which a schedule multiplies. Raises ConfigError for a plug-in that breaks its promise.
    """
    decay = choice.options.get("weight_decay") or 0.0
    handed = [
        {
            **{key: list(g[key]) for key in ("params", "names", "hidden")},
            "weight_decay": decay if g["decay"] else 0.0,
            "scale": g["scale"],
        }
        for g in groups
    ]
    optimizer = choice.build(params=handed)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"{choice.plugin.file}: build() must return a torch.optim.Optimizer")
    scales = {name: g["scale"] for g in groups for name in g["names"]}
    scales_by_id = {id(p): g["scale"] for g in groups for p in g["params"]}
    for group in optimizer.param_groups:
        if "names" in group:
            own = [scales[name] for name in group["names"] if name in scales]
        else:
            own = [scales_by_id[id(p)] for p in group["params"] if id(p) in scales_by_id]
        rates = [group["lr"] * scale for scale in own] or [group["lr"]]
        if any(rate != rates[0] for rate in rates):
            raise ConfigError(
                f"{choice.plugin.file}: build() puts parameters of several learning rates into one group: "
                f"scales {listing(sorted(set(own)))}",
                "the groups that it is handed have one rate each",
            )
        group["lr"] = group["base_lr"] = rates[0]
    return optimizer
