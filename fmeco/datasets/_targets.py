"""Read the targets of tables, and of tables of files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmeco.core import MISSING_CLASS, ConfigError, DataError, Target, clean, listing
from fmeco.datasets import _classes
from fmeco.datasets._columns import Table, column, is_missing, is_number
from fmeco.datasets._splits import Indices

RESERVED = ("input", "prediction", "probability", "error")  # columns that `predict` writes


def numbers(values: Sequence[str], path: str, name: str, rows: Indices) -> Tensor:
    """Text -> float32 (N,). Raises DataError that names the row of what is no finite number."""
    for row, value in zip(rows, values, strict=True):
        if not is_number(value):
            raise DataError(
                f"{clean(path)}: column '{clean(name)}', row {row + 2}: '{clean(value, 40)}' is not a number",
                "a target must be a finite number, or, as one of several, missing",
            )
    return torch.tensor([float(value) for value in values], dtype=torch.float32)


class Targets(NamedTuple):
    """values: name -> (M,) or (M, C) of the rows kept. codes (M,): what a split is balanced by. kept (M,): positions."""

    targets: dict[str, Target]
    values: dict[str, Tensor]
    codes: Indices
    kept: Indices
    notes: list[str]

    def at(self, positions: Indices) -> dict[str, Tensor]:
        return {name: values[positions] for name, values in self.values.items()}


def target_columns(table: Table, wanted: str | Sequence[str], path: str) -> dict[str, list[str]]:
    """The columns of one target, which is called label, or of several, under their own names."""
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{clean(path)}: the target columns {listing(names)}: name each once")
    if strange := [name for name in names if len(names) > 1 and re.search(r"[./,=|]", name)]:
        raise ConfigError(
            f"{clean(path)}: the target column {listing(strange)}: a name with . / , = | cannot be a task's"
        )
    if taken := [name for name in names if len(names) > 1 and (name in RESERVED or name.endswith("_probability"))]:
        raise ConfigError(f"{clean(path)}: the target column {listing(taken)}: predictions have a column of that name")
    columns = {name: column(table, name, path) for name in names}
    return columns if len(names) > 1 else {"label": columns[names[0]]}


def read_targets(
    labels: Mapping[str, Sequence[str]],
    old: Mapping[str, Target],
    classes: list[str | int] | None,
    *,
    where: str,
    names: Sequence[str],
    kind_of: Callable[[Sequence[str]], str],
    separator: str = "|",
) -> Targets:
    """Labels as text -> targets. Of several targets a row may lack some, but not all.

    old: targets of a checkpoint, whose kinds and classes hold. kind_of: the kind of a target, by the labels it has.
    """
    if len(labels) > 1 and classes is not None:
        raise ConfigError("dataset.classes: choosing classes is possible for one target only")
    kinds = {
        name: old[name].kind if name in old else kind_of([label for label in column if not is_missing(label)])
        for name, column in labels.items()
    }
    # A class may be called none, or NA: of several targets, which may lack a value, only an empty cell says so.
    strict = len(labels) == 1
    blank = np.array(
        [
            [is_missing(label) if strict or kinds[name] == "number" else not label for label in column]
            for name, column in labels.items()
        ]
    )  # (targets, N)
    if (empty := np.flatnonzero(blank.all(0))).size:
        raise DataError(
            f"no target value in {listing([names[i] for i in empty.tolist()])}", "fill or remove these rows"
        )
    kept, notes = np.arange(blank.shape[1]), list[str]()
    targets: dict[str, Target] = {}
    values: dict[str, Tensor] = {}
    codes: Indices | None = None
    for (name, cells), gone in zip(labels.items(), blank, strict=True):
        here = np.flatnonzero(~gone)
        if not here.size:
            raise DataError(f"{where}: the target '{clean(name)}' has no value in any row")
        present = [cells[i] for i in here.tolist()]
        known = old.get(name)
        kind = kinds[name]
        if kind == "number":
            full: Tensor = torch.full((len(cells),), math.nan)
            full[here] = numbers(present, where, "target" if name == "label" else name, here)
            targets[name] = known or Target("number")
        elif kind == "class":
            chosen, own, class_names, more = _classes.encode(present, classes, known, where)
            spread = np.full(len(cells), MISSING_CLASS)
            spread[here[chosen]] = own
            full, targets[name] = torch.from_numpy(spread), Target("class", class_names)
            notes += more
            codes = spread if codes is None else codes
            if len(labels) == 1:
                kept = here[chosen]
        else:
            if classes is not None:
                raise ConfigError("dataset.classes: choosing classes is not possible for multilabel data")
            sets = [[part.strip() for part in label.split(separator) if part.strip()] for label in present]
            _, _, class_names, more = _classes.encode([one for each in sets for one in each], None, known, where)
            full = torch.full((len(cells), len(class_names)), math.nan)
            for row, each in zip(here, sets, strict=True):
                full[row] = 0.0
                full[row, [class_names.index(one) for one in each]] = 1.0
            targets[name] = Target("multilabel", class_names)
            notes += more
        values[name] = full
    codes = np.zeros(len(kept), np.int64) if codes is None else codes[kept]
    return Targets(targets, {name: full[kept] for name, full in values.items()}, codes, kept, notes)
