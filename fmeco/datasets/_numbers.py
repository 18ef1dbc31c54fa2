"""Define numbers and missing values in the cells of a table, and parse columns of numbers."""

from __future__ import annotations

import functools
import json
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmeco.core import DECODE_RULE, DataSpec, Spelling, clean, decode_rule
from fmeco.datasets._splits import Indices

WORDS = ("na", "n/a", "nan", "null", "none", "?")  # default words for a missing cell, compared without case
MISSING = frozenset({"", *WORDS})  # an empty cell is always missing

LARGEST = 1e150  # the square of a larger number is not finite, so a column that holds one has no standard deviation

SIGN = "[+\\-\u2212]"  # U+2212 is the minus sign of typesetting
EXPONENT = "(?:[eE][+-]?[0-9]+)?"
_NUMBER = re.compile(rf"{SIGN}?(?:[0-9]+\.?[0-9]*|\.[0-9]+){EXPONENT}")
_WHOLE = re.compile(r"[+-]?[0-9]{1,300}(?:\.0*)?")
SPACES = " \u00a0\u202f\u2009"  # the last three: no-break space, narrow no-break space, thin space


def is_missing(text: str, words: Collection[str] = MISSING) -> bool:
    """Tell whether a cell is empty, or is one of the words for a missing value, such as NA."""
    return text.strip().lower() in words


def missing_words(listed: Iterable[str | float] | None) -> frozenset[str]:
    """Return the words for a missing cell, in lower case: those that a config lists, or the default ones for None."""
    return MISSING if listed is None else frozenset({"", *(str(word).strip().lower() for word in listed)})


def missing_cells(column: Sequence[str], words: Collection[str] = MISSING) -> NDArray[np.bool_]:
    """Find the missing cells of a column (N,)."""
    return np.fromiter(map(words.__contains__, map(str.lower, map(str.strip, column))), bool, len(column))


def is_number(text: str, decode: int = DECODE_RULE) -> bool:
    """Tell whether a cell is a finite number: an optional sign, ASCII digits, at most one point, an optional exponent.

    Decode rule 1 takes whatever Python's `float` accepts, such as 1_20.
    """
    if decode > 1:
        return _NUMBER.fullmatch(text.strip()) is not None and math.isfinite(to_float(text))
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


def to_float(text: str) -> float:
    """Parse a cell that is a number."""
    return float(text.replace("\u2212", "-"))


class Notation(NamedTuple):
    """Describe how a column writes its numbers.

    decimal: decimal point.
    thousands: separator of groups of three digits; "" = none.
    unit: currency or percent sign, before or after every number; "" = none.
    style: one of STYLES; "" = the sign is before the number, and the exponent after e.
    """

    decimal: str = "."
    thousands: str = ""
    unit: str = ""
    style: str = ""

    def plain(self, text: str) -> str | None:
        """Rewrite a number of this notation as a plain one, such as 1.234,5 as 1234.5; None for other cells."""
        match = _expression(self).fullmatch(without_style(text, self.style))
        if match is None:
            return None
        number = "".join(part for part in match.groups() if part)
        if self.thousands:
            number = number.replace(self.thousands, "")
        return number.replace(self.decimal, ".").replace("\u2212", "-")

    def written(self, number: str) -> str:
        """Write a plain number in this notation: the reverse of `plain`."""
        return number.replace(".", self.decimal) + self.unit

    def __str__(self) -> str:
        parts = {"decimal point": self.decimal, "thousands separator": self.thousands, "unit": self.unit}
        named = [f"{name} '{clean(value)}'" for name, value in parts.items() if value]
        return ", ".join([*named, *([STYLES[self.style][0]] if self.style else [])])


PLAIN = Notation()

# Style of numbers -> its description, and the regular expression and replacement that turn it into the usual one.
STYLES: Mapping[str, tuple[str, str, str]] = {
    "parentheses": ("negative numbers in parentheses", r"\((.+)\)", r"-\1"),
    "no cents": ("a dash in place of cents", r"(.*[0-9])[.,][-\u2013\u2014]{1,2}(.*)", r"\1\2"),
    "sign after": ("the sign after the number", rf"(.*[0-9]) ?({SIGN})", r"\2\1"),
    "fortran": ("exponents after D", r"(.+)[dD]([+-]?[0-9]+)", r"\1e\2"),
}


def without_style(text: str, style: str) -> str:
    """Rewrite a number of one of STYLES with its sign in front, and its exponent after e."""
    if not style:
        return text
    _, pattern, usual = STYLES[style]
    match = re.fullmatch(pattern, text)
    return match.expand(usual) if match is not None else text


@functools.cache
def _expression(notation: Notation) -> re.Pattern[str]:
    """Compile the regular expression of a notation's numbers. Its groups, joined, are the number without the unit."""
    point, group, unit = map(re.escape, notation[:3])
    digits = f"(?:[1-9][0-9]{{0,2}}(?:{group}[0-9]{{3}})+|[0-9]+)" if group else "[0-9]+"
    number = f"(?:{digits}(?:{point}[0-9]*)?|{point}[0-9]+){EXPONENT}"
    if not unit:
        return re.compile(f"({SIGN}?{number})")
    gap = f"[{SPACES}]*"
    return re.compile(f"({SIGN}?){unit}{gap}({number})|{unit}{gap}({SIGN}{number})|({SIGN}?{number}){gap}{unit}")


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
        decimal = (spelling.decimal if spelling is not None else None) or {}
        rules = Rules(decode_rule(known), missing_words(words), decimal, {}, semicolons)
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

    def and_words(self, more: Iterable[str]) -> str:
        """Write the words for a missing cell, and more of them, as a value of `dataset.missing`, for messages."""
        added = {clean(word.strip().lower()): None for word in more}
        return json.dumps([*map(clean, sorted(self.missing - {""})), *added], ensure_ascii=False)

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


def mean_and_std(x: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of numbers (N,), and their standard deviation: 1 for equal numbers, whose own is not exactly 0."""
    constant = bool(x.min() == x.max())
    return float(x[0] if constant else x.mean()), 1.0 if constant else float(x.std())


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
    return to_float(text) if is_number(text, decode) else math.nan


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
