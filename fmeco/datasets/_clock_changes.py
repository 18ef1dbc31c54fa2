"""Find where local times without a zone follow clocks that are set back or forward an hour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmeco.datasets._splits import Indices

HOUR, DAY = 3600, 86_400
MONTHS = (3, 4, 9, 10, 11)  # in which clocks are changed
HOURS = (1, 2, 3)  # at which the repeated hour and the left-out hour begin, on a Sunday
DAYS = (14, 24)  # of the month: on its first or second Sunday, until day 14, or on its last, from day 24 on


def possible(local: NDArray[np.int64], ticks: int) -> NDArray[np.bool_]:
    """Tell which moments lie in an hour in which clocks may be changed. ticks: units of the moments per second."""
    days = local // (DAY * ticks)
    months = days.astype("M8[D]").astype("M8[M]")
    numbers = days - months.astype("M8[D]").astype(np.int64) + 1
    sunday = ((days + 3) % 7 == 6) & ((numbers <= DAYS[0]) | (numbers >= DAYS[1]))  # 1970-01-01 was a Thursday
    hour = np.isin(local // (HOUR * ticks) % 24, HOURS)
    found: NDArray[np.bool_] = sunday & hour & np.isin(months.astype(np.int64) % 12 + 1, MONTHS)
    return found


def in_order(local: NDArray[np.int64], ticks: int) -> tuple[NDArray[np.int64], list[int]]:
    """Add the hours by which clocks are set back to times whose rows are in order.

    Returns (moments (N,), positions of the rows after which the clock was set back). Rows in another order stay as they are:
    there, the two passes of a repeated hour cannot be told apart.
    """
    steps = np.diff(local)
    back = (steps < 0) & (steps >= -HOUR * ticks) & possible(local[1:], ticks)
    if not back.any() or (steps < 0).sum() > back.sum():
        return local, []
    return local + HOUR * ticks * np.concatenate([[0], back.cumsum()]), np.flatnonzero(back).tolist()


def on_a_grid(local: NDArray[np.int64], ticks: int, members: Sequence[Indices]) -> tuple[NDArray[Any], dict[int, int]]:
    """Turn local times of regular series into moments that are as far apart as the times really were.

    A repeated hour and a left-out hour are clock changes if the series are regular but for them, and in order of time.
    members: rows of each series.
    Returns (moments (N,), changes: local time -> 1 if an hour is repeated from there, -1 if it is left out).
    """
    shifts: dict[int, Indices] = {}
    changes: dict[int, int] = {}
    hour = HOUR * ticks
    for number, at in enumerate(members):
        times = local[at]
        steps = np.diff(times)
        if len(steps) and 0 < steps[0] <= hour and (steps == steps[0]).all():
            shifts[number] = np.zeros(len(at), np.int64)
            continue
        found = _changes(times, steps, ticks)
        if found is not None:
            back, ahead = found
            shifts[number] = np.concatenate([[0], np.cumsum(back.astype(np.int64) - ahead)])
            changes |= dict.fromkeys(times[1:][back].tolist(), 1)
            changes |= dict.fromkeys((times[1:][ahead] - hour).tolist(), -1)
    if not changes:
        return local, {}
    times, signs = np.array(sorted(changes)), np.array([changes[time] for time in sorted(changes)])
    total = np.concatenate([[0], signs.cumsum()])
    moments = local + hour * total[np.searchsorted(times, local, side="right")]
    for number, shift in shifts.items():
        at = members[number]
        start = total[np.searchsorted(times, local[at[0]], side="right")]
        moments[at] = local[at] + hour * (start + shift)
    return moments, dict(sorted(changes.items()))


def _changes(
    times: NDArray[np.int64], steps: NDArray[np.int64], ticks: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Find the steps in which the clock of a series is set back, and those in which it is set forward (N - 1,).

    Returns None if the times are not in order, or do not divide an hour.
    """
    hour, forward = HOUR * ticks, steps[steps > 0]
    if not len(forward):
        return None
    sizes, counts = np.unique(forward, return_counts=True)
    usual = int(sizes[counts.argmax()])
    back, ahead = steps == usual - hour, steps == usual + hour
    if back.any() or ahead.any():
        back &= possible(times[1:], ticks)
        ahead &= possible(times[1:] - hour, ticks)
    return None if hour % usual or ((steps <= 0) & ~back).any() else (back, ahead)
