"""Tables: reading CSV and Parquet, and rows of numeric and categorical columns as inputs."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmeco.core import (
    MISSING_CLASS,
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Inputs,
    InputSpec,
    Samples,
    Target,
    clean,
    listing,
    nearest,
    same_modality,
)
from fmeco.data import parquet
from fmeco.datasets import _splits
from fmeco.datasets._splits import Indices

Table = dict[str, list[str]]
RESERVED = ("input", "prediction", "probability", "error")  # columns that `predict` writes
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
FEW_GROUPS = 100  # a column with at most so many values groups rows without being asked


def is_missing(text: str) -> bool:
    return text.strip().lower() in MISSING


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def is_decimal(text: str) -> bool:
    """A number that is not a plain whole number, such as 3.5 or 1e-3: never the code of a class."""
    return is_number(text) and not text.strip().lstrip("+-").isdigit()


class Cells(NamedTuple):
    """A column as numbers. values: (N,) float64, 0 where `missing` (N,) or where a cell is neither: those are `strange`."""

    values: NDArray[np.float64]
    missing: NDArray[np.bool_]
    strange: Indices


def cells(column: Sequence[str]) -> Cells:
    """Text -> numbers, a whole column at a time: `is_number` and `is_missing` cell by cell would take minutes of a long
    table."""
    try:
        values = np.fromiter(map(float, column), np.float64, len(column))
        if np.isfinite(values).all():
            return Cells(values, np.zeros(len(column), bool), np.zeros(0, np.int64))
    except ValueError:
        pass
    missing = np.fromiter(map(MISSING.__contains__, map(str.lower, map(str.strip, column))), bool, len(column))
    number = np.fromiter(map(is_number, column), bool, len(column)) & ~missing
    values = np.zeros(len(column))
    values[number] = [float(column[i]) for i in np.flatnonzero(number).tolist()]
    return Cells(values, missing, np.flatnonzero(~number & ~missing))


def read_table(path: str, columns: Sequence[str] | None = None) -> Table:
    """A CSV, TSV or Parquet file -> column name -> values as text. columns: their names, of a file without a header. Raises
    DataError with file and line."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{clean(path)}: no such file")
    if file.suffix.lower() == ".parquet":
        return _parse(parquet.as_csv(path), path, ",", blank_rows=True)
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{clean(path)}: not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{clean(path)}: {error.strerror}") from None
    return _parse(text, path, max(",;\t", key=text.partition("\n")[0].count), blank_rows=False, columns=columns)


def _parse(text: str, path: str, delimiter: str, blank_rows: bool, columns: Sequence[str] | None = None) -> Table:
    """blank_rows: an empty line is a row whose only value is missing. columns: the header, where the text has none."""
    try:
        read = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [row or [""] for row in read] if blank_rows else list(filter(None, read))
    except csv.Error as error:
        raise DataError(f"{clean(path)}: not a valid CSV table: {error}") from None
    first = 1 if columns is None else 0  # the number of the header's row
    if columns is not None and rows:
        rows.insert(0, list(columns))
    if len(rows) < 2:
        raise DataError(f"{clean(path)}: {'no rows below the header' if rows else 'the file is empty'}")
    header = [name.strip() for name in rows[0]]
    if twice := {name for name in header if header.count(name) > 1}:
        raise DataError(f"{clean(path)}:1: the column {listing(twice)} appears more than once")
    if set(map(len, rows)) != {len(header)}:
        line, row = next((line, row) for line, row in enumerate(rows, first) if len(row) != len(header))
        raise DataError(f"{clean(path)}: row {line} has {len(row)} values, and there are {len(header)} columns")
    return {
        name: list(map(str.strip, values)) for name, (_, *values) in zip(header, zip(*rows, strict=True), strict=True)
    }


def column(table: Table, name: str, path: str) -> list[str]:
    if name not in table:
        raise ConfigError(
            f"{clean(path)}: no column '{clean(name)}'{nearest(name, table)}; it has: {listing(table, 50)}",
            "name the column of the target: --set dataset.target=COLUMN, or of a table of files dataset.label_column",
        )
    return table[name]


