"""Read the values of series from the cells of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fmeco.core import DataError, clean, listing
from fmeco.datasets import _sentinels
from fmeco.datasets._columns import Table
from fmeco.datasets._new_columns import MOSTLY, quoted
from fmeco.datasets._numbers import LARGEST, PLAIN, Cells, Rules, cells
from fmeco.datasets._splits import Indices

KEY = "dataset.missing_words"


def numeric(table: Table, time: str, rules: Rules) -> list[str]:
    """Find the columns of numbers beside the times. A few cells that are no numbers do not make a column one of text.

    By decode rule 1, they do.
    """
    read = {name: cells(text, PLAIN, rules.missing, rules.decode) for name, text in table.items() if name != time}
    names = [name for name, column in read.items() if not column.missing.all()]
    return [name for name in names if not read[name].strange.size or _few(table[name], read[name], rules.decode)]


def _few(text: Sequence[str], column: Cells, rule: int) -> bool:
    """Tell whether the strange cells of a column are few, or infinite numbers."""
    few = len(column.strange) <= (1 - MOSTLY) * int((~column.missing).sum())
    return rule > 1 and (few or all(_is_infinite(text[i]) for i in column.strange.tolist()))


def _is_infinite(text: str) -> bool:
    try:
        return math.isinf(float(text))
    except ValueError:
        return False


def values(column: Sequence[str], where: str, rows: Indices, rules: Rules) -> NDArray[np.float64]:
    """Parse a column as numbers (N,), nan for missing values.

    where: file and column, for messages.
    rows: positions in the table (N,).
    Raises DataError that names the row of a cell that is no number, or one too large to compute with.
    """
    read = cells(column, PLAIN, rules.missing, rules.decode)
    for position in read.strange.tolist():
        odd = len(read.strange) > len(column) // 2
        raise DataError(
            f"{where}, row {rows[position] + 2}: '{clean(column[position], 40)}' is not a number",
            "name the series in dataset.columns" if odd else "correct it",
            "" if odd else f"or list it as missing: {KEY}: {rules.and_words([column[position]])}",
        )
    for position in np.flatnonzero(np.abs(read.values) > LARGEST).tolist():
        raise DataError(
            f"{where}, row {rows[position] + 2}: '{clean(column[position], 40)}' is too large to compute with",
            "correct it",
        )
    return np.where(read.missing, np.nan, read.values)


class Sentinels:
    """Collect the numbers of several series that probably stand for missing values, such as -9999."""

    def __init__(self) -> None:
        self.counts: dict[float, int] = {}
        self.cells: dict[float, set[str]] = {}  # how they are written
        self.series: dict[float, list[str]] = {}

    def look(self, name: str, text: Sequence[str], numbers: NDArray[np.float64]) -> None:
        """Look for such numbers in a series."""
        for number, count in _sentinels.find(numbers[~np.isnan(numbers)]).items():
            self.counts[number] = self.counts.get(number, 0) + count
            self.cells.setdefault(number, set()).update(text[i] for i in np.flatnonzero(numbers == number).tolist())
            self.series.setdefault(number, []).append(name)

    def notes(self, where: str, rules: Rules) -> list[str]:
        """Return a note on each number."""
        return [
            f"{where}: {quoted(self.cells[number])} is {count:,} times in series {listing(self.series[number], 5)}, far from all "
            f"other numbers; if it stands for a missing value, list it: {KEY}: {rules.and_words(self.cells[number])}, and set "
            "dataset.missing: previous"
            for number, count in self.counts.items()
        ]
