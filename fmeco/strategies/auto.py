"""Solve the head on frozen features, then train all parameters gently from there.

A solved head is the best linear classifier or regression on the source's features, as in LP-FT
(https://arxiv.org/abs/2202.10054). It is evaluated and saved as step 0, and stays the result unless training beats it.
Heads that cannot be solved are trained alone first.
"""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Gt, Le, Lt, Penalties, Phase, Roles, Transfer
from fmeco.strategies._roles import decayed, head_alone

HEAD_ALONE = 5.0  # factor on the head's rate while it trains alone, on features that do not change


def build(
    roles: Roles,
    layer_decay: float,
    *,
    head_lr: Annotated[float, Doc("factor on the learning rate of the head, beside the backbone's"), Gt(0)] = 10.0,
    decay: Annotated[
        float | None,
        Doc("factor on the learning rate per twelfth of the backbone's layers, downwards; null = as the backbone says"),
        Gt(0),
        Le(1),
    ] = None,
    head_share: Annotated[
        float, Doc("share of the run that trains a head alone which cannot be solved"), Gt(0), Lt(1)
    ] = 0.3,
    penalty: Penalties = {},
) -> Transfer:
    everything = decayed(roles, layer_decay if decay is None else decay, head_lr)
    return Transfer(
        (Phase(head_alone(roles, HEAD_ALONE * head_lr), head_share), Phase(everything, 1 - head_share)),
        penalties=penalty,
        backbone_rate=True,
        keep_statistics=True,
    )
