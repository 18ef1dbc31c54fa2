"""Read tables of events, and split them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmeco.core import ConfigError, DataError, DataSpec, clean, listing, nearest, same_modality
from fmeco.datasets import _columns, _times
from fmeco.datasets._splits import Indices

TRAIN, VAL, TEST = range(3)

PARTS = ("train", "val", "test")

SUFFIXES = (".csv", ".tsv", ".parquet")


class Layout(NamedTuple):
    """The columns of a table. columns: the names of all, where it has no header."""

    user: str
    item: str
    time: str
    columns: tuple[str, ...] | None


class Events(NamedTuple):
    """N events in the order of users, each user's in order of time. user (N,): their position in `users`. place (N,): how
    many events of the same user are before. row (N,): the position in the table, whose first row has the number
    first_row. times: of the table's rows."""

    users: list[str]
    user: Indices
    place: Indices
    items: NDArray[np.str_]
    row: Indices
    times: list[str]
    first_row: int


def layout(
    known: DataSpec | None, user: str | None, item: str | None, time: str | None, columns: Sequence[str] | None
) -> Layout:
    """What a config says of the columns; else what the checkpoint does."""
    same_modality(known, "events")
    how: Mapping[str, Any] = known.preprocessing if known is not None and known.preprocessing else {}
    before = Layout(*(how[key] for key in Layout._fields)) if how else Layout("user", "item", "time", None)
    named = tuple(columns) if columns is not None else before.columns
    return Layout(user or before.user, item or before.item, time or before.time, tuple(named) if named else None)


def read_events(path: str, how: Layout) -> Events:
    """The events of a table. Raises DataError that names the row, ConfigError for a column that is not there."""
    if Path(path).suffix.lower() == ".parquet" or (how.columns is not None and _has_header(path, how)):
        how = how._replace(columns=None)
    table, first = _columns.read_table(path, how.columns), 2 if how.columns is None else 1
    for key, name in zip(("user", "item", "time"), (how.user, how.item, how.time), strict=True):
        if name not in table:
            hints = [f"name it: --set dataset.{key}=COLUMN"]
            if how.columns is None:
                hints.append("name the columns of a table without a header: dataset.columns=[user, item, time]")
            raise ConfigError(
                f"{clean(path)}: dataset.{key}: no column '{clean(name)}'{nearest(name, table)}; it has: {listing(table, 20)}",
                *hints,
            )
    for name in (how.user, how.item):
        if blank := [row + first for row, value in enumerate(table[name]) if not value]:
            raise DataError(f"{clean(path)}: no value of column '{clean(name)}' in row {listing(blank)}")
    users, code = np.unique(np.array(table[how.user]), return_inverse=True)
    moment = _times.moments(table[how.time], path, how.time, first)
    row = np.lexsort((moment, code))  # is stable: events of one moment stay in the table's order
    user = code[row].astype(np.int64)
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    count = np.arange(len(user)) - np.repeat(starts, np.diff(starts, append=len(user)))
    return Events(users.tolist(), user, count, np.array(table[how.item])[row], row, table[how.time], first)


def _has_header(path: str, how: Layout) -> bool:
    """Whether the first line of a table holds the names of the columns, though the training data's had no header."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            line = file.readline()
    except OSError:
        return False  # reading it says what is wrong
    names = {name.strip() for name in next(csv.reader([line], delimiter=max(",;\t", key=line.count)), [])}
    return {how.user, how.item, how.time} <= names


def all_of_it(events: Events) -> Indices:
    return np.full(len(events.user), TEST)


def by_time(events: Events, path: str, how: Layout, val: float, test: float) -> tuple[Indices, list[str]]:
    """Everything before a moment for training, for all users alike: a model is used on what comes after its data."""
    rows, note = _times.split_by_time(events.times, path, how.time, val, test, events.first_row)
    part = np.full(len(events.user), TRAIN)
    for name, at in rows.items():
        part[np.isin(events.row, at)] = PARTS.index(name)
    return part, [note]


def last_ones(events: Events, path: str) -> tuple[Indices, list[str]]:
    """Of users with three events or more, the last one for testing and the one before for validation."""
    total = np.bincount(events.user)[events.user]
    left = total - events.place
    part = np.where(total < 3, TRAIN, np.where(left == 1, TEST, np.where(left == 2, VAL, TRAIN)))
    if not (part == TEST).any():
        raise DataError(f"{clean(path)}: dataset.split: leave_one_out needs users with three events or more")
    note = (
        f"{clean(path)}: each user's last event is for testing, while training has later ones of other users: figures are "
        "better than they will be in use (https://arxiv.org/abs/2507.16289). dataset.split: time does not leak"
    )
    return part, [note]
