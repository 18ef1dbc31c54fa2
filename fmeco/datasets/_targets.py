"""Read the targets of tables and of tables of files."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmeco.core import MISSING_CLASS, ConfigError, DataError, Target, clean, listing, nearest
from fmeco.datasets import _classes
from fmeco.datasets._columns import Table, column
from fmeco.datasets._new_columns import MOSTLY, Column, numbers, sentinels
from fmeco.datasets._numbers import (
    LARGEST,
    MISSING,
    PLAIN,
    Cells,
    Notation,
    Rules,
    cells,
    is_codes,
    is_decimal,
    is_number,
    is_whole,
    missing_cells,
    whole_name,
)
from fmeco.datasets._splits import Indices

RESERVED = ("input", "prediction", "probability", "error")  # columns that `predict` writes

FEW = 20  # whole numbers with at most so many values are classes


class Targets(NamedTuple):
    """Hold the targets of the M rows that are kept.

    targets: description of each target.
    values: name -> (M,) or (M, C).
    codes: class of each row, to stratify a split by (M,).
    kept: position of each row in the table (M,).
    notes: findings for the user.
    notations: how the columns of numbers write them, if not plainly.
    """

    targets: dict[str, Target]
    values: dict[str, Tensor]
    codes: Indices
    kept: Indices
    notes: list[str]
    notations: dict[str, Notation] = {}

    def at(self, positions: Indices) -> dict[str, Tensor]:
        """Select the values of some of the kept rows."""
        return {name: values[positions] for name, values in self.values.items()}


def target_columns(
    table: Table, wanted: str | Sequence[str] | None, path: str
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Find the columns of the targets: one, which is called label, or several under their own names; None = no target.

    Returns (target -> labels, target -> name of its column). Raises ConfigError for absent columns, and for names that
    several targets cannot have.
    """
    if wanted is None:
        return {}, {}
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
    columns = {name: name for name in names} if len(names) > 1 else {"label": names[0]}
    hints = (
        "name the target's column: --set dataset.target=COLUMN, or dataset.label_column for a table of files",
        "dataset.target: null reads a table without labels, to pretrain on it with objective: mask",
    )
    return {target: column(table, name, path, *hints) for target, name in columns.items()}, columns


class Layout(NamedTuple):
    """Hold what the config says of targets.

    columns: target -> its column in the table.
    task: kind of the targets; auto = by their labels.
    amounts: with task auto, many different whole numbers are a number, and not classes.
    separator: between the labels of a multilabel cell.
    classes: the classes to use, in this order; None = all.
    """

    columns: Mapping[str, str]
    task: str
    amounts: bool = False
    separator: str = "|"
    classes: Sequence[str | int] | None = None


def read_targets(
    labels: Mapping[str, Sequence[str]],
    old: Mapping[str, Target],
    layout: Layout,
    rules: Rules,
    *,
    where: str,
    names: Sequence[str],
) -> Targets:
    """Turn labels as text into targets. With several targets, a row may lack some of them, but not all.

    labels: target -> label of each row.
    old: targets of a checkpoint, which keep their kinds and classes.
    names: name of each row, for messages.
    Raises ConfigError and DataError that name the key or the rows.
    """
    if len(labels) > 1 and layout.classes is not None:
        raise ConfigError("dataset.classes: classes can be chosen for a single target only", "leave the key out")
    columns = {
        name: Column(
            layout.columns[name], text, names, where, "dataset.task: class reads classes instead", gaps=len(labels) > 1
        )
        for name, text in labels.items()
    }
    kinds = {name: old[name].kind if name in old else _kind(one, layout, rules) for name, one in columns.items()}
    blank = np.array([_blank(one, kinds[name], len(labels) == 1, rules) for name, one in columns.items()])
    if (empty := np.flatnonzero(blank.all(0))).size:
        raise DataError(
            f"no target value in {listing([names[i] for i in empty.tolist()])}", "fill in the value, or remove the row"
        )
    made = Targets({}, {}, np.zeros(0, np.int64), np.arange(blank.shape[1]), [], {})
    codes: Indices | None = None
    for (name, one), gone in zip(columns.items(), blank, strict=True):
        labelled = np.flatnonzero(~gone)
        if not labelled.size:
            raise DataError(f"{where}: the target '{clean(name)}' has no value in any row")
        present = [one.text[i] for i in labelled.tolist()]
        known = old.get(name)
        if kinds[name] == "number":
            full, notation = _numbers(one, gone, rules, new=known is None)
            made.notes.extend(sentinels(one, Cells(full.double().numpy(), gone, np.zeros(0, np.int64)), rules))
            made.targets[name] = known or Target("number")
            if notation != PLAIN:
                made.notations[one.name] = notation
                made.notes.append(f"{one}: numbers are read with {notation}")
        elif kinds[name] == "class":
            present = _whole_names(one, present, known, layout, rules, made.notes)
            chosen, own, class_names, more = _classes.encode(present, layout.classes, known, where)
            spread = np.full(len(one.text), MISSING_CLASS)
            spread[labelled[chosen]] = own
            full, made.targets[name] = torch.from_numpy(spread), Target("class", class_names)
            made.notes.extend(more)
            codes = spread if codes is None else codes
            if len(labels) == 1:
                made = made._replace(kept=labelled[chosen])
        else:
            full, made.targets[name], more = _multilabel(one, present, labelled, known, layout)
            made.notes.extend(more)
        made.values[name] = full
    kept = made.kept
    codes = np.zeros(len(kept), np.int64) if codes is None else codes[kept]
    return made._replace(values={name: full[kept] for name, full in made.values.items()}, codes=codes)


