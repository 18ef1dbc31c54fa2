"""Define a number in a cell of a table, and find out how a column writes its numbers."""

from __future__ import annotations

import functools
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmeco.core import DECODE_RULE, DataError, DataSpec, Spelling, clean, decode_rule, listing
from fmeco.datasets._splits import Indices

WORDS = ("na", "n/a", "nan", "null", "none", "?")  # default words for a missing cell, compared without case
MISSING = frozenset({"", *WORDS})  # an empty cell is always missing

MOSTLY = 0.95  # a column with at least this share of numbers is meant to be one of numbers

LARGEST = 1e150  # the square of a larger number is not finite, so a column that holds one has no standard deviation

_SIGN = "[+\\-\u2212]"  # U+2212 is the minus sign of typesetting
_EXPONENT = "(?:[eE][+-]?[0-9]+)?"
_NUMBER = re.compile(rf"{_SIGN}?(?:[0-9]+\.?[0-9]*|\.[0-9]+){_EXPONENT}")
_WHOLE = re.compile(r"[+-]?[0-9]{1,300}(?:\.0*)?")
_UNIT = "[%\u2030$\u00a2-\u00a5\u20a0-\u20c0]|EUR|USD|GBP|CHF|JPY|CNY|INR|AUD|CAD|SEK|NOK|DKK|PLN|CZK|BRL"
_SPACES = " \u00a0\u202f\u2009"  # the last three: no-break space, narrow no-break space, thin space
# A number that may have a unit and separators: unit before, number with its sign, unit after.
_LOOSE = re.compile(
    rf"{_SIGN}?(?P<before>{_UNIT})?[{_SPACES}]*{_SIGN}?(?:[0-9][0-9.,'\u2019{_SPACES}]*[0-9.,]|[0-9]|[.,][0-9]+)"
    rf"{_EXPONENT}[{_SPACES}]*(?P<after>{_UNIT})?"
)


def is_missing(text: str, words: Collection[str] = MISSING) -> bool:
    """Tell whether a cell is empty, or is one of the words for a missing value, such as NA."""
    return text.strip().lower() in words


def missing_cells(column: Sequence[str], words: Collection[str] = MISSING) -> NDArray[np.bool_]:
    """Find the missing cells of a column (N,)."""
    return np.fromiter(map(words.__contains__, map(str.lower, map(str.strip, column))), bool, len(column))


def is_number(text: str, decode: int = DECODE_RULE) -> bool:
    """Tell whether a cell is a finite number: an optional sign, ASCII digits, at most one point, an optional exponent.

    Decode rule 1 takes whatever Python's `float` accepts, such as 1_20.
    """
    if decode > 1:
        return _NUMBER.fullmatch(text.strip()) is not None and math.isfinite(_float(text))
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def is_decimal(text: str, decode: int = DECODE_RULE) -> bool:
    """Tell whether a cell is a number with decimals or an exponent, such as 3.5 or 1e-3, which is never a class code."""
    return is_number(text, decode) and not text.strip().lstrip("+-").isdigit()


def is_whole(text: str) -> bool:
    """Tell whether a cell is a whole number, which may be written as 3.0."""
    return _WHOLE.fullmatch(text) is not None


def whole_name(text: str) -> str:
    """Name a class or category by its whole number: 3 for 3.0, as pandas writes it beside missing values. Others stay."""
    return str(int(text.partition(".")[0])) if "." in text and is_whole(text) else text


def category_names(texts: Iterable[str], whole: bool) -> dict[str, str]:
    """Name categories: in Unicode's composed form (NFC), and by whole numbers if all categories of the column are such.

    Returns text -> name.
    """
    composed = {text: unicodedata.normalize("NFC", text) for text in texts}
    return {text: whole_name(name) for text, name in composed.items()} if whole else composed


def _float(text: str) -> float:
    return float(text.replace("\u2212", "-"))


class Notation(NamedTuple):
    """Describe how a column writes its numbers.

    decimal: decimal point.
    thousands: separator of groups of three digits; "" = none.
    unit: currency or percent sign, before or after every number; "" = none.
    """

    decimal: str = "."
    thousands: str = ""
    unit: str = ""

    def plain(self, text: str) -> str | None:
        """Rewrite a number of this notation as a plain one, such as 1.234,5 as 1234.5; None for other cells."""
        match = _expression(self).fullmatch(text)
        if match is None:
            return None
        number = "".join(part for part in match.groups() if part)
        if self.thousands:
            number = number.replace(self.thousands, "")
        return number.replace(self.decimal, ".").replace("\u2212", "-")

    def __str__(self) -> str:
        parts = {"decimal point": self.decimal, "thousands separator": self.thousands, "unit": self.unit}
        return ", ".join(f"{name} '{clean(value)}'" for name, value in parts.items() if value)


