"""Group the parameters that a phase trains, and build their optimizer."""

from __future__ import annotations

import torch

from fmeco.assembly.stages import Training
from fmeco.config.run_config import Choice
from fmeco.core.training import Groups, parameter_groups
from fmeco.errors import ConfigError, listing


def phase_groups(training: Training, phase: int) -> Groups:
    """Group the parameters that a phase trains, and freeze the others."""
    constraint, roles = training.constraint, training.model.roles
    own, rate = (constraint.own, constraint.rate) if constraint is not None else ({}, 1.0)
    scales = {**training.model.transfer.phases[phase].scales, **dict.fromkeys(own, rate)}
    hidden = {name for name, role in roles.items() if role.kind == "weight" and (role.depth or 0) > 0}
    undecayed = constraint.undecayed if constraint is not None else frozenset()
    learning = [(name, p) for name, p in training.objective.named_parameters() if name in roles]
    groups = parameter_groups([*learning, *own.items()], scales, hidden, undecayed)
    if not groups:
        raise ConfigError(
            f"transfer: nothing is left to train in phase {phase + 1}: every parameter is frozen",
            "transfer.freeze matches all that the strategy would train: leave some of it out"
            if training.config.carry.freeze
            else "",
        )
    if constraint is not None:
        constraint.thaw()
    return groups


def build_optimizer(choice: Choice, groups: Groups) -> torch.optim.Optimizer:
    """Build the optimizer of a config section, with groups from `parameter_groups`.

    A group's `lr` becomes the rate that the optimizer was built with, times the scale of the group's parameters.
    `base_lr` holds the same value, which the schedule multiplies.

    Raises ConfigError for a plug-in that returns no optimizer, that leaves a parameter out, or that mixes learning rates
    in one group.
    """
    decay = choice.options.get("weight_decay") or 0.0
    param_groups = [
        {
            **{key: list(g[key]) for key in ("params", "names", "hidden")},
            "weight_decay": decay if g["decay"] else 0.0,
            "scale": g["scale"],
        }
        for g in groups
    ]
    optimizer = choice.build(params=param_groups)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"{choice.plugin.file}: build() must return a torch.optim.Optimizer")
    # By their memory, as muon hands torch's optimizer views of the weights.
    held = {p.data_ptr() for group in optimizer.param_groups for p in group["params"]}
    given = [(name, p) for g in groups for name, p in zip(g["names"], g["params"], strict=True)]
    if left_out := [name for name, p in given if p.data_ptr() not in held]:
        raise ConfigError(
            f"{choice.plugin.file}: the optimizer that build() returns would not train {listing(left_out, 5)}",
            "it must hold every parameter of `params`; frozen ones are not among them",
        )
    scales = {name: g["scale"] for g in groups for name in g["names"]}
    scales_by_id = {id(p): g["scale"] for g in groups for p in g["params"]}
    for group in optimizer.param_groups:
        if "names" in group:
            group_scales = [scales[name] for name in group["names"] if name in scales]
        else:
            group_scales = [scales_by_id[id(p)] for p in group["params"] if id(p) in scales_by_id]
        if "lr" not in group:
            raise ConfigError(f"{choice.plugin.file}: a parameter group of the optimizer has no `lr`")
        base = float(group["lr"])  # torch also takes a tensor
        rates = [base * scale for scale in group_scales] or [base]
        if any(rate != rates[0] for rate in rates):
            raise ConfigError(
                f"{choice.plugin.file}: build() puts parameters of several learning rates into one group: "
                f"scales {listing(sorted(set(group_scales)))}",
                "each group that build() receives has one rate: split groups, but do not join them",
            )
        group["lr"] = group["base_lr"] = rates[0]
    return optimizer
