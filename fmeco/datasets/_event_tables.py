"""Read tables of events, and split them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmeco.core import (
    ConfigError,
    DataError,
    DataSpec,
    Given,
    Spelling,
    clean,
    decode_rule,
    listing,
    nearest,
    same_modality,
)
from fmeco.data.delimiters import delimiter
from fmeco.datasets import _columns, _ids, _text_files, _times
from fmeco.datasets._numbers import Rules
from fmeco.datasets._splits import Indices

TRAIN, VAL, TEST = range(3)

PARTS = ("train", "val", "test")

SUFFIXES = (".csv", ".tsv", ".parquet")


class Layout(NamedTuple):
    """Hold the names of a table's columns. columns: the names of all columns, if the table has no header."""

    user: str
    item: str
    time: str
    columns: tuple[str, ...] | None


class Events(NamedTuple):
    """Hold N events, sorted by user, and by time within each user.

    users: names of the users.
    user: position in `users` (N,).
    place: number of earlier events of the same user (N,).
    items: names of the items (N,).
    row: position in the table (N,).
    times: times of the table's rows, as text.
    first_row: row number of the table's first row, for messages.
    pattern: how the times are written.
    """

    users: list[str]
    user: Indices
    place: Indices
    items: NDArray[np.str_]
    row: Indices
    times: list[str]
    first_row: int
    pattern: str


def layout(
    known: DataSpec | None, user: str | None, item: str | None, time: str | None, columns: Sequence[str] | None
) -> Layout:
    """Choose the columns: the config's, else the checkpoint's (`known`), else user, item and time."""
    same_modality(known, "events")
    prep: Mapping[str, Any] = known.preprocessing if known is not None else {}
    before = Layout(*(prep[key] for key in Layout._fields)) if "user" in prep else Layout("user", "item", "time", None)
    named = tuple(columns) if columns is not None else before.columns
    return Layout(user or before.user, item or before.item, time or before.time, tuple(named) if named else None)


def words_for_missing(known: DataSpec | None, spelling: Spelling = Spelling()) -> frozenset[str]:
    """Choose the words for a missing user or item: the config's (`spelling`), else the checkpoint's (`known`), else the defaults.

    By decode rule 1, only an empty cell is missing.
    """
    stored: Mapping[str, Any] = known.preprocessing if known is not None else {}
    if decode_rule(known) == 1 and spelling.missing is None and "missing" not in stored:
        return frozenset({""})
    return Rules.of(known, spelling).missing


def read_events(
    path: str | Given, layout: Layout, known: DataSpec | None, missing: frozenset[str]
) -> tuple[Events, list[str]]:
    """Read the events of a table, or of rows that were passed in Python.

    known: the checkpoint's spec, whose decode rule, items and format of times hold.
    missing: words for a missing user or item.
    Returns (events, notes). Raises DataError that names the row, ConfigError for an absent column.
    """
    if layout.columns is not None and _has_header(path, layout):
        layout = layout._replace(columns=None)
    table = _columns.read_table(path, layout.columns, decode=decode_rule(known))
    first = 2 if layout.columns is None else 1
    for key, name in zip(("user", "item", "time"), (layout.user, layout.item, layout.time), strict=True):
        if name not in table:
            hints = [f"name it: --set dataset.{key}=COLUMN"]
            if layout.columns is None:
                hints.append("name the columns of a table without a header: dataset.columns=[user, item, time]")
            raise ConfigError(
                f"{clean(path)}: dataset.{key}: no column '{clean(name)}'{nearest(name, table)}; it has: {listing(table, 20)}",
                *hints,
            )
    rule, prep = decode_rule(known), known.preprocessing if known is not None else {}
    ids, notes = list[list[str]](), list[str]()
    for name, theirs in ((layout.user, None), (layout.item, prep.get("items"))):
        where = f"{clean(path)}: column '{clean(name)}'"
        read, said = _ids.read_ids(table[name], missing, "dataset.missing", theirs, where, first, rule)
        ids.append(read)
        notes += said
    users, code = np.unique(np.array(ids[0]), return_inverse=True)
    moment, pattern, said = _times.moments(
        table[layout.time], str(path), layout.time, first, rule=rule, known=prep.get("times")
    )
    row = np.lexsort((moment, code))  # stable: events of the same time keep the table's order
    user = code[row].astype(np.int64)
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    count = np.arange(len(user)) - np.repeat(starts, np.diff(starts, append=len(user)))
    items = np.array(ids[1])[row]
    return Events(users.tolist(), user, count, items, row, table[layout.time], first, pattern), [*notes, *said]


def _has_header(path: str | Given, layout: Layout) -> bool:
    """Tell whether a table has a header, even though the training data had none."""
    if isinstance(path, Given) or Path(path).suffix.lower() == ".parquet":
        return True
    try:
        text = _text_files.beginning(path)
    except OSError:
        return False  # reading the table will report the error
    names = {name.strip() for name in next(csv.reader(text.splitlines()[:1], delimiter=delimiter(text)), [])}
    return {layout.user, layout.item, layout.time} <= names


def all_of_it(events: Events) -> Indices:
    """Assign all events to the test split. Returns the split of each event (N,)."""
    return np.full(len(events.user), TEST)


def by_time(events: Events, path: str, layout: Layout, val: float, test: float, rule: int) -> tuple[Indices, list[str]]:
    """Split at two points in time, the same for all users: train, then validation, then test.

    A deployed model predicts events that are later than its training data, and so does this split.
    rule: the decode rule.
    Returns (split of each event (N,), notes).
    """
    rows, notes = _times.split_by_time(
        events.times, path, layout.time, val, test, events.first_row, rule=rule, known=events.pattern
    )
    part = np.full(len(events.user), TRAIN)
    for name, at in rows.items():
        part[np.isin(events.row, at)] = PARTS.index(name)
    return part, notes[-1:]  # reading the events gave the notes on the times


def last_ones(events: Events, path: str) -> tuple[Indices, list[str]]:
    """Split each user's events: the last one is for testing, the one before for validation (leave one out).

    Users with fewer than three events are for training only. Returns (split of each event (N,), notes); raises DataError if
    all users are.
    """
    total = np.bincount(events.user)[events.user]
    left = total - events.place
    part = np.where(total < 3, TRAIN, np.where(left == 1, TEST, np.where(left == 2, VAL, TRAIN)))
    if not (part == TEST).any():
        raise DataError(f"{clean(path)}: dataset.split: leave_one_out needs users with three or more events")
    note = (
        f"{clean(path)}: each user's last event is for testing, but training has later events of other users: metrics are "
        "better than they will be in use (https://arxiv.org/abs/2507.16289). dataset.split: time avoids this leak"
    )
    return part, [note]
