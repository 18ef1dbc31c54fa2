"""Step by the sign of a momentum. https://arxiv.org/abs/2302.06675 algorithm 2"""

from __future__ import annotations

from typing import Annotated, Any

import torch

from fmeco.core import Ge, Groups, Lt, Rate

KIND = "optimizer"


class Lion(torch.optim.Optimizer):
    def __init__(self, params: Groups, lr: float, momentum: float, memory: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "memory": memory})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(average.lerp(p.grad, 1 - group["momentum"]).sign(), alpha=-group["lr"])
                average.lerp_(p.grad, 1 - group["memory"])


def build(
    params: Groups,
    *,
    lr: Rate = 1e-3,
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9,
    memory: Annotated[float, Ge(0), Lt(1)] = 0.99,
    weight_decay: Annotated[float, Ge(0)] = 0.1,
) -> torch.optim.Optimizer:
    return Lion(params, lr, momentum, memory)
