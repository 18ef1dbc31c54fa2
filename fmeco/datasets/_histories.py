"""Turn users' histories into samples of item ids.

Ids: 0 is padding, 1 is an item that training did not see, and the items of the training events begin at 2.
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

from fmeco.core import (
    Data,
    DataError,
    DataSpec,
    Given,
    Inputs,
    InputSpec,
    Samples,
    clean,
    decode_rule,
    listing,
    nearest,
)
from fmeco.datasets import _classes, _ids, _splits
from fmeco.datasets._event_tables import PARTS, SUFFIXES, TRAIN, Events, Layout, layout, read_events, words_for_missing
from fmeco.datasets._splits import Indices
from fmeco.nn.ids import FIRST_ITEM, UNKNOWN_ITEM

LENGTH = 50  # default maximum number of items of a history
REPEATED = 0.01  # share of repeated items in the training events above which items are recommended again


class Span(NamedTuple):
    """Hold where S samples lie in an array of ids.

    Sample i is ids[begin[i] : end[i]], followed by wanted[i] if there is one. Its user's history begins at start[i].
    """

    start: Indices
    begin: Indices
    end: Indices
    wanted: Indices | None = None

    def at(self, kept: Indices) -> Span:
        return Span(*(None if column is None else column[kept] for column in self))  # type: ignore[arg-type]


class Sequences(Samples):
    """Read parts of histories: "tokens" (L,) int64, and with seen=True "seen" (S,), the distinct earlier items of the user.

    "seen" is empty for training sequences, because they have a target at each position.
    bad: index -> error message of a sample that cannot be used.
    """

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
    """Hold the ids of the known items, in the order of events (M,), and their number before each event (N + 1,)."""

    ids: Indices
    before: Indices


def histories(events: Events, number: Mapping[str, int]) -> tuple[Histories, Indices]:
    """Number the items of events. number: item -> id.

    Returns (histories of the known items, ids of all events (N,) with UNKNOWN_ITEM for unknown items).
    """
    names, code = np.unique(events.items, return_inverse=True)
    ids = np.array([number.get(name, UNKNOWN_ITEM) for name in names.tolist()], np.int64)[code]
    is_known = ids != UNKNOWN_ITEM
    return Histories(ids[is_known], np.concatenate([[0], is_known.cumsum()])), ids


def pieces(events: Events, known_items: Histories, train: NDArray[np.bool_], length: int) -> tuple[Span, list[str]]:
    """Cut each user's training events, from the newest back, into pieces of `length` items and the next one.

    The last item of a piece is also the first item of the following piece, so that each pair of consecutive items is in
    exactly one piece. Returns (their places, their names).
    """
    spans: list[tuple[int, int, int]] = []
    names: list[str] = []
    starts = np.flatnonzero(events.place == 0)
    trained = np.add.reduceat(train, starts, dtype=np.int64) if len(starts) else starts
    for start, stop in zip(starts.tolist(), (starts + trained).tolist(), strict=True):
        first, end = int(known_items.before[start]), int(known_items.before[stop])
        user = events.users[events.user[start]]
        while end - first > 1:
            begin = max(first, end - length - 1)
            spans.append((first, begin, end))
            names.append(f"user {user}, events {begin - first + 1} to {end - first}")
            end = begin + 1
    columns = np.array(spans, np.int64).reshape(-1, 3).T
    return Span(*columns), names


def steps(events: Events, known_items: Histories, ids: Indices, at: Indices, length: int) -> Span:
    """Make a sample of each event in `at`: the user's last `length` items before it, and its own item as the target."""
    start, end = known_items.before[at - events.place[at]], known_items.before[at]
    return Span(start, np.maximum(start, end - length), end, ids[at])


# ---------------------------------------------------------------- a dataset


