"""Read the targets of tables and of tables of files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmeco.core import MISSING_CLASS, ConfigError, DataError, Target, clean, listing
from fmeco.datasets import _classes
from fmeco.datasets._columns import Table, column, is_missing, is_number
from fmeco.datasets._splits import Indices

RESERVED = ("input", "prediction", "probability", "error")  # columns that `predict` writes


def numbers(values: Sequence[str], path: str, name: str, rows: Indices) -> Tensor:
    """Parse numbers as float32 (N,). rows: their positions (N,). Raises DataError that names the row of a bad value."""
    for row, value in zip(rows, values, strict=True):
        if not is_number(value):
            raise DataError(
                f"{clean(path)}: column '{clean(name)}', row {row + 2}: '{clean(value, 40)}' is not a number",
                "a target must be a finite number; only one of several targets may be missing",
            )
    return torch.tensor([float(value) for value in values], dtype=torch.float32)


class Targets(NamedTuple):
    """Hold the targets of the M rows that are kept.

    targets: description of each target.
    values: name -> (M,) or (M, C).
    codes: class of each row, to stratify a split by (M,).
    kept: position of each row in the table (M,).
    notes: findings for the user.
    """

    targets: dict[str, Target]
    values: dict[str, Tensor]
    codes: Indices
    kept: Indices
    notes: list[str]

    def at(self, positions: Indices) -> dict[str, Tensor]:
        """Select the values of some of the kept rows."""
        return {name: values[positions] for name, values in self.values.items()}


def target_columns(table: Table, wanted: str | Sequence[str], path: str) -> dict[str, list[str]]:
    """Find the columns of the targets: one, which is called label, or several under their own names.

    Raises ConfigError for absent columns, and for names that several targets cannot have.
    """
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{clean(path)}: the target columns {listing(names)}: name at least one, and each only once")
    if strange := [name for name in names if len(names) > 1 and re.search(r"[./,=|]", name)]:
        raise ConfigError(
            f"{clean(path)}: the target column {listing(strange)}: the name of a task cannot contain . / , = |",
            "rename the column",
        )
    if taken := [name for name in names if len(names) > 1 and (name in RESERVED or name.endswith("_probability"))]:
        raise ConfigError(
            f"{clean(path)}: the target column {listing(taken)}: `predict` writes a column of that name",
            "rename the column",
        )
    columns = {name: column(table, name, path) for name in names}
    return columns if len(names) > 1 else {"label": columns[names[0]]}


def _blank_cells(labels: Mapping[str, Sequence[str]], kinds: Mapping[str, str]) -> NDArray[np.bool_]:
    """Find the cells without a value (targets, N).

    A class may be called none or NA. With several targets, which may lack values, only an empty cell is a missing class.
    """
    single = len(labels) == 1
    return np.array(
        [
            [is_missing(label) if single or kinds[name] == "number" else not label for label in column]
            for name, column in labels.items()
        ]
    )


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
    """Turn labels as text into targets. With several targets, a row may lack some of them, but not all.

    labels: target -> label of each row.
    old: targets of a checkpoint, which keep their kinds and classes.
    names: name of each row, for messages.
    kind_of: chooses the kind of a new target from its labels.
    separator: between the labels of a multilabel cell.
    Raises ConfigError and DataError that name the key or the rows.
    """
    if len(labels) > 1 and classes is not None:
        raise ConfigError("dataset.classes: classes can be chosen for a single target only", "leave the key out")
    kinds = {
        name: old[name].kind if name in old else kind_of([label for label in column if not is_missing(label)])
        for name, column in labels.items()
    }
    blank = _blank_cells(labels, kinds)
    if (empty := np.flatnonzero(blank.all(0))).size:
        raise DataError(
            f"no target value in {listing([names[i] for i in empty.tolist()])}", "fill in the value, or remove the row"
        )
    kept, notes = np.arange(blank.shape[1]), list[str]()
    targets: dict[str, Target] = {}
    values: dict[str, Tensor] = {}
    codes: Indices | None = None
    for (name, cells), gone in zip(labels.items(), blank, strict=True):
        labelled = np.flatnonzero(~gone)
        if not labelled.size:
            raise DataError(f"{where}: the target '{clean(name)}' has no value in any row")
        present = [cells[i] for i in labelled.tolist()]
        known = old.get(name)
        kind = kinds[name]
        if kind == "number":
            full: Tensor = torch.full((len(cells),), math.nan)
            full[labelled] = numbers(present, where, "target" if name == "label" else name, labelled)
            targets[name] = known or Target("number")
        elif kind == "class":
            chosen, own, class_names, more = _classes.encode(present, classes, known, where)
            spread = np.full(len(cells), MISSING_CLASS)
            spread[labelled[chosen]] = own
            full, targets[name] = torch.from_numpy(spread), Target("class", class_names)
            notes += more
            codes = spread if codes is None else codes
            if len(labels) == 1:
                kept = labelled[chosen]
        else:
            if classes is not None:
                raise ConfigError("dataset.classes: classes cannot be chosen for multilabel data", "leave the key out")
            sets = [[part.strip() for part in label.split(separator) if part.strip()] for label in present]
            _, _, class_names, more = _classes.encode([label for row in sets for label in row], None, known, where)
            full = torch.full((len(cells), len(class_names)), math.nan)
            for row, row_labels in zip(labelled, sets, strict=True):
                full[row] = 0.0
                full[row, [class_names.index(label) for label in row_labels]] = 1.0
            targets[name] = Target("multilabel", class_names)
            notes += more
        values[name] = full
    codes = np.zeros(len(kept), np.int64) if codes is None else codes[kept]
    return Targets(targets, {name: full[kept] for name, full in values.items()}, codes, kept, notes)
