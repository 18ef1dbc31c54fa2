"""Find the regular steps of times, such as hours, business days or ends of months, and continue them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmeco.datasets._clock_changes import DAY
from fmeco.datasets._splits import Indices

JITTER = 0.1  # share of a step by which times may be off their grid
MONTH, BUSINESS_DAY, SECOND, NUMBER = "month", "business day", "second", "number"
LAST, FIRST_BUSINESS, LAST_BUSINESS = "last day", "first business day", "last business day"
NAMED = {604_800: "week", DAY: "day", 3600: "hour", 60: "minute", 1: "second"}  # seconds -> name

Moments = NDArray[Any]  # int64, or float64 for numbers with an exponent


class Grid(NamedTuple):
    """Hold the distance of regular times.

    unit: second, month, business day, or number.
    step: units from one time to the next.
    on: the day of each month: a number, or last day, first business day, last business day; "" for other units.
    local: the steps are regular by the local clock, as days are where clocks change, and not in UTC.
    """

    unit: str
    step: float
    on: str = ""
    local: bool = False

    def __str__(self) -> str:
        step, unit = self.step, self.unit
        if unit == SECOND:
            size = next((size for size in NAMED if step % size == 0), 1)
            step, unit = step / size, NAMED[size]
        elif unit == NUMBER:
            return f"{step:g}"
        elif unit == MONTH and step % 12 == 0:
            step, unit = step / 12, "year"
        elif unit == MONTH and step % 3 == 0:
            step, unit = step / 3, "quarter"
        return f"{step:g} {unit}{'' if step == 1 else 's'}"


def find(moments: Moments, ticks: int, dated: bool, whole_months: bool = False) -> Grid | None:
    """Find the grid that times in ascending order lie on, with as few gaps as possible; None if there is none.

    ticks: units of `moments` per second, or per 1 for numbers.
    dated: the times are dates, not plain numbers.
    whole_months: the times are written as months or quarters, without a day.
    """
    steps = np.diff(moments)
    if not len(steps):
        return None
    usual = _usual(steps)
    even = Grid(SECOND if dated else NUMBER, usual / ticks)
    candidates = [even]
    if dated:
        days = moments // (DAY * ticks)
        usual_months = _usual(np.diff(_month(days)))
        calendar = [Grid(MONTH, usual_months, on) for on in _anchors(days)] if usual_months else []
        weekdays = [Grid(BUSINESS_DAY, 1)] if usual == DAY * ticks else []
        # A month is never shorter than 28 days. Two first days of months are a month apart, not 31 days.
        candidates = [*calendar, even] if whole_months or steps.min() >= 28 * DAY * ticks else [even, *weekdays]
        candidates = calendar if whole_months else candidates
    exact = [(grid, count) for grid in candidates if (count := gaps(grid, moments, ticks)) is not None]
    if not exact and not whole_months:
        middle = nearest(moments, ticks, dated)
        return middle if gaps(middle, moments, ticks, JITTER) is not None else None
    return min(exact, key=lambda found: found[1])[0] if exact else None


def gaps(grid: Grid, moments: Moments, ticks: int, jitter: float = 1e-6) -> int | None:
    """Count the times of a grid that are absent between the first and the last moment; None if a moment is off the grid."""
    counts = strides(grid, moments, ticks, jitter)
    return None if counts is None else int(counts.sum()) - len(counts)


def strides(grid: Grid, moments: Moments, ticks: int, jitter: float = JITTER) -> Indices | None:
    """Count the steps of a grid from each moment to the next (N - 1,); None if a moment is off the grid."""
    if grid.unit in (SECOND, NUMBER):
        exact = np.diff(moments) / (grid.step * ticks)
        counts = np.rint(exact)
        fits = bool((np.abs(exact - counts) <= jitter).all() and (counts >= 1).all())
        return counts.astype(np.int64) if fits else None
    days, clock = moments // (DAY * ticks), moments % (DAY * ticks)
    if (clock != clock[0]).any():
        return None
    if grid.unit == MONTH:
        months = _month(days)
        counts, rest = np.divmod(np.diff(months), int(grid.step))
        fits = not rest.any() and bool((_day_of(grid.on, months) == days).all())
    else:
        dates = days.astype("M8[D]")
        counts, rest = np.divmod(np.busday_count(dates[:-1], dates[1:]), int(grid.step))
        fits = not rest.any() and bool(np.is_busday(dates).all())
    return counts.astype(np.int64) if fits and (counts >= 1).all() else None


def following(grid: Grid, last: Any, ticks: int, count: int) -> Moments:
    """Continue a grid after a moment by `count` times (count,)."""
    ahead = np.arange(1, count + 1)
    if grid.unit in (SECOND, NUMBER):
        step = grid.step * ticks
        later: Moments = last + ahead * (round(step) if isinstance(last, np.integer) else step)
        return later
    days, clock = np.divmod(last, DAY * ticks)
    if grid.unit == MONTH:
        months = _month(np.array([days]))[0] + ahead * int(grid.step)
        later = _day_of(grid.on, months) * (DAY * ticks) + clock
        return later
    dates = np.busday_offset(days.astype("M8[D]"), ahead * int(grid.step), roll="backward")
    later = dates.astype(np.int64) * (DAY * ticks) + clock
    return later


def nearest(moments: Moments, ticks: int, dated: bool) -> Grid:
    """Return the median step of times that are not exactly regular."""
    steps = np.diff(moments)
    step = float(np.median(steps)) if len(steps) else float(ticks)
    return Grid(SECOND if dated else NUMBER, step / ticks)


def _usual(steps: Moments) -> Any:
    """Return the most frequent step; of equally frequent ones the shortest."""
    sizes, counts = np.unique(steps, return_counts=True)
    return sizes[counts.argmax()].item()


def _month(days: Indices) -> Indices:
    """Convert days since 1970 to months since 1970."""
    return days.astype("M8[D]").astype("M8[M]").astype(np.int64)


def _anchors(days: Indices) -> list[str]:
    """List the days of a month that times could be on: the last day, a number, or business days."""
    if len(days) == 1:
        return []
    number = int((days - _first(_month(days))).max()) + 1
    return [LAST, str(number), FIRST_BUSINESS, LAST_BUSINESS]


def _first(months: Indices) -> Indices:
    """Return the first day of each month, as days since 1970."""
    return months.astype("M8[M]").astype("M8[D]").astype(np.int64)


def _day_of(on: str, months: Indices) -> Indices:
    """Return the day of each month (months since 1970) that a grid lies on, as days since 1970."""
    first, last = _first(months), _first(months + 1) - 1
    special: dict[str, Callable[[], NDArray[Any]]] = {
        LAST: lambda: last,
        FIRST_BUSINESS: lambda: np.busday_offset(first.astype("M8[D]"), 0, roll="forward").astype(np.int64),
        LAST_BUSINESS: lambda: np.busday_offset(last.astype("M8[D]"), 0, roll="backward").astype(np.int64),
    }
    found: Indices = special[on]() if on in special else np.minimum(first + int(on) - 1, last)
    return found
