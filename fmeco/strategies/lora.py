"""Transfer strategies: the way from loaded weights to a trained model, as a list of phases.

A strategy is handed `roles`: what every parameter of the objective is, by name. It returns phases, each with a scale on
the learning rate of every parameter; 0 freezes. What binds weights while they train is a Constraint.
"""

from __future__ import annotations

import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fmeco.errors import ConfigError, listing, nearest
from fmeco.plugins.keys import Doc
from fmeco.plugins.registry import Ge, Gt, Le, Lt

BLOCKS = 12  # steps of layer-wise rates from the last layer to the first: as many as a ViT-B has blocks


class Role(NamedTuple):
    """What a parameter is. depth: of its layer in the backbone, 0 = nearest the input; None outside of it (heads). kind:
    weight is a matrix or a convolution, norm belongs to a normalisation layer, other is a token, position or scale."""

    depth: int | None
    kind: Literal["weight", "bias", "norm", "other"]


Roles = Mapping[str, Role]
Scales = dict[str, float]


@dataclass(frozen=True)
class Phase:
    """A part of a run. scales: on each parameter's learning rate, by name; 0 freezes. share: of the run's length."""

    scales: Mapping[str, float]
    share: float = 1.0


class Constraint(ABC):
    """What binds weights while they train. `own`: parameters that it adds, by name, which are trained as well, with the
    learning rate times `rate`."""

    own: Mapping[str, nn.Parameter] = {}
    rate = 1.0
    undecayed: Set[str] = frozenset()  # parameters that the optimizer's decay leaves alone

    @abstractmethod
    def thaw(self) -> None:
        """At the start of a phase, when what is not trained itself was frozen."""

    @abstractmethod
    def gradients(self, rescale: Tensor | float) -> None:
        """After the backward pass, before gradients are multiplied by `rescale`, measured, clipped and used."""

    @abstractmethod
    def stepped(self) -> None:
        """After the optimizer's step."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What a resume needs; these very tensors are overwritten by it."""

    def adapter(self) -> dict[str, Tensor]:
        """What is saved beside the weights, for others to apply."""
        return {}


@dataclass(frozen=True)
class Transfer:
    """A strategy, applied to a model: its phases, and what binds the named parameters meanwhile."""

    phases: tuple[Phase, ...]
    fresh: bool = False  # leave the source's weights out
    bind: Callable[[Mapping[str, nn.Parameter]], Constraint] | None = None


# ---------------------------------------------------------------- strategies


def full(
    roles: Roles,
    *,
    backbone_lr: Annotated[float, Doc("factor on the learning rate of the backbone"), Gt(0), Le(1)] = 1.0,
) -> Transfer:
    """Train everything."""
    return Transfer((Phase(_everything(roles, backbone_lr)),))


def scratch(
    roles: Roles,
    *,
    lr: Annotated[float, Doc("factor on the learning rate: new weights have further to go"), Gt(0)] = 2.0,
) -> Transfer:
    """Train everything from new weights: the source gives its architecture and preprocessing only. The control that
    says what its weights were worth."""
    return Transfer((Phase(dict.fromkeys(roles, lr)),), fresh=True)


def probe(
    roles: Roles,
    *,
    lr: Annotated[float, Doc("factor on the learning rate: a head alone can take more"), Gt(0)] = 10.0,
) -> Transfer:
    """Train the head only: how good are the features as they are?"""
    return Transfer((Phase(_head(roles, lr)),))


def lp_ft(
    roles: Roles,
    *,
    probe_share: Annotated[float, Doc("share of the run that trains the head alone, first"), Gt(0), Lt(1)] = 0.3,
    probe_lr: Annotated[float, Doc("factor on the learning rate meanwhile: a head alone can take more"), Gt(0)] = 10.0,
    backbone_lr: Annotated[float, Doc("factor on the backbone's learning rate after"), Gt(0), Le(1)] = 1.0,
) -> Transfer:
    """The head first, then everything from there: a head that knows nothing would distort good features.

    https://arxiv.org/abs/2202.10054 (Kumar et al. 2022), section 3.4.
    """
    return Transfer(
        (Phase(_head(roles, probe_lr), probe_share), Phase(_everything(roles, backbone_lr), 1 - probe_share))
    )


