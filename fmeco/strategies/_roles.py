"""Compute learning-rate scales that several strategies share, from the roles of parameters."""

from __future__ import annotations

from collections.abc import Callable

from fmeco.core import ConfigError, Role, Roles, Scales


def everything(roles: Roles, backbone_lr: float) -> Scales:
    """Train all parameters: the head with scale 1, the backbone with `backbone_lr`."""
    return {name: 1.0 if role.depth is None else backbone_lr for name, role in roles.items()}


def head_alone(roles: Roles, lr: float) -> Scales:
    """Train only the head, with scale `lr`, and freeze the backbone."""
    return {name: lr if role.depth is None else 0.0 for name, role in roles.items()}


def head_and(roles: Roles, chosen: Callable[[str, Role], bool], what: str) -> Scales:
    """Train the head and those backbone parameters for which `chosen(name, role)` is true; freeze the others.

    what: the chosen parameters in words, for the error message.
    Raises ConfigError if no backbone parameter is chosen.
    """
    scales = {name: float(role.depth is None or chosen(name, role)) for name, role in roles.items()}
    if not any(scales[name] for name, role in roles.items() if role.depth is not None):
        raise ConfigError(
            f"transfer.strategy: this backbone has no {what}", "transfer.strategy: probe trains only the head"
        )
    return scales


def layers_of(roles: Roles) -> list[int]:
    """List the depths of the backbone's layers, from the input to the output."""
    return sorted({role.depth for role in roles.values() if role.depth is not None})


BLOCKS = 12  # any number of layers decays like the 12 blocks of a ViT-B


def decayed(roles: Roles, decay: float, head: float, start: int = 0) -> Scales:
    """Train all parameters, with scales that decay from the last layer of the backbone to the first.

    decay: factor from one twelfth of the layers to the twelfth below.
    head: scale of the head.
    start: power of the decay at the last layer.
    """
    layers = layers_of(roles)
    height = {depth: (at + 1) / len(layers) for at, depth in enumerate(layers)}
    return {
        name: head if role.depth is None else decay ** (start + BLOCKS * (1 - height[role.depth]))
        for name, role in roles.items()
    }
