"""Turn rows of numeric and categorical columns into inputs."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmeco.core import (
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Inputs,
    InputSpec,
    Samples,
    Splitting,
    clean,
    listing,
    nearest,
    same_modality,
)
from fmeco.datasets import _date_parts, _sentinels, _splits, _targets
from fmeco.datasets._column_kinds import fit_columns
from fmeco.datasets._columns import Table, as_text, collector_paused, take
from fmeco.datasets._date_parts import FIRST_PART
from fmeco.datasets._new_columns import Column, numbers
from fmeco.datasets._numbers import MISSING, PLAIN, Rules, category_names, is_missing, is_number, is_whole, to_float
from fmeco.datasets._splits import Indices


def table_spec(prep: Mapping[str, Any]) -> DataSpec:
    """Describe the inputs of a table: `columns` (F,) float32 and `categories` (K,) int64, by its column statistics."""
    flags = sum(column["missing"] for column in prep["numeric"])
    inputs: dict[str, InputSpec] = {}
    if prep["numeric"]:
        # Rows are standardised in float64 before: in float32, a timestamp would lose its seconds.
        inputs["columns"] = InputSpec((len(prep["numeric"]) + flags,), "float32")
    if prep["categorical"]:
        inputs["categories"] = InputSpec((len(prep["categorical"]),), "int64")
    return DataSpec(modality="table", inputs=inputs, preprocessing=prep, reader="csv_table")


class Rows(Samples):
    """Serve rows of a table as inputs, by the spec's column statistics.

    unreadable: position -> error message of rows that cannot be read.
    unseen: column -> rows of each category that training did not see.
    gaps: column -> number of missing numbers, for columns that had none in training.
    sentinels: column -> rows of each number that probably stands for a missing value, such as -9999.
    """

    in_memory = True

    def __init__(
        self,
        table: Table,
        at: Indices,
        targets: Mapping[str, Tensor],
        prep: Mapping[str, Any],
        names: Sequence[str],
        rules: Rules,
    ) -> None:
        self.targets: Mapping[str, Tensor] = targets
        rows = at.tolist()
        self.names: list[str] = [names[i] for i in rows]
        self.unreadable: dict[int, str] = {}
        self.gaps: dict[str, int] = {}
        self.sentinels: dict[str, dict[float, int]] = {}
        text = {
            stats["name"]: [table[stats["name"]][i] for i in rows] for stats in (*prep["numeric"], *prep["categorical"])
        }
        self.columns = self._numbers(text, prep["numeric"], rules)
        self.categories = torch.zeros(len(at), len(prep["categorical"]), dtype=torch.int64)  # (N, K)
        self.unseen: dict[str, Counter[str]] = {}
        for j, stats in enumerate(prep["categorical"]):
            codes = {name: code for code, name in enumerate(stats["categories"], 1)}
            values = text[stats["name"]]
            if rules.decode > 1:
                names_of = category_names(set(values), whole=all(map(is_whole, codes)))
                values = [names_of[value] for value in values]
            self.categories[:, j] = torch.tensor([codes.get(value, 0) for value in values], dtype=torch.int64)
            strange = {value for value in set(values) - codes.keys() if not is_missing(value, rules.missing)}
            if strange:
                self.unseen[stats["name"]] = Counter(value for value in values if value in strange)
        if not self.unreadable:
            parts = {"columns": self.columns, "categories": self.categories}
            self.tensors = {name: x for name, x in parts.items() if x.shape[1]}

    def _numbers(self, text: Mapping[str, list[str]], numeric: Sequence[Mapping[str, Any]], rules: Rules) -> Tensor:
        """Standardise the numeric columns (N, F) in float64: in float32, a timestamp would lose its seconds."""
        values = np.zeros((len(self.names), len(numeric)), dtype=np.float64)
        flags: list[NDArray[np.float64]] = []
        dates: dict[str, _date_parts.Dates] = {}
        for j, stats in enumerate(numeric):
            name = stats["name"]
            if "part" in stats:
                if name not in dates:
                    dates[name] = _date_parts.read(text[name], stats["order"], rules)
                column, kind, was = dates[name].part(stats["part"]), "date", "held dates"
            else:
                column, kind, was = rules.cells(text[name], name), "number", "was numeric"
                self.sentinels[name] = _sentinels.find(column.values[~column.missing])
            values[:, j] = (column.values - stats["mean"]) / stats["std"]
            values[column.missing, j] = 0.0  # the mean
            values[column.strange, j] = 0.0
            large = np.flatnonzero(~(np.abs(values[:, j]) <= np.finfo(np.float32).max))
            values[large, j] = 0.0
            reasons = dict.fromkeys(column.strange.tolist(), f"is not a {kind}, and the column {was} in training")
            reasons |= dict.fromkeys(large.tolist(), "is too large beside the numbers of training")
            for i, reason in reasons.items():
                self.unreadable[i] = f"{self.names[i]}: column '{clean(name)}': '{clean(text[name][i], 40)}' {reason}"
            if stats["missing"]:
                flags.append(column.missing[:, None].astype(np.float64))
            elif column.missing.any() and stats.get("part", FIRST_PART) == FIRST_PART:
                self.gaps[name] = int(column.missing.sum())
        return torch.from_numpy(np.concatenate([values, *flags], axis=1).astype(np.float32))

    def unseen_notes(self, where: str) -> list[str]:
        """Describe what training did not see, with the number of rows that have it. where: the rows' split or file."""
        gaps = [
            f"{where}: column '{clean(name)}' has no value in {count:,} of {len(self):,} rows, and had one in all rows of "
            "training: the mean is used"
            for name, count in self.gaps.items()
        ]
        return gaps + [
            f"{where}: column '{clean(name)}' has categories not seen in training, in {strange.total():,} of "
            f"{len(self):,} rows: {listing(sorted(strange))}"
            for name, strange in self.unseen.items()
        ]

    def sentinel_notes(self, where: str) -> list[str]:
        """Describe numbers that probably stand for missing values, in new rows for a checkpoint. where: as above."""
        return [
            f"{where}: column '{clean(name)}': {number:.15g} is in {count:,} of {len(self):,} rows, far from all other numbers; if "
            "it stands for a missing value, empty these cells"
            for name, found in self.sentinels.items()
            for number, count in found.items()
        ]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def __getitem__(self, index: int) -> Inputs:
        if index in self.unreadable:
            raise DataError(self.unreadable[index])
        inputs: Inputs = {}
        if self.columns.shape[1]:
            inputs["columns"] = self.columns[index]
        if self.categories.shape[1]:
            inputs["categories"] = self.categories[index]
        return inputs


