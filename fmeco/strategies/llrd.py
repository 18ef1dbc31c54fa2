"""Train all parameters, with a learning rate that decays from the last layer to the first. https://arxiv.org/abs/1801.06146 section 3.2

The decay is per block, as in https://arxiv.org/abs/2106.08254 (BEiT), appendix H, which uses 0.65 to 0.75 for large
transformers.
"""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Gt, Le, Phase, Roles, Transfer
from fmeco.strategies._roles import decayed


def build(
    roles: Roles,
    *,
    decay: Annotated[
        float,
        Doc("factor on the learning rate from one twelfth of the layers to the twelfth below, as per block of a ViT-B"),
        Gt(0),
        Le(1),
    ] = 0.9,
) -> Transfer:
    return Transfer((Phase(decayed(roles, decay, 1.0, start=1)),))
