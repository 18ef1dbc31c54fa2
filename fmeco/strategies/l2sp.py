"""Train all parameters, with an L2 penalty on the distance from the source's weights. https://arxiv.org/abs/1802.01483 equation (2).

The penalty replaces weight decay in the backbone. The head keeps the optimizer's weight decay; normalisation layers get
neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from fmeco.core import Constraint, Doc, Gt, Le, Phase, Roles, Transfer
from fmeco.strategies._roles import everything


def build(
    roles: Roles,
    *,
    alpha: Annotated[
        float, Doc("weight of the penalty, half the squared distance from the source's weights"), Gt(0)
    ] = 0.01,
    backbone_lr: Annotated[float, Doc("factor on the learning rate of the backbone"), Gt(0), Le(1)] = 1.0,
) -> Transfer:
    anchored = [name for name, role in roles.items() if role.depth is not None and role.kind != "norm"]

    def bind(parameters: Mapping[str, nn.Parameter]) -> Constraint:
        return Anchor({name: parameters[name] for name in anchored if name in parameters}, alpha)

    return Transfer((Phase(everything(roles, backbone_lr)),), bind=bind)


class Anchor(Constraint):
    """Add the gradient of the penalty alpha / 2 * ||w - w_start||^2 to the parameters' gradients."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], alpha: float) -> None:
        self.parameters, self.alpha, self.undecayed = parameters, alpha, set(parameters)
        self.start = {name: p.detach().clone() for name, p in parameters.items()}

    def thaw(self) -> None:
        pass

    @torch.no_grad()
    def gradients(self, rescale: Tensor | float) -> None:
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                parameter.grad.add_((parameter - self.start[name]) * (self.alpha / rescale))

    def stepped(self) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return self.start
