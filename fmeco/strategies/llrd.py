"""Everything, the lower a layer the more slowly. https://arxiv.org/abs/1801.06146 section 3.2; decay per block as in
https://arxiv.org/abs/2106.08254 (BEiT), appendix H, where 0.65 to 0.75 serve large transformers."""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Doc, Gt, Le, Phase, Roles, Transfer
from fmeco.strategies._roles import layers_of

BLOCKS = 12  # steps of layer-wise rates from the last layer to the first: as many as a ViT-B has blocks


def build(
    roles: Roles,
    *,
    decay: Annotated[
        float,
        Doc("factor on the learning rate from one twelfth of the layers to the one below, as between a ViT-B's blocks"),
        Gt(0),
        Le(1),
    ] = 0.9,
) -> Transfer:
    layers = layers_of(roles)
    place = {depth: (at + 1) / len(layers) for at, depth in enumerate(layers)}
    scales = {
        name: 1.0 if role.depth is None else decay ** (1 + BLOCKS * (1 - place[role.depth]))
        for name, role in roles.items()
    }
    return Transfer((Phase(scales),))
