"""Read a column of dates that are written as text, for series, events and splits by time: every cell must be a date.

_date_parts.py reads dates as features of a table, where cells may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import numpy as np

from fmeco.core import DataError, clean
from fmeco.datasets._columns import cells
from fmeco.datasets._time_formats import MICROSECONDS, NANOSECONDS, ZONE, Column, Format, Times

_CLOCK = r"(?:([T ])(\d{1,2}):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?(Z|[+-]\d\d:?\d\d)?)?"
_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)?")
_YEAR_FIRST = re.compile(rf"(\d{{4}})([-/.])(\d{{1,2}})\2(\d{{1,2}}){_CLOCK}")
_YEAR_LAST = re.compile(rf"(\d{{1,2}})([-/.])(\d{{1,2}})\2(\d{{4}}){_CLOCK}")
_MONTH = re.compile(r"(\d{4})([-/])(\d{1,2})")
_MONTH_FIRST = re.compile(r"(\d{1,2})([-/])(\d{4})")
# 24:00 is the end of a day: 00:00 of the next one.
_MIDNIGHT = re.compile(r"[T ]24:00(?::00(?:\.0*)?)?$")
_BASIC_MIDNIGHT = re.compile(r"T24(?=(?::?00){0,2}(?:[.,]0*)?(?:Z|[+-][0-9:]*)?$)")
_QUARTER = re.compile(r"(\d{4})(-?)Q([1-4])")
_WEEK = re.compile(r"(\d{4})(-?)W(\d\d)")


def read_dates(column: Column) -> Times:
    """Read dates and times of day in one of several formats.

    Raises DataError that names the row: for a value that is no time, and for dates whose day and month cannot be told apart.
    """
    for read in (_iso, _year_first, _year_last, _months, _weeks, _other_iso):
        if (times := read(column)) is not None:
            return times
    raise _no_time(column)


def starts_like_iso(value: str) -> bool:
    """Tell whether a value begins with a date such as 2024-01-31."""
    return _ISO.match(value) is not None


def _no_time(column: Column) -> DataError:
    """Make the error for the first value that is not written like most of the column."""
    numbers = cells(column.values)
    other = np.zeros(len(column.values), bool)
    other[numbers.strange] = True
    other |= numbers.missing
    ways = [~other] + [
        np.fromiter((way.fullmatch(value) is not None for value in column.values), bool, len(other))
        for way in (_YEAR_FIRST, _YEAR_LAST, _MONTH, _MONTH_FIRST, _QUARTER, _WEEK)
    ]
    row = int(np.argmin(max(ways, key=np.count_nonzero)))
    return column.error(
        row,
        "is not a time",
        "all values of the column must be numbers, or dates in one format, such as 2024-01-31 or 2024-01-31T12:00:00",
    )


def _iso(column: Column) -> Times | None:
    """Read ISO dates, with or without a time of day and a zone. They are read by numpy, at once."""
    bodies: Sequence[str] = column.values
    zones: list[str] = []
    if (zone_at_end := ZONE.search(bodies[0], 10)) is not None:
        width = len(zone_at_end[0])
        bodies, zones = [value[:-width] for value in bodies], [value[-width:] for value in bodies]
        if not all(map(ZONE.fullmatch, set(zones))):
            return None
    if not all(map(_ISO.fullmatch, bodies)):
        return None
    longest = max(bodies, key=len)
    clock = "" if len(longest) == 10 else f"{longest[10]}%H:%M" + (":%S" if len(longest) > 16 else "")
    fraction = f".%{len(longest) - 20}f" if len(longest) > 19 else ""
    return _parsed(column, bodies, zones, f"%Y-%m-%d{clock}{fraction}" + ("%z" if zones else ""))


def _parsed(column: Column, iso: Sequence[str], zones: Sequence[str], format: str) -> Times:
    """Convert ISO dates without a zone. zones: zone of each date, or nothing. Raises DataError for a day that does not exist."""
    ticks = NANOSECONDS if re.search(r"%[789]f", format) else MICROSECONDS
    kind = f"M8[{'ns' if ticks == NANOSECONDS else 'us'}]"
    try:
        local = np.array(iso, dtype=kind).astype(np.int64)
    except ValueError:
        midnights = [_MIDNIGHT.search(value) is not None for value in iso]
        iso = [value[:10] if at_midnight else value for value, at_midnight in zip(iso, midnights, strict=True)]
        if (row := next((row for row, value in enumerate(iso) if not _exists(value)), None)) is not None:
            problem = "is not a time: this day or time of day does not exist"
            raise column.error(row, problem, "correct it") from None
        local = np.array(iso, dtype=kind).astype(np.int64) + np.array(midnights) * (24 * 3600 * ticks)
    if ticks == NANOSECONDS and not (min(iso) >= "1678" and max(iso) < "2262"):
        row = next(row for row, value in enumerate(iso) if not "1678" <= value < "2262")
        raise column.error(row, "is not within 1678 to 2261", "write at most 6 digits of a second in this column")
    offsets = {zone: _offset(zone) * ticks for zone in set(zones)}
    moments = local - np.array([offsets[zone] for zone in zones]) if zones else local
    return Times(Format(format, ticks), moments, local, column.values)


def _exists(value: str) -> bool:
    try:
        np.datetime64(value)
    except ValueError:
        return False
    return True


def _offset(zone: str) -> int:
    """Return the distance of a zone such as +02:00, +0200 or Z from UTC, in seconds."""
    if zone == "Z":
        return 0
    return (1 if zone[0] == "+" else -1) * (3600 * int(zone[1:3]) + 60 * int(zone[-2:]))


def _matched(column: Column, pattern: re.Pattern[str]) -> list[tuple[str, ...]] | None:
    """Match all values. Returns the groups of each, "" for groups without a match; None if a value does not match."""
    if pattern.fullmatch(column.values[0]) is None:
        return None
    found = [pattern.fullmatch(value) for value in column.values]
    return None if None in found else [match.groups("") for match in found if match is not None]


def _year_first(column: Column) -> Times | None:
    """Read dates such as 2024/01/31, 2024.1.31 or 2024-01-31 13:00+0100."""
    rows = _matched(column, _YEAR_FIRST)
    if rows is None:
        return None
    sep = rows[0][1]
    zero = "-" if any(len(row[2]) == 1 or len(row[3]) == 1 for row in rows) else ""
    return _with_clock(column, [(y, m, d, *clock) for y, _, m, d, *clock in rows], f"%Y{sep}%{zero}m{sep}%{zero}d")


def _year_last(column: Column) -> Times | None:
    """Read dates such as 31.12.2024, 31/12/2024 or 12/31/2024: a number above 12 decides which one is the day.

    With points the day is first, as everywhere where dates are written with points.
    If none is above 12, the order is that of the checkpoint, if it has one. Raises DataError if the order stays open, or changes.
    """
    rows = _matched(column, _YEAR_LAST)
    if rows is None:
        return None
    first_day = next((i for i, row in enumerate(rows) if int(row[0]) > 12), None)
    second_day = next((i for i, row in enumerate(rows) if int(row[2]) > 12), None)
    iso = "write dates as 2024-01-31"
    if first_day is not None and second_day is not None:
        row = max(first_day, second_day)
        earlier = min(first_day, second_day) + column.first_row
        raise column.error(row, f"has its day and month in another order than row {earlier}", iso)
    sep = rows[0][1]
    known = (column.known or "").replace("-", "", 1)[:2]
    if first_day is None and second_day is None and sep != "." and known not in ("%d", "%m"):
        raise column.error(0, "is either day and month, or month and day: no value of the column decides it", iso)
    zero = "-" if any(len(row[0]) == 1 or len(row[2]) == 1 for row in rows) else ""
    if second_day is None and (first_day is not None or sep == "." or known == "%d"):
        ordered, codes = [(y, m, d, *clock) for d, _, m, y, *clock in rows], f"%{zero}d{sep}%{zero}m{sep}%Y"
    else:
        ordered, codes = [(y, m, d, *clock) for m, _, d, y, *clock in rows], f"%{zero}m{sep}%{zero}d{sep}%Y"
    return _with_clock(column, ordered, codes)


def _with_clock(column: Column, rows: Sequence[tuple[str, ...]], date: str) -> Times:
    """Convert dates with times of day. rows: year, month, day, separator, hour, minute, second, fraction, zone of each."""
    separators, hours, _, seconds, fractions, zones = zip(*(row[3:] for row in rows), strict=True)
    separator = max(separators)
    clock = f"{separator}%{'-' if 1 in map(len, hours) else ''}H:%M" if separator else ""
    digits = max(map(len, fractions))
    clock += (":%S" if any(seconds) else "") + (f".%{digits}f" if digits else "")
    if any(zones) and not all(zones):
        raise _mixed_zones(column)
    iso = [
        f"{y}-{m:0>2}-{d:0>2}T{hour or '00':0>2}:{minute or '00'}:{second or '00'}" + (f".{rest}" if rest else "")
        for y, m, d, _, hour, minute, second, rest, _ in rows
    ]
    return _parsed(column, iso, zones if zones[0] else (), date + clock + ("%z" if zones[0] else ""))


def _months(column: Column) -> Times | None:
    """Read months, such as 2024-01 or 01/2024, and quarters, such as 2024Q1, as their first days."""
    orders: tuple[tuple[re.Pattern[str], Callable[[str, str, str], tuple[str, int]], str], ...] = (
        (_MONTH, lambda year, _, month: (year, int(month)), "%Y{}%m"),
        (_MONTH_FIRST, lambda month, _, year: (year, int(month)), "%m{}%Y"),
        (_QUARTER, lambda year, _, quarter: (year, 3 * int(quarter) - 2), "%Y{}Q%q"),
    )
    for pattern, order, format in orders:
        if (rows := _matched(column, pattern)) is not None:
            iso = ["{}-{:02}-01".format(*order(*row)) for row in rows]
            return _parsed(column, iso, (), format.format(rows[0][1]))
    return None


def _weeks(column: Column) -> Times | None:
    """Read ISO weeks, such as 2024-W05, as their Mondays."""
    rows = _matched(column, _WEEK)
    if rows is None:
        return None
    days: list[str] = []
    for number, (year, _, week) in enumerate(rows):
        try:
            days.append(datetime.fromisocalendar(int(year), int(week), 1).date().isoformat())
        except ValueError:
            raise column.error(number, "is not a time: this week does not exist", "correct it") from None
    return _parsed(column, days, (), f"%G{rows[0][1]}W%V")


def _other_iso(column: Column) -> Times | None:
    """Read the other forms of ISO 8601 that datetime knows, such as 20240131T120000."""
    started = [_BASIC_MIDNIGHT.sub("T00", value) for value in column.values]
    try:
        dates = [
            datetime.fromisoformat(start) + timedelta(days=start != value)
            for start, value in zip(started, column.values, strict=True)
        ]
    except (ValueError, OverflowError):
        return None
    zones = [date.utcoffset() for date in dates]
    if None in zones and any(zone is not None for zone in zones):
        raise _mixed_zones(column)
    local = np.array([date.replace(tzinfo=None) for date in dates], dtype="M8[us]").astype(np.int64)
    shift = [round(zone.total_seconds()) * MICROSECONDS for zone in zones if zone is not None]
    format = "%Y-%m-%dT%H:%M:%S" + ("%z" if shift else "")
    moments = local - np.array(shift) if shift else local
    return Times(Format(format, MICROSECONDS), moments, local, column.values)


def _mixed_zones(column: Column) -> DataError:
    return DataError(
        f"{clean(column.path)}: column '{clean(column.name)}': some times have a time zone and others do not",
        "write all of them with a zone, such as 2024-01-31T12:00:00+01:00, or all without",
    )
