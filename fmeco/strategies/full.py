"""Train all parameters."""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Gt, Le, Phase, Roles, Transfer
from fmeco.strategies._roles import everything


def build(
    roles: Roles,
    *,
    backbone_lr: Annotated[float, Doc("factor on the learning rate of the backbone"), Gt(0), Le(1)] = 1.0,
) -> Transfer:
    return Transfer((Phase(everything(roles, backbone_lr)),))