PLAIN = Notation()


@functools.cache
def _expression(notation: Notation) -> re.Pattern[str]:
    """Compile the regular expression of a notation's numbers. Its groups, joined, are the number without the unit."""
    point, group, unit = map(re.escape, notation)
    digits = f"(?:[1-9][0-9]{{0,2}}(?:{group}[0-9]{{3}})+|[0-9]+)" if group else "[0-9]+"
    number = f"(?:{digits}(?:{point}[0-9]*)?|{point}[0-9]+){_EXPONENT}"
    if not unit:
        return re.compile(f"({_SIGN}?{number})")
    gap = f"[{_SPACES}]*"
    return re.compile(f"({_SIGN}?){unit}{gap}({number})|{unit}{gap}({_SIGN}{number})|({_SIGN}?{number}){gap}{unit}")


class Rules(NamedTuple):
    """Hold the rules by which the cells of a table are read.

    decode: the decode rule of the data.
    missing: words for a missing cell, in lower case.
    decimal: column -> decimal point that the config sets.
    notations: column -> notation of a checkpoint.
    semicolons: the table separates its cells by semicolons, as programs do where the decimal point is a comma.
    """

    decode: int = DECODE_RULE
    missing: frozenset[str] = MISSING
    decimal: Mapping[str, str] = {}
    notations: Mapping[str, Notation] = {}
    semicolons: bool = False

    @staticmethod
    def of(known: DataSpec | None, spelling: Spelling | None = None, semicolons: bool = False) -> Rules:
        """Choose the rules: the config's (`spelling`), else the checkpoint's (`known`), else the defaults."""
        stored = known.preprocessing if known is not None else {}
        words = spelling.missing if spelling is not None else None
        if words is None and "missing" in stored:
            words = stored["missing"]
        missing = MISSING if words is None else frozenset({"", *(word.strip().lower() for word in words)})
        rules = Rules(
            decode_rule(known), missing, (spelling.decimal if spelling is not None else None) or {}, {}, semicolons
        )
        return rules.with_notations(stored["numbers"]) if "numbers" in stored else rules

    def with_notations(self, stored: Mapping[str, Mapping[str, str]]) -> Rules:
        """Return a copy with the notations that a preprocessing stores."""
        return self._replace(notations={name: Notation(**raw) for name, raw in stored.items()})

    def stored(self, notations: Mapping[str, Notation]) -> dict[str, Any]:
        """Return the rules as a checkpoint stores them in its preprocessing. notations: those of the data."""
        return {
            "decode": self.decode,
            "missing": sorted(self.missing - {""}),
            "numbers": {name: one._asdict() for name, one in {**self.notations, **notations}.items()},
        }

    def cells(self, column: Sequence[str], name: str) -> Cells:
        """Parse a column whose notation is known."""
        return cells(column, self.notations.get(name, PLAIN), self.missing, self.decode)


class Cells(NamedTuple):
    """Hold a column as numbers.

    values: (N,) float64; 0 for cells that are missing or no number.
    missing: (N,), whether a cell is missing.
    strange: positions of cells that are neither a number nor missing.
    """

    values: NDArray[np.float64]
    missing: NDArray[np.bool_]
    strange: Indices


def cells(
    column: Sequence[str],
    notation: Notation = PLAIN,
    missing: frozenset[str] = MISSING,
    decode: int = DECODE_RULE,
) -> Cells:
    """Parse a column as numbers.

    The whole column is parsed at once if it can be, and otherwise each distinct cell once: a long table has millions.
    """
    nothing = np.zeros(0, np.int64)
    at_once = notation == PLAIN and not any(map(is_number, missing))  # -999 may be a word for a missing number
    if at_once and (values := _all_numbers(column, decode)) is not None:
        return Cells(values, np.zeros(len(column), bool), nothing)
    gone = missing_cells(column, missing)
    values = np.zeros(len(column))
    present = column
    if gone.any():
        present = [column[i] for i in np.flatnonzero(~gone).tolist()]
        if notation == PLAIN and (numbers := _all_numbers(present, decode)) is not None:
            values[~gone] = numbers
            return Cells(values, gone, nothing)
    found = {text: _value(text, notation, decode) for text in set(present)}
    read = np.fromiter(map(found.__getitem__, present), np.float64, len(present))
    values[~gone] = np.where(np.isnan(read), 0.0, read)
    return Cells(values, gone, np.flatnonzero(~gone)[np.isnan(read)])


