"""Read a table as columns of text, and cells as numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmeco.core import ConfigError, DataError, clean, listing, nearest
from fmeco.data import parquet
from fmeco.datasets._splits import Indices

Table = dict[str, list[str]]

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
