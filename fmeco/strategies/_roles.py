"""Scales that several strategies share, by what parameters are."""

from __future__ import annotations

from collections.abc import Callable

from fmeco.core import ConfigError, Role, Roles, Scales


def everything(roles: Roles, backbone_lr: float) -> Scales:
    return {name: 1.0 if role.depth is None else backbone_lr for name, role in roles.items()}


def head_alone(roles: Roles, lr: float) -> Scales:
    return {name: lr if role.depth is None else 0.0 for name, role in roles.items()}


def head_and(roles: Roles, chosen: Callable[[str, Role], bool], what: str) -> Scales:
    """The head and what is chosen of the backbone."""
    scales = {name: float(role.depth is None or chosen(name, role)) for name, role in roles.items()}
    if not any(scales[name] for name, role in roles.items() if role.depth is not None):
        raise ConfigError(f"transfer.strategy: this backbone has no {what}", "probe trains the head alone")
    return scales


def layers_of(roles: Roles) -> list[int]:
    return sorted({role.depth for role in roles.values() if role.depth is not None})
