"""Train the head first, then unfreeze the backbone from the output to the input, one block after the other.

https://arxiv.org/abs/1801.06146 (Howard and Ruder 2018), section 3.3.
"""

from __future__ import annotations

import math
from typing import Annotated

from fmeco.core import Doc, Ge, Gt, Le, Lt, Phase, Roles, Transfer
from fmeco.strategies._roles import layers_of


def build(
    roles: Roles,
    *,
    blocks: Annotated[int, Doc("number of blocks of layers that are unfrozen one after the other"), Ge(1)] = 3,
    share: Annotated[float, Doc("share of the run after which the whole backbone trains"), Gt(0), Lt(1)] = 0.6,
    backbone_lr: Annotated[float, Doc("factor on the learning rate of the backbone"), Gt(0), Le(1)] = 1.0,
) -> Transfer:
    layers = layers_of(roles)
    blocks = min(blocks, len(layers))
    phases = []
    for step in range(blocks + 1):
        lowest = layers[len(layers) * (blocks - step) // blocks] if step else math.inf
        scales = {
            name: 1.0 if role.depth is None else backbone_lr if role.depth >= lowest else 0.0
            for name, role in roles.items()
        }
        phases.append(Phase(scales, share / blocks if step < blocks else 1 - share))
    return Transfer(tuple(phases))
