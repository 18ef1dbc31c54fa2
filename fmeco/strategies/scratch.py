"""Train everything from new weights: the source gives its architecture and preprocessing only. The control that
says what its weights were worth."""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Gt, Phase, Roles, Transfer


def build(
    roles: Roles,
    *,
    lr: Annotated[float, Doc("factor on the learning rate: new weights have further to go"), Gt(0)] = 2.0,
) -> Transfer:
    return Transfer((Phase(dict.fromkeys(roles, lr)),), fresh=True)
