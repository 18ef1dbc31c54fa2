"""Read columns of names and ids, such as the users of events."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal

from fmeco.core import DataError, clean, listing
from fmeco.datasets._numbers import is_missing, is_whole, whole_name

EXACT = 2**53  # float64 holds every whole number below it
_NUMBER = re.compile(r"[+-]?[0-9]{1,300}(?:\.[0-9]{0,300})?(?:[eE]\+?[0-9]{1,3})?")
_FLOAT = re.compile(r"\.|[eE]\+")  # 12E3 is a code


def read_ids(
    column: Sequence[str],
    words: Collection[str],
    key: str,
    known: Collection[str] | None,
    where: str,
    first_row: int,
    rule: int,
) -> tuple[list[str], list[str]]:
    """Read a column of ids. If all of them are whole numbers, 101.0 is 101: a column with a missing cell was one of floats.

    words: words for a missing cell, in lower case.
    key: key of the config that lists them, for messages.
    known: ids of a checkpoint, which decide whether ids are whole numbers; None = the column decides.
    where: file and column, for messages.
    first_row: row number of the first id.
    rule: the decode rule; 1 keeps ids as they are written.
    Returns (ids, notes). Raises DataError that names the row: for a missing id, and for a float too large to be exact.
    """
    distinct = set(column)
    if blank := {text for text in distinct if is_missing(text, words)}:
        rows = [row for row, text in enumerate(column) if text in blank]
        shown = clean(column[rows[0]], 40)
        raise DataError(
            f"{where}: no value in row {listing([str(row + first_row) for row in rows])}"
            + (f": '{shown}'" if shown else ""),
            "fill in the value, or remove the row",
            f"if '{shown}' is a name: {key}: []" if shown else "",
        )
    floats = {text for text in distinct if _FLOAT.search(text) is not None and _is_whole(text)}
    if rule == 1 or not floats or not all(map(_is_whole, distinct if known is None else known)):
        return list(column), []
    if large := inexact(floats):
        row = next(row for row, text in enumerate(column) if text in large)
        raise inexact_error(f"{where}, row {row + first_row}", column[row])
    names = {text: whole_id(text) for text in distinct}
    note = f"{where}: whole numbers written as floats: {clean(min(floats), 40)} is read as {names[min(floats)]}"
    return [names[text] for text in column], [note]


def inexact(texts: Iterable[str]) -> set[str]:
    """Find whole numbers that were written as floats, and that are too large for float64 to hold exactly."""
    return {text for text in texts if _FLOAT.search(text) and _is_whole(text) and abs(float(text)) >= EXACT}


def inexact_error(where: str, text: str) -> DataError:
    """Make the error for such a number."""
    return DataError(
        f"{where}: '{clean(text, 40)}' was written as a float, which holds 15 digits of a whole number: other ids may have become "
        "the same",
        "write the ids as whole numbers or as text, from their source",
    )


def whole_id(text: str) -> str:
    """Name an id that is a whole number written as a float: 101 for 101.0 or 1.01e+2. Others stay."""
    if is_whole(text):
        return whole_name(text)
    return str(int(Decimal(text))) if _FLOAT.search(text) and _is_whole(text) else text


def _is_whole(text: str) -> bool:
    return is_whole(text) or (
        _NUMBER.fullmatch(text) is not None and Decimal(text) == Decimal(text).to_integral_value()
    )
