"""Rectified Adam, https://arxiv.org/abs/1908.03265."""

from __future__ import annotations

from typing import Annotated

import torch

from fmeco.core import Ge, Groups, Rate
from fmeco.optimizers._betas import pair
from fmeco.optimizers._groups import merged


def build(
    params: Groups,
    *,
    lr: Rate = 1e-3,
    betas: list[float] = [0.9, 0.999],
    weight_decay: Annotated[float, Ge(0)] = 0.0,
) -> torch.optim.Optimizer:
    return torch.optim.RAdam(merged(params, lr), lr=lr, weight_decay=weight_decay, betas=pair(betas))
