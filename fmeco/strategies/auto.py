"""Solve the head on frozen features, then train all parameters gently from there.

A solved head is the best linear classifier or regression on the source's features, as in LP-FT
(https://arxiv.org/abs/2202.10054). It is evaluated and saved as step 0, and stays the result unless training beats it.
Heads that cannot be solved are trained alone first.

Data of another modality than the source's (`far`) needs other features: everything then trains as `scratch` does, with
batch norms that adapt, from a new head, since the solved one holds the features back.
"""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Gt, Le, Lt, Penalties, Phase, Roles, Transfer
from fmeco.strategies._roles import decayed, head_alone

NEW_WEIGHTS = 2.0  # factor on the learning rate of everything on data that the features do not fit, as of `scratch`


def build(
    roles: Roles,
    layer_decay: float,
    far: bool,
    *,
    head_lr: Annotated[
        float | None,
        Doc(
            "factor on the learning rate of the head, beside the backbone's; null = 10, or 1 if everything trains as new"
        ),
        Gt(0),
    ] = None,
    decay: Annotated[
        float | None,
        Doc("factor on the learning rate per twelfth of the backbone's layers, downwards; null = as the backbone says"),
        Gt(0),
        Le(1),
    ] = None,
    head_share: Annotated[
        float, Doc("share of the run that trains a head alone which cannot be solved"), Gt(0), Lt(1)
    ] = 0.1,
    penalty: Penalties = {},
) -> Transfer:
    if decay is None:
        decay = 1.0 if far else layer_decay
    if head_lr is None:
        head_lr = 1.0 if far else 10.0
    factor = NEW_WEIGHTS if far else 1.0
    everything = {name: factor * scale for name, scale in decayed(roles, decay, head_lr).items()}
    return Transfer(
        (Phase(head_alone(roles, factor * head_lr), head_share), Phase(everything, 1 - head_share)),
        penalties=penalty,
        backbone_rate=not far,
        keep_statistics=not far,
        new_head=far,
    )
