"""LoRA: train the head and a low-rank update of each weight of the backbone. https://arxiv.org/abs/2106.09685 equation (3).

The checkpoint's backbone holds the merged weights; adapter.safetensors beside it holds the low-rank factors.
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
    rank: Annotated[int, Doc("rank of the update of each weight"), Ge(1)] = 8,
    alpha: Annotated[float, Doc("the update is alpha / rank times the product of its factors"), Gt(0)] = 16.0,
    lr: Annotated[
        float, Doc("factor on the backbone's rate: low-rank factors train at higher rates than full weights"), Gt(0)
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

    # From ten times a gentle rate, not from ten times the optimizer's own: that left all features of a network with ReLU6
    # and frozen batch norms at zero within ten steps.
    return Transfer((Phase(head_alone(roles, lr)),), bind=bind, backbone_rate=True)


class Adapters(Constraint):
    """Train the factors A and B of weights base + scale * B @ A.

    The model holds the sum, so it runs, is evaluated and is saved like any other model. The gradients of the factors
    follow from the sum's gradient G (O, I) by the chain rule: scale * G @ A.T for B (O, rank), scale * B.T @ G for
    A (rank, I). A convolution (O, I, h, w) is treated as the matrix (O, I * h * w).
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], rank: int, scale: float, rate: float) -> None:
        self.weights, self.scale, self.rate = weights, scale, rate
        self.base = {name: weight.detach().clone() for name, weight in weights.items()}
        self.own = {}
        for name, weight in weights.items():
            outputs, inputs = weight.flatten(1).shape
            r = min(rank, outputs, inputs)
            a = torch.empty(r, inputs)  # drawn on the CPU, so that every device starts from the same numbers
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
