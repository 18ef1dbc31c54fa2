"""Define prediction targets. KINDS is the only table of target kinds; to add a kind, add a line to it."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fmeco.errors import ConfigError, clean, listing, nearest

MISSING_CLASS = -1  # class index of a sample without a label; a missing number or row of labels is NaN


def nfc(names: Sequence[str]) -> list[str]:
    """Normalise class names to Unicode NFC, to compare them.

    macOS decomposes letters such as an umlaut in the names of files (NFD): the names look equal, but differ in bytes.
    """
    changed = {name: unicodedata.normalize("NFC", name) for name in set(names) if not name.isascii()}
    return [changed.get(name, name) for name in names] if changed else list(names)


@dataclass(frozen=True)
class Target:
    """Describe one target of a dataset.

    kind: type of its values, a key of KINDS.
    classes: class names, for kinds that have classes.
    counts: training samples per class.
    mean, std: statistics of a number over the training samples; heads predict (number - mean) / std.
    missing: number of training samples without a value.
    steps: length of a series.
    input: name of the rider that holds the values. `Samples.targets` then tells only which samples have one: 0, or MISSING_CLASS.

    A run fills in counts, mean, std and missing. Raises ConfigError for a kind that is not in KINDS, or a series without steps.
    """

    kind: str
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    missing: int = 0
    steps: int = 0
    input: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"unknown kind of target: '{clean(self.kind)}'{nearest(str(self.kind), KINDS)}",
                f"kinds: {', '.join(KINDS)}",
            )
        if problem := KINDS[self.kind].check(self):
            raise ConfigError(f"a target of kind {self.kind} {problem}")

    @property
    def traits(self) -> Kind:
        """Return the properties of this target's kind."""
        return KINDS[self.kind]

    def described(self, values: Tensor) -> Target:
        """Return a copy with the statistics of the training split's values (N, ...)."""
        present = known(values)
        described = self.traits.describe(self, values[present]) if self.traits.counted else self
        return dataclasses.replace(described, missing=len(values) - int(present.sum()))


def known(values: Tensor) -> Tensor:
    """Return a bool mask (N,) of the samples that have a target value in `values` (N, ...)."""
    if not values.is_floating_point():
        return values != MISSING_CLASS
    if values.ndim == 1:
        return ~values.isnan()
    # A row with a NaN has the sum NaN. `values.isnan()` would allocate one entry per value, which may be far more memory than
    # `values` takes: the rows of a series are overlapping windows, a strided view.
    return ~values.sum(1).isnan()


@dataclass(frozen=True)
class Kind:
    """Define the properties of a kind of target. Code outside plug-ins uses these instead of comparing names of kinds.

    check: function (target) -> error text about the target, or None.
    describe: function (target, known values) -> copy of the target with statistics of these values; called if `counted`.
    summary: function (target) -> text for the model card.
    loss: loss of a linear probe on vectors; None = a linear probe cannot predict this kind.
    metric: name of that probe's metric; higher is better.
    one_class: each sample has exactly one of `classes`.
    counted: statistics of the training samples are computed.
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
    return None if target.steps > 0 else "needs `steps` > 0, the length of the series"


def _needs_rider(target: Target) -> str | None:
    return (
        None
        if target.input and target.classes
        else "needs `classes`, and `input`: the name of the rider that holds its values"
    )


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
    # any subset of `classes`
    "multilabel": Kind(_nothing, _label_counts, _classes, "sigmoid", "mean_ap"),
    # a real number
    "number": Kind(_nothing, _mean_and_std, _moments, "squares", "r2"),
    # the next `steps` values of a series, in the units of the inputs
    "series": Kind(_needs_steps, _unchanged, _steps, counted=False),
    # a string of characters; `classes` are the characters
    "text": Kind(_nothing, _unchanged, _classes, counted=False),
    # one of `classes` for each pixel
    "mask": Kind(_needs_rider, _unchanged, _classes, counted=False),
    # objects, each with a box and one of `classes`
    "boxes": Kind(_needs_rider, _unchanged, _classes, counted=False),
}
