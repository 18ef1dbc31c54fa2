"""The head first, then everything from there: a head that knows nothing would distort good features.

https://arxiv.org/abs/2202.10054 (Kumar et al. 2022), section 3.4.
"""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Gt, Le, Lt, Phase, Roles, Transfer
from fmeco.strategies._roles import everything, head_alone


def build(
    roles: Roles,
    *,
    probe_share: Annotated[float, Doc("share of the run that trains the head alone, first"), Gt(0), Lt(1)] = 0.3,
    probe_lr: Annotated[float, Doc("factor on the learning rate meanwhile: a head alone can take more"), Gt(0)] = 10.0,
    backbone_lr: Annotated[float, Doc("factor on the backbone's learning rate after"), Gt(0), Le(1)] = 1.0,
) -> Transfer:
    return Transfer(
        (Phase(head_alone(roles, probe_lr), probe_share), Phase(everything(roles, backbone_lr), 1 - probe_share))
    )
