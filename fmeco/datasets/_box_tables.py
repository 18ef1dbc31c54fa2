"""Read boxes from a table with a row for each."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmeco.core import ConfigError, DataError, DataSpec, clean, decode_rule, listing
from fmeco.datasets import _box_lists, _columns, _files, _splits
from fmeco.datasets._box_lists import NAMED

SIZE = ("width", "height")  # columns, if the table has them


class Layout(NamedTuple):
    """Hold the keys of the config that name a table's columns."""

    image: str
    label: str
    corners: Sequence[str]
    split: str | None
    images: str | None  # folder of the images, if it is not the table's


@_columns.collector_paused()
def read(known: DataSpec | None, path: str, layout: Layout) -> _box_lists.Found:
    """Read a table. A row with empty cells in place of a box is an image without objects.

    Raises DataError that names the line, ConfigError for an absent column.
    """
    table, _ = _columns.read_separated(path, decode=decode_rule(known))
    if len(layout.corners) != 4 or len(set(layout.corners)) != 4:
        raise ConfigError("dataset.box_columns: expected 4 columns: left, top, right, bottom")
    root = layout.images or os.path.dirname(path) or "."
    written = _columns.column(table, layout.image, path, "name the column: dataset.image_column=COLUMN")
    if blank := [line for line, name in enumerate(written, 2) if not name]:
        raise DataError(f"{clean(path)}: no image in line {listing(blank)}")
    spelled = {name: posixpath.normpath(_files.on_disk(Path(root), name)) for name in dict.fromkeys(written)}
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(written):
        rows.setdefault(spelled[name], []).append(row)
    parts = _parts(table, path, layout.split, rows)
    labels = _columns.column(table, layout.label, path, "name the column: dataset.label_column=COLUMN")
    hint = "name the columns: dataset.box_columns=[LEFT, TOP, RIGHT, BOTTOM]"
    corners = list(zip(*(_columns.column(table, name, path, hint) for name in layout.corners), strict=True))
    sizes = list(zip(*(table[name] for name in SIZE), strict=True)) if all(name in table for name in SIZE) else []
    classes: dict[str, int] = {}
    listed: dict[str, _box_lists.Listed] = {}
    for part, names in parts.items():
        one = listed[part] = _box_lists.Listed("{source}:{number} ({image})")
        for name in names:
            _image(one, path, name, rows[name], sizes)
            for row in _objects(path, name, rows[name], corners, labels):
                where = f"{clean(path)}:{row + 2}"
                box = [_box_lists.number_of(cell, where) for cell in corners[row]]
                one.object(classes.setdefault(labels[row], len(classes)), row + 2, box)
    return _box_lists.Found(root, listed, list(classes), False, [])


def _image(
    listed: _box_lists.Listed, path: str, name: str, rows: Sequence[int], sizes: Sequence[tuple[str, ...]]
) -> None:
    """Add an image, with the size that its rows say. Raises DataError for rows that say two."""
    said = {sizes[row] for row in rows} if sizes else {("", "")}
    if len(said) > 1:
        raise DataError(f"{clean(path)}: the rows of {clean(name)} say {len(said)} sizes of the picture")
    listed.image(name, path, _box_lists.size_of(said.pop(), f"{clean(path)}:{rows[0] + 2}"))


def _objects(
    path: str, name: str, rows: Sequence[int], corners: Sequence[tuple[str, ...]], labels: Sequence[str]
) -> list[int]:
    """Return the rows of an image that hold a box. Raises DataError for rows that hold a part of one."""
    empty = [row for row in rows if not any(corners[row])]
    for row in rows:
        filled = [*corners[row], labels[row]]
        if any(filled) and not all(filled):
            raise DataError(
                f"{clean(path)}:{row + 2}: a box needs all four numbers and a label; an image without objects has none of them"
            )
    if empty and len(rows) > 1:
        raise DataError(
            f"{clean(path)}:{empty[0] + 2}: {clean(name)} has no objects by this row, and other rows, such as "
            f"{next(row for row in rows if row != empty[0]) + 2}"
        )
    return [] if empty else list(rows)


def _parts(
    table: _columns.Table, path: str, split: str | None, rows: Mapping[str, Sequence[int]]
) -> dict[str, list[str]]:
    """Divide images by a column. Raises DataError for images with rows in two splits."""
    if split is None:
        return {"path": list(rows)}
    column = _columns.column(table, split, path)
    decided = _splits.split_by_column(column, path, split)
    part_of = np.empty(len(column), dtype=object)
    for part, at in decided.items():
        part_of[at] = part
    parts = {name: {part_of[row] for row in own} for name, own in rows.items()}
    if both := [name for name, own in parts.items() if len(own) > 1]:
        raise DataError(f"{clean(path)}: in two splits by column '{clean(split)}': {listing(both, NAMED)}")
    return {part: [name for name in rows if part in parts[name]] for part in decided}
