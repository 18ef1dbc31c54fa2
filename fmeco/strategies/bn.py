"""Train the head and the weights and biases of normalisation layers. https://arxiv.org/abs/2003.00152"""

from __future__ import annotations

from fmeco.core import Phase, Roles, Transfer
from fmeco.strategies._roles import head_and


def build(roles: Roles) -> Transfer:
    return Transfer((Phase(head_and(roles, lambda name, role: role.kind == "norm", "normalisation layers")),))
