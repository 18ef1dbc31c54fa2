"""Targets: what a model learns. KINDS is the one table of target kinds; a new kind is a new line in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fmeco.errors import ConfigError, clean, listing, nearest

MISSING_CLASS = -1  # the class index of a sample without a label; a number or a row of labels is then not a number


@dataclass(frozen=True)
class Target:
    """One named target of each sample.

    kind: what its values are, one of KINDS.
    classes: the names that values stand for, of kinds that have them.
    counts: training samples per class.
    mean, std: of a number, over the training samples. Heads predict numbers in units of `std` from `mean`.
    missing: training samples without a value.
    steps: length of a series.

    A run fills in counts, mean, std and missing. Raises ConfigError for a kind that is not in KINDS.
    """

    kind: str
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    missing: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"no kind of target is called '{clean(self.kind)}'{nearest(str(self.kind), KINDS)}",
                f"kinds: {', '.join(KINDS)}",
            )
        if problem := KINDS[self.kind].check(self):
            raise ConfigError(f"a target of kind {self.kind} {problem}")

    @property
    def traits(self) -> Kind:
        """What its kind implies."""
        return KINDS[self.kind]

    def described(self, values: Tensor) -> Target:
        """This target with the statistics of the training split's values (N, ...)."""
        here = known(values)
        described = self.traits.describe(self, values[here]) if self.traits.counted else self
        return dataclasses.replace(described, missing=len(values) - int(here.sum()))


def known(values: Tensor) -> Tensor:
    """Find the samples (N,) that have a value of a target (N, ...)."""
    if not values.is_floating_point():
        return values != MISSING_CLASS
    return ~values.isnan() if values.ndim == 1 else ~values.sum(1).isnan()  # rows that overlap are not copied


@dataclass(frozen=True)
class Kind:
    """What a kind of target implies, wherever targets of any kind are handled.

    check: what is wrong with a Target of this kind, None = nothing.
    describe: the target with the statistics of its known values; only called where `counted`.
    summary: a Target of this kind in words, for the model card.
    loss: of a linear head on vectors; None where no linear head can tell such a target.
    metric: of that head; higher is better.
    one_class: each sample has exactly one of `classes`.
    counted: statistics are taken over the training samples.
    """

    check: Callable[[Target], str | None]
    describe: Callable[[Target, Tensor], Target]
    summary: Callable[[Target], str]
    loss: Literal["softmax", "sigmoid", "squares"] | None = None
    metric: str = ""
    one_class: bool = False
    counted: bool = True


def _nothing(target: Target) -> str | None:
    return None


def _needs_steps(target: Target) -> str | None:
    return None if target.steps > 0 else "has `steps`, its length, above 0"


def _unchanged(target: Target, values: Tensor) -> Target:
    return target


def _class_counts(target: Target, values: Tensor) -> Target:
    return dataclasses.replace(target, counts=tuple(values.bincount(minlength=len(target.classes)).tolist()))


def _label_counts(target: Target, values: Tensor) -> Target:
    return dataclasses.replace(target, counts=tuple(int(n) for n in values.sum(0)))


def _mean_and_std(target: Target, values: Tensor) -> Target:
    std = float(values.double().std(correction=0))
    return dataclasses.replace(target, mean=float(values.double().mean()), std=std if std > 0 else 1.0)


def _classes(target: Target) -> str:
    return listing(target.classes, 20)


def _moments(target: Target) -> str:
    return f"mean {target.mean:.4g}, standard deviation {target.std:.4g}"


def _steps(target: Target) -> str:
    return f"the next {target.steps} steps"


KINDS: dict[str, Kind] = {
    # one of `classes`
    "class": Kind(_nothing, _class_counts, _classes, "softmax", "accuracy", one_class=True),
    # a subset of `classes`
    "multilabel": Kind(_nothing, _label_counts, _classes, "sigmoid", "mean_ap"),
    "number": Kind(_nothing, _mean_and_std, _moments, "squares", "r2"),
    # `steps` numbers in a row, in the units of the inputs
    "series": Kind(_needs_steps, _unchanged, _steps, counted=False),
    # a row of characters, which are the `classes`
    "text": Kind(_nothing, _unchanged, _classes, counted=False),
}
