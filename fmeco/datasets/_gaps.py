"""Find and fill the gaps of series: missing values, and absent rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmeco.core import DataError, clean
from fmeco.datasets import _grids
from fmeco.datasets._grids import Grid
from fmeco.datasets._series import Series
from fmeco.datasets._time_formats import zone_of

HINT = "dataset.fill: forward repeats the value before, interpolate draws a line to the value after, none counts each row as one step"
MOST = 10  # rows after filling, per row before: with more, a time is more likely wrong
NO_GRID = "make the steps equal, or set dataset.fill: none, which counts each row as one step"


def filled(series: Series, missing: str, path: str) -> tuple[Series, int]:
    """Replace missing values by the value before them, the only filling that uses no future value.

    Returns (series, number of missing values). Raises DataError that names the row: for missing="error", or if the first
    value is missing.
    """
    gone = np.isnan(series.values)
    if not gone.any():
        return series, 0
    row = int(series.rows[gone.argmax()]) + 2
    if missing == "error":
        raise DataError(
            f"{clean(path)}: series '{clean(series.name)}', row {row}: no value ({int(gone.sum())} in all)",
            "dataset.missing: previous fills it with the value before",
        )
    if gone[0]:
        raise DataError(
            f"{clean(path)}: series '{clean(series.name)}', row {row}: no value, and none before it",
            "for series that begin at different times, use a table with the columns id, time and value (dataset.id, dataset.value)",
        )
    last = np.maximum.accumulate(np.where(gone, 0, np.arange(len(gone))))
    return series._replace(values=series.values[last]), int(gone.sum())


def regular(
    series: Sequence[Series], expected: Grid | None, fill: str | None, path: str, *, named: bool
) -> tuple[list[Series], list[str]]:
    """Find the grid of each series, and fill the rows that are absent from it.

    expected: the grid of a checkpoint.
    fill: forward (repeat the value before), interpolate, none (each row is one step), or None = refuse absent rows.
    named: messages name the series, because each has its own times.
    Returns (series, notes). Raises DataError that names the first gap: for fill=None, and for times on no grid.
    """
    notes: list[str] = []
    made: list[Series] = []
    shared: dict[int, Series] = {}  # the columns of a wide table share one list of times, and go on doing so
    for s, grid in zip(series, _grids_of(series, expected), strict=True):
        whose, first = f" of '{clean(s.name)}'" if named else "", shared.get(id(s.times))
        told = _told(s, grid, path, whose)
        if told and (fill is None or (grid is None and fill != "none")):
            raise DataError(told, HINT if grid is not None else NO_GRID)
        if first is None and told:
            notes.append(f"{told}; " + ("each row counts as one step" if fill == "none" else f"filled: {fill}"))
        if first is None and expected is not None and grid is not None and str(grid) != str(expected):
            notes.append(f"{clean(path)}: the steps{whose} are {grid}, and those of the checkpoint's data {expected}")
        made.append(s._replace(grid=grid))
        if told and grid is not None and fill != "none":
            made[-1] = _with_absent_rows(made[-1], grid, fill, first, told)
        shared.setdefault(id(s.times), made[-1])
    return made, notes


def _basis(series: Series, grid: Grid) -> NDArray[Any]:
    """Return the times in which a grid is regular."""
    return series.local if grid.local else series.moments


def _grids_of(series: Sequence[Series], expected: Grid | None) -> list[Grid | None]:
    """Find the grid of each series: the expected one if the times lie on it, else the one of most series, else its own."""
    own: dict[int, Grid | None] = {}
    for s in series:
        if id(s.times) not in own:
            own[id(s.times)] = _grid_of(s)
    usual = Counter(own[id(s.times)] for s in series if own[id(s.times)] is not None and len(s.moments) > 2)
    preferred = [grid for grid in (expected, *(grid for grid, _ in usual.most_common(1))) if grid is not None]
    for s in series:
        for grid in preferred:
            absent = _grids.gaps(grid, _basis(s, grid), s.format.ticks)
            if absent is not None and absent <= len(s.moments):  # with more, these are steps of another grid
                own[id(s.times)] = grid
                break
    return [own[id(s.times)] for s in series]


def _grid_of(series: Series) -> Grid | None:
    """Find the grid of a series: in UTC, or by the local clock if there are fewer gaps in it."""
    ticks, format = series.format.ticks, series.format
    grid = _grids.find(series.moments, ticks, format.dated, format.whole_months)
    absent = None if grid is None else _grids.gaps(grid, series.moments, ticks, _grids.JITTER)
    if absent == 0 or series.local is series.moments or (series.local == series.moments).all():
        return grid
    other = _grids.find(series.local, ticks, format.dated, format.whole_months)
    fewer = other is not None and (
        absent is None or (_grids.gaps(other, series.local, ticks, _grids.JITTER) or 0) < absent
    )
    return other._replace(local=True) if fewer and other is not None else grid


def _told(series: Series, grid: Grid | None, path: str, whose: str) -> str:
    """Say where the times of a series have gaps, or leave their grid; "" for regular times."""
    if len(series.moments) < 2:
        return ""
    if grid is None:
        usual = _grids.nearest(series.moments, series.format.ticks, series.format.dated)
        odd = np.diff(series.moments) / (usual.step * series.format.ticks)
        at = int(np.argmax(np.abs(odd - np.rint(odd))))
        told = f"the times{whose} are not regular: most steps are about {usual}, and another one is"
    else:
        counts = _grids.strides(grid, _basis(series, grid), series.format.ticks)
        assert counts is not None
        at, gone = int(np.argmax(counts > 1)), int(counts.sum()) - len(counts)
        if not gone:
            return ""
        told = f"gaps in time{whose}: {int((counts > 1).sum())} (absent rows: {gone}; steps: {grid}), the first"
    rows = f"(rows {series.rows[at] + 2} and {series.rows[at + 1] + 2})"
    return f"{clean(path)}: {told} between {clean(series.times[at], 40)} and {clean(series.times[at + 1], 40)} {rows}"


def _with_absent_rows(series: Series, grid: Grid, fill: str | None, before: Series | None, told: str) -> Series:
    """Insert the rows that are absent from a grid.

    before: a series of the same times that has them already.
    told: the message on its gaps. Raises DataError with it if far more rows are absent than present.
    """
    ticks, basis = series.format.ticks, _basis(series, grid)
    counts = _grids.strides(grid, basis, ticks)
    assert counts is not None
    if counts.sum() > MOST * len(basis):
        raise DataError(told, "correct the times: so many absent rows cannot be filled")
    place = np.concatenate([[0], counts.cumsum()])
    source = np.repeat(np.arange(len(place)), np.append(counts, 1))  # the last row before each step
    inside = np.interp(np.arange(len(source)), place, series.values)
    values = inside if fill == "interpolate" else series.values[source]
    if before is not None:
        return before._replace(name=series.name, values=values)
    later = basis[source]
    for at in np.flatnonzero(counts > 1).tolist():
        later[place[at] + 1 : place[at + 1]] = _grids.following(grid, basis[at], ticks, int(counts[at]) - 1)
    moments, local = (x[source] + later - basis[source] for x in (series.moments, series.local))
    times = [series.times[i] for i in source.tolist()]
    absent = np.ones(len(source), bool)
    absent[place] = False
    for at in np.flatnonzero(absent).tolist():
        times[at] = series.format.write(local[at], zone_of(times[at]))
    return series._replace(values=values, moments=moments, local=local, times=times, rows=series.rows[source])
