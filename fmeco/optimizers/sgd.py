"""Stochastic gradient descent; plain gradient descent with `momentum: 0` and `train.batch_size: full`."""

from __future__ import annotations

from typing import Annotated

import torch

from fmeco.core import Ge, Groups, Lt, Rate
from fmeco.optimizers._groups import merged


def build(
    params: Groups,
    *,
    lr: Rate = 0.1,
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9,
    nesterov: bool = False,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        merged(params, lr),
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
        fused=True,
    )
