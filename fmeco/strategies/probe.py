"""Train the head only: how good are the features as they are?"""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Gt, Phase, Roles, Transfer
from fmeco.strategies._roles import head_alone


def build(
    roles: Roles,
    *,
    lr: Annotated[float, Doc("factor on the learning rate: a head alone can take more"), Gt(0)] = 10.0,
) -> Transfer:
    return Transfer((Phase(head_alone(roles, lr)),))
