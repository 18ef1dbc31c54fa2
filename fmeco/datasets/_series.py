"""Series of a table, as numbers in time: reading them, their statistics, and windows of them as samples.

All series lie in one tensor of numbers, so that a window is where it begins and how far apart its steps are.
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

from fmeco.core import ConfigError, DataError, Inputs, Samples, clean, listing, nearest
from fmeco.datasets import _columns, _times
from fmeco.datasets._splits import Indices, fingerprint

IRREGULAR = 1.5  # times the usual step between two rows, from which on a gap is told
Floats = NDArray[np.float64]


class Layout(NamedTuple):
    """How a table holds series: one in each column (wide), or one for each value of the column `id` (long)."""

    time: str
    columns: list[str] | None  # the series to take; None = all
    id: str | None
    value: str | None
    missing: str  # error, or previous: a missing value is the one before it


class Series(NamedTuple):
    """A series in order of time. values, moments: (L,), of which nan is missing. times: as the table writes them. rows:
    (L,), where they stand in the table."""

    name: str
    values: Floats
    moments: Floats
    times: list[str]
    rows: Indices


# ---------------------------------------------------------------- reading


def read_series(path: str, layout: Layout) -> tuple[list[Series], list[str]]:
    """The series of a table, and what the user should know of it. Raises DataError that names the row."""
    table = _columns.read_table(path)
    times = _columns.column(table, layout.time, path)
    moments = _times.moments(times, path, layout.time)
    notes: list[str] = []
    if (np.diff(moments) < 0).any() and layout.id is None:
        notes.append(f"{clean(path)}: its rows are not in order of '{clean(layout.time)}': they are sorted")
    found: list[Series] = []
    if layout.id is None:
        names, left_out = _wide(table, layout, path)
        if left_out:
            notes.append(f"{clean(path)}: columns that are no numbers are left out: {listing(left_out)}")
        order = np.argsort(moments, kind="stable")
        ordered = [times[i] for i in order.tolist()]
        for name in names:
            values = _numbers(table[name], path, name, np.arange(len(times)))
            found.append(Series(name, values[order], moments[order], ordered, order))
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
            found.append(Series(name, values, moments[at], [times[i] for i in at.tolist()], at))
    for one in found[:1] if layout.id is None else found:
        notes += _check_times(one, path, whose=f" of '{clean(one.name)}'" if layout.id is not None else "")
    return found, notes


def _wide(table: _columns.Table, layout: Layout, path: str) -> tuple[list[str], list[str]]:
    """The columns that are series; and those that hold something else, unless they were asked for."""
    if layout.columns is not None:
        return _chosen(layout.columns, [name for name in table if name != layout.time], path), []
    cells = {name: _columns.cells(table[name]) for name in table if name != layout.time}
    names = [name for name, one in cells.items() if not one.strange.size and not one.missing.all()]
    if not names:
        raise DataError(f"{clean(path)}: no column of numbers beside '{clean(layout.time)}'")
    return names, [name for name in cells if name not in names]


def _chosen(wanted: Sequence[str] | None, there: Sequence[str] | Mapping[str, Any], path: str) -> list[str]:
    if wanted is None:
        return list(there)
    if absent := [name for name in wanted if name not in there]:
        raise ConfigError(f"{clean(path)}: no series {listing(absent)}{nearest(absent[0], there)}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError("dataset.columns: name each series once, and one at least")
    return list(wanted)


def _numbers(column: Sequence[str], path: str, name: str, rows: Indices) -> Floats:
    """Numbers (N,), nan where they are missing. rows: (N,), where they stand in the table."""
    cells = _columns.cells(column)
    for place in cells.strange.tolist():
        raise DataError(
            f"{clean(path)}: column '{clean(name)}', row {rows[place] + 2}: '{clean(column[place], 40)}' is not a number",
            "name the series in dataset.columns" if len(cells.strange) > len(column) // 2 else "correct it",
        )
    return np.where(cells.missing, np.nan, cells.values)


def _check_times(one: Series, path: str, whose: str) -> list[str]:
    """Raises DataError where two rows are of one moment; a note where some are missing: steps are counted in rows."""
    steps = np.diff(one.moments)
    if (same := np.flatnonzero(steps == 0)).size:
        first, second = sorted((one.rows[same[0]] + 2, one.rows[same[0] + 1] + 2))
        raise DataError(
            f"{clean(path)}: rows {first} and {second}{whose} are of the same time, {clean(one.times[same[0]], 40)}",
            "a table with several series below one another needs dataset.id and dataset.value",
        )
    gaps = np.flatnonzero(steps > IRREGULAR * np.median(steps)) if len(steps) else steps
    if not len(gaps):
        return []
    before, after = one.times[gaps[0]], one.times[gaps[0] + 1]
    return [
        f"{clean(path)}: gaps in time{whose}: {len(gaps)}, the first between {clean(before, 40)} and {clean(after, 40)}; "
        "steps are counted in rows"
    ]


def filled(one: Series, missing: str, path: str) -> tuple[Series, int]:
    """The series without missing values, and how many there were. Each becomes the one before it, the only filling that
    knows nothing of the future. Raises DataError that names the row."""
    gone = np.isnan(one.values)
    if not gone.any():
        return one, 0
    row = int(one.rows[gone.argmax()]) + 2
    if missing == "error":
        raise DataError(
            f"{clean(path)}: series '{clean(one.name)}', row {row}: no value ({int(gone.sum())} in all)",
            "dataset.missing: previous takes the value before it",
        )
    if gone[0]:
        raise DataError(
            f"{clean(path)}: series '{clean(one.name)}', row {row}: no value, and none before it",
            "series that begin at different times belong into a table of `id`, time and `value`",
        )
    last = np.maximum.accumulate(np.where(gone, 0, np.arange(len(gone))))
    return one._replace(values=one.values[last]), int(gone.sum())


# ---------------------------------------------------------------- statistics and splits


def cut_at(series: Sequence[Series], shares: Mapping[str, float], path: str) -> tuple[dict[str, float], str]:
    """The moment from which on values belong to each split, and a note. The shares are of the distinct moments of all
    series: one cut for all, or what one series is tested on could be what another has learned from."""
    moments, first = np.unique(np.concatenate([one.moments for one in series]), return_index=True)
    text = [time for one in series for time in one.times]
    count, at = len(moments), float(len(moments))
    cuts: dict[str, float] = {}
    said: list[str] = []
    for part, share in reversed(list(shares.items())):
        at -= share * count
        place = round(at)
        if not 0 < place < count:
            raise DataError(f"{clean(path)}: {count} moments are too few to split")
        cuts[part] = float(moments[place])
        said.append(f"{part} from {clean(text[first[place]], 40)}")
    return dict(reversed(cuts.items())), f"{clean(path)}: split by time: {', '.join(reversed(said))}"


def statistics(one: Series, before: float, season: int) -> dict[str, Any]:
    """Mean and deviation of a series before a moment; and the mean absolute error there of the forecast that each value
    is that of a season before, in deviations: what MASE is relative to (None where there is none).

    https://doi.org/10.1016/j.ijforecast.2006.03.001 (Hyndman and Koehler 2006).
    """
    x = one.values[(one.moments < before) & ~np.isnan(one.values)]
    x = x if len(x) else np.zeros(1)
    std = float(x.std()) or 1.0
    naive = float(np.abs(x[season:] - x[:-season]).mean()) / std if len(x) > season else 0.0
    return {"name": one.name, "mean": float(x.mean()), "std": std, "naive": naive or None}


# ---------------------------------------------------------------- windows


def windows(values: Tensor, starts: Tensor, length: int, step: int) -> Tensor:
    """Numbers (N, length) of a flat tensor, each row from one of `starts` (N,) on, `step` apart. Where the starts are
    evenly spaced, as those of all windows of a wide table are, no number is copied."""
    gaps = starts.diff()
    if len(starts) and (not len(gaps) or (int(gaps[0]) > 0 and bool((gaps == gaps[0]).all()))):
        gap = int(gaps[0]) if len(gaps) else 1
        return values.as_strided((len(starts), length), (gap, step), int(starts[0]))
    return values[starts[:, None] + step * torch.arange(length)]


class Panel:
    """Series as one tensor of standardised numbers (float32): side by side where all have the same times, else one after
    the other."""

    def __init__(self, series: Sequence[Series], how: Sequence[Mapping[str, Any]]) -> None:
        self.series, self.how = series, how
        scaled = [(one.values - its["mean"]) / its["std"] for one, its in zip(series, how, strict=True)]
        shared = all(one.times is series[0].times for one in series)
        lengths = np.array([len(x) for x in scaled])
        self.offsets = np.arange(len(series)) if shared else np.concatenate([[0], lengths.cumsum()[:-1]])
        self.step = len(series) if shared else 1
        joined = np.stack(scaled, 1).ravel() if shared else np.concatenate(scaled)
        self.values = torch.from_numpy(joined.astype(np.float32))

    def origins(self, context: int, horizon: int, stride: int, since: float, until: float) -> tuple[Indices, Indices]:
        """Every window whose values to be forecast lie in [since, until): the number of its series (N,), and where in
        the series it begins (N,). In order of time: windows that overlap are neighbours.

        What is known may reach back before `since`, what is to be forecast never does. Without a horizon a window is
        both, and lies in it wholly.
        """
        which, begins, ends = [], [], []
        for number, one in enumerate(self.series):
            low, high = np.searchsorted(one.moments, [since, until])
            first = low if not horizon else max(0, low - context)
            at = np.arange(first, high - context - horizon + 1, stride)
            which.append(np.full(len(at), number))
            begins.append(at)
            ends.append(one.moments[at + context - 1])
        series, begin = np.concatenate(which), np.concatenate(begins)
        order = np.lexsort((series, np.concatenate(ends)))
        return series[order], begin[order]


class Windows(Samples):
    """Windows of series: what is known (context,), and with a horizon what comes next (horizon,)."""

    in_memory = True

    def __init__(self, panel: Panel, context: int, horizon: int, stride: int, which: Indices, begins: Indices) -> None:
        self.panel, self.context, self.horizon, self.which, self.begins = panel, context, horizon, which, begins
        starts = torch.from_numpy(panel.offsets[which] + begins * panel.step)
        self.tensors: Inputs = {"series": windows(panel.values, starts, context, panel.step)}
        naive = torch.tensor([math.nan if one["naive"] is None else one["naive"] for one in panel.how])
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
        one = self.panel.series[self.which[index]]
        return f"{one.name} after {one.times[self.begins[index] + self.context - 1]}"


class Latest(Samples):
    """The newest `context` values of each series, of several tables."""

    in_memory = True

    def __init__(self, latest: Sequence[tuple[str, Series, Mapping[str, Any]]], context: int, missing: str) -> None:
        """latest: (path, series, its mean and deviation)."""
        self.latest, self.context, self.missing = latest, context, missing

    def __len__(self) -> int:
        return len(self.latest)

    def name(self, index: int) -> str:
        return self.latest[index][0]

    def __getitem__(self, index: int) -> Inputs:
        path, one, its = self.latest[index]
        if len(one.values) < self.context:
            raise DataError(
                f"{clean(path)}: series '{clean(one.name)}' has {len(one.values)} rows; to forecast, {self.context} are needed"
            )
        begin = len(one.values) - self.context
        before = np.flatnonzero(~np.isnan(one.values[: begin + 1]))
        if self.missing == "previous" and before.size:
            begin = int(before[-1])
        recent, _ = filled(one._replace(values=one.values[begin:], rows=one.rows[begin:]), self.missing, path)
        scaled = (recent.values[-self.context :] - its["mean"]) / its["std"]
        return {"series": torch.from_numpy(scaled.astype(np.float32))}

    def answers(self, index: int, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A forecast in the units of its series, one row for each step."""
        _, one, its = self.latest[index]
        columns = {key: [x * its["std"] + its["mean"] for x in values] for key, values in answer.items()}
        times = following(one.times, one.moments, len(columns["prediction"]))
        return [
            {"series": one.name, "time": time, **{key: x[i] for key, x in columns.items()}}
            for i, time in enumerate(times)
        ]


def following(times: Sequence[str], moments: Floats, count: int) -> list[str]:
    """The times after the last of `times`, by their usual step, written like it: numbers, dates, or months."""
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
    """A fingerprint of series: their names, times and values."""
    rows = []
    for one in series:
        digest = hashlib.sha256(one.values.tobytes() + one.moments.tobytes())
        rows.append((one.name, len(one.values), digest.hexdigest()))
    return fingerprint(rows)
