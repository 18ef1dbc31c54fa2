"""Adafactor: second moments stored per row and column of a weight to save memory, https://arxiv.org/abs/1804.04235."""

from __future__ import annotations

from typing import Annotated

import torch

from fmeco.core import Ge, Groups, Rate
from fmeco.optimizers._groups import merged


def build(params: Groups, *, lr: Rate = 1e-2, weight_decay: Annotated[float, Ge(0)] = 0.0) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(merged(params, lr), lr=lr, weight_decay=weight_decay)
