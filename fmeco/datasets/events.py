"""Events of users and items with times, such as clicks, purchases or ratings, in a table (CSV, TSV, Parquet)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fmeco.core import Data, DataSpec, Doc, FilePath, Ge, Gt, Lt, Spelling, Without, decode_rule
from fmeco.datasets import _event_tables, _histories, _stored
from fmeco.datasets._histories import read as read

MODALITY = "events"

SPEC = _stored.Histories
SENTENCES = True  # `predict` also takes a history itself, or FILE:USER
TAKES = {"rows": "dicts or a DataFrame with a user, an item and a time per row"}
TABLES = True  # with a checkpoint of events, --dataset TABLE reads the table as events
FILES = (".csv", ".tsv", ".parquet")
LAYOUT = ("user", "item", "time", "columns", "missing")


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[FilePath, Doc("the table, one row per event")],
    user: Annotated[str | None, Doc("column of users; null = the checkpoint's, else user")] = None,
    item: Annotated[str | None, Doc("column of items; null = the checkpoint's, else item")] = None,
    time: Annotated[
        str | None,
        Doc(
            "column of dates or numbers; null = the checkpoint's, else time; events of the same time keep the table's order"
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        Doc("names of all columns, for a table without a header; null = the checkpoint's, else read the header"),
    ] = None,
    spelling: Annotated[Spelling, Without("decimal")] = Spelling(),
    length: Annotated[
        int | None,
        Doc("number of last items of a history that the model sees; null = the checkpoint's, else 50"),
        Gt(1),
    ] = None,
    split: Annotated[
        Literal["time", "leave_one_out"],
        Doc(
            "time = test on the newest events of all users; leave_one_out = test on each user's last event, where training has "
            "later events of other users"
        ),
    ] = "time",
    repeats: Annotated[
        bool | None,
        Doc(
            "recommend items that the user already had; null = the checkpoint's, else true if over 1% of the training events are "
            "repeats"
        ),
    ] = None,
    val_fraction: Annotated[float, Doc("with split time: share of the events to validate on"), Gt(0), Lt(1)] = 0.1,
    test_fraction: Annotated[
        float, Doc("with split time: share of the events to test on; 0 = no test split"), Ge(0), Lt(1)
    ] = 0.1,
) -> Data:
    layout = _event_tables.layout(known, user, item, time, columns)
    words = _event_tables.words_for_missing(known, spelling)
    events, notes = _event_tables.read_events(path, layout, known, words)
    if whole:
        parts, more = _event_tables.all_of_it(events), list[str]()
    elif split == "time":
        parts, more = _event_tables.by_time(events, path, layout, val_fraction, test_fraction, decode_rule(known))
    else:
        parts, more = _event_tables.last_ones(events, path)
    return _histories.build_events(
        known, events, parts, [*notes, *more], layout, missing=words, where=path, length=length, repeats=repeats
    )


def example(folder: Path) -> dict[str, Any]:
    """Write a small table of events into a folder, and return the keys that read it: for the checks of plug-ins."""
    file = folder / "events.csv"
    file.write_text("\n".join(["user,item,time", *(f"u{i % 12},i{i % 7},{i}" for i in range(160))]), "utf-8")
    return {"path": str(file), "length": 8}
