"""RMSprop, https://arxiv.org/abs/1308.0850 section 4.2."""

from __future__ import annotations

from typing import Annotated

import torch

from fmeco.core import Ge, Groups, Lt, Rate
from fmeco.optimizers._groups import merged


def build(
    params: Groups,
    *,
    lr: Rate = 1e-2,
    alpha: Annotated[float, Ge(0), Lt(1)] = 0.99,
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(merged(params, lr), lr=lr, weight_decay=weight_decay, alpha=alpha, momentum=momentum)
