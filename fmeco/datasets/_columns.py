"""Read a table as columns of text, and columns as numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmeco.core import ConfigError, DataError, Given, clean, listing, nearest
from fmeco.data import parquet
from fmeco.datasets._splits import Indices

Table = dict[str, list[str]]

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})

FEW_GROUPS = 100  # columns with at most so many distinct values are offered to `evaluate --by`


def is_missing(text: str) -> bool:
    """Tell whether a cell is empty, or is a word for a missing value such as NA."""
    return text.strip().lower() in MISSING


def is_number(text: str) -> bool:
    """Tell whether a cell is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def is_decimal(text: str) -> bool:
    """Tell whether a cell is a number with decimals or an exponent, such as 3.5 or 1e-3, which is never a class code."""
    return is_number(text) and not text.strip().lstrip("+-").isdigit()


class Cells(NamedTuple):
    """Hold a column as numbers.

    values: (N,) float64; 0 for cells that are missing or no number.
    missing: (N,), whether a cell is missing.
    strange: positions of cells that are neither a number nor missing.
    """

    values: NDArray[np.float64]
    missing: NDArray[np.bool_]
    strange: Indices


def cells(column: Sequence[str]) -> Cells:
    """Parse a column as numbers.

    The whole column is parsed at once: calling `is_number` and `is_missing` per cell would take minutes on a long table.
    """
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


def read_table(path: str | Given, columns: Sequence[str] | None = None) -> Table:
    """Read a CSV, TSV or Parquet file into a dict from column name to values as text.

    path: of the file; rows that were passed in Python are returned as they are.
    columns: names of the columns of a file without a header.
    Raises DataError with file and line.
    """
    if isinstance(path, Given):
        return _given(path)
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


def _given(rows: Given) -> Table:
    """Return the columns of rows that were passed in Python. Raises DataError if there are none."""
    if not any(rows.value.values()):
        raise DataError(f"{rows}: no rows")
    return {name.strip(): list(map(str.strip, values)) for name, values in rows.value.items()}


def row_names(path: str | Given, count: int) -> list[str]:
    """Name the rows of a table for messages and answers: FILE:LINE, or inputs[NUMBER]."""
    if isinstance(path, Given):
        return [path.row(i) for i in range(count)]
    return [f"{path}:{line}" for line in range(2, count + 2)]


def _parse(text: str, path: str, delimiter: str, blank_rows: bool, columns: Sequence[str] | None = None) -> Table:
    """Parse the text of a CSV table.

    blank_rows: an empty line is a row whose only value is missing; otherwise it is skipped.
    columns: the header, if the text has none.
    Raises DataError.
    """
    try:
        read = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [row or [""] for row in read] if blank_rows else list(filter(None, read))
    except csv.Error as error:
        raise DataError(f"{clean(path)}: not a valid CSV table: {error}") from None
    first = 1 if columns is None else 0  # row number of the header
    if columns is not None and rows:
        rows.insert(0, list(columns))
    if len(rows) < 2:
        raise DataError(f"{clean(path)}: {'no rows below the header' if rows else 'the file is empty'}")
    header = [name.strip() for name in rows[0]]
    if twice := {name for name in header if header.count(name) > 1}:
        raise DataError(f"{clean(path)}:1: the column {listing(twice)} appears more than once")
    if set(map(len, rows)) != {len(header)}:
        line, row = next((line, row) for line, row in enumerate(rows, first) if len(row) != len(header))
        raise DataError(f"{clean(path)}: row {line} has {len(row)} values, but the table has {len(header)} columns")
    return {
        name: list(map(str.strip, values)) for name, (_, *values) in zip(header, zip(*rows, strict=True), strict=True)
    }


def column(table: Table, name: str, path: str | Given) -> list[str]:
    """Return a column of a table. Raises ConfigError if there is none of this name."""
    if name not in table:
        raise ConfigError(
            f"{clean(path)}: no column '{clean(name)}'{nearest(name, table)}; it has: {listing(table, 50)}",
            "name the target's column: --set dataset.target=COLUMN, or dataset.label_column for a table of files",
        )
    return table[name]


def grouping(table: Table, named: Sequence[str] = ()) -> Table:
    """Select the columns to measure by: those with few distinct values, and those in `named`."""
    selected: Table = {}
    for name, values in table.items():
        if name not in named and (len(set(values[:1000])) > FEW_GROUPS or len(set(values)) > FEW_GROUPS):
            continue
        shared = {value: value for value in values}  # one string object per value, to save memory
        selected[name] = [shared[value] for value in values]
    return selected


def take(table: Mapping[str, Sequence[str]], rows: Indices) -> Table:
    """Select rows (their positions) of all columns."""
    return {name: [values[i] for i in rows.tolist()] for name, values in table.items()}
