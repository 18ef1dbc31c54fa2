"""Optimizers and schedules: thin keyword-only functions, whose signatures are their config sections.

An optimizer takes `params`: groups {"params": [...], "hidden": [...], "decay": bool, "scale": float}, made by
`parameter_groups`. A rate that is `auto` is a number by the time they are called. Where torch has a fused kernel it is used: on two CPU cores it takes AdamW a tenth of the time.
A schedule is pure: (step, total, history) -> the factor on the learning rate, where `history` holds the validation
score of every evaluation so far, higher being better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Annotated, Any

import torch
from torch import nn

from fmeco.plugins.keys import Doc, Rate
from fmeco.plugins.registry import Ge, Gt, Le, Lt

Groups = list[dict[str, Any]]


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    scales: Mapping[str, float],
    hidden: Set[str] = frozenset(),
    undecayed: Set[str] = frozenset(),
) -> Groups:
    """Sort parameters into groups by learning-rate scale and weight decay; scale 0 freezes.

    Biases, norms and other vectors are not decayed: decay is for weights that multiply; nor is what `undecayed` names.
    hidden: the names of matrices inside the backbone, neither of its first layer nor of a head.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in named:
        scale = scales[name]
        parameter.requires_grad_(scale > 0)
        if scale > 0:
            decay = parameter.ndim > 1 and name not in undecayed
            empty: dict[str, Any] = {"params": [], "names": [], "hidden": [], "decay": decay, "scale": scale}
            group = groups.setdefault((scale, decay), empty)
            group["params"].append(parameter)
            group["names"].append(name)
            group["hidden"].append(name in hidden)
    return list(groups.values())


def _groups(params: Groups, lr: float, weight_decay: float) -> Groups:
    """The groups in torch.optim's words; `base_lr` is what a schedule multiplies. Groups that come out alike are one, as
    each costs a call per step."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for g in params:
        rate, decay = lr * g["scale"], weight_decay if g["decay"] else 0.0
        group = {"params": [], "lr": rate, "base_lr": rate, "weight_decay": decay}
        groups.setdefault((rate, decay), group)["params"] += g["params"]
    return list(groups.values())


# ---------------------------------------------------------------- optimizers


def sgd(
    params: Groups,
    *,
    lr: Rate = 0.1,
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9,
    nesterov: bool = False,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent; with `momentum: 0` and `train.batch_size: full`, plain gradient descent."""
    return torch.optim.SGD(
        _groups(params, lr, weight_decay), lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=True
    )


