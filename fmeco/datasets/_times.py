"""Read a column of dates or numbers as times, and split rows by time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmeco.core import ConfigError, DataError, clean
from fmeco.datasets import _clock_changes
from fmeco.datasets._columns import cells
from fmeco.datasets._dates import read_dates, starts_like_iso
from fmeco.datasets._splits import Indices
from fmeco.datasets._time_formats import COMPACT, MICROSECONDS, NUMBER, UNITS, Column, Format, Times, note

YEARS = (1900, 2100)  # of dates written as one number, such as 20240131
_YEAR_MONTH, _MONTH_YEAR = (
    re.compile(r"(?P<year>\d{4})\.(?P<month>\d\d)"),
    re.compile(r"(?P<month>\d\d?)\.(?P<year>\d{4})"),
)
MOST = 0.95  # share of valid dates from which a column of such numbers is a column of dates


def read_times(values: Sequence[str], path: str, name: str, first_row: int = 2, known: str | None = None) -> Times:
    """Read a column of times: numbers, or dates and times of day in one of several formats.

    first_row: row number of the first value, for messages.
    known: the pattern of a checkpoint's times, which decides between two meanings.
    Raises DataError that names the row: for a value that is no time, and for dates whose day and month cannot be told apart.
    """
    column = Column(values, path, name, first_row, known)
    if not starts_like_iso(values[0]):
        numbers = cells(values)
        if not numbers.strange.size and not numbers.missing.any():
            return _numbers(column, numbers.values)
    return read_dates(column)


def _numbers(column: Column, floats: NDArray[np.float64]) -> Times:
    """Read numbers: dates such as 20240131, whole numbers since 1970, or plain numbers."""
    text = column.values
    try:
        exact = bool((np.abs(floats) < 2**53).all())
        if exact and (np.rint(floats) != floats).any():
            return _decimals(column, floats)
        whole = floats.astype(np.int64) if exact else np.fromiter(map(int, text), np.int64, len(text))
    except (ValueError, OverflowError):
        return _decimals(column, floats)
    if column.known == NUMBER:
        return Times(Format(NUMBER, 1), whole, whole, text)
    size = np.abs(whole)
    for digits, format in COMPACT.items():
        if 10 ** (digits - 1) <= whole.min() and whole.max() < 10**digits:
            if (dates := _compact(column, whole, digits, format)) is not None:
                return dates
    for unit, ticks in UNITS.items():
        if 10**8 * ticks <= size.min() and whole.min() > 0 and whole.max() < 42 * 10**8 * ticks:  # 1973 to 2103
            return Times(Format(unit, ticks), whole, whole, text)
    return Times(Format(NUMBER, 1), whole, whole, text)


def _decimals(column: Column, floats: NDArray[np.float64]) -> Times:
    """Read numbers with decimals, exactly as far as 64 bits hold them.

    Raises DataError for two numbers that differ, but not as float64.
    """
    text = column.values
    if column.known != NUMBER and (months := _months_with_points(column)) is not None:
        return months
    if not any("e" in value or "E" in value for value in text):
        digits = max(len(value.partition(".")[2]) for value in text)
        if digits <= 18 and np.abs(floats).max() * 10.0**digits < 2**53:
            scaled = np.rint(floats * 10.0**digits).astype(np.int64)
            return Times(Format(NUMBER, 10**digits), scaled, scaled, text)
        if digits <= 18 and np.abs(floats).max() * 10.0**digits < 9e18:
            parts = (value.partition(".") for value in text)
            exact = (int((whole or "0") + rest.ljust(digits, "0")) for whole, _, rest in parts)
            scaled = np.fromiter(exact, np.int64, len(text))
            return Times(Format(NUMBER, 10**digits), scaled, scaled, text)
    order = np.argsort(floats, kind="stable")
    for at in np.flatnonzero(np.diff(floats[order]) == 0).tolist():
        a, b = order[at : at + 2].tolist()
        if Decimal(text[a]) != Decimal(text[b]):
            raise column.error(
                b, f"and '{clean(text[a], 40)}' are the same number as float64", "write them without an exponent"
            )
    return Times(Format(NUMBER, 1), floats, floats, text)


def _months_with_points(column: Column) -> Times | None:
    """Read months such as 2024.01 or 01.2024, which look like decimals. Returns None for other decimals."""
    for pattern, format in ((_YEAR_MONTH, "%Y.%m"), (_MONTH_YEAR, "%m.%Y")):
        matches = (
            [pattern.fullmatch(value) for value in column.values] if pattern.fullmatch(column.values[0]) else [None]
        )
        if None not in matches:
            zero = "-" if any(match is not None and len(match["month"]) == 1 for match in matches) else ""
            whole = np.array([100 * int(match["year"]) + int(match["month"]) for match in matches if match is not None])
            return _compact(column, whole, 6, format.replace("%m", f"%{zero}m"))
    return None


def _compact(column: Column, whole: Indices, digits: int, format: str) -> Times | None:
    """Read whole numbers as dates such as 202401 or 20240131. Returns None if most of them are no dates.

    Raises DataError for a number that is no date in a column of dates.
    """
    rest, parts = whole, list[Indices]()
    for _ in range(digits // 2 - 2):
        parts.insert(0, rest % 100)
        rest = rest // 100
    absent = [np.full_like(whole, first) for first in (1, 1, 0, 0, 0)[len(parts) :]]
    year, fields = rest, [*parts, *absent]
    month, day, hour, minute, second = fields
    months = (year - 1970).astype("M8[Y]").astype("M8[M]") + (np.clip(month, 1, 12) - 1)
    days = (months + 1).astype("M8[D]").astype(np.int64) - months.astype("M8[D]").astype(np.int64)
    valid = (YEARS[0] <= year) & (year <= YEARS[1]) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= days)
    valid &= (hour < 24) & (minute < 60) & (second < 60) | (hour == 24) & (minute == 0) & (second == 0)
    if valid.mean() < MOST:
        return None
    if not valid.all():
        row = int(np.argmin(valid))
        raise column.error(row, f"is no date, and the column holds dates ({format})", "correct it")
    seconds = (months.astype("M8[D]").astype(np.int64) + day - 1) * 86_400 + hour * 3600 + minute * 60 + second
    moments = seconds * MICROSECONDS
    return Times(Format(format, MICROSECONDS), moments, moments, column.values)


def moments(
    values: Sequence[str], path: str, name: str, first_row: int = 2, *, rule: int, known: str | None = None
) -> tuple[NDArray[Any], str, list[str]]:
    """Read a column of times as numbers that are in the same order as the times.

    rule: the decode rule. 1: seconds as float64, in which times closer than 256 ns are equal, and numbers as they are.
    known: the pattern of a checkpoint's times, which decides between two meanings.
    Times of a clock that is set back an hour are in their order if the rows are.
    Returns (numbers (N,), pattern, notes). Raises DataError that names the row.
    """
    times = read_times(values, path, name, first_row, known)
    if rule == 1:
        return of_the_first_rule(times), times.format.pattern, []
    found, notes = times.moments, note(times, path, name)
    if times.format.dated and not times.format.zoned:
        found, changes = _clock_changes.in_order(times.local, times.format.ticks)
        notes += [
            f"{clean(path)}: column '{clean(name)}': clocks are set back in the hour of {clean(times.text[at], 40)}"
            for at in changes
        ]
    return found, times.format.pattern, notes


def of_the_first_rule(times: Times) -> NDArray[np.float64]:
    """Convert times to numbers as decode rule 1 did: seconds since 1970, and all columns of numbers as they are."""
    format = times.format
    if not (numbers := cells(times.text)).strange.size:
        return numbers.values
    seconds: NDArray[np.float64] = times.moments // (format.ticks // MICROSECONDS) / MICROSECONDS
    return seconds


def split_by_time(
    values: Sequence[str],
    path: str,
    name: str,
    val: float,
    test: float,
    first_row: int = 2,
    *,
    rule: int,
    known: str | None = None,
) -> tuple[dict[str, Indices], list[str]]:
    """Split rows by time: the oldest for training, then validation, and the newest for testing.

    A deployed model is used on data that is newer than its training data, so a random split would overstate its quality.
    Rows of the same time stay together: each cut is where the share is closest to the requested one.
    val, test: shares of the rows.
    first_row: row number of the first value, for messages.
    rule, known: as for `moments`.
    Returns (split -> positions, notes on the times and the cuts). Raises ConfigError for shares of 1 or more, DataError for
    too few distinct times.
    """
    if val + test >= 1:
        raise ConfigError(f"dataset: val_fraction {val} and test_fraction {test} leave nothing to train on")
    numbers, _, notes = moments(values, path, name, first_row, rule=rule, known=known)
    distinct, first, code, counts = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
    older = np.concatenate([[0], counts.cumsum()])  # rows before each moment
    shares = {"test": test, "val": val} if test else {"val": val}
    if len(distinct) <= len(shares):
        raise DataError(
            f"{clean(path)}: column '{clean(name)}' has {len(distinct)} distinct times, too few to split by"
        )
    parts: dict[str, Indices] = {}
    ranges: list[str] = []
    end = len(distinct)
    for left, (part, share) in enumerate(shares.items()):
        wanted = older[end] - round(len(values) * share)
        lowest = len(shares) - left  # leave at least one moment for each remaining split
        cut = lowest + int(np.abs(older[lowest:end] - wanted).argmin())
        parts[part] = np.flatnonzero((code >= cut) & (code < end))
        ranges.append(f"{part} from {clean(values[first[cut]], 40)} ({len(parts[part]):,} rows)")
        end = cut
    parts["train"] = np.flatnonzero(code < end)
    ranges.append(f"train before {clean(values[first[end]], 40)} ({len(parts['train']):,} rows)")
    cuts = f"{clean(path)}: split by '{clean(name)}': {', '.join(reversed(ranges))}"
    return dict(reversed(parts.items())), [*notes, cuts]
