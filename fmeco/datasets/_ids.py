"""Read columns of names and ids, such as the users of events."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal

import numpy as np

from fmeco.core import DataError, clean, listing
from fmeco.datasets._numbers import is_missing

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
    if any(is_missing(text, words) for text in distinct):
        rows = np.flatnonzero([is_missing(text, words) for text in column])
        numbers = listing([str(row + first_row) for row in rows.tolist()])
        named = [f"if '{clean(column[rows[0]], 40)}' is a name: {key}: []"] if column[rows[0]] else []
        raise DataError(
            f"{where}: no value in row {numbers}: '{clean(column[rows[0]], 40)}'",
            "fill in the value, or remove the row",
            *named,
        )
    floats = {text for text in distinct if _FLOAT.search(text) is not None and _is_whole(text)}
    if rule == 1 or not floats or not all(map(_is_whole, distinct if known is None else known)):
        return list(column), []
    if large := {text for text in floats if abs(Decimal(text)) >= EXACT}:
        row = next(row for row, text in enumerate(column) if text in large)
        raise DataError(
            f"{where}, row {row + first_row}: '{clean(column[row], 40)}' was written as a float, which holds 15 digits of a whole "
            "number: other ids may have become the same",
            "write the ids as whole numbers or as text, from their source",
        )
    names = whole_names(distinct)
    shown = clean(min(floats), 40)
    return [names[text] for text in column], [
        f"{where}: whole numbers written as floats: {shown} is read as {names[min(floats)]}"
    ]


def whole_names(ids: Iterable[str]) -> Mapping[str, str]:
    """Name ids that are whole numbers written as floats: 101.0 is 101. Returns id -> name."""
    return {text: str(int(Decimal(text))) if _FLOAT.search(text) and _is_whole(text) else text for text in ids}


def _is_whole(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and Decimal(text) == Decimal(text).to_integral_value()
