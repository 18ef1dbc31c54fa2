"""Train all parameters from new weights, with the source's architecture and preprocessing: the control that shows what its weights are worth."""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Gt, Phase, Roles, Transfer


def build(
    roles: Roles,
    *,
    lr: Annotated[
        float, Doc("factor on the learning rate: new weights have further to go than pretrained ones"), Gt(0)
    ] = 2.0,
) -> Transfer:
    return Transfer((Phase(dict.fromkeys(roles, lr)),), fresh=True)
