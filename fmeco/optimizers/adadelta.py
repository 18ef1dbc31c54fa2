"""Adadelta, https://arxiv.org/abs/1212.5701."""

from __future__ import annotations

from typing import Annotated

import torch

from fmeco.core import Ge, Groups, Le, Rate
from fmeco.optimizers._groups import merged


def build(
    params: Groups,
    *,
    lr: Rate = 1.0,
    rho: Annotated[float, Ge(0), Le(1)] = 0.9,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
) -> torch.optim.Optimizer:
    return torch.optim.Adadelta(merged(params, lr), lr=lr, weight_decay=weight_decay, rho=rho)
