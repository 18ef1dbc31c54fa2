"""What a model learns: the kinds of targets, and what each of them implies."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

MISSING_CLASS = -1  # the class index of a sample without a label; a number or a row of labels is then not a number


@dataclass(frozen=True)
class Target:
    """One named target. `kind` is class (one of `classes`), multilabel (a subset of them), number, series (`steps` numbers in
    a row), or text (a row of characters, which are its `classes`).

    `counts` (samples per class), `mean` and `std` (of a number) and `missing` (samples without a value) describe the
    training split; a run fills them in. Heads predict numbers in units of `std` from `mean`.
    """

    kind: Literal["class", "multilabel", "number", "series", "text"]
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    missing: int = 0
    steps: int = 0

    def described(self, values: Tensor) -> Target:
        """This target with the statistics of the training split's values (N, ...)."""
        here = known(values)
        missing = len(values) - int(here.sum())
        if self.kind == "series":  # in the units of its inputs
            return dataclasses.replace(self, missing=missing)
        values = values[here]
        if self.kind == "class":
            counts = tuple(values.bincount(minlength=len(self.classes)).tolist())
            return dataclasses.replace(self, counts=counts, missing=missing)
        if self.kind == "multilabel":
            return dataclasses.replace(self, counts=tuple(int(n) for n in values.sum(0)), missing=missing)
        std = float(values.double().std(correction=0))
        mean = float(values.double().mean())
        return dataclasses.replace(self, mean=mean, std=std if std > 0 else 1.0, missing=missing)


def known(values: Tensor) -> Tensor:
    """Which samples (N,) have a value of a target (N, ...)."""
    if not values.is_floating_point():
        return values != MISSING_CLASS
    return ~values.isnan() if values.ndim == 1 else ~values.sum(1).isnan()  # rows that overlap are not copied
