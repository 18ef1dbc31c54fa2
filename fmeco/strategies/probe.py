"""Fit only the head, to frozen features (linear probe). It is solved if the objective can, and otherwise trained."""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Gt, Penalties, Phase, Roles, Transfer
from fmeco.strategies._roles import head_alone


def build(
    roles: Roles,
    *,
    lr: Annotated[
        float, Doc("factor on the learning rate: a head on frozen features trains at higher rates"), Gt(0)
    ] = 10.0,
    penalty: Penalties = {},
) -> Transfer:
    return Transfer((Phase(head_alone(roles, lr)),), penalties=penalty)
