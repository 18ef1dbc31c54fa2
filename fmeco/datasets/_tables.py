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
    """Column statistics, from the training rows alone: what `preprocessing` of a table holds.

    Numeric: mean and std, missing values become the mean, plus a 0/1 column where any were missing.
    Categorical: the categories seen, numbered from 1; 0 stands for missing and for ones never seen. categorical_too:
    columns of numbers that are categorical.
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
            categorical.append({"name": name, "categories": sorted(v for v in seen if not is_missing(v))})
    return {"numeric": numeric, "categorical": categorical}


def table_spec(how: Mapping[str, Any]) -> DataSpec:
    """Inputs `columns` (F,) float32, and `categories` (K,) int64 with K sizes in preprocessing."""
    flags = sum(one["missing"] for one in how["numeric"])
    inputs: dict[str, InputSpec] = {}
    if how["numeric"]:
        # Rows come standardised: a timestamp in float32 would have lost its seconds before its mean is taken off.
        inputs["columns"] = InputSpec((len(how["numeric"]) + flags,), "float32")
    if how["categorical"]:
        inputs["categories"] = InputSpec((len(how["categorical"]),), "int64")
    return DataSpec(modality="table", inputs=inputs, preprocessing=how, reader="csv_table")


class Rows(Samples):
    """Rows of a table by the spec's column statistics."""

    in_memory = True

    def __init__(
        self,
        table: Table,
        at: Indices,
        targets: Mapping[str, Tensor],
        how: Mapping[str, Any],
        names: Sequence[str],
    ) -> None:
        self.targets: Mapping[str, Tensor] = targets
        rows = at.tolist()
        self.names: list[str] = [names[i] for i in rows]
        numeric = np.zeros((len(at), len(how["numeric"])), dtype=np.float64)
        flags: list[NDArray[np.float64]] = []
        self.unreadable: dict[int, str] = {}
        for j, one in enumerate(how["numeric"]):
            column = cells([table[one["name"]][i] for i in rows])
            numeric[:, j] = (column.values - one["mean"]) / one["std"]
            numeric[column.missing, j] = 0.0  # the mean
            for place in column.strange.tolist():
                numeric[place, j] = 0.0
                value = table[one["name"]][rows[place]]
                self.unreadable[place] = (
                    f"{names[rows[place]]}: column '{clean(one['name'])}': '{clean(value, 40)}' is not a number, "
                    "and the column was numeric in training"
                )
            if one["missing"]:
                flags.append(column.missing[:, None].astype(np.float64))
        self.columns = torch.from_numpy(np.concatenate([numeric, *flags], axis=1).astype(np.float32))  # (N, F)
        self.categories = torch.zeros(len(at), len(how["categorical"]), dtype=torch.int64)  # (N, K)
        self.unseen: dict[str, set[str]] = {}
        for j, one in enumerate(how["categorical"]):
            codes = {name: code for code, name in enumerate(one["categories"], 1)}
            values = [table[one["name"]][i] for i in rows]
            self.categories[:, j] = torch.tensor([codes.get(value, 0) for value in values], dtype=torch.int64)
            if strange := {value for value in set(values) - codes.keys() if not is_missing(value)}:
                self.unseen[one["name"]] = strange
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


def match_columns(table: Table, how: Mapping[str, Any], path: str) -> list[str]:
    """Hold a new table to the columns of training. Raises DataError for absent ones; returns notes on extra ones."""
    wanted = [one["name"] for one in (*how["numeric"], *how["categorical"])]
    if absent := [name for name in wanted if name not in table]:
        raise DataError(f"{clean(path)}: the model needs the column {listing(absent)}{nearest(absent[0], table)}")
    extra = [name for name in table if name not in wanted]
    return [f"{clean(path)}: columns the model does not use: {listing(extra)}"] if extra else []


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
    """A Data from columns as text, and the labels of each target, one per row. What csv_table and sklearn share.

    parts: the rows of each split, where a column decides them. groups: columns, whole, to measure by.
    """
    same_modality(known, "table")
    old = known.targets if known is not None else {}
    found = read_targets(
        labels, old, splitting.classes, where=where, names=names, kind_of=lambda values: _kind(values, task)
    )
    kept, codes, notes = found.kept, found.codes, found.notes
    # A row is known by its content: moving the file, or adding rows, moves no row to another split.
    rows = list(zip(*labels.values(), *(table[name] for name in features), strict=True))
    chosen = ["\t".join(rows[i]) for i in kept.tolist()]
    if parts is not None:
        parts = {part: np.flatnonzero(np.isin(kept, at)) for part, at in parts.items()}
    parts = _splits.assign(chosen, codes, splitting, whole=whole, given=parts)
    if known is not None:
        how: Mapping[str, Any] = known.preprocessing
        numeric = {one["name"] for one in how["numeric"]}
        if other := [name for name in categorical if name in numeric]:
            raise ConfigError(
                f"dataset.categorical: {listing(other)}: the checkpoint learned it as a number, and it stays"
            )
        notes += match_columns(table, how, where)
    elif "train" not in parts:
        raise DataError(f"{where}: no row is for training", "split_column must say train somewhere")
    else:
        how = fit_columns(table, features, kept[parts["train"]], categorical)
    made = {part: Rows(table, kept[at], found.at(at), how, names) for part, at in parts.items()}
    for part, at in parts.items():
        made[part].groups = take(groups, kept[at])
    notes += [
        f"{part}: column '{clean(name)}' has categories not seen in training: {listing(sorted(strange))}"
        for part, samples in made.items()
        for name, strange in samples.unseen.items()
    ]
    spec = dataclasses.replace(
        table_spec(how),
        targets=found.targets,
        sizes={part: len(at) for part, at in parts.items()},
        fingerprint=_splits.fingerprint([rows[i] for i in kept.tolist()]),
    )
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=tuple(notes))


def _kind(labels: Sequence[str], task: str) -> str:
    """Decimals are amounts. Whole numbers are amounts when they are many, as prices and ages are."""
    if task != "auto":
        return task
    many = len(set(labels)) > max(20, len(labels) // 20)
    return "number" if all(map(is_number, labels)) and (many or any(map(is_decimal, labels))) else "class"
