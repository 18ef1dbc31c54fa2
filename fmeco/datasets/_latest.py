"""Serve the newest values of series, from which a model forecasts, and turn its forecasts into rows with times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fmeco.core import DataError, Inputs, Samples, clean
from fmeco.datasets import _gaps, _grids
from fmeco.datasets._grids import Grid
from fmeco.datasets._series import Layout, Series, standardised
from fmeco.datasets._time_formats import zone_of


class Newest(NamedTuple):
    """Hold the newest values of a series.

    path: its table.
    series: the series, without gaps in the steps that the model sees.
    statistics: its statistics.
    problem: why it cannot be forecast; None if it can.
    """

    path: str
    series: Series
    statistics: Mapping[str, Any]
    problem: DataError | None


def newest(
    path: str, series: Series, statistics: Mapping[str, Any], layout: Layout, context: int, expected: Grid | None
) -> tuple[Newest, list[str]]:
    """Take the newest `context` values of a series, and fill their gaps. Returns (values, notes).

    Rows before them do not matter, so neither do their gaps. expected: the grid of the checkpoint.
    """
    begin = max(0, len(series.values) - context)
    before = np.flatnonzero(~np.isnan(series.values[: begin + 1]))
    if layout.missing == "previous" and before.size:
        begin = int(before[-1])
    recent = _from(series, begin)
    try:
        if len(series.values) < context:
            raise DataError(
                f"{clean(path)}: series '{clean(series.name)}' has {len(series.values)} rows, and a forecast needs {context}"
            )
        recent, _ = _gaps.filled(recent, layout.missing, path)
    except DataError as error:
        return Newest(path, series, statistics, error), []
    try:
        (recent,), notes = _gaps.regular([recent], expected, layout.fill, path, named=layout.id is not None)
    except DataError as error:
        why = "add the absent rows to the table: the model was trained without dataset.fill"
        way_out = why if layout.fill is None else error.hints[0] if error.hints else ""
        problem = f"{error.message}; {way_out}" if way_out else error.message
        return Newest(path, series, statistics, DataError(problem)), []
    return Newest(path, _from(recent, len(recent.values) - context), statistics, None), notes


def _from(series: Series, begin: int) -> Series:
    """Leave out the rows before position `begin`."""
    return series._replace(
        values=series.values[begin:],
        moments=series.moments[begin:],
        local=series.local[begin:],
        times=series.times[begin:],
        rows=series.rows[begin:],
    )


class Latest(Samples):
    """Serve the newest `context` values of each series of several tables."""

    in_memory = True

    def __init__(self, latest: Sequence[Newest]) -> None:
        self.latest = latest

    def __len__(self) -> int:
        return len(self.latest)

    def name(self, index: int) -> str:
        return self.latest[index].path

    def __getitem__(self, index: int) -> Inputs:
        _, series, stats, problem = self.latest[index]
        if problem is not None:
            raise problem
        return {"series": torch.from_numpy(standardised(series, stats))}

    def answers(self, index: int, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Turn a forecast into rows, one per step, in the units of its series."""
        _, series, stats, _ = self.latest[index]
        columns = {key: [x * stats["std"] + stats["mean"] for x in values] for key, values in answer.items()}
        times = following(series, len(columns["prediction"]))
        return [
            {"series": series.name, "time": time, **{key: x[i] for key, x in columns.items()}}
            for i, time in enumerate(times)
        ]


def following(series: Series, count: int) -> list[str]:
    """Continue the times of a series by `count` times, in their own steps and format."""
    format = series.format
    grid = series.grid or _grids.nearest(series.moments, format.ticks, format.dated)
    basis = series.local if grid.local else series.moments
    later = _grids.following(grid, basis[-1], format.ticks, count) - basis[-1] + series.local[-1]
    return [format.write(local, zone_of(series.times[-1])) for local in later]


def stored(series: Sequence[Series]) -> dict[str, Any]:
    """Describe the times of series for a checkpoint: how they are written, and their steps."""
    first = next((s for s in series if s.grid is not None), series[0])
    grid = first.grid or _grids.nearest(first.moments, first.format.ticks, first.format.dated)
    return {**first.format._asdict(), **grid._asdict()}


def known_times(preprocessing: Mapping[str, Any]) -> tuple[str | None, Grid | None]:
    """Return the pattern and the steps of a checkpoint's times; None for a checkpoint older than decode rule 2."""
    times = preprocessing.get("times")
    if times is None:
        return None, None
    return times["pattern"], Grid(*(times[key] for key in Grid._fields))
