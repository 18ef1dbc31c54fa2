"""Turn a column of dates into numbers: its year, month, day, weekday and hour, and the moment itself.

Cells may be missing. _dates.py reads columns of times in which every cell must be a date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmeco.core import DataError, clean
from fmeco.datasets._new_columns import MOSTLY, Column, quoted
from fmeco.datasets._numbers import Cells, Rules, missing_cells
from fmeco.datasets._splits import Indices

# Year, month and day in some order, or year and month; then perhaps a time of day and a zone.
_DATE = re.compile(
    r"(?:([0-9]{1,4})([-/.])([0-9]{1,2})\2([0-9]{1,4})|([0-9]{4})-([0-9]{2}))"
    r"(?:[T ]([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)? ?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
_TIME = re.compile(r"([01]?[0-9]|2[0-3]|24(?=:00(?::00)?$)):([0-5][0-9])(?::([0-5][0-9]))?")
UNITS = ("hours", "minutes", "seconds")
YEAR_FIRST, DAY_FIRST, MONTH_FIRST, TIME_OF_DAY = "year first", "day first", "month first", "times of day"

Moments = NDArray[np.datetime64]

# Part of a date -> its value (N,), from the local time and the seconds since 1970.
PARTS: Mapping[str, Callable[[Moments, NDArray[np.float64]], NDArray[Any]]] = {
    "moment": lambda local, seconds: seconds,
    "year": lambda local, seconds: local.astype("M8[Y]").astype(np.int64) + 1970,
    "month": lambda local, seconds: local.astype("M8[M]").astype(np.int64) % 12 + 1,
    "day": lambda local, seconds: (local.astype("M8[D]") - local.astype("M8[M]")).astype(np.int64) + 1,
    "weekday": lambda local, seconds: (local.astype("M8[D]").astype(np.int64) + 3) % 7,  # 0 = Monday
    "hour": lambda local, seconds: (local - local.astype("M8[D]")) / np.timedelta64(1, "h"),
}


FIRST_PART = "moment"  # the part that marks a missing date


class Dates(NamedTuple):
    """Hold a column of dates.

    local: local times, as the table writes them (N,).
    seconds: seconds since 1970 (N,); a time without a zone counts as UTC.
    missing: (N,).
    strange: positions of cells that are neither a date nor missing.
    """

    local: Moments
    seconds: NDArray[np.float64]
    missing: NDArray[np.bool_]
    strange: Indices

    def part(self, name: str) -> Cells:
        """Return a part of the dates as a column of numbers. name: a key of PARTS."""
        return Cells(PARTS[name](self.local, self.seconds).astype(np.float64), self.missing, self.strange)


def read(column: Sequence[str], order: str, rules: Rules) -> Dates:
    """Parse a column of dates whose order of year, month and day is known."""
    found = {text: _moment(text, order) for text in set(column)}
    known = [found[text] for text in column]
    missing = missing_cells(column, rules.missing)
    nothing = (datetime(1970, 1, 1), 0.0)
    local = np.array([(one or nothing)[0] for one in known], "M8[us]")
    seconds = np.array([(one or nothing)[1] for one in known], np.float64)
    absent = np.array([one is None for one in known], bool)
    return Dates(local, seconds, missing, np.flatnonzero(absent & ~missing))


def order_of(column: Column, rules: Rules) -> str | None:
    """Find the order of year, month and day in a column of dates, or times of day; None if it holds neither.

    The whole column decides whether 03/04/2024 is in March or April.
    Raises DataError for a column that does not decide it, for odd cells, and for times of which some have a zone.
    """
    present = column.present(rules)
    matches = [match for text in present if (match := _DATE.fullmatch(text)) is not None]
    enough = MOSTLY * sum(present.values())
    if sum(present[match.string] for match in matches) < enough:
        timed = {text for text in present if _TIME.fullmatch(text)}
        if not timed or sum(present[text] for text in timed) < enough:
            return None
        _check_all(column, present.keys() - timed)
        return TIME_OF_DAY
    first = clean(matches[0].string, 40)
    hints = f"write dates as 2024-01-31, or leave the column out: dataset.drop: [{clean(column.name)}]", column.instead
    known = {order: {text for text in present if _moment(text, order) is not None} for order in _orders(matches)}
    counts = {order: sum(present[text] for text in texts) for order, texts in known.items()}
    most = max(counts.values())
    if most < enough:
        if sum(present[text] for text in set().union(*known.values())) >= enough:
            raise DataError(f"{column}: its dates have their year, month and day in different orders", *hints)
        if all(match[2] == "/" for match in matches):
            raise DataError(f"{column}: '{first}' looks like a date, but has no year of four digits", *hints)
        return None
    best = [order for order, count in counts.items() if count == most]
    if len(best) > 1:
        raise DataError(f"{column}: '{first}' may have its day or its month first", *hints)
    _check_all(column, present.keys() - known[best[0]])
    if len({match[11] is None for match in matches}) > 1:
        raise DataError(f"{column}: some times have a time zone and others do not")
    return best[0]


def _check_all(column: Column, odd: Set[str]) -> None:
    """Raise DataError for cells of a column of dates that are no dates (`odd`)."""
    if odd:
        at = np.flatnonzero([text in odd for text in column.text])
        raise DataError(
            f"{column} holds dates, but in row {column.rows_at(at)} {quoted(sorted(odd))} "
            f"{'is not a date' if len(odd) == 1 else 'are not dates'}",
            "correct the cells, or list them in dataset.missing",
            column.instead,
        )


def _orders(matches: Sequence[re.Match[str]]) -> tuple[str, ...]:
    """List the orders that the cells leave open: with dots, the day is never after the month."""
    years = [match[1] is None or len(match[1]) == 4 for match in matches]
    dots = all(match[2] == "." for match, year_first in zip(matches, years, strict=True) if not year_first)
    others = () if all(years) else (DAY_FIRST,) if dots else (DAY_FIRST, MONTH_FIRST)
    return (YEAR_FIRST, *others) if any(years) else others


def _moment(text: str, order: str) -> tuple[datetime, float] | None:
    """Parse a date. Returns the local time and the seconds since 1970; None if it is no date of this order."""
    match = (_TIME if order == TIME_OF_DAY else _DATE).fullmatch(text)
    if match is None:
        return None
    if order == TIME_OF_DAY:
        passed = timedelta(**{unit: int(part or 0) for unit, part in zip(UNITS, match.groups(), strict=True)})
        return datetime(1970, 1, 1) + passed, passed.total_seconds()
    first, _, second, third, year, month, hour, minute, second_of, fraction, zone = match.groups()
    fields = (year, month, "1") if first is None else (first, second, third)
    if order != YEAR_FIRST and first is not None:
        fields = (third, second, first) if order == DAY_FIRST else (third, first, second)
    if len(fields[0]) != 4:
        return None
    micro = int((fraction or "0").ljust(6, "0")[:6])
    clock = (int(hour or 0), int(minute or 0), int(second_of or 0), micro)
    ended = clock == (24, 0, 0, 0)  # 24:00 is 00:00 of the next day
    try:
        day = datetime.combine(date(*map(int, fields)), time() if ended else time(*clock))
        local = day + timedelta(days=ended)
    except (ValueError, OverflowError):
        return None
    offset = timedelta()
    if zone is not None and zone != "Z":
        offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:])) * (-1 if zone[0] == "-" else 1)
    return local, local.replace(tzinfo=timezone(offset) if offset else UTC).timestamp()


def written(iso: str, order: str) -> str:
    """Write a date and perhaps a time, such as 2024-01-31 10:00, in another order of year, month and day."""
    if order not in (DAY_FIRST, MONTH_FIRST):
        return iso
    year, month, day = iso[:10].split("-")
    return (f"{day}/{month}/{year}" if order == DAY_FIRST else f"{month}/{day}/{year}") + iso[10:]


def parts_of(dates: Dates, order: str) -> list[str]:
    """List the parts to use: without the hour, if no date has a time of day, and of times of day only the seconds."""
    if order == TIME_OF_DAY:
        return [FIRST_PART]
    midnight = not dates.part("hour").values.any()
    return [name for name in PARTS if not (name == "hour" and midnight)]