def build_events(
    known: DataSpec | None,
    events: Events,
    part: Indices,
    notes: list[str],
    columns: Layout,
    *,
    missing: frozenset[str],
    where: str,
    length: int | None,
    repeats: bool | None,
) -> Data:
    """Build a Data from events. part: the split of each event (N,), TRAIN, VAL or TEST. missing: words for a missing id."""
    prep, prep_notes = preprocessing(known, events, part == TRAIN, columns, where, length, repeats)
    if prep.get("decode", 1) > 1 or missing != {""}:
        prep["missing"] = sorted(missing - {""})
    made, more = splits(events, part, prep, where)
    inputs = {"tokens": InputSpec((prep["length"] + 1,), "int64", ragged=True)}
    if not prep["repeats"]:
        inputs["seen"] = InputSpec((prep["ids"],), "int64", ragged=True)
    values = zip(events.user.tolist(), events.place.tolist(), events.items.tolist(), events.row.tolist(), strict=True)
    spec = DataSpec(
        modality="events",
        inputs=inputs,
        preprocessing=prep,
        reader="events",
        sizes={name: len(samples) for name, samples in made.items()},
        fingerprint=_splits.fingerprint([(events.users[u], n, i, events.times[row]) for u, n, i, row in values]),
    )
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=(*notes, *prep_notes, *more))


def splits(
    events: Events, part: Indices, prep: Mapping[str, Any], where: str
) -> tuple[dict[str, Sequences], list[str]]:
    """Make the samples of each split that has events. Returns (split -> samples, notes on events that are left out).

    Raises DataError for a split without a usable event.
    """
    known_items, ids = histories(events, {name: i for i, name in enumerate(prep["items"], FIRST_ITEM)})
    length, seen = prep["length"], not prep["repeats"]
    made: dict[str, Sequences] = {}
    notes: list[str] = []
    train = part == TRAIN
    if train.any():
        span, names = pieces(events, known_items, train, length)
        if not names:
            raise DataError(f"{clean(where)}: no user has two training events, so no next item can be learned")
        made["train"] = Sequences(known_items.ids, span._replace(start=span.end), names, seen)
        if alone := len(np.unique(events.user[train])) - int((train & (events.place == 1)).sum()):
            notes.append(f"train: {alone:,} users with a single event, which has no next item, are left out")
    for name in PARTS[1:]:
        every = np.flatnonzero(part == PARTS.index(name))
        if not every.size:
            continue
        span = steps(events, known_items, ids, every, length)
        usable = np.flatnonzero(span.end > span.start)
        if not usable.size:
            raise DataError(f"{clean(where)}: {name}: no event has an earlier event of the same user with a known item")
        span, at = span.at(usable), every[usable]
        names = [f"{where}:{row}" for row in (events.row[at] + events.first_row).tolist()]
        made[name] = Sequences(known_items.ids, span, names, seen)
        notes += _unpredictable(name, len(every), ids[at])
    if (gone := ids == UNKNOWN_ITEM).any():
        notes.append(f"histories: {int(gone.sum()):,} events of items that training did not see are left out")
    return made, notes


def _unpredictable(name: str, count: int, wanted: Indices) -> list[str]:
    """Return notes on the events of a split that cannot be predicted, which affect its metrics.

    count: number of events of the split.
    wanted: target items of its samples.
    """
    notes: list[str] = []
    if first := count - len(wanted):
        notes.append(f"{name}: {first:,} events without a known earlier item of their user are left out")
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
    """Number the items, and collect the preprocessing. Returns (preprocessing, notes).

    A checkpoint's items (`known`) keep their ids. In finetuning, when `known` has no fingerprint, new items of the training
    events are appended. Raises DataError if there are no items.
    """
    notes: list[str] = []
    before: Mapping[str, Any] = known.preprocessing if known is not None and "items" in known.preprocessing else {}
    items: list[str] = list(before["items"]) if before else []
    rule = decode_rule(known)
    if known is None or not known.fingerprint:
        old_items = set(items)
        fresh = _classes.natural(sorted(set(events.items[train].tolist()) - old_items))
        if before and fresh:
            notes.append(f"{clean(where)}: {len(fresh):,} new items are appended to the checkpoint's {len(items):,}")
        items += fresh
    if not items:
        raise DataError(f"{clean(where)}: no event is in the training split")
    if before and repeats is None:
        repeats = bool(before["repeats"])
    if repeats is None:
        share = _repeated(events, train)
        repeats = share > REPEATED
        allowed = "are recommended again" if repeats else "are not recommended again"
        notes.append(
            f"{clean(where)}: {share:.1%} of the training events repeat an earlier item of their user: such items {allowed} "
            "(dataset.repeats)"
        )
    return {
        "items": items,
        "ids": FIRST_ITEM + len(items),
        "length": length or (before["length"] if before else LENGTH),
        "repeats": repeats,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in columns._asdict().items()},
        **({"decode": rule, "times": before.get("times", events.pattern)} if rule > 1 else {}),
    }, notes


