"""Turn rows of numeric and categorical columns into inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
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
    Given,
    Inputs,
    InputSpec,
    Samples,
    Splitting,
    clean,
    listing,
    nearest,
    same_modality,
)
from fmeco.datasets import _splits
from fmeco.datasets._columns import Table, cells, is_decimal, is_missing, is_number, take
from fmeco.datasets._splits import Indices
from fmeco.datasets._targets import read_targets


def fit_columns(
    table: Table, features: Sequence[str], train: Indices, categorical_too: Collection[str] = ()
) -> dict[str, Any]:
    """Compute column statistics from the training rows only: the `preprocessing` of a table.

    numeric: mean and std; missing values become the mean, plus a 0/1 column if any training value is missing.
    categorical: the categories seen, numbered from 1; 0 is missing or never seen.
    categorical_too: columns of numbers to treat as categorical.
    """
    numeric: list[dict[str, Any]] = []
    categorical: list[dict[str, Any]] = []
    for name in features:
        column = cells(table[name])
        if not column.strange.size and name not in categorical_too:
            gone = column.missing[train]
            x = column.values[train][~gone] if not gone.all() else np.zeros(1)
            numeric.append(
                {"name": name, "mean": float(x.mean()), "std": float(x.std()) or 1.0, "missing": bool(gone.any())}
            )
        else:
            seen = {table[name][i] for i in train.tolist()}
            categorical.append({"name": name, "categories": sorted(value for value in seen if not is_missing(value))})
    return {"numeric": numeric, "categorical": categorical}


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
    unseen: column -> categories that training did not see.
    """

    in_memory = True

    def __init__(
        self,
        table: Table,
        at: Indices,
        targets: Mapping[str, Tensor],
        prep: Mapping[str, Any],
        names: Sequence[str],
    ) -> None:
        self.targets: Mapping[str, Tensor] = targets
        rows = at.tolist()
        self.names: list[str] = [names[i] for i in rows]
        numeric = np.zeros((len(at), len(prep["numeric"])), dtype=np.float64)
        flags: list[NDArray[np.float64]] = []
        self.unreadable: dict[int, str] = {}
        for j, stats in enumerate(prep["numeric"]):
            column = cells([table[stats["name"]][i] for i in rows])
            numeric[:, j] = (column.values - stats["mean"]) / stats["std"]
            numeric[column.missing, j] = 0.0  # the mean
            for position in column.strange.tolist():
                numeric[position, j] = 0.0
                value = table[stats["name"]][rows[position]]
                self.unreadable[position] = (
                    f"{names[rows[position]]}: column '{clean(stats['name'])}': '{clean(value, 40)}' is not a number, "
                    "and the column was numeric in training"
                )
            if stats["missing"]:
                flags.append(column.missing[:, None].astype(np.float64))
        self.columns = torch.from_numpy(np.concatenate([numeric, *flags], axis=1).astype(np.float32))  # (N, F)
        self.categories = torch.zeros(len(at), len(prep["categorical"]), dtype=torch.int64)  # (N, K)
        self.unseen: dict[str, set[str]] = {}
        for j, stats in enumerate(prep["categorical"]):
            codes = {name: code for code, name in enumerate(stats["categories"], 1)}
            values = [table[stats["name"]][i] for i in rows]
            self.categories[:, j] = torch.tensor([codes.get(value, 0) for value in values], dtype=torch.int64)
            if strange := {value for value in set(values) - codes.keys() if not is_missing(value)}:
                self.unseen[stats["name"]] = strange
        if not self.unreadable:
            parts = {"columns": self.columns, "categories": self.categories}
            self.tensors = {name: x for name, x in parts.items() if x.shape[1]}

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


