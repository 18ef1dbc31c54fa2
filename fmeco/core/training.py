"""Define transfer strategies: roles of parameters, learning-rate scales per phase, and constraints on weights."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from math import inf
from numbers import Real
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from fmeco.errors import ConfigError, clean, listing, nearest


class Role(NamedTuple):
    """Describe a parameter's place and function in the model.

    depth: depth of its layer in the backbone, 0 = nearest the input; None = outside the backbone (a head).
    kind: weight = a matrix or convolution; bias; norm = of a normalisation layer; other = any other, such as a class token.
    """

    depth: int | None
    kind: Literal["weight", "bias", "norm", "other"]


Roles = Mapping[str, Role]  # parameter name -> its role, for all parameters

Scales = dict[str, float]  # parameter name -> factor on its learning rate, for all parameters; 0 freezes it

Groups = list[dict[str, Any]]
"""Parameter groups for an optimizer, in the format of `torch.optim`.

params: list of parameters.
names: their names in the objective.
hidden: one bool per parameter; True = a matrix in the backbone outside its first layer.
weight_decay: the config's weight decay, or 0 for parameters that are not decayed.
scale: factor on the learning rate; training applies it after the optimizer is built.
"""


@dataclass(frozen=True)
class Phase:
    """Describe one phase of a run.

    scales: parameter name -> factor on its learning rate; 0 freezes it.
    share: length of the phase, relative to the other phases: shares are divided by their sum.
    """

    scales: Mapping[str, float]
    share: float = 1.0

    def __post_init__(self) -> None:
        """Raise ConfigError for a scale or a share that is not a number in its range."""
        scales: Mapping[str, Any] = self.scales
        if wrong := [n for n, scale in scales.items() if not (isinstance(scale, Real) and 0 <= float(scale) < inf)]:
            raise ConfigError(
                f"transfer.strategy: the scale of {listing(wrong, 5)} is {clean(scales[wrong[0]])}, but must be a finite number of 0 or more"
            )
        share: Any = self.share
        if not (isinstance(share, Real) and 0 < float(share) < inf):
            raise ConfigError(f"transfer.strategy: the share of a phase is {clean(self.share)}, not a number above 0")


class Constraint(ABC):
    """Constrain weights during training: allow only a low-rank change (LoRA), or keep them near their initial values (L2-SP).

    own: name -> parameter that the constraint adds; these are trained too.
    rate: factor on the learning rate of `own`.
    undecayed: names of parameters that the optimizer must not decay.
    """

    own: Mapping[str, nn.Parameter] = {}
    rate = 1.0
    undecayed: Set[str] = frozenset()

    @abstractmethod
    def thaw(self) -> None:
        """Unfreeze parameters whose gradients the constraint needs. Called at the start of a phase, after freezing."""

    @abstractmethod
    def gradients(self, rescale: Tensor | float) -> None:
        """Change gradients. Called after the backward pass, before the loop multiplies them by `rescale` and clips them.

        rescale: the number of samples of the step, divided by the number of terms of its loss (`Loss.count`). When this
            method is called, `p.grad` is the gradient of (summed loss / samples). Multiplying by `rescale` turns it into the gradient of (summed loss / terms), the
            mean loss. After this method, the loop multiplies every gradient by `rescale`. A
            penalty's gradient must not change in this multiplication, so divide it by `rescale` before adding it.
        """

    @abstractmethod
    def stepped(self) -> None:
        """Update constrained weights. Called after each optimizer step."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint must hold for a resume. A resume writes the saved values into them.

        Return the constraint's own tensors, not copies.
        """

    def adapter(self) -> dict[str, Tensor]:
        """Return tensors to save as adapter.safetensors beside the weights, such as LoRA factors."""
        return {}


@dataclass(frozen=True)
class Transfer:
    """Hold a transfer strategy's plan for a model.

    phases: phases of the run, in order.
    fresh: do not load the source's weights.
    penalties: solve the head on frozen features before the first step (`Objective.solve`), with these penalties or, for other
        targets, chosen ones. If that succeeds, the first phase is skipped: it is for heads that cannot be solved.
        None = do not solve.
    backbone_rate: unless the config gives a learning rate, use the backbone's own finetuning rate.
    new_head: train from a new head, also if it was solved: the solved one is only evaluated and saved as step 0.
    keep_statistics: train with the running statistics of the backbone's batch norms, as evaluation does, and keep them.
    bind: function (parameters by name) -> Constraint; None = no constraint.
    """

    phases: tuple[Phase, ...]
    fresh: bool = False
    bind: Callable[[Mapping[str, nn.Parameter]], Constraint] | None = None
    penalties: Mapping[str, float] | None = None
    backbone_rate: bool = False
    keep_statistics: bool = False
    new_head: bool = False


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    scales: Mapping[str, float],
    hidden: Set[str] = frozenset(),
    undecayed: Set[str] = frozenset(),
) -> Groups:
    """Group parameters by learning-rate scale and by whether they are decayed. Freezes those with scale 0.

    The returned groups have `decay` (bool) instead of `weight_decay`; `build_optimizer` replaces it.

    Biases, norms and other vectors are not decayed.

    hidden: names of the matrices inside the backbone, without its first layer.
    undecayed: names of further parameters that are not decayed.

    Raises ConfigError if a parameter has no scale.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    named = list(named)
    if absent := [name for name, _ in named if name not in scales]:
        raise ConfigError(f"transfer.strategy: a phase gives no scale for {listing(absent, 5)}")
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


