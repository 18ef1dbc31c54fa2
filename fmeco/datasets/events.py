"""Who took what, and when: clicks, purchases or ratings as a table (CSV, TSV, Parquet), to learn what comes next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fmeco.core import Data, DataSpec, Doc, FilePath, Ge, Gt, Lt
from fmeco.datasets import _event_tables, _histories
from fmeco.datasets._histories import read as read

MODALITY = "events"

SENTENCES = True  # `predict` may be given a history itself, or FILE:USER
TABLES = True  # --dataset TABLE with a checkpoint of events is a table of events
FILES = (".csv", ".tsv", ".parquet")
LAYOUT = ("user", "item", "time", "columns")


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[FilePath, Doc("the table, a row per event")],
    user: Annotated[str | None, Doc("column of users; null = the checkpoint's, else user")] = None,
    item: Annotated[str | None, Doc("column of items; null = the checkpoint's, else item")] = None,
    time: Annotated[
        str | None,
        Doc(
            "column of numbers or ISO dates; null = the checkpoint's, else time; rows of one moment stay in the table's order"
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        Doc("the columns' names, for a table without a header; null = the checkpoint's, else a header"),
    ] = None,
    length: Annotated[
        int | None,
        Doc("how many of the last items of a history are looked at; null = the checkpoint's, else 50"),
        Gt(1),
    ] = None,
    split: Annotated[
        Literal["time", "leave_one_out"],
        Doc("time = the newest events of all are for testing; leave_one_out = each user's last one, which leaks time"),
    ] = "time",
    repeats: Annotated[
        bool | None,
        Doc(
            "may what a user had be recommended again? null = the checkpoint's, else if over 1% of training events are such"
        ),
    ] = None,
    val_fraction: Annotated[float, Doc("of split: time, share of the events to validate on"), Gt(0), Lt(1)] = 0.1,
    test_fraction: Annotated[
        float, Doc("of split: time, share of the events to test on; 0 = none"), Ge(0), Lt(1)
    ] = 0.1,
) -> Data:
    layout = _event_tables.layout(known, user, item, time, columns)
    events = _event_tables.read_events(path, layout)
    if whole:
        parts, notes = _event_tables.all_of_it(events), list[str]()
    elif split == "time":
        parts, notes = _event_tables.by_time(events, path, layout, val_fraction, test_fraction)
    else:
        parts, notes = _event_tables.last_ones(events, path)
    return _histories.build_events(known, events, parts, notes, layout, where=path, length=length, repeats=repeats)


def example(folder: Path) -> dict[str, Any]:
    """Write a small table of events into a folder, and return the keys that read it: for the checks of plug-ins."""
    file = folder / "events.csv"
    file.write_text("\n".join(["user,item,time", *(f"u{i % 12},i{i % 7},{i}" for i in range(160))]), "utf-8")
    return {"path": str(file), "length": 8}