def check_decimal(rules: Rules, columns: Collection[str]) -> None:
    """Check that `dataset.decimal` names only columns that are read. Raises ConfigError."""
    if strange := [name for name in rules.decimal if name not in columns]:
        raise ConfigError(
            f"dataset.decimal: {listing(strange)}: no column that is read{nearest(strange[0], columns)}",
            f"columns that are read: {listing(columns, 20)}",
        )


def without_targets(count: int, classes: Sequence[str | int] | None = None) -> Targets:
    """Keep all N samples of data without labels. Raises ConfigError if the config chooses classes."""
    if classes is not None:
        raise ConfigError("dataset.classes: the samples have no labels", "leave the key out")
    return Targets({}, {}, np.zeros(count, np.int64), np.arange(count), [])


def _blank(column: Column, kind: str, single: bool, rules: Rules) -> NDArray[np.bool_]:
    """Find the cells without a value (N,).

    With several targets, which may lack values, only an empty cell is a missing class: a class may be called none or NA.
    """
    words = rules.missing if single or kind == "number" or rules.missing != MISSING else frozenset({""})
    return missing_cells(column.text, words)


def _kind(column: Column, layout: Layout, rules: Rules) -> str:
    """Choose the kind of a new target: the config's, or for auto number or class, by the labels."""
    if layout.task != "auto":
        return layout.task
    present = column.present(rules)
    if rules.decode == 1:
        return _first_kind(present, layout.amounts)
    if column.name in rules.decimal:
        return "number"
    plain = {label: count for label, count in present.items() if is_number(label)}
    if sum(plain.values()) >= MOSTLY * sum(present.values()):
        if not _are_amounts(plain, layout.amounts):
            return "class"
        if len(plain) == len(present):
            return "number"
    read = numbers(column, rules)
    if read is None:
        return "class"
    rewritten = {read.notation.plain(label) or label: count for label, count in present.items()}
    return "number" if _are_amounts(rewritten, layout.amounts) else "class"