def checked(transfer: object, roles: Roles, where: str) -> Transfer:
    """Check the Transfer that a strategy's `build` returned for the parameters in `roles`.

    where: the strategy's file, for the message.

    Raises ConfigError unless it is a Transfer with at least one phase, and each phase has a scale for every parameter and for no other name.
    """
    phases: Any = transfer.phases if isinstance(transfer, Transfer) else ()
    if (
        not isinstance(transfer, Transfer)
        or not phases
        or not isinstance(phases, tuple | list)
        or not all(isinstance(phase, Phase) for phase in phases)
    ):
        raise ConfigError(f"{where}: build() must return Transfer((Phase(...), ...)), with one phase or more")
    for number, phase in enumerate(phases, 1):
        if absent := [name for name in roles if name not in phase.scales]:
            raise ConfigError(f"{where}: phase {number} gives no scale for {listing(absent, 5)}")
        if unknown := [name for name in phase.scales if name not in roles]:
            raise ConfigError(
                f"{where}: phase {number} gives a scale for {listing(unknown, 5)}, but the model has no such parameter"
                f"{nearest(unknown[0], roles)}"
            )
    return transfer


def frozen(transfer: Transfer, patterns: Iterable[str], roles: Roles) -> Transfer:
    """Freeze parameters in all phases of a strategy. Raises ConfigError for a pattern that matches nothing.

    A strategy that starts from random weights (`fresh`) is returned unchanged.
    """
    patterns = list(patterns)
    if not patterns or transfer.fresh:  # freezing random weights would make training from scratch an unfair control
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

    return replace(transfer, phases=tuple(phases), bind=bind_rest if bind is not None else None)


def matching(patterns: Iterable[str], names: list[str], key: str) -> set[str]:
    """Return the parameter names that match a pattern. Raises ConfigError for a pattern that matches nothing.

    patterns: shell patterns (`layer1.*`) or leading parts of a dotted name (`layer1`). They match names of the objective
        (backbone.net.layer1) and of the library's model (layer1).
    names: parameter names of the objective.
    key: config key for the error message.
    """
    matches: set[str] = set()
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
                f"{key}: '{pattern}' matches no parameter{nearest(pattern, tops)}", f"layers: {listing(tops)}"
            )
        matches |= matched
    return matches


def _tails(name: str) -> list[str]:
    """Return up to three forms of a dotted name: the whole name, the name minus its first component, and minus its first two.

    Users can thus omit wrappers such as `backbone.net.`.
    """
    parts = name.split(".")
    return [".".join(parts[at:]) for at in range(min(3, len(parts)))]