def numbers(values: Sequence[str], path: str, name: str, rows: Indices) -> Tensor:
    """Text -> float32 (N,). Raises DataError that names the row of what is no finite number."""
    for row, value in zip(rows, values, strict=True):
        if not is_number(value):
            raise DataError(
                f"{clean(path)}: column '{clean(name)}', row {row + 2}: '{clean(value, 40)}' is not a number",
                "a target must be a finite number, or, as one of several, missing",
            )
    return torch.tensor([float(value) for value in values], dtype=torch.float32)


def split_by_column(values: Sequence[str], path: str, name: str) -> dict[str, Indices]:
    spoken = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
    if strange := sorted({value for value in values if value.lower() not in spoken}):
        raise DataError(f"{clean(path)}: column '{clean(name)}' says {listing(strange)}; it may say train, val or test")
    parts = np.array([spoken[value.lower()] for value in values])
    return {part: np.flatnonzero(parts == part) for part in ("train", "val", "test") if (parts == part).any()}


def check_apart(parts: Mapping[str, Indices], values: Sequence[str], path: str, name: str) -> None:
    """Raises DataError that names a group (a customer) of which two given splits hold rows."""
    homes: dict[str, str] = {}
    for part, at in parts.items():
        for value in {values[i] for i in at.tolist()}:
            if (other := homes.setdefault(value, part)) != part:
                raise DataError(
                    f"{clean(path)}: '{clean(value, 40)}' of column '{clean(name)}' is in both {other} and {part}",
                    "dataset.group_split keeps the rows of one value in one split; correct the split column",
                )


def split_by_group(
    values: Sequence[str], path: str, name: str, val: float, test: float, fold: Mapping[str, int] | None
) -> dict[str, Indices]:
    """All rows of one value in one split, chosen by a hash of the value: shares are of values, not of rows."""
    if blank := [row + 2 for row, value in enumerate(values) if is_missing(value)]:
        raise DataError(f"{clean(path)}: no value of column '{clean(name)}' in row {listing(blank)}")
    distinct = sorted(set(values))
    if len(distinct) < (3 if test else 2):
        raise DataError(f"{clean(path)}: column '{clean(name)}' has {len(distinct)} values: too few to split by")
    chosen = _splits.split(distinct, np.zeros(len(distinct), np.int64), val, test, fold)
    codes = {value: code for code, value in enumerate(distinct)}
    code = np.fromiter(map(codes.__getitem__, values), np.int64, len(values))
    return {part: np.flatnonzero(np.isin(code, at)) for part, at in chosen.items()}


def split_by_time(
    values: Sequence[str], path: str, name: str, val: float, test: float, first_row: int = 2
) -> tuple[dict[str, Indices], str]:
    """The newest rows for testing, those before them for validation, and a note that says where the cuts are. first_row:
    the number of the first value's row.

    Rows of one moment stay together: a cut is where the share is nearest to what was asked for. A model is used on what
    comes after its training data, so a random split would promise too much.
    """
    if val + test >= 1:
        raise ConfigError(f"dataset: val_fraction {val} and test_fraction {test} leave nothing to train on")
    moments, first, code, counts = np.unique(
        _moments(values, path, name, first_row), return_index=True, return_inverse=True, return_counts=True
    )
    older = np.concatenate([[0], counts.cumsum()])  # rows before each moment
    asked = {"test": test, "val": val} if test else {"val": val}
    if len(moments) <= len(asked):
        raise DataError(f"{clean(path)}: column '{clean(name)}' has {len(moments)} values: too few to split by")
    parts: dict[str, Indices] = {}
    said: list[str] = []
    end = len(moments)
    for left, (part, share) in enumerate(asked.items()):
        wanted = older[end] - round(len(values) * share)
        lowest = len(asked) - left  # a moment for each split that is still to come
        cut = lowest + int(np.abs(older[lowest:end] - wanted).argmin())
        parts[part] = np.flatnonzero((code >= cut) & (code < end))
        said.append(f"{part} from {clean(values[first[cut]], 40)} ({len(parts[part]):,} rows)")
        end = cut
    parts["train"] = np.flatnonzero(code < end)
    said.append(f"train before {clean(values[first[end]], 40)} ({len(parts['train']):,} rows)")
    return dict(reversed(parts.items())), f"{clean(path)}: split by '{clean(name)}': {', '.join(reversed(said))}"


