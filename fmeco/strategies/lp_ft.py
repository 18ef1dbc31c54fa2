"""Fit only the head first, then train all parameters: the gradients of an untrained head would distort good features.

The head is solved if the objective can, and then the whole run trains all parameters.

LP-FT (linear probing, then finetuning): https://arxiv.org/abs/2202.10054 (Kumar et al. 2022), section 3.4.
"""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Gt, Le, Lt, Penalties, Phase, Roles, Transfer
from fmeco.strategies._roles import everything, head_alone


def build(
    roles: Roles,
    *,
    probe_share: Annotated[float, Doc("share of the run, at its start, that trains only the head"), Gt(0), Lt(1)] = 0.3,
    probe_lr: Annotated[float, Doc("factor on the learning rate while only the head trains"), Gt(0)] = 10.0,
    backbone_lr: Annotated[float, Doc("factor on the backbone's learning rate afterwards"), Gt(0), Le(1)] = 1.0,
    penalty: Penalties = {},
) -> Transfer:
    return Transfer(
        (Phase(head_alone(roles, probe_lr), probe_share), Phase(everything(roles, backbone_lr), 1 - probe_share)),
        penalties=penalty,
    )