def _are_amounts(labels: Mapping[str, int], amounts: bool) -> bool:
    """Tell whether labels that are numbers are amounts, such as prices and ages, rather than classes.

    labels: distinct label -> how often there is one.
    amounts: many different whole numbers are amounts, too.
    """
    if is_codes(labels):
        return False
    if not all(map(is_whole, labels)):
        return True
    count = len(set(map(whole_name, labels)))
    if any("." in label for label in labels):
        return count > FEW
    return amounts and count > max(FEW, sum(labels.values()) // 20)


def _first_kind(labels: Mapping[str, int], amounts: bool) -> str:
    """Choose the kind of a target as decode rule 1 does. labels: distinct label -> how often there is one."""
    decimals = [is_decimal(label, 1) for label in labels]
    if not amounts:
        return "number" if all(decimals) else "class"
    many = len(labels) > max(FEW, sum(labels.values()) // 20)
    return "number" if all(is_number(label, 1) for label in labels) and (many or any(decimals)) else "class"


def _whole_names(
    column: Column, labels: list[str], known: Target | None, layout: Layout, rules: Rules, notes: list[str]
) -> list[str]:
    """Name classes 0 and 1 if their labels are whole numbers written as 0.0 and 1.0, as pandas does beside missing values.

    Classes of the checkpoint or the config that are written like the labels stay as they are. `notes` gets a line.
    """
    distinct = set(labels)
    written = {label for label in distinct if "." in label}
    wanted = known.classes if known is not None else layout.classes or ()
    if rules.decode == 1 or not written or not all(map(is_whole, distinct)) or written & set(map(str, wanted)):
        return labels
    whole = {label: whole_name(label) for label in distinct}
    notes.append(
        f"{column}: the labels are whole numbers, written as {clean(min(written), 40)}: they are read as the classes "
        f"{listing(_classes.natural(list(whole.values())))}; dataset.task: number reads numbers"
    )
    return [whole[label] for label in labels]


def _numbers(column: Column, gone: NDArray[np.bool_], rules: Rules, new: bool) -> tuple[Tensor, Notation]:
    """Parse a target of numbers (N,), nan where a value is missing. Returns its values and their notation.

    new: no checkpoint has decided how the target is read.
    Decode rule 1 keeps float32, in which large numbers of a small spread, such as times, lose their differences.
    Raises DataError that names the row of a bad value.
    """
    notation = rules.notations.get(column.name, PLAIN)
    found = cells(column.text, notation, rules.missing, rules.decode)
    if rules.decode > 1 and (found.strange.size or column.name in rules.decimal or (new and rules.semicolons)):
        read = numbers(column, rules)
        if read is not None:
            found, notation = read
    large = np.flatnonzero(np.abs(found.values) > (LARGEST if rules.decode > 1 else math.inf))
    if (wrong := np.concatenate([found.strange, large])).size:
        first = int(wrong.min())
        why = "is too large to compute with" if first in large else "is not a number"
        raise DataError(
            f"{column}, row {column.rows_at(np.array([first]))}: '{clean(column.text[first], 40)}' {why}",
            "a target must be a finite number; only one of several targets may be missing",
        )
    values = torch.from_numpy(np.where(gone, math.nan, found.values))
    return (values.float() if rules.decode == 1 else values), notation


def _multilabel(
    column: Column, labels: Sequence[str], labelled: Indices, known: Target | None, layout: Layout
) -> tuple[Tensor, Target, list[str]]:
    """Turn cells with several labels into 0 and 1 per class (N, C), nan for rows without a cell.

    labels: cells of the rows at the positions `labelled`. Returns (values, the target, notes).
    """
    if layout.classes is not None:
        raise ConfigError("dataset.classes: classes cannot be chosen for multilabel data", "leave the key out")
    sets = [[part.strip() for part in label.split(layout.separator) if part.strip()] for label in labels]
    _, _, names, notes = _classes.encode([label for row in sets for label in row], None, known, column.where)
    if known is None and (note := _other_separator(labels, layout.separator, len(names))):
        notes.append(f"{column.where}: {note}")
    position = {name: code for code, name in enumerate(_classes.comparable(names, known))}
    full = torch.full((len(column.text), len(names)), math.nan)
    for row, row_labels in zip(labelled, sets, strict=True):
        full[row] = 0.0
        full[row, [position[label] for label in _classes.comparable(row_labels, known)]] = 1.0
    return full, Target("multilabel", names), notes


def _other_separator(labels: Sequence[str], separator: str, classes: int) -> str:
    """Describe another character that seems to separate the labels of a cell; "" if there is none."""
    if any(separator in label for label in labels):
        return ""
    for char in ",;|/ ":
        names = {part.strip() for label in labels for part in label.split(char) if part.strip()}
        if 5 * sum(char in label for label in labels) > len(labels) and 2 * len(names) <= classes:
            return (
                f"no cell holds the separator '{clean(separator)}', and with '{char}' there would be {len(names)} classes instead of "
                f"{classes}: dataset.separator: '{char}'"
            )
    return ""
