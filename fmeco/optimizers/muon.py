"""Muon for weight matrices and convolutions inside the backbone, AdamW for all other parameters, https://kellerjordan.github.io/posts/muon.

A convolution is treated as the matrix (outputs, inputs * height * width). Muon's updates are scaled to the size of AdamW's,
so that both use the same learning rate, as in https://arxiv.org/abs/2502.16982 equation (4). The time that Muon adds to a
step depends on the number of weights, not on the batch size.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import nn

from fmeco.core import Doc, Ge, Groups, Lt, Rate
from fmeco.optimizers._betas import pair
from fmeco.optimizers._groups import merged


def build(
    params: Groups,
    *,
    lr: Rate = 1e-3,
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.95,
    betas: Annotated[list[float], Doc("betas of AdamW, which trains the first layer, heads, biases and norms")] = [
        0.9,
        0.95,
    ],
    weight_decay: Annotated[float, Ge(0)] = 0.05,
) -> torch.optim.Optimizer:
    inside, rest = _part(params, hidden=True), _part(params, hidden=False)
    adamw = (
        torch.optim.AdamW(merged(rest, lr), lr=lr, betas=pair(betas), weight_decay=weight_decay, fused=True)
        if rest
        else None
    )
    return _Muon(merged(inside, lr), adamw, lr, momentum) if inside or adamw is None else adamw


def _part(params: Groups, hidden: bool) -> Groups:
    """Keep only the hidden matrices of each group, or only its other parameters; drop groups that become empty."""
    parts = []
    for group in params:
        at = [i for i, inside in enumerate(group["hidden"]) if inside == hidden]
        if at:
            parts.append({**group, **{key: [group[key][i] for i in at] for key in ("params", "names", "hidden")}})
    return parts


class _Muon(torch.optim.Optimizer):
    """Step torch's Muon and AdamW as one optimizer.

    torch's Muon accepts 2-D parameters only, so each weight is passed as a matrix that shares its memory.
    pairs: (parameter, its matrix).
    """

    def __init__(self, groups: Groups, adamw: torch.optim.Optimizer | None, lr: float, momentum: float) -> None:
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for group in groups:
            group["params"] = [self._matrix(p) for p in group["params"]]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(groups, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw"),
            *([adamw] if adamw is not None else []),
        ]
        super().__init__(
            [{"params": [matrix for _, matrix in self.pairs]}], {}
        )  # only for the base class's hooks: the two optimizers in `parts` do the work
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def _matrix(self, parameter: torch.Tensor) -> torch.Tensor:
        matrix = nn.Parameter(_flat(parameter.detach()))
        if matrix.data_ptr() != parameter.data_ptr():
            raise ValueError(
                f"muon: a weight of shape {tuple(parameter.shape)} is not contiguous in memory, so a matrix cannot share it"
            )
        self.pairs.append((parameter, matrix))
        return matrix

    def step(self, closure: Any = None) -> Any:
        for parameter, matrix in self.pairs:
            matrix.grad = None if parameter.grad is None else _flat(parameter.grad)
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimizers, numbered consecutively: first Muon's, shaped like the matrices, then AdamW's."""
        state: dict[int, Any] = {}
        for part, first in zip(self.parts, self._firsts(), strict=True):
            state |= {first + i: values for i, values in part.state_dict()["state"].items()}
        return {"state": state, "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict that `state_dict` returned."""
        firsts = [*self._firsts(), 1 << 62]
        for part, first, end in zip(self.parts, firsts[:-1], firsts[1:], strict=True):
            own = {i - first: values for i, values in state_dict["state"].items() if first <= i < end}
            part.load_state_dict({"state": own, "param_groups": part.state_dict()["param_groups"]})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def _firsts(self) -> list[int]:
        """Return the number of each optimizer's first parameter in the common state dict."""
        sizes = [sum(len(group["params"]) for group in part.param_groups) for part in self.parts]
        return [sum(sizes[:i]) for i in range(len(sizes))]


def _flat(weight: torch.Tensor) -> torch.Tensor:
    """Flatten a weight (O, ...) -> (O, M) without a copy: the flattened dimensions keep their order in memory."""
    order = sorted(range(1, weight.ndim), key=lambda d: weight.stride()[d], reverse=True)
    return weight.permute(0, *order).flatten(1)