def _repeated(events: Events, train: NDArray[np.bool_]) -> float:
    """Compute the share of training events whose user had the same item before."""
    _, code = np.unique(events.items, return_inverse=True)
    pairs = np.unique(np.stack([events.user[train], code[train]], 1), axis=0)
    return 1 - len(pairs) / max(1, int(train.sum()))


# ---------------------------------------------------------------- prediction


def read(spec: DataSpec, sources: Sequence[str | Given]) -> Samples:
    """Read histories.

    Each source is a table, with one history per user; FILE:USER, the history of one user; rows that were passed in Python;
    or the items of a history themselves, separated by commas, the newest last. Raises DataError for absent tables and users.
    """
    prep = spec.preprocessing
    number = {name: i for i, name in enumerate(prep["items"], FIRST_ITEM)}
    missing = words_for_missing(spec)
    ids: list[Indices] = []
    names: list[str] = []
    notes: list[str] = []
    bad: dict[int, str] = {}
    for source in sources:
        file, user = (source, None) if isinstance(source, Given) else _file_and_user(source)
        if file is None:
            assert isinstance(source, str)
            written = [name.strip() for name in next(csv.reader([source]), [])]
            items = [name if name in number else _ids.whole_id(name) for name in written]
            if strange := [name for name in items if name not in number]:
                bad[len(ids)] = (
                    f"{clean(source)}: no item {listing(strange)} in the catalogue{nearest(strange[0], number)}"
                )
            ids.append(np.array([number[name] for name in items if name in number], np.int64))
            names.append(source)
            continue
        events, more = read_events(file, layout(spec, None, None, None, None), spec, missing)
        notes += more
        if user is not None and user not in events.users:
            user = _ids.whole_id(user)
        if user is not None and user not in events.users:
            raise DataError(f"{clean(file)}: no user '{clean(user)}'{nearest(user, events.users)}")
        known_items, every = histories(events, number)
        starts = np.append(np.flatnonzero(events.place == 0), len(events.user))
        gone: list[str] = []
        for name, start, stop in zip(events.users, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if user is None or name == user:
                ids.append(known_items.ids[known_items.before[start] : known_items.before[stop]])
                names.append(f"{file}:{name}")
                gone += events.items[start:stop][every[start:stop] == UNKNOWN_ITEM].tolist()
        if gone:
            notes.append(
                f"{clean(source)}: {len(gone):,} events of items that training did not see are left out: "
                f"{listing(sorted(set(gone)), 5)}"
            )
    for i, history in enumerate(ids):
        if not len(history):
            bad.setdefault(
                i, f"{clean(names[i])}: the model knows no item of this history, so it cannot predict the next"
            )
    ends = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    start, end = ends[:-1], ends[1:]
    together = np.concatenate(ids) if ids else np.zeros(0, np.int64)
    span = Span(start, np.maximum(start, end - prep["length"]), end)
    samples = Sequences(together, span, names, not prep["repeats"], bad)
    samples.notes = tuple(notes)
    return samples


def _file_and_user(source: str) -> tuple[str | None, str | None]:
    """Parse FILE or FILE:USER into (file, user); (None, None) for a history. Raises DataError for an absent table."""
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