def as_spelled(table: Table, prep: Mapping[str, Any]) -> Table:
    """Spell numbers and booleans that were passed in Python as the categories of training: 3.0 as 3, True as true."""
    spelled = dict(table)
    for column in prep["categorical"]:
        name, categories = column["name"], set(column["categories"])
        if strange := {value for value in table.get(name, ()) if value not in categories}:
            other = {value: value.removesuffix(".0") for value in strange} | {"True": "true", "False": "false"}
            fitting = {value: word for value, word in other.items() if value in strange and word in categories}
            spelled[name] = [fitting.get(value, value) for value in table[name]]
    return spelled


def match_columns(table: Table, prep: Mapping[str, Any], path: str | Given) -> list[str]:
    """Check a new table for the columns of training. Returns notes on extra columns; raises DataError for absent ones."""
    wanted = [column["name"] for column in (*prep["numeric"], *prep["categorical"])]
    if absent := [name for name in wanted if name not in table]:
        raise DataError(f"{clean(path)}: the model needs the column {listing(absent)}{nearest(absent[0], table)}")
    extra = [name for name in table if name not in wanted]
    return [f"{clean(path)}: columns that the model does not use: {listing(extra)}"] if extra else []


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
    task: str,
    splitting: Splitting,
    parts: dict[str, Indices] | None = None,
    groups: Mapping[str, Sequence[str]] = {},
) -> Data:
    """Build a Data from a table of text; shared by csv_table and sklearn.

    table: column name -> values as text.
    labels: target -> label of each row.
    features, categorical: names of the columns to use, and of those with numbers to treat as categories.
    parts: rows of each split, if a column decides them.
    groups: columns to measure by, for all rows.
    Raises ConfigError and DataError that name the column or row.
    """
    same_modality(known, "table")
    old = known.targets if known is not None else {}
    targets = read_targets(
        labels, old, splitting.classes, where=where, names=names, kind_of=lambda values: _kind(values, task)
    )
    kept, codes, notes = targets.kept, targets.codes, targets.notes
    # Rows are split by a hash of their content, so moving the file or adding rows moves no row to another split.
    rows = list(zip(*labels.values(), *(table[name] for name in features), strict=True))
    chosen = ["\t".join(rows[i]) for i in kept.tolist()]
    if parts is not None:
        parts = {part: np.flatnonzero(np.isin(kept, at)) for part, at in parts.items()}
    parts = _splits.assign(chosen, codes, splitting, whole=whole, decided=parts)
    if known is not None:
        prep: Mapping[str, Any] = known.preprocessing
        numeric = {column["name"] for column in prep["numeric"]}
        if other := [name for name in categorical if name in numeric]:
            raise ConfigError(
                f"dataset.categorical: {listing(other)}: the checkpoint was trained with this column as a number",
                "leave the column out of dataset.categorical",
            )
        notes += match_columns(table, prep, where)
    elif "train" not in parts:
        raise DataError(
            f"{where}: no row is in the training split", "dataset.split_column must hold train in some rows"
        )
    else:
        prep = fit_columns(table, features, kept[parts["train"]], categorical)
    made = {part: Rows(table, kept[at], targets.at(at), prep, names) for part, at in parts.items()}
    for part, at in parts.items():
        made[part].groups = take(groups, kept[at])
    notes += [
        f"{part}: column '{clean(name)}' has categories not seen in training: {listing(sorted(strange))}"
        for part, samples in made.items()
        for name, strange in samples.unseen.items()
    ]
    spec = dataclasses.replace(
        table_spec(prep),
        targets=targets.targets,
        sizes={part: len(at) for part, at in parts.items()},
        fingerprint=_splits.fingerprint([rows[i] for i in kept.tolist()]),
    )
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=tuple(notes))


def _kind(labels: Sequence[str], task: str) -> str:
    """Choose the kind of a target: `task`, or for auto number or class.

    Numbers are amounts if any has decimals, or if there are many distinct ones, as with prices and ages; else classes.
    """
    if task != "auto":
        return task
    many = len(set(labels)) > max(20, len(labels) // 20)
    return "number" if all(map(is_number, labels)) and (many or any(map(is_decimal, labels))) else "class"
