"""Train the first layers and the head, where inputs changed and meanings did not. https://arxiv.org/abs/2210.11466"""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Ge, Gt, Phase, Roles, Transfer

KIND = "strategy"


def build(
    roles: Roles,
    *,
    layers: Annotated[int, Doc("how many layers of the backbone, from the input on"), Ge(1)] = 1,
    head_lr: Annotated[float, Doc("factor on the learning rate of the head"), Gt(0)] = 2.0,
) -> Transfer:
    depths = sorted({role.depth for role in roles.values() if role.depth is not None})
    first = set(depths[:layers])
    scales = {name: head_lr if role.depth is None else float(role.depth in first) for name, role in roles.items()}
    return Transfer((Phase(scales),))
