"""A change of low rank to each weight of the backbone, and the head. https://arxiv.org/abs/2106.09685 equation (3).

The checkpoint's backbone holds the merged weights; adapter.safetensors beside it holds the factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from fmeco.core import ConfigError, Constraint, Doc, Ge, Gt, Phase, Roles, Transfer, matching
from fmeco.strategies._roles import head_alone


def build(
    roles: Roles,
    *,
    rank: Annotated[int, Doc("of the change to each weight"), Ge(1)] = 8,
    alpha: Annotated[float, Doc("the change is alpha / rank times the product of its factors"), Gt(0)] = 16.0,
    lr: Annotated[
        float, Doc("factor on the learning rate: small factors can take more than whole weights"), Gt(0)
    ] = 10.0,
    only: Annotated[
        list[str], Doc("names or patterns of the weights to adapt; [] = all matrices and convolutions of the backbone")
    ] = [],
) -> Transfer:
    inside = [name for name, role in roles.items() if role.depth is not None and role.kind == "weight"]
    chosen = sorted(matching(only, inside, "transfer.only")) if only else inside
    if not chosen:
        raise ConfigError("transfer.strategy: lora: this backbone has no matrices or convolutions")

    def bind(parameters: Mapping[str, nn.Parameter]) -> Constraint:
        return Adapters({name: parameters[name] for name in chosen if name in parameters}, rank, alpha / rank, lr)

    return Transfer((Phase(head_alone(roles, lr)),), bind=bind)


class Adapters(Constraint):
    """Weights as base + scale * B @ A, of which A and B are trained.

    The model holds the sum, so that it computes, is evaluated and is saved like any other. The chain rule takes the sum's
    gradient G (O, I) to those of the factors: scale * G @ A.T for B (O, rank), and scale * B.T @ G for A (rank, I). A
    convolution (O, I, h, w) counts as (O, I * h * w).
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], rank: int, scale: float, rate: float) -> None:
        self.weights, self.scale, self.rate = weights, scale, rate
        self.base = {name: weight.detach().clone() for name, weight in weights.items()}
        self.own = {}
        for name, weight in weights.items():
            outputs, inputs = weight.flatten(1).shape
            r = min(rank, outputs, inputs)
            a = torch.empty(r, inputs)  # drawn on the CPU: the same numbers for every device
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            self.own[f"{name}.lora_A"] = nn.Parameter(a.to(weight))
            self.own[f"{name}.lora_B"] = nn.Parameter(weight.new_zeros(outputs, r))

    def thaw(self) -> None:
        for weight in self.weights.values():
            weight.requires_grad_(True)

    def gradients(self, rescale: Tensor | float) -> None:
        for name, weight in self.weights.items():
            if weight.grad is not None:
                a, b = self.own[f"{name}.lora_A"], self.own[f"{name}.lora_B"]
                gradient = weight.grad.flatten(1)
                a.grad = (b.detach().T @ gradient).mul_(self.scale)
                b.grad = (gradient @ a.detach().T).mul_(self.scale)
                weight.grad = None

    @torch.no_grad()
    def stepped(self) -> None:
        for name, weight in self.weights.items():
            change = self.own[f"{name}.lora_B"] @ self.own[f"{name}.lora_A"]
            weight.copy_(self.base[name] + self.scale * change.view(weight.shape))

    def state(self) -> dict[str, Tensor]:
        return {**{f"base/{name}": x for name, x in self.base.items()}, **{n: p.detach() for n, p in self.own.items()}}

    def adapter(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.own.items()}
