"""How a model is trained: what its parameters are, which of them learn how fast, and what binds them meanwhile."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from fmeco.errors import ConfigError, listing, nearest


class Role(NamedTuple):
    """What a parameter is. depth: of its layer in the backbone, 0 = nearest the input; None outside of it (heads). kind:
    weight is a matrix or a convolution, norm belongs to a normalisation layer, other is a token, position or scale."""

    depth: int | None
    kind: Literal["weight", "bias", "norm", "other"]


Roles = Mapping[str, Role]  # of every parameter, by name

Scales = dict[str, float]  # of every parameter, by name: the factor on its learning rate; 0 freezes

Groups = list[dict[str, Any]]
"""Parameters as an optimizer is handed them; `torch.optim` takes such groups as they are.

params: list of parameters.
names: their names in the objective.
hidden: for each, whether it is a matrix inside the backbone, neither of its first layer nor of a head.
weight_decay: the config's, or 0 for what is not decayed.
scale: the factor on the learning rate, which training multiplies in once the optimizer is built.
"""


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


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    scales: Mapping[str, float],
    hidden: Set[str] = frozenset(),
    undecayed: Set[str] = frozenset(),
) -> Groups:
    """Sort parameters into groups by learning-rate scale and by whether they are decayed (`decay`); scale 0 freezes.

    Biases, norms and other vectors are not decayed: decay is for weights that multiply; nor is what `undecayed` names.
    hidden: the names of matrices inside the backbone, neither of its first layer nor of a head.
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
