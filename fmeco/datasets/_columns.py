"""Read a table as columns of text."""

from __future__ import annotations

import contextlib
import csv
import datetime
import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmeco.core import DECODE_RULE, ConfigError, DataError, Given, clean, listing, nearest
from fmeco.data import parquet
from fmeco.data.delimiters import delimiter
from fmeco.datasets import _text_files
from fmeco.datasets._numbers import cells as cells
from fmeco.datasets._numbers import is_missing as is_missing
from fmeco.datasets._numbers import is_number as is_number
from fmeco.datasets._splits import Indices
from fmeco.files import absence

Table = dict[str, list[str]]

FEW_GROUPS = 100  # columns with at most so many distinct values are offered to `evaluate --by`


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Stop Python's search for cycles of garbage while many rows are made, none of which is garbage: it takes a third longer.

    Also a decorator. Objects without cycles are still freed at once.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_table(path: str | Given, columns: Sequence[str] | None = None, *, decode: int = DECODE_RULE) -> Table:
    """Read a CSV, TSV or Parquet file into a dict from column name to values as text.

    path: of the file; or rows that were passed in Python.
    columns: names of the columns of a file without a header.
    decode: the decode rule.
    Raises DataError with file and line.
    """
    return read_separated(path, columns, decode=decode)[0]


def read_separated(
    path: str | Given, columns: Sequence[str] | None = None, *, decode: int = DECODE_RULE
) -> tuple[Table, str]:
    """Read a table as `read_table` does. Returns it, and the character that separates its cells: a comma if it is no text."""
    if isinstance(path, Given):
        return {name: list(map(str.strip, as_text(values))) for name, values in passed(path).items()}, ","
    if Path(path).suffix.lower() == ".parquet":
        if not Path(path).is_file():
            raise DataError(f"{clean(path)}: {absence(path)}")
        return _parse(parquet.as_csv(path), path, ",", decode, blank_rows=True), ","
    text = _text_files.read_text(path)
    char = delimiter(text)
    return _parse(text, path, char, decode, blank_rows=False, columns=columns), char


def passed(rows: Given) -> dict[str, list[Any]]:
    """Return the columns of rows that were passed in Python. Raises DataError for no rows, and for cells that are no cells."""
    if not any(rows.value.values()):
        raise DataError(f"{rows}: no rows")
    if strange := [
        name
        for name, cells in rows.value.items()
        if any(hasattr(cell, "__len__") and not isinstance(cell, str) for cell in cells)
    ]:
        raise DataError(
            f"{rows}: the column {listing(strange)} holds lists, structures or bytes, and not text or numbers"
        )
    return {name.strip(): values for name, values in rows.value.items()}


def as_text(cells: Sequence[Any]) -> list[str]:
    """Write a column that was passed in Python as a table file holds it. None is a missing cell."""
    present = [cell for cell in cells if cell is not None]
    # Libraries turn whole numbers into floats where values are missing; a file has them as whole numbers.
    whole = len(present) < len(cells) and all(isinstance(cell, float) and cell.is_integer() for cell in present)
    days = all(isinstance(cell, datetime.datetime) and cell.timetz() == datetime.time() for cell in present)
    return ["" if cell is None else _text(cell, whole, days) for cell in cells]


def _text(cell: Any, whole: bool, days: bool) -> str:
    """Write one cell. whole: floats are whole numbers. days: times are dates."""
    if isinstance(cell, float):
        return str(int(cell)) if whole else repr(cell)
    if isinstance(cell, datetime.datetime):
        return cell.date().isoformat() if days else cell.isoformat(sep=" ")
    return str(cell)


def row_names(path: str | Given, count: int) -> list[str]:
    """Name the rows of a table for messages and answers: FILE:LINE, or inputs[NUMBER]."""
    if isinstance(path, Given):
        return [path.row(i) for i in range(count)]
    return [f"{path}:{line}" for line in range(2, count + 2)]


@collector_paused()
def _parse(
    text: str, path: str, char: str, decode: int, blank_rows: bool, columns: Sequence[str] | None = None
) -> Table:
    """Parse the text of a CSV table.

    blank_rows: an empty line is a row whose only value is missing; otherwise it is skipped.
    columns: the header, if the text has none.
    Raises DataError.
    """
    try:
        read = _text_files.cells_of(text, path, char, decode)
        rows = [row or [""] for row in read] if blank_rows else list(filter(None, read))
    except csv.Error as error:
        raise DataError(f"{clean(path)}: not a valid CSV table: {error}") from None
    first = 1 if columns is None else 0  # row number of the header
    if columns is not None and rows:
        rows.insert(0, list(columns))
    if len(rows) < 2:
        raise DataError(f"{clean(path)}: {'no rows below the header' if rows else 'the file is empty'}")
    if decode > 1 and not blank_rows and text.count("\n") > len(rows) + _text_files.SWALLOWED:
        _text_files.check_quotes(rows, path, char, first)
    header = [name.strip() for name in rows[0]]
    if decode > 1 and header.count("") > 1 and set(map(len, rows)) == {len(header)}:
        # Spreadsheets write empty columns at the end. One is left, which is reported as a column without values.
        nameless = [at for at, name in enumerate(header) if not name]
        spare = [at for at in nameless if not any(row[at].strip() for row in rows[1:])]
        kept = [at for at in range(len(header)) if at not in spare[1:]]
        rows = [[row[at] for at in kept] for row in rows]
        header = [header[at] for at in kept]
    if twice := {name for name in header if header.count(name) > 1}:
        raise DataError(f"{clean(path)}:1: the column {listing(twice)} appears more than once")
    if decode > 1 and rows.count(rows[0]) > 1:
        again = [row for row, cells in enumerate(rows[1:], first + 1) if cells == rows[0]]
        raise DataError(f"{clean(path)}: row {listing(again)} repeats the header", "remove it")
    if set(map(len, rows)) != {len(header)}:
        line, row = next((line, row) for line, row in enumerate(rows, first) if len(row) != len(header))
        raise DataError(f"{clean(path)}: row {line} has {len(row)} values, but the table has {len(header)} columns")
    return {
        name: list(map(str.strip, values)) for name, (_, *values) in zip(header, zip(*rows, strict=True), strict=True)
    }


def column(table: Table, name: str, path: str | Given, *hints: str) -> list[str]:
    """Return a column of a table. Raises ConfigError, with `hints`, if there is none of this name."""
    if name not in table:
        raise ConfigError(
            f"{clean(path)}: no column '{clean(name)}'{nearest(name, table)}; it has: {listing(table, 50)}",
            *hints,
        )
    return table[name]


def row_numbers(table: Table) -> str | None:
    """Find a column that numbers the rows, as pandas and R write it: first and without a name. Returns its name in `table`."""
    name, values = next(iter(table.items()))
    unnamed = name == "" or name.startswith("Unnamed: 0")  # pandas reads the empty name as "Unnamed: 0"
    if not unnamed:
        name = next((name for name in table if name.startswith("__index_level_")), "")  # in Parquet, by pandas
        values = table[name] if name else []
    numbered = bool(values) and all(map(str.isdecimal, values)) and len(set(values)) == len(values)
    return name if numbered else None


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
