"""Adam, https://arxiv.org/abs/1412.6980."""

from __future__ import annotations

from typing import Annotated

import torch

from fmeco.core import Ge, Groups, Gt, Rate
from fmeco.optimizers._betas import pair
from fmeco.optimizers._groups import merged


def build(
    params: Groups,
    *,
    lr: Rate = 1e-3,
    betas: list[float] = [0.9, 0.999],
    eps: Annotated[float, Gt(0)] = 1e-8,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    groups = merged(params, lr)
    return torch.optim.Adam(
        groups, lr=lr, weight_decay=weight_decay, betas=pair(betas), eps=eps, amsgrad=amsgrad, fused=True
    )