def match_columns(
    table: Mapping[str, list[Any]], prep: Mapping[str, Any], path: str
) -> tuple[dict[str, list[Any]], list[str]]:
    """Find the columns of training in a new table, by name; upper and lower case may differ.

    Returns the columns under their names in training, and notes. Raises DataError for absent columns.
    """
    wanted = list(dict.fromkeys(column["name"] for column in (*prep["numeric"], *prep["categorical"])))
    folded: dict[str, list[str]] = {}
    for name in table:
        folded.setdefault(_folded(name), []).append(name)
    found = {name: [name] if name in table else folded.get(_folded(name), []) for name in wanted}
    if absent := [name for name in wanted if len(found[name]) != 1]:
        several = f"; it has {listing(found[absent[0]])}" if found[absent[0]] else nearest(absent[0], table)
        raise DataError(f"{clean(path)}: the model needs the column {listing(absent)}{several}")
    matched = {name: table[found[name][0]] for name in wanted}
    notes: list[str] = []
    used = {columns[0] for columns in found.values()}
    if other := [f"'{clean(found[name][0])}' as '{clean(name)}'" for name in wanted if name != found[name][0]]:
        notes.append(f"{clean(path)}: columns are written in another case than in training: {listing(other)} is read")
    places = {name: place for place, name in enumerate(table)}
    for kind in ("numeric", "categorical"):
        order = [places[found[column["name"]][0]] for column in prep[kind]]
        if order != sorted(order):
            notes.append(f"{clean(path)}: the columns have another order than in training; they are matched by name")
            break
    if extra := [name for name in table if name not in used]:
        notes.append(
            f"{clean(path)}: columns that the model does not use: {listing([name or '(without a name)' for name in extra])}"
        )
    return matched, notes


def _folded(name: str) -> str:
    """Return a column's name without the differences that programs make: upper case, and composed characters (NFC)."""
    return unicodedata.normalize("NFC", name).casefold()


def as_spelled(table: Mapping[str, Sequence[Any]], prep: Mapping[str, Any], rules: Rules) -> Table:
    """Write cells that were passed in Python as the table of training (`prep`) has them.

    A number gets the notation of its column, and a date its order. 3.0 becomes the category 3, and True the category true.
    """
    orders = {stats["name"]: stats["order"] for stats in prep["numeric"] if "part" in stats}
    known = {stats["name"]: set(stats["categories"]) for stats in prep["categorical"]}
    gone = {to_float(word) for word in rules.missing if is_number(word)}  # -999.0 is the word -999
    spelled: Table = {}
    for name, values in table.items():
        present = [None if type(value) in (int, float) and value in gone else value for value in values]
        texts = list(map(str.strip, as_text(present)))
        if name in orders or name in rules.notations:
            order, notation = orders.get(name, ""), rules.notations.get(name, PLAIN)
            for i, value in enumerate(values):
                if isinstance(value, date):
                    texts[i] = _date_parts.written(texts[i], order)
                elif texts[i] and type(value) in (int, float):
                    texts[i] = notation.written(texts[i])
        elif strange := set(texts) - known.get(name, set(texts)):
            other = {text: text.removesuffix(".0") for text in strange} | {"True": "true", "False": "false"}
            fitting = {text: word for text, word in other.items() if text in strange and word in known[name]}
            texts = [fitting.get(text, text) for text in texts]
        spelled[name] = texts
    return spelled


