"""A CSV or Parquet table with a column of image paths and a column of labels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from fmeco.core import (
    Classes,
    Color,
    Data,
    DataError,
    DataSpec,
    Doc,
    FilePath,
    Fold,
    ImageSize,
    LimitPerClass,
    LimitSeed,
    TestFraction,
    ValFraction,
    clean,
    listing,
)
from fmeco.datasets import _images, _splits, _tables


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[FilePath, Doc("the CSV file; image paths are relative to its folder")],
    image_column: str = "path",
    label_column: Annotated[
        str | list[str], Doc("column of the label; several are tasks of objective: multi_task")
    ] = "label",
    split_column: Annotated[
        str | None, Doc("column that says train, val or test; null = split by val_fraction")
    ] = None,
    root: Annotated[FilePath | None, Doc("folder of the images, if it is not the CSV's")] = None,
    task: Annotated[
        Literal["auto", "class", "multilabel", "number"],
        Doc("what the label is; auto = number if all labels are decimals, else class"),
    ] = "auto",
    separator: Annotated[str, Doc("between the labels of one image, for multilabel")] = "|",
    classes: Classes = None,
    limit_per_class: LimitPerClass = None,
    limit_seed: LimitSeed = 0,
    val_fraction: ValFraction = 0.2,
    test_fraction: TestFraction = 0.0,
    split: Fold = None,
    image_size: ImageSize = None,
    color: Color = None,
) -> Data:
    table = _tables.read_table(path)
    files = _tables.column(table, image_column, path)
    labels = _tables.target_columns(table, label_column, path)
    folder = Path(root or os.path.dirname(path) or ".")
    if blank := [i + 2 for i, file in enumerate(files) if not file]:
        raise DataError(f"{clean(path)}: no image in line {listing(blank)}")
    if twice := sorted({file for file in files if files.count(file) > 1} if len(set(files)) < len(files) else []):
        raise DataError(f"{clean(path)}: listed more than once: {listing(twice)}")
    found = [_status(folder / file, path, line + 2) for line, file in enumerate(files)]

    targets = _tables.read_targets(
        labels,
        known.targets if known is not None else {},
        classes,
        where=clean(path),
        names=[f"{clean(path)}:{line}" for line in range(2, len(files) + 2)],
        kind_of=lambda values: _kind(values, task),
        separator=separator,
    )
    kept, codes = targets.kept, targets.codes
    files, found = [files[i] for i in kept], [found[i] for i in kept]
    if split_column is not None:
        parts = _tables.split_by_column(
            [_tables.column(table, split_column, path)[i] for i in kept], path, split_column
        )
    elif whole:
        parts = {"test": np.arange(len(files))}
    else:
        parts = _splits.split(files, codes, val_fraction, test_fraction, split)
    if "train" in parts:
        parts["train"] = _splits.limit(files, codes, parts["train"], limit_per_class, limit_seed)
    spec = dataclasses.replace(
        _images.image_spec(known, size=image_size, color=color),
        targets=targets.targets,
        sizes={part: len(at) for part, at in parts.items()},
        fingerprint=_splits.fingerprint(
            [
                (files[i], found[i][0], *(column[kept[i]] for column in labels.values()))
                for at in parts.values()
                for i in at
            ]
        ),
    )
    listed = _images.Files.of(folder, files, [size for size, _ in found], [time for _, time in found])
    made = {part: _images.ImageFiles(listed.take(at), targets.at(at), spec.preprocessing) for part, at in parts.items()}
    columns = _tables.grouping({name: values for name, values in table.items() if name != image_column})
    for part, at in parts.items():
        made[part].groups = {name: [values[i] for i in kept[at].tolist()] for name, values in columns.items()}
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=tuple(targets.notes))


def _kind(labels: Sequence[str], task: str) -> str:
    return task if task != "auto" else "number" if all(map(_tables.is_decimal, labels)) else "class"


def _status(file: Path, table: str, line: int) -> tuple[int, int]:
    """Size in bytes and time of change in ns."""
    try:
        status = file.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:
        raise DataError(
            f"{clean(table)}:{line}: the image {clean(file)} does not exist",
            "paths are relative to the CSV's folder, or to dataset.root",
        ) from None
