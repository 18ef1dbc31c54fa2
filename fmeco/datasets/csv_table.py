"""Rows of a CSV, TSV or Parquet table: numeric and categorical columns, missing values, and a target column."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from fmeco.core import (
    ConfigError,
    Data,
    DataSpec,
    Doc,
    FilePath,
    Given,
    Inputs,
    Samples,
    Spelling,
    Splitting,
    clean,
    decode_rule,
    listing,
    nearest,
)
from fmeco.datasets import _columns, _groups, _numbers, _splits, _stored, _tables, _targets, _times

MODALITY = "table"
FILES = (".csv", ".tsv", ".parquet")
FALLBACK = True
SPEC = _stored.Tables
TAKES = {"rows": "dicts or a DataFrame with the columns of training"}
LAYOUT = ("target", "features", "task", "drop?", "group?", "time?", "split_column?")
STARTER = {"backbone": "mlp", "column": "target"}


def show(spec: DataSpec, inputs: Inputs) -> str:
    """Write a row as "column: value", in the table's own units, without missing values and parts of dates."""
    cells, numeric = [], spec.preprocessing["numeric"]
    values = inputs.get("columns", torch.zeros(0)).tolist()
    missing = iter(values[len(numeric) :])
    for value, stats in zip(values[: len(numeric)], numeric, strict=True):
        absent = bool(next(missing)) if stats["missing"] else False
        if "part" not in stats and not absent:
            cells.append(f"{clean(stats['name'])}: {value * stats['std'] + stats['mean']:.6g}")
    codes = inputs.get("categories", torch.zeros(0, dtype=torch.int64)).tolist()
    for code, stats in zip(codes, spec.preprocessing["categorical"], strict=True):
        if code:
            cells.append(f"{clean(stats['name'])}: {clean(stats['categories'][code - 1])}")
    return ", ".join(cells)


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[FilePath, Doc("the table, with a header")],
    target: Annotated[
        str | list[str] | None,
        Doc("column to predict; several columns become tasks of objective: multi_task; null = no target, to pretrain"),
    ] = "label",
    features: Annotated[
        list[str] | None, Doc("columns to use; null = all except the target, `drop`, and columns that split or group")
    ] = None,
    drop: Annotated[list[str], Doc("columns to leave out, such as an id")] = [],
    categorical: Annotated[
        list[str], Doc("columns of numbers or dates to treat as categories, such as region codes")
    ] = [],
    split_column: Annotated[
        str | None, Doc("column that holds train, val or test; null = split by val_fraction")
    ] = None,
    time: Annotated[
        str | None, Doc("column of dates or numbers: test on the newest rows, validate on the ones before")
    ] = None,
    group: Annotated[list[str], Doc("columns to measure by (`evaluate --by`); they are not used as features")] = [],
    task: Annotated[
        Literal["auto", "class", "number"],
        Doc("auto = number if the target has decimals or many values, else class"),
    ] = "auto",
    spelling: Spelling = Spelling(),
    splitting: Splitting = Splitting(),
) -> Data:
    group_split = splitting.group_split
    others = {"split_column": split_column, "group_split": group_split, "split": splitting.split}
    if time is not None and (rivals := [key for key, value in others.items() if value is not None]):
        raise ConfigError(f"dataset.time and {listing(rivals)} both define the splits: set only one of them")
    table, char = _columns.read_separated(path, decode=decode_rule(known))
    labels, of_targets = _targets.target_columns(table, target, path)
    targets = list(of_targets.values())
    numbered, notes = _columns.row_numbers(table), list[str]()
    if decode_rule(known) > 1 and features is None and numbered is not None and numbered not in (*targets, *drop):
        drop = [*drop, numbered]
        indexed = numbered.startswith("__index_level_")
        called = f"the column '{clean(numbered)}', which" if indexed else "the first column, which has no name and"
        notes.append(f"{clean(path)}: {called} numbers the rows, is left out")
    deciding = [name for name in (split_column, time, group_split) if name is not None]
    left_out = {*targets, *drop, *deciding, *group}
    for name in (*drop, *categorical, *(features or []), *group, *([time] if time is not None else [])):
        _columns.column(table, name, path)
    rules = _numbers.Rules.of(known, spelling, semicolons=char == ";")
    groups = _groups.in_column(table, group_split, path) if group_split is not None else None
    used = features if features is not None else [name for name in table if name not in left_out]
    if set(targets) & set(used) or not used:
        raise ConfigError(
            f"{clean(path)}: {'a target is among the features' if used else 'no columns are left to use as features'}"
        )
    _targets.check_decimal(rules, [*used, *targets])
    if unused := [name for name in categorical if name not in used]:
        raise ConfigError(f"dataset.categorical: {listing(unused)}: not among the features in use")
    if split_column is not None and split_column not in table:
        raise ConfigError(f"{clean(path)}: no column '{clean(split_column)}'{nearest(split_column, table)}")
    parts = None
    if split_column is not None:
        parts = _splits.split_by_column(table[split_column], path, split_column)
        if groups is not None:
            _splits.check_apart({part: [groups[i] for i in at] for part, at in parts.items()})
    elif whole:
        pass  # all rows go to the test split
    elif time is not None:
        shares = (splitting.val_fraction, splitting.test_fraction)
        parts, more = _times.split_by_time(table[time], path, time, *shares, rule=decode_rule(known))
        notes += more
    elif group_split is not None and groups is not None:
        _groups.check_named(groups, path, group_split, functools.partial(_columns.is_missing, words=rules.missing))
        parts = _splits.by_group(groups, splitting)  # over all rows, including classes that are not chosen
    shown = {name: table[name] for name in table if name in used or (known is not None and name not in left_out)}
    data = _tables.build_table(
        known,
        whole,
        shown,
        labels,
        where=clean(path),
        names=[f"{path}:{row}" for row in range(2, len(next(iter(table.values()))) + 2)],
        features=used,
        categorical=categorical,
        layout=_targets.Layout(of_targets, task, amounts=True, classes=splitting.classes),
        rules=rules,
        splitting=splitting,
        parts=parts,
        groups=_columns.grouping(table, [*group, *([] if group_split is None else [group_split])]),
    )
    return dataclasses.replace(data, notes=(*notes, *data.notes))


