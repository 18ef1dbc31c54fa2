"""The biases, those of normalisation layers included, and the head. https://arxiv.org/abs/2106.10199 (BitFit)"""

from __future__ import annotations

from fmeco.core import Phase, Roles, Transfer
from fmeco.strategies._roles import head_and


def build(roles: Roles) -> Transfer:
    return Transfer((Phase(head_and(roles, lambda name, role: name.endswith("bias"), "biases")),))