def gradual(
    roles: Roles,
    *,
    blocks: Annotated[int, Doc("parts of the backbone that are unfrozen one after the other"), Ge(1)] = 3,
    share: Annotated[float, Doc("share of the run until all of it trains"), Gt(0), Lt(1)] = 0.6,
    backbone_lr: Annotated[float, Doc("factor on the learning rate of the backbone"), Gt(0), Le(1)] = 1.0,
) -> Transfer:
    """The head, then the backbone from the top, one block after the other.

    https://arxiv.org/abs/1801.06146 (Howard and Ruder 2018), section 3.3.
    """
    layers = _layers(roles)
    blocks = min(blocks, len(layers))
    phases = []
    for step in range(blocks + 1):
        lowest = layers[len(layers) * (blocks - step) // blocks] if step else math.inf
        scales = {
            name: 1.0 if role.depth is None else backbone_lr if role.depth >= lowest else 0.0
            for name, role in roles.items()
        }
        phases.append(Phase(scales, share / blocks if step < blocks else 1 - share))
    return Transfer(tuple(phases))


def llrd(
    roles: Roles,
    *,
    decay: Annotated[
        float,
        Doc("factor on the learning rate from one twelfth of the layers to the one below, as between a ViT-B's blocks"),
        Gt(0),
        Le(1),
    ] = 0.9,
) -> Transfer:
    """Everything, the lower a layer the more slowly. https://arxiv.org/abs/1801.06146 section 3.2; decay per block as in
    https://arxiv.org/abs/2106.08254 (BEiT), appendix H, where 0.65 to 0.75 serve large transformers."""
    layers = _layers(roles)
    place = {depth: (at + 1) / len(layers) for at, depth in enumerate(layers)}
    scales = {
        name: 1.0 if role.depth is None else decay ** (1 + BLOCKS * (1 - place[role.depth]))
        for name, role in roles.items()
    }
    return Transfer((Phase(scales),))


def bn(roles: Roles) -> Transfer:
    """The weights and biases of normalisation layers, and the head. https://arxiv.org/abs/2003.00152"""
    return Transfer((Phase(_only(roles, lambda name, role: role.kind == "norm", "normalisation layers")),))


def bias(roles: Roles) -> Transfer:
    """The biases, those of normalisation layers included, and the head. https://arxiv.org/abs/2106.10199 (BitFit)"""
    return Transfer((Phase(_only(roles, lambda name, role: name.endswith("bias"), "biases")),))


def lora(
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
    """A change of low rank to each weight of the backbone, and the head. https://arxiv.org/abs/2106.09685 equation (3).

    The checkpoint's backbone holds the merged weights; adapter.safetensors beside it holds the factors.
    """
    inside = [name for name, role in roles.items() if role.depth is not None and role.kind == "weight"]
    chosen = sorted(matching(only, inside, "transfer.only")) if only else inside
    if not chosen:
        raise ConfigError("transfer.strategy: lora: this backbone has no matrices or convolutions")

    def bind(parameters: Mapping[str, nn.Parameter]) -> Constraint:
        return Adapters({name: parameters[name] for name in chosen if name in parameters}, rank, alpha / rank, lr)

    return Transfer((Phase(_head(roles, lr)),), bind=bind)


def l2sp(
    roles: Roles,
    *,
    alpha: Annotated[float, Doc("weight of half the squared distance to the source's weights"), Gt(0)] = 0.01,
    backbone_lr: Annotated[float, Doc("factor on the learning rate of the backbone"), Gt(0), Le(1)] = 1.0,
) -> Transfer:
    """Everything, drawn back towards the source's weights. https://arxiv.org/abs/1802.01483 equation (2).

    The head is left to the optimizer's decay, and normalisation layers to themselves.
    """
    drawn = [name for name, role in roles.items() if role.depth is not None and role.kind != "norm"]

    def bind(parameters: Mapping[str, nn.Parameter]) -> Constraint:
        return Anchor({name: parameters[name] for name in drawn if name in parameters}, alpha)

    return Transfer((Phase(_everything(roles, backbone_lr)),), bind=bind)


def frozen(transfer: Transfer, patterns: Iterable[str], roles: Roles) -> Transfer:
    """The strategy with some of the parameters frozen throughout. Raises ConfigError for a pattern without a match."""
    patterns = list(patterns)
    if not patterns or transfer.fresh:  # new weights that never train would be no control
        return transfer
    names = matching(patterns, list(roles), "transfer.freeze")
    phases = [
        Phase({name: 0.0 if name in names else scale for name, scale in phase.scales.items()}, phase.share)
        for phase in transfer.phases
    ]
    bind = transfer.bind

    def bind_rest(parameters: Mapping[str, nn.Parameter]) -> Constraint:
        assert bind is not None
        return bind({name: p for name, p in parameters.items() if name not in names})

    return Transfer(tuple(phases), transfer.fresh, bind_rest if bind is not None else None)


def matching(patterns: Iterable[str], names: list[str], key: str) -> set[str]:
    """The names that match a pattern: a shell's (`layer1.*`), or the beginning of a dotted name (`layer1`), from the
    objective's point of view or the backbone's library's. Raises ConfigError for a pattern that matches nothing."""
    found: set[str] = set()
    for pattern in patterns:
        matched = {
            name
            for name in names
            for tail in _tails(name)
            if fnmatch.fnmatchcase(tail, pattern) or tail.startswith(f"{pattern}.")
        }
        if not matched:
            tops = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
            raise ConfigError(
                f"{key}: '{pattern}' matches no parameter{nearest(pattern, tops)}", f"there are {listing(tops)}"
            )
        found |= matched
    return found


def _tails(name: str) -> list[str]:
    """backbone.net.conv1.weight, net.conv1.weight, conv1.weight, weight: a user may leave out what wraps a layer."""
    parts = name.split(".")
    return [".".join(parts[at:]) for at in range(min(3, len(parts)))]


def _everything(roles: Roles, backbone_lr: float) -> Scales:
    return {name: 1.0 if role.depth is None else backbone_lr for name, role in roles.items()}


def _head(roles: Roles, lr: float) -> Scales:
    return {name: lr if role.depth is None else 0.0 for name, role in roles.items()}


def _only(roles: Roles, chosen: Callable[[str, Role], bool], what: str) -> Scales:
    """The head and what is chosen of the backbone."""
    scales = {name: float(role.depth is None or chosen(name, role)) for name, role in roles.items()}
    if not any(scales[name] for name, role in roles.items() if role.depth is not None):
        raise ConfigError(f"transfer.strategy: this backbone has no {what}", "probe trains the head alone")
    return scales


def _layers(roles: Roles) -> list[int]:
    return sorted({role.depth for role in roles.values() if role.depth is not None})


# ---------------------------------------------------------------- constraints


class Anchor(Constraint):
    """Draws parameters back to where they were: the gradient of alpha / 2 times the squared distance."""

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