@collector_paused()
def build_table(
    known: DataSpec | None,
    whole: bool,
    table: Table,
    labels: Mapping[str, Sequence[str]],
    *,
    where: str,
    names: Sequence[str],
    features: Sequence[str],
    categorical: Sequence[str] = (),
    layout: _targets.Layout,
    rules: Rules,
    splitting: Splitting,
    parts: dict[str, Indices] | None = None,
    groups: Mapping[str, Sequence[str]] = {},
) -> Data:
    """Build a Data from a table of text; shared by csv_table and sklearn.

    table: column name -> values as text.
    labels: target -> label of each row; empty for a table without targets.
    features, categorical: names of the columns to use, and of those with numbers to treat as categories.
    parts: rows of each split, if a column decides them.
    groups: columns to measure by, for all rows.
    Raises ConfigError and DataError that name the column or row.
    """
    same_modality(known, "table")
    old = known.targets if known is not None else {}
    targets = (
        _targets.read_targets(labels, old, layout, rules, where=where, names=names)
        if labels
        else _targets.without_targets(len(names), layout.classes)
    )
    kept, codes, notes = targets.kept, targets.codes, targets.notes
    # Rows are split by a hash of their content, so moving the file or adding rows moves no row to another split.
    rows = list(zip(*labels.values(), *(table[name] for name in features), strict=True))
    chosen = ["\t".join(rows[i]) for i in kept.tolist()]
    if parts is not None:
        parts = {part: np.flatnonzero(np.isin(kept, at)) for part, at in parts.items()}
    parts = _splits.assign(chosen, codes, splitting, whole=whole, decided=parts)
    if known is not None:
        table, more = match_columns(table, known.preprocessing, where)
        rules = _as_before(table, known, categorical, rules, where, names)
        prep: Mapping[str, Any] = known.preprocessing
        if rules.decode > 1 or rules.missing != MISSING:
            prep = {**prep, **rules.stored(targets.notations)}
    elif "train" not in parts:
        raise DataError(
            f"{where}: no row is in the training split", "dataset.split_column must hold train in some rows"
        )
    else:
        columns = [
            Column(name, table[name], names, where, f"dataset.categorical: [{clean(name)}] reads categories instead")
            for name in features
        ]
        prep, more = fit_columns(columns, kept[parts["train"]], rules, categorical)
        rules = rules.with_notations(prep["numbers"])
        prep["numbers"].update({name: one._asdict() for name, one in targets.notations.items()})
    made = {part: Rows(table, kept[at], targets.at(at), prep, names, rules) for part, at in parts.items()}
    for part, at in parts.items():
        made[part].groups = take(groups, kept[at])
        more += made[part].unseen_notes(part)
        if known is not None:  # otherwise, fitting the columns said so
            more += made[part].sentinel_notes(part)
    spec = dataclasses.replace(
        table_spec(prep),
        targets=targets.targets,
        sizes={part: len(at) for part, at in parts.items()},
        fingerprint=_splits.fingerprint([rows[i] for i in kept.tolist()]),
    )
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=(*notes, *more))


def _as_before(
    table: Table, known: DataSpec, categorical: Sequence[str], rules: Rules, where: str, names: Sequence[str]
) -> Rules:
    """Choose the rules for a new table of a checkpoint, whose columns keep their kinds. Only their notation may change.

    Raises ConfigError for keys of the config that contradict the checkpoint.
    """
    numeric = {stats["name"] for stats in known.preprocessing["numeric"] if "part" not in stats}
    if other := [name for name in categorical if name in numeric]:
        raise ConfigError(
            f"dataset.categorical: {listing(other)}: the checkpoint was trained with this column as a number",
            "leave the column out of dataset.categorical",
        )
    if rules.decode == 1 and rules.decimal:
        raise ConfigError(
            "dataset.decimal: the checkpoint was made before fmeco knew this key, and reads plain numbers only",
            "leave the key out, or pretrain anew",
        )
    notations = dict(rules.notations)
    for name in numeric & rules.decimal.keys():
        read = numbers(Column(name, table[name], names, where, ""), rules)
        if read is not None:
            notations[name] = read.notation
    return rules._replace(notations=notations)