def _moments(values: Sequence[str], path: str, name: str, first_row: int = 2) -> NDArray[np.float64]:
    """Numbers, or ISO dates and times (in seconds; UTC where none says its zone). Raises DataError that names the row."""
    column = cells(values)
    other = np.sort(np.concatenate([column.strange, np.flatnonzero(column.missing)])).tolist()
    if not other:
        return column.values
    dates: list[datetime] = []
    wrong = other[0] if len(other) < len(values) else None  # the first that is no number, among numbers
    for row, value in enumerate(values if wrong is None else ()):
        try:
            dates.append(datetime.fromisoformat(value if len(value) != 7 else f"{value}-01"))  # 2024-01 is a month
        except ValueError:
            wrong = row
            break
    if wrong is not None:
        raise DataError(
            f"{clean(path)}: column '{clean(name)}', row {wrong + first_row}: '{clean(values[wrong], 40)}' is no time",
            "all of the column must be numbers, or ISO dates such as 2024-01-31 or 2024-01-31T12:00:00",
        )
    if len({date.tzinfo is None for date in dates}) > 1:
        raise DataError(f"{clean(path)}: column '{clean(name)}': some times have a zone and others have none")
    return np.array([(date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() for date in dates])


def grouping(table: Table, named: Sequence[str] = ()) -> Table:
    """The columns to measure by: those with few values, and those that are named."""
    found: Table = {}
    for name, values in table.items():
        if name not in named and (len(set(values[:1000])) > FEW_GROUPS or len(set(values)) > FEW_GROUPS):
            continue
        one = {value: value for value in values}  # one string per value: the table's text need not stay in memory
        found[name] = [one[value] for value in values]
    return found


def take(table: Mapping[str, Sequence[str]], rows: Indices) -> Table:
    """Some rows of columns."""
    return {name: [values[i] for i in rows.tolist()] for name, values in table.items()}


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
    classes: list[str | int] | None,
    limit_per_class: int | None,
    limit_seed: int,
    val_fraction: float,
    test_fraction: float,
    fold: Mapping[str, int] | None,
    parts: dict[str, Indices] | None = None,
    groups: Mapping[str, Sequence[str]] = {},
) -> Data:
    """A Data from columns as text, and the labels of each target, one per row. What csv_table and sklearn share.

    parts: the rows of each split, where a column decides them. groups: columns, whole, to measure by.
    """
    same_modality(known, "table")
    old = known.targets if known is not None else {}
    found = read_targets(labels, old, classes, where=where, names=names, kind_of=lambda values: _kind(values, task))
    kept, codes, notes = found.kept, found.codes, found.notes
    # A row is known by its content: moving the file, or adding rows, moves no row to another split.
    rows = list(zip(*labels.values(), *(table[name] for name in features), strict=True))
    chosen = ["\t".join(rows[i]) for i in kept.tolist()]
    if parts is not None:
        parts = {part: np.flatnonzero(np.isin(kept, at)) for part, at in parts.items()}
    elif whole:
        parts = {"test": np.arange(len(kept))}
    else:
        parts = _splits.split(chosen, codes, val_fraction, test_fraction, fold)
    if "train" in parts:
        parts["train"] = _splits.limit(chosen, codes, parts["train"], limit_per_class, limit_seed)
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


# ---------------------------------------------------------------- targets, of tables and of tables of files


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
    for (name, column), gone in zip(labels.items(), blank, strict=True):
        here = np.flatnonzero(~gone)
        if not here.size:
            raise DataError(f"{where}: the target '{clean(name)}' has no value in any row")
        present = [column[i] for i in here.tolist()]
        known = old.get(name)
        kind = kinds[name]
        if kind == "number":
            full: Tensor = torch.full((len(column),), math.nan)
            full[here] = numbers(present, where, "target" if name == "label" else name, here)
            targets[name] = known or Target("number")
        elif kind == "class":
            chosen, own, class_names, more = _splits.encode(present, classes, known, where)
            spread = np.full(len(column), MISSING_CLASS)
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
            _, _, class_names, more = _splits.encode([one for each in sets for one in each], None, known, where)
            full = torch.full((len(column), len(class_names)), math.nan)
            for row, each in zip(here, sets, strict=True):
                full[row] = 0.0
                full[row, [class_names.index(one) for one in each]] = 1.0
            targets[name] = Target("multilabel", class_names)
            notes += more
        values[name] = full
    codes = np.zeros(len(kept), np.int64) if codes is None else codes[kept]
    return Targets(targets, {name: full[kept] for name, full in values.items()}, codes, kept, notes)