def adam(
    params: Groups,
    *,
    lr: Rate = 1e-3,
    betas: list[float] = [0.9, 0.999],
    eps: Annotated[float, Gt(0)] = 1e-8,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    """Adam, https://arxiv.org/abs/1412.6980."""
    groups = _groups(params, lr, weight_decay)
    return torch.optim.Adam(groups, lr=lr, betas=_pair(betas), eps=eps, amsgrad=amsgrad, fused=True)


def adamw(
    params: Groups,
    *,
    lr: Rate = 1e-3,
    betas: list[float] = [0.9, 0.999],
    eps: Annotated[float, Gt(0)] = 1e-8,
    weight_decay: Annotated[float, Ge(0)] = 0.05,
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, https://arxiv.org/abs/1711.05101."""
    groups = _groups(params, lr, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=_pair(betas), eps=eps, amsgrad=amsgrad, fused=True)


def muon(
    params: Groups,
    *,
    lr: Rate = 1e-3,
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.95,
    betas: Annotated[list[float], Doc("of adamw, for the first layer, heads, biases and norms")] = [0.9, 0.95],
    weight_decay: Annotated[float, Ge(0)] = 0.05,
) -> torch.optim.Optimizer:
    """Muon for the weights inside the backbone, AdamW for the rest, https://kellerjordan.github.io/posts/muon.

    A convolution counts as the matrix (outputs, inputs * height * width). Steps are scaled to AdamW's size, so that both
    take the same rate, as in https://arxiv.org/abs/2502.16982 equation (4). Costs time in proportion to the weights, not to the batch.
    """
    inside, others = (
        [
            {**g, "params": [p for p, hidden in zip(g["params"], g["hidden"], strict=True) if hidden == wanted]}
            for g in params
        ]
        for wanted in (True, False)
    )
    inside, others = ([g for g in groups if g["params"]] for groups in (inside, others))
    adamw = (
        torch.optim.AdamW(_groups(others, lr, weight_decay), lr=lr, betas=_pair(betas), fused=True) if others else None
    )
    return _Muon(_groups(inside, lr, weight_decay), adamw, lr, momentum) if inside or adamw is None else adamw


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


def nadam(
    params: Groups,
    *,
    lr: Rate = 2e-3,
    betas: list[float] = [0.9, 0.999],
    weight_decay: Annotated[float, Ge(0)] = 0.0,
) -> torch.optim.Optimizer:
    """Adam with Nesterov momentum, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ."""
    return torch.optim.NAdam(_groups(params, lr, weight_decay), lr=lr, betas=_pair(betas))


def radam(
    params: Groups,
    *,
    lr: Rate = 1e-3,
    betas: list[float] = [0.9, 0.999],
    weight_decay: Annotated[float, Ge(0)] = 0.0,
) -> torch.optim.Optimizer:
    """Rectified Adam, https://arxiv.org/abs/1908.03265."""
    return torch.optim.RAdam(_groups(params, lr, weight_decay), lr=lr, betas=_pair(betas))


def adamax(
    params: Groups,
    *,
    lr: Rate = 2e-3,
    betas: list[float] = [0.9, 0.999],
    weight_decay: Annotated[float, Ge(0)] = 0.0,
) -> torch.optim.Optimizer:
    """Adam with the infinity norm, https://arxiv.org/abs/1412.6980 section 7."""
    return torch.optim.Adamax(_groups(params, lr, weight_decay), lr=lr, betas=_pair(betas))


def rmsprop(
    params: Groups,
    *,
    lr: Rate = 1e-2,
    alpha: Annotated[float, Ge(0), Lt(1)] = 0.99,
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
) -> torch.optim.Optimizer:
    """RMSprop, https://arxiv.org/abs/1308.0850 section 4.2."""
    return torch.optim.RMSprop(_groups(params, lr, weight_decay), lr=lr, alpha=alpha, momentum=momentum)


def adagrad(params: Groups, *, lr: Rate = 1e-2, weight_decay: Annotated[float, Ge(0)] = 0.0) -> torch.optim.Optimizer:
    """Adagrad, https://jmlr.org/papers/v12/duchi11a.html."""
    return torch.optim.Adagrad(_groups(params, lr, weight_decay), lr=lr)


def adadelta(
    params: Groups,
    *,
    lr: Rate = 1.0,
    rho: Annotated[float, Ge(0), Le(1)] = 0.9,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
) -> torch.optim.Optimizer:
    """Adadelta, https://arxiv.org/abs/1212.5701."""
    return torch.optim.Adadelta(_groups(params, lr, weight_decay), lr=lr, rho=rho)


def adafactor(params: Groups, *, lr: Rate = 1e-2, weight_decay: Annotated[float, Ge(0)] = 0.0) -> torch.optim.Optimizer:
    """Adafactor: second moments by row and column, https://arxiv.org/abs/1804.04235."""
    return torch.optim.Adafactor(_groups(params, lr, weight_decay), lr=lr)


def _pair(betas: Sequence[float]) -> tuple[float, float]:
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        from fmeco.errors import ConfigError

        raise ConfigError(f"optimizer.betas: expected two numbers from 0 to 1, got {list(betas)}")
    return betas[0], betas[1]


# ---------------------------------------------------------------- schedules


def constant(
    step: float,
    total: float,
    history: Sequence[float],
    *,
    warmup: Annotated[float, Doc("share of the run"), Ge(0), Lt(1)] = 0.0,
) -> float:
    """Full rate after the warm-up."""
    return _warm(step, total, warmup)[0]


def cosine(
    step: float,
    total: float,
    history: Sequence[float],
    *,
    warmup: Annotated[float, Doc("share of the run"), Ge(0), Lt(1)] = 0.05,
    final: Annotated[float, Doc("factor at the end"), Ge(0), Le(1)] = 0.0,
) -> float:
    """Half a cosine from 1 to `final`, https://arxiv.org/abs/1608.03983 equation (5)."""
    warm, progress = _warm(step, total, warmup)
    return warm * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)


def linear(
    step: float,
    total: float,
    history: Sequence[float],
    *,
    warmup: Annotated[float, Doc("share of the run"), Ge(0), Lt(1)] = 0.05,
    final: Annotated[float, Doc("factor at the end"), Ge(0), Le(1)] = 0.0,
) -> float:
    """A straight line from 1 to `final`."""
    warm, progress = _warm(step, total, warmup)
    return warm * (1 + (final - 1) * progress)


def step(
    step: float,
    total: float,
    history: Sequence[float],
    *,
    warmup: Annotated[float, Doc("share of the run"), Ge(0), Lt(1)] = 0.0,
    at: Annotated[list[float], Doc("shares of the run after which the rate drops")] = [0.5, 0.75],
    gamma: Annotated[float, Doc("factor of each drop"), Gt(0), Lt(1)] = 0.1,
) -> float:
    """A staircase."""
    return _warm(step, total, warmup)[0] * gamma ** sum(step >= share * total for share in at)


def one_cycle(
    step: float,
    total: float,
    history: Sequence[float],
    *,
    warmup: Annotated[float, Doc("share of the run that rises"), Gt(0), Lt(1)] = 0.3,
    start: Annotated[float, Doc("factor at the start"), Gt(0), Le(1)] = 0.04,
    final: Annotated[float, Ge(0), Le(1)] = 0.0,
) -> float:
    """Up by half a cosine, down by another, https://arxiv.org/abs/1708.07120."""
    rise = warmup * total
    if step < rise:
        return start + (1 - start) * (1 - math.cos(math.pi * step / rise)) / 2
    progress = (step - rise) / max(total - rise, 1e-9)
    return final + (1 - final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def plateau(
    step: float,
    total: float,
    history: Sequence[float],
    *,
    warmup: Annotated[float, Doc("share of the run"), Ge(0), Lt(1)] = 0.0,
    patience: Annotated[int, Doc("evaluations without a better score before the rate drops"), Gt(0)] = 3,
    gamma: Annotated[float, Doc("factor of each drop"), Gt(0), Lt(1)] = 0.1,
) -> float:
    """Drops when the validation score stops rising."""
    best, waited, drops = -math.inf, 0, 0
    for score in history:
        if score > best:
            best, waited = score, 0
        else:
            waited += 1
            if waited >= patience:
                drops, waited = drops + 1, 0
    return _warm(step, total, warmup)[0] * gamma**drops


def _warm(step: float, total: float, warmup: float) -> tuple[float, float]:
    """(the factor of a linear warm-up, the finished share of what comes after it)."""
    rise = warmup * total
    warm = min(1.0, (step + 1) / (rise + 1))
    return warm, min(1.0, max(0.0, (step - rise) / max(total - rise, 1e-9)))
