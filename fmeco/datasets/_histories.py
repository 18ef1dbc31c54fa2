"""Turn users' histories into samples of item ids.

Ids: 0 is padding, 1 an item that training did not see, the items of the training events begin at 2.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fmeco.core import Data, DataError, DataSpec, Inputs, InputSpec, Samples, clean, listing, nearest
from fmeco.datasets import _classes, _splits
from fmeco.datasets._event_tables import PARTS, SUFFIXES, TRAIN, Events, Layout, layout, read_events
from fmeco.datasets._splits import Indices
from fmeco.nn.ids import FIRST_ITEM, UNKNOWN_ITEM

LENGTH = 50
REPEATED = 0.01  # of the training events: with more of them, users come back to what they had


class Span(NamedTuple):
    """Sample i is ids[begin[i] : end[i]], and wanted[i] behind it where there is one. The user's history begins at
    start[i]. All (S,)."""

    start: Indices
    begin: Indices
    end: Indices
    wanted: Indices | None = None

    def at(self, kept: Indices) -> Span:
        return Span(*(None if column is None else column[kept] for column in self))  # type: ignore[arg-type]


class Sequences(Samples):
    """Parts of histories: "tokens" (L,) int64, and "seen" (S,), what the user had before, where the spec asks for it:
    nothing of training sequences, which show what comes next at each of their places."""

    in_memory = True

    def __init__(self, ids: Indices, span: Span, names: Sequence[str], seen: bool, bad: Mapping[int, str] = {}) -> None:
        self.ids, self.span, self.names, self.seen, self.bad = ids, span, names, seen, bad
        self.lengths = torch.from_numpy(span.end - span.begin + (span.wanted is not None))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Inputs:
        if index in self.bad:
            raise DataError(self.bad[index])
        start, begin, end, *wanted = (int(column[index]) for column in self.span if column is not None)
        tokens = torch.from_numpy(np.append(self.ids[begin:end], wanted).astype(np.int64))
        if not self.seen:
            return {"tokens": tokens}
        return {"tokens": tokens, "seen": torch.from_numpy(np.unique(self.ids[start:end]))}

    def name(self, index: int) -> str:
        return self.names[index]


class Histories(NamedTuple):
    """The known items of events as ids (M,), in their order, and how many of them are before each event (N + 1,)."""

    ids: Indices
    before: Indices


def histories(events: Events, number: Mapping[str, int]) -> tuple[Histories, Indices]:
    """Also the ids of all events (N,), UNKNOWN_ITEM where an item has none."""
    names, code = np.unique(events.items, return_inverse=True)
    ids = np.array([number.get(name, UNKNOWN_ITEM) for name in names.tolist()], np.int64)[code]
    there = ids != UNKNOWN_ITEM
    return Histories(ids[there], np.concatenate([[0], there.cumsum()])), ids


def pieces(events: Events, found: Histories, train: NDArray[np.bool_], length: int) -> tuple[Span, list[str]]:
    """Each user's training events, cut from the newest back into pieces of `length` items and the one that comes next.
    The last item of a piece is the first of the one after it, so that every step from item to item is in one."""
    spans: list[tuple[int, int, int]] = []
    names: list[str] = []
    starts = np.flatnonzero(events.place == 0)
    trained = np.add.reduceat(train, starts, dtype=np.int64) if len(starts) else starts
    for start, stop in zip(starts.tolist(), (starts + trained).tolist(), strict=True):
        first, end = int(found.before[start]), int(found.before[stop])
        user = events.users[events.user[start]]
        while end - first > 1:
            begin = max(first, end - length - 1)
            spans.append((first, begin, end))
            names.append(f"user {user}, events {begin - first + 1} to {end - first}")
            end = begin + 1
    columns = np.array(spans, np.int64).reshape(-1, 3).T
    return Span(*columns), names


def steps(events: Events, found: Histories, ids: Indices, at: Indices, length: int) -> Span:
    """For each of the events `at`: what its user had before, at most `length` items, and its item."""
    start, end = found.before[at - events.place[at]], found.before[at]
    return Span(start, np.maximum(start, end - length), end, ids[at])


# ---------------------------------------------------------------- a dataset


def build_events(
    known: DataSpec | None,
    events: Events,
    part: Indices,
    notes: list[str],
    columns: Layout,
    *,
    where: str,
    length: int | None,
    repeats: bool | None,
) -> Data:
    """A Data from events, each of which belongs to the split that `part` (N,) says."""
    how, said = preprocessing(known, events, part == TRAIN, columns, where, length, repeats)
    made, more = splits(events, part, how, where)
    inputs = {"tokens": InputSpec((how["length"] + 1,), "int64", ragged=True)}
    if not how["repeats"]:
        inputs["seen"] = InputSpec((how["ids"],), "int64", ragged=True)
    each = zip(events.user.tolist(), events.place.tolist(), events.items.tolist(), events.row.tolist(), strict=True)
    spec = DataSpec(
        modality="events",
        inputs=inputs,
        preprocessing=how,
        reader="events",
        sizes={name: len(samples) for name, samples in made.items()},
        fingerprint=_splits.fingerprint([(events.users[u], n, i, events.times[row]) for u, n, i, row in each]),
    )
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=(*notes, *said, *more))


def splits(events: Events, part: Indices, how: Mapping[str, Any], where: str) -> tuple[dict[str, Sequences], list[str]]:
    """The samples of each split that has events, and notes on those that are in none."""
    found, ids = histories(events, {name: i for i, name in enumerate(how["items"], FIRST_ITEM)})
    length, seen = how["length"], not how["repeats"]
    made: dict[str, Sequences] = {}
    notes: list[str] = []
    train = part == TRAIN
    if train.any():
        span, names = pieces(events, found, train, length)
        if not names:
            raise DataError(f"{clean(where)}: no user has two training events: nothing comes next")
        made["train"] = Sequences(found.ids, span._replace(start=span.end), names, seen)
        if alone := len(np.unique(events.user[train])) - int((train & (events.place == 1)).sum()):
            notes.append(f"train: {alone:,} users with a single event, after which nothing comes, are left out")
    for name in PARTS[1:]:
        every = np.flatnonzero(part == PARTS.index(name))
        if not every.size:
            continue
        span = steps(events, found, ids, every, length)
        usable = np.flatnonzero(span.end > span.start)
        if not usable.size:
            raise DataError(f"{clean(where)}: no event for {name} has one of a known item before it by the same user")
        span, at = span.at(usable), every[usable]
        names = [f"{where}:{row}" for row in (events.row[at] + events.first_row).tolist()]
        made[name] = Sequences(found.ids, span, names, seen)
        notes += _told(name, len(every), ids[at])
    if (gone := ids == UNKNOWN_ITEM).any():
        notes.append(f"histories: {int(gone.sum()):,} events of items that training did not see are left out of them")
    return made, notes


def _told(name: str, count: int, wanted: Indices) -> list[str]:
    """What a reader of a split's figures must know of the events that nobody could foretell. count: of events that the
    split has; wanted: the items of those that are samples."""
    notes: list[str] = []
    if first := count - len(wanted):
        notes.append(f"{name}: {first:,} events with nothing known before them by their user are left out")
    if missed := int((wanted == UNKNOWN_ITEM).sum()):
        notes.append(
            f"{name}: {missed:,} of {len(wanted):,} events are of items that training did not see, and count as missed"
        )
    return notes


def preprocessing(
    known: DataSpec | None,
    events: Events,
    train: NDArray[np.bool_],
    columns: Layout,
    where: str,
    length: int | None,
    repeats: bool | None,
) -> tuple[dict[str, Any], list[str]]:
    """How events become ids, and notes. A checkpoint's items keep their ids; where it is to be trained on, which shows in
    that `known` has no fingerprint, new items of the training events are appended."""
    notes: list[str] = []
    before: Mapping[str, Any] = known.preprocessing if known is not None and known.preprocessing else {}
    items: list[str] = list(before["items"]) if before else []
    if known is None or not known.fingerprint:
        has = set(items)
        fresh = _classes.natural(sorted(set(events.items[train].tolist()) - has))
        if before and fresh:
            notes.append(f"{clean(where)}: {len(fresh):,} new items are appended to the checkpoint's {len(items):,}")
        items += fresh
    if not items:
        raise DataError(f"{clean(where)}: no event is for training")
    if before and repeats is None:
        repeats = bool(before["repeats"])
    if repeats is None:
        share = _repeated(events, train)
        repeats = share > REPEATED
        allowed = "are recommended again" if repeats else "are not recommended again"
        notes.append(
            f"{clean(where)}: {share:.1%} of the training events are of items that their user had: these {allowed} "
            "(dataset.repeats)"
        )
    return {
        "items": items,
        "ids": FIRST_ITEM + len(items),
        "length": length or (before["length"] if before else LENGTH),
        "repeats": repeats,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in columns._asdict().items()},
    }, notes


def _repeated(events: Events, train: NDArray[np.bool_]) -> float:
    """The share of training events whose user had the item before."""
    _, code = np.unique(events.items, return_inverse=True)
    pairs = np.unique(np.stack([events.user[train], code[train]], 1), axis=0)
    return 1 - len(pairs) / max(1, int(train.sum()))


# ---------------------------------------------------------------- prediction


def read(spec: DataSpec, sources: Sequence[str]) -> Samples:
    """Histories: a table has one of each user, FILE:USER is that of one, and what is no file is the items of a history
    themselves, separated by commas, the newest last."""
    how = spec.preprocessing
    number = {name: i for i, name in enumerate(how["items"], FIRST_ITEM)}
    ids: list[Indices] = []
    names: list[str] = []
    notes: list[str] = []
    bad: dict[int, str] = {}
    for source in sources:
        file, user = _place(source)
        if file is None:
            items = [name.strip() for name in next(csv.reader([source]), [])]
            if strange := [name for name in items if name not in number]:
                bad[len(ids)] = (
                    f"{clean(source)}: no item {listing(strange)} in the catalogue{nearest(strange[0], number)}"
                )
            ids.append(np.array([number[name] for name in items if name in number], np.int64))
            names.append(source)
            continue
        events = read_events(file, layout(spec, None, None, None, None))
        if user is not None and user not in events.users:
            raise DataError(f"{clean(file)}: no user '{clean(user)}'{nearest(user, events.users)}")
        found, every = histories(events, number)
        starts = np.append(np.flatnonzero(events.place == 0), len(events.user))
        gone: list[str] = []
        for name, start, stop in zip(events.users, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if user is None or name == user:
                ids.append(found.ids[found.before[start] : found.before[stop]])
                names.append(f"{file}:{name}")
                gone += events.items[start:stop][every[start:stop] == UNKNOWN_ITEM].tolist()
        if gone:
            notes.append(
                f"{clean(source)}: {len(gone):,} events of items that training did not see are left out of histories: "
                f"{listing(sorted(set(gone)), 5)}"
            )
    for i, one in enumerate(ids):
        if not len(one):
            bad.setdefault(i, f"{clean(names[i])}: no item of this history is known: nothing to go by")
    ends = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    start, end = ends[:-1], ends[1:]
    together = np.concatenate(ids) if ids else np.zeros(0, np.int64)
    span = Span(start, np.maximum(start, end - how["length"]), end)
    samples = Sequences(together, span, names, not how["repeats"], bad)
    samples.notes = tuple(notes)
    return samples


def _place(source: str) -> tuple[str | None, str | None]:
    """(file, user) of FILE or FILE:USER; (None, None) of a history. Raises DataError for a table that is not there."""
    if os.path.exists(source):
        return source, None
    at = source.find(":")
    while at > 0:
        if os.path.isfile(source[:at]):
            return source[:at], source[at + 1 :]
        at = source.find(":", at + 1)
    if Path(source.partition(":")[0]).suffix.lower() in SUFFIXES:
        raise DataError(f"{clean(source)}: no such file")
    return None, None
