"""Find how a table in a text file separates its cells."""

from __future__ import annotations

import csv
import io

DELIMITERS = ",;\t"
SAMPLE = 1 << 16  # characters that are looked at


def delimiter(text: str) -> str:
    """Find the character that separates the cells of a table, by its first rows.

    It is the most frequent one of the header, unless this splits the rows into different numbers of cells and another one
    does not.
    """
    usual = max(DELIMITERS, key=text.partition("\n")[0].count)
    if _width(text, usual) > 1:
        return usual
    best = max(DELIMITERS, key=lambda char: _width(text, char))
    return best if _width(text, best) > 1 else usual


def _width(text: str, char: str) -> int:
    """Return the number of cells of each of the first rows, if a character separates them; 0 if the numbers differ."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text[:SAMPLE], newline=""), delimiter=char, strict=True) if row]
    except csv.Error:  # also if the sample ends within quotes
        return 0
    if len(text) >= SAMPLE:  # the last row is cut
        rows = rows[:-1]
    return len(rows[0]) if len({len(row) for row in rows}) == 1 else 0
