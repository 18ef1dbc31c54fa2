"""Describe how a column writes its times, and write more times in the same way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmeco.core import DataError, clean

NUMBER, EPOCH = "number", "epoch"
UNITS = {"epoch s": 1, "epoch ms": 10**3, "epoch us": 10**6, "epoch ns": 10**9}  # whole numbers since 1970, per second
COMPACT = {6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}  # digits -> pattern
ZONE = re.compile(r"(?:Z|[+-]\d\d:?\d\d)$")  # the distance from UTC at the end of a time
MICROSECONDS, NANOSECONDS = 10**6, 10**9  # per second


class Format(NamedTuple):
    """Describe how times are written.

    pattern: number; epoch s, ms, us or ns (whole numbers since 1970); or a date with the codes of strftime and these: %-d, %-m
        and %-H have no zero before, %q is the quarter, %3f are three digits of a second.
    ticks: units of a moment per second, or per 1 for numbers.
    """

    pattern: str
    ticks: int

    @property
    def dated(self) -> bool:
        """Tell whether the times are dates, not plain numbers."""
        return self.pattern != NUMBER

    @property
    def zoned(self) -> bool:
        """Tell whether the times state their distance from UTC, or are UTC by definition."""
        return self.pattern.startswith(EPOCH) or self.pattern.endswith("%z")

    @property
    def whole_months(self) -> bool:
        """Tell whether the times are months or quarters, without a day."""
        return "%Y" in self.pattern and re.search("%-?d", self.pattern) is None

    def date(self, local: int) -> datetime:
        """Convert a moment to a date and time of day, cut to microseconds."""
        seconds, rest = divmod(local, self.ticks)
        return datetime(1970, 1, 1) + timedelta(seconds=seconds, microseconds=rest * MICROSECONDS // self.ticks)

    def write(self, local: int | float, zone: str = "") -> str:
        """Write a moment of the local clock. zone: text of its distance from UTC, such as +02:00 or Z."""
        if self.pattern == NUMBER:
            return _number(local, self.ticks)
        if self.pattern.startswith(EPOCH):
            return str(int(local))
        date = self.date(int(local))
        year, week, _ = date.isocalendar()
        parts = {"Y": f"{date.year:04}", "m": f"{date.month:02}", "d": f"{date.day:02}", "H": f"{date.hour:02}"}
        parts |= {"M": f"{date.minute:02}", "S": f"{date.second:02}", "q": str((date.month + 2) // 3)}
        parts |= {"G": f"{year:04}", "V": f"{week:02}", "z": zone}
        fraction = f"{int(local) % self.ticks * NANOSECONDS // self.ticks:09}"

        def part(code: re.Match[str]) -> str:
            flag, letter = code.groups()
            if letter == "f":
                return fraction[: int(flag)]
            return (parts[letter].lstrip("0") or "0") if flag == "-" else parts[letter]

        return re.sub(r"%([-\d]?)([YmdHMSqGVzf])", part, self.pattern)


class Times(NamedTuple):
    """Hold a column of N times.

    moments: (N,), exact: int64 in ticks since 1970 in UTC, or since 0 for numbers; float64 for numbers with an exponent.
    local: (N,) as `moments`, by the clock that the times were written by.
    text: the times as written.
    """

    format: Format
    moments: NDArray[Any]
    local: NDArray[Any]
    text: Sequence[str]


class Column(NamedTuple):
    """Hold a column that is being read.

    values: the cells.
    path, name, first_row: file, name and number of the first row, for messages.
    known: the pattern of a checkpoint's times, which decides between two meanings; None without one.
    """

    values: Sequence[str]
    path: str
    name: str
    first_row: int
    known: str | None

    def error(self, row: int, problem: str, hint: str) -> DataError:
        """Make an error that names a row."""
        where = f"{clean(self.path)}: column '{clean(self.name)}', row {row + self.first_row}"
        return DataError(f"{where}: '{clean(self.values[row], 40)}' {problem}", hint)


def _number(local: int | float, ticks: int) -> str:
    """Write a number exactly if it is a whole number of ticks, else with 12 digits."""
    if isinstance(local, (float, np.floating)):
        return str(int(local)) if float(local).is_integer() else f"{local:.12g}"
    whole, rest = divmod(abs(int(local)), ticks)
    decimals = f"{rest:0{len(str(ticks)) - 1}}".rstrip("0") if rest else ""
    return ("-" if local < 0 else "") + (f"{whole}.{decimals}" if decimals else str(whole))


def note(times: Times, path: str, name: str) -> list[str]:
    """Return a note on dates that are not written as ISO dates."""
    pattern = times.format.pattern
    if pattern == NUMBER or pattern.startswith("%Y-%m"):
        return []
    how = f"time since 1970 in {pattern.removeprefix(EPOCH).strip()}" if pattern.startswith(EPOCH) else "dates"
    date = times.format.date(int(times.local[0]))
    return [
        f"{clean(path)}: column '{clean(name)}' is read as {how}: {clean(times.text[0], 40)} is {date.isoformat(' ')}"
    ]


def zone_of(text: str) -> str:
    """Return the distance from UTC at the end of a time, such as +02:00 or Z; "" without one."""
    found = ZONE.search(text)
    return found[0] if found is not None else ""
