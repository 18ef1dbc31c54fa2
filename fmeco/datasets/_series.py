"""Read time series from tables, compute their statistics, and cut them into windows as samples.

All series are in one flat tensor, so a window is given by its start and the distance of its steps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmeco.core import (
    ConfigError,
    DataError,
    Given,
    Inputs,
    Samples,
    clean,
    listing,
    nearest,
)
from fmeco.datasets import _columns, _times
from fmeco.datasets._splits import Indices, fingerprint

IRREGULAR = 1.5  # report a gap in time if a step is longer than this multiple of the median step
Floats = NDArray[np.float64]


class Layout(NamedTuple):
    """Hold the keys of the config that say how a table holds series.

    time: column of times.
    columns: names of the series to use; None = all.
    id: column that names the series of a row (long table); None = each column is a series (wide table).
    value: column of the values of a long table.
    missing: error, or previous (replace a missing value by the one before it).
    """

    time: str
    columns: list[str] | None
    id: str | None
    value: str | None
    missing: str


class Series(NamedTuple):
    """Hold a series of L values in order of time.

    values: (L,), nan for missing values.
    moments: times as numbers (L,).
    times: times as the table writes them.
    rows: positions in the table (L,).
    """

    name: str
    values: Floats
    moments: Floats
    times: list[str]
    rows: Indices


# ---------------------------------------------------------------- reading


def read_series(path: str | Given, layout: Layout) -> tuple[list[Series], list[str]]:
    """Read the series of a table, or of rows that were passed in Python. Returns (series, notes).

    Raises DataError that names the row.
    """
    table, path = _columns.read_table(path), str(path)
    times = _columns.column(table, layout.time, path)
    moments = _times.moments(times, path, layout.time)
    notes: list[str] = []
    if (np.diff(moments) < 0).any() and layout.id is None:
        notes.append(f"{clean(path)}: the rows are not in order of '{clean(layout.time)}', and are sorted")
    series: list[Series] = []
    if layout.id is None:
        names, left_out = _wide(table, layout, path)
        if left_out:
            notes.append(f"{clean(path)}: columns that are not numeric are left out: {listing(left_out)}")
        order = np.argsort(moments, kind="stable")
        ordered = [times[i] for i in order.tolist()]
        for name in names:
            values = _numbers(table[name], path, name, np.arange(len(times)))
            series.append(Series(name, values[order], moments[order], ordered, order))
    else:
        assert layout.value is not None
        ids, text = (_columns.column(table, name, path) for name in (layout.id, layout.value))
        members: dict[str, list[int]] = {}
        for row, name in enumerate(ids):
            members.setdefault(name, []).append(row)
        for name in _chosen(layout.columns, members, path):
            at = np.array(members[name])
            values = _numbers([text[i] for i in at.tolist()], path, layout.value, at)
            order = np.argsort(moments[at], kind="stable")
            at, values = at[order], values[order]
            series.append(Series(name, values, moments[at], [times[i] for i in at.tolist()], at))
    for s in series[:1] if layout.id is None else series:
        notes += _check_times(s, path, whose=f" of '{clean(s.name)}'" if layout.id is not None else "")
    return series, notes


def _wide(table: _columns.Table, layout: Layout, path: str) -> tuple[list[str], list[str]]:
    """Find the columns that are series. Returns (their names, names of columns that are not numeric)."""
    if layout.columns is not None:
        return _chosen(layout.columns, [name for name in table if name != layout.time], path), []
    cells = {name: _columns.cells(table[name]) for name in table if name != layout.time}
    names = [name for name, column in cells.items() if not column.strange.size and not column.missing.all()]
    if not names:
        raise DataError(f"{clean(path)}: no column of numbers besides '{clean(layout.time)}'")
    return names, [name for name in cells if name not in names]


def _chosen(wanted: Sequence[str] | None, present: Sequence[str] | Mapping[str, Any], path: str) -> list[str]:
    """Check the names of `dataset.columns` against those of the table; None = all. Raises ConfigError."""
    if wanted is None:
        return list(present)
    if absent := [name for name in wanted if name not in present]:
        raise ConfigError(f"{clean(path)}: no series {listing(absent)}{nearest(absent[0], present)}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError("dataset.columns: name at least one series, and each only once")
    return list(wanted)


def _numbers(column: Sequence[str], path: str, name: str, rows: Indices) -> Floats:
    """Parse a column as numbers (N,), nan for missing values. rows: positions in the table (N,), for messages."""
    cells = _columns.cells(column)
    for position in cells.strange.tolist():
        raise DataError(
            f"{clean(path)}: column '{clean(name)}', row {rows[position] + 2}: '{clean(column[position], 40)}' is not a number",
            "name the series in dataset.columns" if len(cells.strange) > len(column) // 2 else "correct it",
        )
    return np.where(cells.missing, np.nan, cells.values)


def _check_times(series: Series, path: str, whose: str) -> list[str]:
    """Check the times of a series. Returns a note if there are gaps; raises DataError if two rows have the same time."""
    steps = np.diff(series.moments)
    if (same := np.flatnonzero(steps == 0)).size:
        first, second = sorted((series.rows[same[0]] + 2, series.rows[same[0] + 1] + 2))
        raise DataError(
            f"{clean(path)}: rows {first} and {second}{whose} have the same time, {clean(series.times[same[0]], 40)}",
            "for a table with several series below one another, set dataset.id and dataset.value",
        )
    gaps = np.flatnonzero(steps > IRREGULAR * np.median(steps)) if len(steps) else steps
    if not len(gaps):
        return []
    before, after = series.times[gaps[0]], series.times[gaps[0] + 1]
    return [
        f"{clean(path)}: gaps in time{whose}: {len(gaps)}, the first between {clean(before, 40)} and {clean(after, 40)}; "
        "each row counts as one step"
    ]


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


# ---------------------------------------------------------------- statistics and splits


def cut_at(series: Sequence[Series], shares: Mapping[str, float], path: str) -> tuple[dict[str, float], str]:
    """Find the moment at which each split begins. Returns (split -> moment, a note).

    All series are cut at the same moments, so that no series is tested at a time at which another was trained.
    shares: split -> share of the distinct moments of all series.
    Raises DataError for too few moments.
    """
    moments, first = np.unique(np.concatenate([s.moments for s in series]), return_index=True)
    text = [time for s in series for time in s.times]
    count, at = len(moments), float(len(moments))
    cuts: dict[str, float] = {}
    begins: list[str] = []
    for part, share in reversed(list(shares.items())):
        at -= share * count
        position = round(at)
        if not 0 < position < count:
            raise DataError(f"{clean(path)}: {count} distinct times are too few to split")
        cuts[part] = float(moments[position])
        begins.append(f"{part} from {clean(text[first[position]], 40)}")
    return dict(reversed(cuts.items())), f"{clean(path)}: split by time: {', '.join(reversed(begins))}"


def statistics(series: Series, before: float, season: int) -> dict[str, Any]:
    """Compute the statistics of a series before a moment.

    mean, std: of the values.
    naive: mean absolute error of the seasonal naive forecast (the value one season before), in standard deviations. MASE
        is relative to it; None if it is 0 or the series is too short.
    https://doi.org/10.1016/j.ijforecast.2006.03.001 (Hyndman and Koehler 2006).
    """
    x = series.values[(series.moments < before) & ~np.isnan(series.values)]
    x = x if len(x) else np.zeros(1)
    std = float(x.std()) or 1.0
    naive = float(np.abs(x[season:] - x[:-season]).mean()) / std if len(x) > season else 0.0
    return {"name": series.name, "mean": float(x.mean()), "std": std, "naive": naive or None}


# ---------------------------------------------------------------- windows


def windows(values: Tensor, starts: Tensor, length: int, step: int) -> Tensor:
    """Cut windows (N, length) out of a flat tensor: row i begins at starts[i], and its values are `step` apart.

    If the starts are evenly spaced, as for all windows of a wide table, the result is a view without copies.
    """
    gaps = starts.diff()
    if len(starts) and (not len(gaps) or (int(gaps[0]) > 0 and bool((gaps == gaps[0]).all()))):
        gap = int(gaps[0]) if len(gaps) else 1
        return values.as_strided((len(starts), length), (gap, step), int(starts[0]))
    return values[starts[:, None] + step * torch.arange(length)]


class Panel:
    """Hold all series, standardised, in one float32 tensor: interleaved if they share their times, else concatenated.

    statistics: statistics of each series (see `statistics`).
    """

    def __init__(self, series: Sequence[Series], statistics: Sequence[Mapping[str, Any]]) -> None:
        self.series, self.statistics = series, statistics
        scaled = [(s.values - stats["mean"]) / stats["std"] for s, stats in zip(series, statistics, strict=True)]
        shared = all(s.times is series[0].times for s in series)
        lengths = np.array([len(x) for x in scaled])
        self.offsets = np.arange(len(series)) if shared else np.concatenate([[0], lengths.cumsum()[:-1]])
        self.step = len(series) if shared else 1
        joined = np.stack(scaled, 1).ravel() if shared else np.concatenate(scaled)
        self.values = torch.from_numpy(joined.astype(np.float32))

    def origins(self, context: int, horizon: int, stride: int, since: float, until: float) -> tuple[Indices, Indices]:
        """Find all windows whose horizon lies within [since, until), in order of time, so that neighbours overlap.

        Returns (number of each window's series (N,), position of its start in the series (N,)). The context may reach back
        before `since`. Without a horizon, the whole window must lie within [since, until).
        """
        which, begins, ends = [], [], []
        for number, s in enumerate(self.series):
            low, high = np.searchsorted(s.moments, [since, until])
            first = low if not horizon else max(0, low - context)
            at = np.arange(first, high - context - horizon + 1, stride)
            which.append(np.full(len(at), number))
            begins.append(at)
            ends.append(s.moments[at + context - 1])
        series, begin = np.concatenate(which), np.concatenate(begins)
        order = np.lexsort((series, np.concatenate(ends)))
        return series[order], begin[order]


class Windows(Samples):
    """Serve windows of series: the context (context,), and with a horizon the future (horizon,) as target."""

    in_memory = True

    def __init__(self, panel: Panel, context: int, horizon: int, stride: int, which: Indices, begins: Indices) -> None:
        self.panel, self.context, self.horizon, self.which, self.begins = panel, context, horizon, which, begins
        starts = torch.from_numpy(panel.offsets[which] + begins * panel.step)
        self.tensors: Inputs = {"series": windows(panel.values, starts, context, panel.step)}
        naive = torch.tensor([math.nan if x["naive"] is None else x["naive"] for x in panel.statistics])
        if horizon:
            future = windows(panel.values, starts + context * panel.step, horizon, panel.step)
            self.targets = {"future": future, "naive": naive[which].float()}
        self.groups = {"series": [panel.series[i].name for i in which.tolist()]}
        self.block = max(1, round(len(set(which.tolist())) * (horizon or context) / stride))

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: int) -> Inputs:
        return {name: x[index].clone() for name, x in self.tensors.items()}

    def name(self, index: int) -> str:
        series = self.panel.series[self.which[index]]
        return f"{series.name} after {series.times[self.begins[index] + self.context - 1]}"


class Latest(Samples):
    """Serve the newest `context` values of each series of several tables."""

    in_memory = True

    def __init__(self, latest: Sequence[tuple[str, Series, Mapping[str, Any]]], context: int, missing: str) -> None:
        """Keep the series. latest: (path, series, its statistics) for each."""
        self.latest, self.context, self.missing = latest, context, missing

    def __len__(self) -> int:
        return len(self.latest)

    def name(self, index: int) -> str:
        return self.latest[index][0]

    def __getitem__(self, index: int) -> Inputs:
        path, series, stats = self.latest[index]
        if len(series.values) < self.context:
            raise DataError(
                f"{clean(path)}: series '{clean(series.name)}' has {len(series.values)} rows, and a forecast needs {self.context}"
            )
        begin = len(series.values) - self.context
        before = np.flatnonzero(~np.isnan(series.values[: begin + 1]))
        if self.missing == "previous" and before.size:
            begin = int(before[-1])
        recent, _ = filled(series._replace(values=series.values[begin:], rows=series.rows[begin:]), self.missing, path)
        scaled = (recent.values[-self.context :] - stats["mean"]) / stats["std"]
        return {"series": torch.from_numpy(scaled.astype(np.float32))}

    def answers(self, index: int, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Turn a forecast into rows, one per step, in the units of its series."""
        _, series, stats = self.latest[index]
        columns = {key: [x * stats["std"] + stats["mean"] for x in values] for key, values in answer.items()}
        times = following(series.times, series.moments, len(columns["prediction"]))
        return [
            {"series": series.name, "time": time, **{key: x[i] for key, x in columns.items()}}
            for i, time in enumerate(times)
        ]


def following(times: Sequence[str], moments: Floats, count: int) -> list[str]:
    """Continue `times` by `count` times at their usual step, in the same format: numbers, dates, or months."""
    step = float(np.median(np.diff(moments))) if len(moments) > 1 else 1.0
    if _columns.is_number(times[-1]):
        ahead = (float(moments[-1]) + step * i for i in range(1, count + 1))
        return [str(int(x)) if x.is_integer() else f"{x:.12g}" for x in ahead]
    short = len(times[-1]) == 7
    last, before = (
        datetime.fromisoformat(f"{x}-01" if short else x) for x in (times[-1], times[-2 if times[1:] else -1])
    )
    months = 12 * (last.year - before.year) + last.month - before.month
    dates = [last + timedelta(seconds=step * i) for i in range(1, count + 1)]
    if months and last.day == before.day and last.day <= 28 and last.time() == before.time():
        ahead_months = [12 * last.year + last.month - 1 + months * i for i in range(1, count + 1)]
        dates = [last.replace(year=n // 12, month=n % 12 + 1) for n in ahead_months]
    if short:
        return [f"{date:%Y-%m}" for date in dates]
    whole_days = len(times[-1]) == 10 and all(date.time() == datetime.min.time() for date in dates)
    return [
        date.date().isoformat() if whole_days else date.isoformat(sep="T" if "T" in times[-1] else " ")
        for date in dates
    ]


def described(series: Sequence[Series]) -> str:
    """Compute the fingerprint of series from their names, times and values."""
    rows = []
    for s in series:
        digest = hashlib.sha256(s.values.tobytes() + s.moments.tobytes())
        rows.append((s.name, len(s.values), digest.hexdigest()))
    return fingerprint(rows)