def read(spec: DataSpec, sources: Sequence[str | Given]) -> Samples:
    """Read the rows of tables, and rows that were passed in Python; the target column may be absent."""
    merged: _columns.Table = {}
    names: list[str] = []
    notes: list[str] = []
    rules = _numbers.Rules.of(spec)
    for source in sources:
        if isinstance(source, Given):
            table, said = _tables.match_columns(_columns.passed(source), spec.preprocessing, str(source))
            table = _tables.as_spelled(table, spec.preprocessing, rules)
        else:
            read = _columns.read_table(source, decode=spec.decode)
            table, said = _tables.match_columns(read, spec.preprocessing, source)
        notes += said
        names += _columns.row_names(source, len(next(iter(table.values()))))
        for name, values in table.items():
            merged.setdefault(name, []).extend(values)
    samples = _tables.Rows(merged, np.arange(len(names)), {}, spec.preprocessing, names, rules)
    where = listing(map(clean, sources), 3)
    samples.notes = (*notes, *samples.unseen_notes(where), *samples.sentinel_notes(where))
    return samples


def example(folder: Path) -> dict[str, Any]:
    """Write a small table into a folder, and return the keys that read it: for the checks of plug-ins."""
    rows = [f"{i * i % 7},{'xyz'[i % 3]},{'' if i % 9 == 0 else i * 0.5},{'ab'[i % 2]}" for i in range(60)]
    file = folder / "table.csv"
    file.write_text("\n".join(["number,word,gaps,label", *rows]), "utf-8")
    return {"path": str(file)}