def _all_numbers(column: Sequence[str], decode: int) -> NDArray[np.float64] | None:
    """Parse a column of numbers only; None if a cell is no number."""
    try:
        values = np.fromiter(map(float, column), np.float64, len(column))
    except ValueError:
        return None
    if not np.isfinite(values).all():
        return None
    # Python's `float` also accepts digits of other scripts, and 1_20 for 120.
    return values if decode == 1 or ((text := "".join(column)).isascii() and "_" not in text) else None


def _value(text: str, notation: Notation, decode: int) -> float:
    """Parse a cell; nan if it is no finite number."""
    if notation != PLAIN:
        text = notation.plain(text) or ""
    return _float(text) if is_number(text, decode) else math.nan


def is_codes(texts: Collection[str]) -> bool:
    """Tell whether the distinct cells of a column of numbers are codes: some begin with 0, as 01234, or end in an exponent.

    In 12E3 among whole numbers, E is a letter. A signed exponent, as in 1e+05, is how programs write a large number.
    """
    text = "\n".join(texts)
    if "." in text:
        return False
    if re.search(r"(?m)^0[0-9]", text):
        return re.search(r"(?m)^[+-]", text) is None
    exponents = len(re.findall(r"(?m)^[0-9]+[eE][0-9]+$", text))
    return 0 < exponents < len(texts)


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


def _notation(column: Column, texts: Mapping[str, int], wanted: str | None, semicolons: bool) -> Notation | None:
    """Find the notation in which nearly all cells are numbers; None if there is none.

    texts: distinct cell -> how often the column has it.
    wanted: the decimal point that the config sets.
    Raises DataError for a column with several units, and for numbers that can be read in two ways.
    """
    total = sum(texts.values())
    units: Counter[str] = Counter()
    for text, times in texts.items():
        if (match := _LOOSE.fullmatch(text)) is not None:
            units[match["before"] or match["after"] or ""] += times
    if not total or units.total() < MOSTLY * total:
        return None
    unit, times = units.most_common(1)[0]
    if times < MOSTLY * total:
        raise DataError(
            f"{column}: its numbers have different units: {quoted(units)}",
            "write all of them with the same unit",
            column.instead,
        )
    groups = sorted({char for text in texts for char in text if char in f"{_SPACES}'\u2019"})
    commas = any("," in text for text in texts)
    every = [(".", ""), *([(",", ""), (".", ","), (",", ".")] if commas or wanted == "," else [])]
    every += [(point, group) for point in (".," if commas else ".") for group in groups]
    tried = {one: list(map(one.plain, texts)) for one in (Notation(*pair, unit) for pair in every)}
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


def _odd_cells(column: Column, strange: Indices, rules: Rules) -> DataError:
    """Describe the cells of a column of numbers that are no numbers."""
    odd = list(dict.fromkeys(column.text[i].strip() for i in strange.tolist()))
    words = json.dumps([*sorted(rules.missing - {""}), *(clean(word.lower()) for word in odd)], ensure_ascii=False)
    commas = any("," in text for text in odd)
    name = clean(column.name)
    is_no_number = "is not a number" if len(odd) == 1 else "are not numbers"
    return DataError(
        f"{column} holds numbers, but in row {column.rows_at(strange)} {quoted(odd)} {is_no_number}",
        f"correct the cells, or list them as missing: dataset.missing: {words}"
        if column.gaps and len(odd) <= 5
        else "correct the cells",
        f"dataset.decimal: {{{name}: '.'}} reads 1,234 as 1234, and {{{name}: ','}} as 1.234" if commas else "",
        column.instead,
    )


def looks_like_number(text: str) -> bool:
    """Tell whether a cell is a number, perhaps with separators and a unit."""
    return _LOOSE.fullmatch(text) is not None


def quoted(texts: Iterable[str]) -> str:
    """Join cells for a message, each in quotes."""
    return listing([f"'{clean(text, 40)}'" for text in texts], 5)
