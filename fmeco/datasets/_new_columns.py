"""Decide whether a new column holds numbers, and how it writes them."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fmeco.core import DataError, clean, listing
from fmeco.datasets import _sentinels
from fmeco.datasets._numbers import (
    EXPONENT,
    PLAIN,
    SIGN,
    SPACES,
    STYLES,
    Cells,
    Notation,
    Rules,
    cells,
    is_missing,
    without_style,
)
from fmeco.datasets._splits import Indices

_GROUPED = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:\.[0-9]{3})+")
MOSTLY = 0.95  # a column with at least this share of numbers is meant to be one of numbers

_UNIT = "[%\u2030$\u00a2-\u00a5\u20a0-\u20c0]|EUR|USD|GBP|CHF|JPY|CNY|INR|AUD|CAD|SEK|NOK|DKK|PLN|CZK|BRL"
# A number that may have a unit and separators: unit before, number with its sign, unit after.
_LOOSE = re.compile(
    rf"{SIGN}?(?P<before>{_UNIT})?[{SPACES}]*{SIGN}?(?:[0-9][0-9.,'\u2019{SPACES}]*[0-9.,]|[0-9]|[.,][0-9]+)"
    rf"{EXPONENT}[{SPACES}]*(?P<after>{_UNIT})?"
)


class Numbers(NamedTuple):
    """Hold a column of numbers, and how it writes them."""

    cells: Cells
    notation: Notation


@dataclass(frozen=True)
class Column:
    """Hold a new column of text.

    rows: name of each row, FILE:ROW (N,).
    where: the table, for messages.
    instead: key that reads the column as something else than numbers, for messages.
    gaps: cells may be missing.
    """

    name: str
    text: Sequence[str]
    rows: Sequence[str]
    where: str
    instead: str
    gaps: bool = True

    def __str__(self) -> str:
        return f"{self.where}: column '{clean(self.name)}'"

    @functools.cached_property
    def counts(self) -> Counter[str]:
        """Count how often the column has each distinct cell: a long table has few distinct categories."""
        return Counter(self.text)

    def present(self, rules: Rules) -> dict[str, int]:
        """Return the distinct cells that are not missing, each with its count."""
        return {text: count for text, count in self.counts.items() if not is_missing(text, rules.missing)}

    def rows_at(self, positions: Indices) -> str:
        """List row numbers for a message."""
        return listing([self.rows[i].rpartition(":")[2] for i in positions.tolist()])


def numbers(column: Column, rules: Rules) -> Numbers | None:
    """Parse a new column if it is one of numbers; None if it is not.

    Raises DataError for a column of numbers with odd cells, and for numbers that can be read in two ways.
    """
    found = cells(column.text, PLAIN, rules.missing)
    wanted = rules.decimal.get(column.name)
    if not found.strange.size and wanted != ",":
        if rules.semicolons and wanted is None:
            _check_thousands(column, column.present(rules))
        return Numbers(found, PLAIN)
    few = len(found.strange) <= (1 - MOSTLY) * (~found.missing).sum()
    notation = None
    if wanted is not None or rules.semicolons or not few:
        notation = _notation(column, column.present(rules), wanted, rules.semicolons)
    if notation is not None:
        found = cells(column.text, notation, rules.missing)
    elif not few and wanted is None:
        return None
    if found.strange.size:
        raise _odd_cells(column, found.strange, rules)
    return Numbers(found, notation or PLAIN)


def _check_thousands(column: Column, present: Iterable[str]) -> None:
    """Refuse numbers such as 6.411 in a file with semicolons: where these separate cells, points separate thousands."""
    pointed = [text for text in present if "." in text]
    if pointed and all(map(_GROUPED.fullmatch, pointed)) and all(map(Notation(",", ".").plain, present)):
        name, example = clean(column.name), clean(min(pointed), 40)
        raise DataError(
            f"{column}: '{example}' may be {example.replace('.', '')} or {example}: its point may separate thousands, because "
            "semicolons separate the cells of the file",
            f"set the decimal point: dataset.decimal: {{{name}: '.'}} or {{{name}: ','}}",
            column.instead,
        )


def _notation(column: Column, texts: Mapping[str, int], wanted: str | None, semicolons: bool) -> Notation | None:
    """Find the notation in which nearly all cells are numbers; None if there is none.

    texts: distinct cell -> how often the column has it.
    wanted: the decimal point that the config sets.
    Raises DataError for a column with several units, and for numbers that can be read in two ways.
    """
    total = sum(texts.values())
    style, units = _style(texts)
    if not total or units.total() < MOSTLY * total:
        return None
    unit, times = units.most_common(1)[0]
    if times < MOSTLY * total:
        raise DataError(
            f"{column}: its numbers have different units: {quoted(units)}",
            "write all of them with the same unit",
            column.instead,
        )
    groups = sorted({char for text in texts for char in text if char in f"{SPACES}'\u2019"})
    commas = any("," in text for text in texts)
    every = [(".", ""), *([(",", ""), (".", ","), (",", ".")] if commas or wanted == "," else [])]
    every += [(point, group) for point in (".," if commas else ".") for group in groups]
    tried = {one: list(map(one.plain, texts)) for one in (Notation(*pair, unit, style) for pair in every)}
    fits = {
        one: sum(times for number, times in zip(plain, texts.values(), strict=True) if number is not None)
        for one, plain in tried.items()
        if wanted in (None, one.decimal)
    }
    most = max(fits.values())
    if most < MOSTLY * total:
        return None
    best = [one for one, count in fits.items() if count == most]  # the simplest first
    different = [one for one in best if tried[one] != tried[best[0]]]
    if not different:
        return best[0]
    if semicolons:
        return next(one for one in best if one.decimal == ",")
    rival = different[0]
    example = next(text for text in texts if rival.plain(text) != best[0].plain(text))
    raise DataError(
        f"{column}: '{clean(example, 40)}' may be {best[0].plain(example)} or {rival.plain(example)}, and no other cell "
        "decides it",
        f"set the decimal point: dataset.decimal: {{{clean(column.name)}: '.'}} or {{{clean(column.name)}: ','}}",
        column.instead,
    )


def _style(texts: Mapping[str, int]) -> tuple[str, Counter[str]]:
    """Find the style in which most cells are numbers. Returns it, and how often the numbers have each unit."""
    found: dict[str, Counter[str]] = {}
    for style in ("", *STYLES):
        units = found[style] = Counter()
        for text, times in texts.items():
            if (match := _LOOSE.fullmatch(without_style(text, style))) is not None:
                units[match["before"] or match["after"] or ""] += times
    best = max(found, key=lambda style: found[style].total())  # of equal ones, the first
    return best, found[best]


def _odd_cells(column: Column, strange: Indices, rules: Rules) -> DataError:
    """Describe the cells of a column of numbers that are no numbers."""
    odd = list(dict.fromkeys(column.text[i].strip() for i in strange.tolist()))
    commas = any("," in text for text in odd)
    name = clean(column.name)
    is_no_number = "is not a number" if len(odd) == 1 else "are not numbers"
    return DataError(
        f"{column} holds numbers, but in row {column.rows_at(strange)} {quoted(odd)} {is_no_number}",
        f"correct the cells, or list them as missing: dataset.missing: {rules.and_words(odd)}"
        if column.gaps and len(odd) <= 5
        else "correct the cells",
        f"dataset.decimal: {{{name}: '.'}} reads 1,234 as 1234, and {{{name}: ','}} as 1.234" if commas else "",
        column.instead,
    )


def sentinels(column: Column, found: Cells, rules: Rules) -> list[str]:
    """Return a note on each number of a column that probably stands for a missing value, such as -9999."""
    notes: list[str] = []
    for number, count in _sentinels.find(found.values[~found.missing]).items():
        cells = {column.text[i] for i in np.flatnonzero(found.values == number).tolist()}
        advice = f"list it: dataset.missing: {rules.and_words(cells)}" if column.gaps else "remove these rows"
        notes.append(
            f"{column}: {quoted(cells)} is in {count:,} of {len(column.text):,} rows, far from all other numbers; if it stands for a "
            f"missing value, {advice}"
        )
    return notes


def looks_like_number(text: str) -> bool:
    """Tell whether a cell is a number, perhaps with separators and a unit."""
    return _LOOSE.fullmatch(text) is not None


def quoted(texts: Iterable[str]) -> str:
    """Join cells for a message, each in quotes."""
    return listing([f"'{clean(text, 40)}'" for text in texts], 5)
