"""Read time series from tables, compute their statistics, and cut them into windows as samples.

All series are in one flat tensor, so a window is given by its start and the distance of its steps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmeco.core import ConfigError, DataError, Given, Inputs, Samples, clean, listing, nearest
from fmeco.datasets import _clock_changes, _columns, _ids, _series_cells, _time_formats, _times
from fmeco.datasets._grids import Grid
from fmeco.datasets._numbers import Rules, mean_and_std
from fmeco.datasets._splits import Indices, fingerprint
from fmeco.datasets._time_formats import Format

Floats = NDArray[np.float64]


class Layout(NamedTuple):
    """Hold the keys of the config that say how a table holds series.

    time: column of times.
    columns: names of the series to use; None = all.
    id: column that names the series of a row (long table); None = each column is a series (wide table).
    value: column of the values of a long table.
    missing: error, or previous (replace a missing value by the one before it).
    fill: how absent rows are filled: forward, interpolate, or none (each row counts as one step); None = refuse them.
    """

    time: str
    columns: list[str] | None
    id: str | None
    value: str | None
    missing: str
    fill: str | None


class Series(NamedTuple):
    """Hold a series of L values in order of time.

    values: (L,), nan for missing values.
    moments: times as numbers (L,), in ticks of the format.
    local: the same by the clock that the times were written by.
    times: times as the table writes them.
    rows: positions in the table (L,).
    format: how the times are written.
    grid: distance of the times; None if they are irregular, or if it is not known yet.
    """

    name: str
    values: Floats
    moments: NDArray[Any]
    local: NDArray[Any]
    times: list[str]
    rows: Indices
    format: Format
    grid: Grid | None = None


# ---------------------------------------------------------------- reading


def read_series(
    path: str | Given, layout: Layout, rules: Rules, pattern: str | None = None
) -> tuple[list[Series], list[str]]:
    """Read the series of a table, or of rows that were passed in Python.

    rules: how its cells are read.
    pattern: how the times of a checkpoint are written, which decides between two meanings.
    Returns (series, notes). Raises DataError that names the row.
    """
    table, path, rule = _columns.read_table(path, decode=rules.decode), str(path), rules.decode
    where = clean(path)
    read = _times.read_times(_columns.column(table, layout.time, path), path, layout.time, known=pattern)
    notes = [] if rule == 1 else _time_formats.note(read, path, layout.time)
    everything = np.arange(len(read.text))
    members: dict[str, Indices]
    if layout.id is None:
        names, left_out = _wide(table, layout, rules, path)
        if left_out:
            notes.append(f"{where}: columns that are not numeric are left out: {listing(left_out)}")
        members = {"": everything}
    else:
        members, more = _long(table, layout, rules, path)
        notes += more
        names = _chosen(layout.columns, members, path)
    if rule > 1:
        read, more = _with_clock_changes(read, list(members.values()), path)
        notes += more
    if layout.id is None and (np.diff(read.moments) < 0).any():
        notes.append(f"{clean(path)}: the rows are not in order of '{clean(layout.time)}', and are sorted")
    series: list[Series] = []
    sentinels = _series_cells.Sentinels()
    placed: dict[str, Series] = {}  # the times of each series, which all columns of a wide table share
    for name in names:
        key = name if layout.id is not None else ""
        if key not in placed:
            placed[key] = _in_order(key, read, members[key], path)
        at = placed[key].rows
        if layout.value is None:
            values = _series_cells.values(table[name], f"{where}: column '{clean(name)}'", everything, rules)
            sentinels.look(name, table[name], values)
            values = values[at]
        else:
            cells = [table[layout.value][i] for i in at.tolist()]
            values = _series_cells.values(cells, f"{where}: column '{clean(layout.value)}'", at, rules)
            sentinels.look(name, cells, values)
        series.append(placed[key]._replace(name=name, values=values))
    return series, [*notes, *sentinels.notes(where, rules)]


def _with_clock_changes(
    read: _time_formats.Times, members: Sequence[Indices], path: str
) -> tuple[_time_formats.Times, list[str]]:
    """Find where local times without a zone follow clocks that are set back or forward. Returns (times, notes)."""
    if not read.format.dated or read.format.zoned:
        return read, []
    moments, changes = _clock_changes.on_a_grid(read.local, read.format.ticks, members)
    shown = [
        f"{read.format.date(time).isoformat(' ')} ({'repeated' if sign > 0 else 'left out'})"
        for time, sign in changes.items()
    ]
    notes = [f"{clean(path)}: local times whose clocks change; hours: {listing(shown)}"] if changes else []
    return read._replace(moments=moments), notes


def _in_order(name: str, read: _time_formats.Times, at: Indices, path: str) -> Series:
    """Sort the rows `at` of a series by time. Its values are not read yet.

    Raises DataError if two rows have the same time.
    """
    at = at[np.argsort(read.moments[at], kind="stable")]
    moments = read.moments[at]
    if (same := np.flatnonzero(np.diff(moments) == 0)).size:
        first, second = sorted((int(at[same[0]]) + 2, int(at[same[0] + 1]) + 2))
        whose = f" of '{clean(name)}'" if name else ""
        hints = (
            ["for a table with several series below one another, set dataset.id and dataset.value"] if not name else []
        )
        if "%H" in read.format.pattern and not read.format.zoned:
            hints.append("where clocks are set back, write the distance from UTC, such as 2024-10-27T02:00:00+01:00")
        raise DataError(
            f"{clean(path)}: rows {first} and {second}{whose} have the same time, {clean(read.text[at[same[0]]], 40)}",
            *hints,
        )
    return Series(name, np.zeros(0), moments, read.local[at], [read.text[i] for i in at.tolist()], at, read.format)


def _wide(table: _columns.Table, layout: Layout, rules: Rules, path: str) -> tuple[list[str], list[str]]:
    """Find the columns that are series. Returns (their names, names of columns that are not numeric)."""
    if layout.columns is not None:
        return _chosen(layout.columns, [name for name in table if name != layout.time], path), []
    names = _series_cells.numeric(table, layout.time, rules)
    if not names:
        raise DataError(f"{clean(path)}: no column of numbers besides '{clean(layout.time)}'")
    return names, [name for name in table if name not in (layout.time, *names)]


def _long(table: _columns.Table, layout: Layout, rules: Rules, path: str) -> tuple[dict[str, Indices], list[str]]:
    """Find the rows of each series of a long table. Returns (name -> positions in the table, notes)."""
    assert layout.id is not None and layout.value is not None
    written, _ = _columns.column(table, layout.id, path), _columns.column(table, layout.value, path)
    words = frozenset[str]() if rules.decode == 1 else rules.missing
    where = f"{clean(path)}: column '{clean(layout.id)}'"
    named, notes = _ids.read_ids(written, words, _series_cells.KEY, None, where, 2, rules.decode)
    ids = np.array(named)
    _, first, code = np.unique(ids, return_index=True, return_inverse=True)
    rows = np.split(np.argsort(code, kind="stable"), np.bincount(code).cumsum()[:-1])
    return {str(ids[first[number]]): rows[number] for number in np.argsort(first).tolist()}, notes


def _chosen(wanted: Sequence[str] | None, present: Sequence[str] | Mapping[str, Any], path: str) -> list[str]:
    """Check the names of `dataset.columns` against those of the table; None = all. Raises ConfigError."""
    if wanted is None:
        return list(present)
    if absent := [name for name in wanted if name not in present]:
        raise ConfigError(f"{clean(path)}: no series {listing(absent)}{nearest(absent[0], present)}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError("dataset.columns: name at least one series, and each only once")
    return list(wanted)


# ---------------------------------------------------------------- statistics and splits


def cut_at(series: Sequence[Series], shares: Mapping[str, float], path: str) -> tuple[dict[str, Any], str]:
    """Find the moment at which each split begins. Returns (split -> moment, a note).

    All series are cut at the same moments, so that no series is tested at a time at which another was trained.
    shares: split -> share of the distinct moments of all series.
    Raises DataError for too few moments.
    """
    moments, first = np.unique(np.concatenate([s.moments for s in series]), return_index=True)
    text = [time for s in series for time in s.times]
    count, at = len(moments), float(len(moments))
    cuts: dict[str, Any] = {}
    begins: list[str] = []
    for part, share in reversed(list(shares.items())):
        at -= share * count
        position = round(at)
        if not 0 < position < count:
            raise DataError(f"{clean(path)}: {count} distinct times are too few to split")
        cuts[part] = moments[position]
        begins.append(f"{part} from {clean(text[first[position]], 40)}")
    return dict(reversed(cuts.items())), f"{clean(path)}: split by time: {', '.join(reversed(begins))}"


def statistics(series: Series, before: Any, season: int, rule: int) -> dict[str, Any]:
    """Compute the statistics of a series before a moment. rule: the decode rule.

    mean, std: of the values. By decode rule 1, the std of equal values is as small as rounding makes it, and not 1.
    naive: mean absolute error of the seasonal naive forecast (the value one season before), in standard deviations. MASE
        is relative to it; None if it is 0 or the series is too short.
    https://doi.org/10.1016/j.ijforecast.2006.03.001 (Hyndman and Koehler 2006).
    """
    x = series.values[(series.moments < before) & ~np.isnan(series.values)]
    x = x if len(x) else np.zeros(1)
    mean, std = (float(x.mean()), float(x.std()) or 1.0) if rule == 1 else mean_and_std(x)
    naive = float(np.abs(x[season:] - x[:-season]).mean()) / std if len(x) > season else 0.0
    return {"name": series.name, "mean": mean, "std": std, "naive": naive or None}


def standardised(series: Series, statistics: Mapping[str, Any]) -> NDArray[np.float32]:
    """Standardise the values of a series (L,). Raises DataError for a value that float32 does not hold then."""
    with np.errstate(over="ignore"):
        scaled: NDArray[np.float32] = ((series.values - statistics["mean"]) / statistics["std"]).astype(np.float32)
    for at in np.flatnonzero(np.isinf(scaled)).tolist():
        raise DataError(
            f"series '{clean(series.name)}', row {series.rows[at] + 2}: {series.values[at]:g} is too large beside the numbers of "
            "training",
            "correct it",
        )
    return scaled


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
        scaled = [standardised(s, stats) for s, stats in zip(series, statistics, strict=True)]
        shared = all(s.times is series[0].times for s in series)
        lengths = np.array([len(x) for x in scaled])
        self.offsets = np.arange(len(series)) if shared else np.concatenate([[0], lengths.cumsum()[:-1]])
        self.step = len(series) if shared else 1
        joined = np.stack(scaled, 1).ravel() if shared else np.concatenate(scaled)
        self.values = torch.from_numpy(joined)

    def origins(self, context: int, horizon: int, stride: int, since: Any, until: Any) -> tuple[Indices, Indices]:
        """Find all windows whose horizon lies within [since, until), in order of time, so that neighbours overlap.

        Returns (number of each window's series (N,), position of its start in the series (N,)). The context may reach back
        before `since`. Without a horizon, the whole window must lie within [since, until).
        """
        which, begins, ends = [], [], []
        for number, s in enumerate(self.series):
            low, high = (int(np.searchsorted(s.moments, border)) for border in (since, until))
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


def described(series: Sequence[Series], rule: int) -> str:
    """Compute the fingerprint of series from their names, times and values. rule: the decode rule."""
    rows = []
    for s in series:
        times = _time_formats.Times(s.format, s.moments, s.local, s.times)
        moments = _times.of_the_first_rule(times) if rule == 1 else s.moments
        digest = hashlib.sha256(s.values.tobytes() + moments.tobytes())
        rows.append((s.name, len(s.values), digest.hexdigest()))
    return fingerprint(rows)
