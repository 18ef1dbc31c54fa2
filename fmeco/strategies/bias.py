"""Train the head and all biases, including those of normalisation layers (BitFit). https://arxiv.org/abs/2106.10199"""

from __future__ import annotations

from fmeco.core import Phase, Roles, Transfer
from fmeco.strategies._roles import head_and


def build(roles: Roles) -> Transfer:
    return Transfer((Phase(head_and(roles, lambda name, role: name.endswith("bias"), "biases")),))
