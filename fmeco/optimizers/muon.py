"""Muon for the weights inside the backbone, AdamW for the rest, https://kellerjordan.github.io/posts/muon.

A convolution counts as the matrix (outputs, inputs * height * width). Steps are scaled to AdamW's size, so that both
take the same rate, as in https://arxiv.org/abs/2502.16982 equation (4). Costs time in proportion to the weights, not to the batch.
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
    betas: Annotated[list[float], Doc("of adamw, for the first layer, heads, biases and norms")] = [0.9, 0.95],
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
    """Leave only the hidden matrices in each group, or only the others; empty groups are left out."""
    parts = []
    for g in params:
        at = [i for i, inside in enumerate(g["hidden"]) if inside == hidden]
        if at:
            parts.append({**g, **{key: [g[key][i] for i in at] for key in ("params", "names", "hidden")}})
    return parts


class _Muon(torch.optim.Optimizer):
    """torch's Muon, which takes matrices only, over matrices that share memory with the parameters; and AdamW."""

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
        )  # for its hooks; the parts have the rest
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def _matrix(self, parameter: torch.Tensor) -> torch.Tensor:
        matrix = nn.Parameter(_flat(parameter.detach()))
        if matrix.data_ptr() != parameter.data_ptr():
            raise ValueError("a weight is not dense in memory")
        self.pairs.append((parameter, matrix))
        return matrix

    def step(self, closure: Any = None) -> Any:
        for parameter, matrix in self.pairs:
            matrix.grad = None if parameter.grad is None else _flat(parameter.grad)
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """States numbered through; those of matrices have the matrices' shapes."""
        state: dict[int, Any] = {}
        for part, first in zip(self.parts, self._firsts(), strict=True):
            state |= {first + i: values for i, values in part.state_dict()["state"].items()}
        return {"state": state, "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        firsts = [*self._firsts(), 1 << 62]
        for part, first, end in zip(self.parts, firsts[:-1], firsts[1:], strict=True):
            own = {i - first: values for i, values in state_dict["state"].items() if first <= i < end}
            part.load_state_dict({"state": own, "param_groups": part.state_dict()["param_groups"]})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def _firsts(self) -> list[int]:
        sizes = [sum(len(group["params"]) for group in part.param_groups) for part in self.parts]
        return [sum(sizes[:i]) for i in range(len(sizes))]


def _flat(weight: torch.Tensor) -> torch.Tensor:
    """(O, ...) -> (O, M) without a copy, in the order that the other dimensions have in memory."""
    order = sorted(range(1, weight.ndim), key=lambda d: weight.stride()[d], reverse=True)
    return weight.permute(0, *order).flatten(1)
