"""A CSV table with a column of image paths and a column of labels."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from fmeco.core import (
    Classes,
    Color,
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Doc,
    FilePath,
    Fold,
    ImageSize,
    LimitPerClass,
    LimitSeed,
    Target,
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
    label_column: str = "label",
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
    table = _tables.read_csv(path)
    files = _tables.column(table, image_column, path)
    labels = _tables.column(table, label_column, path)
    folder = Path(root or os.path.dirname(path) or ".")
    if blank := [
        i + 2
        for i, (file, label) in enumerate(zip(files, labels, strict=True))
        if not file or _tables.is_missing(label)
    ]:
        raise DataError(f"{clean(path)}: no image or no label in line {listing(blank)}")
    if twice := sorted({file for file in files if files.count(file) > 1} if len(set(files)) < len(files) else []):
        raise DataError(f"{clean(path)}: listed more than once: {listing(twice)}")
    found = [_status(folder / file, path, line + 2) for line, file in enumerate(files)]

    old = known.targets.get("label") if known is not None else None
    kind = (
        old.kind
        if old is not None
        else task
        if task != "auto"
        else ("number" if all(_tables.is_decimal(label) for label in labels) else "class")
    )
    targets, target, codes, kept, notes = _target(labels, kind, classes, separator, old, path)
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
        targets={"label": target},
        sizes={part: len(at) for part, at in parts.items()},
        fingerprint=_splits.fingerprint(
            [(files[i], found[i][0], labels[kept[i]]) for at in parts.values() for i in at]
        ),
    )
    listed = _images.Files.of(folder, files, [size for size, _ in found], [time for _, time in found])
    made = {
        part: _images.ImageFiles(listed.take(at), {"label": targets[at]}, spec.preprocessing)
        for part, at in parts.items()
    }
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=tuple(notes))


def _target(
    labels: list[str],
    kind: str,
    classes: list[str | int] | None,
    separator: str,
    old: Target | None,
    path: str,
) -> tuple[Tensor, Target, _splits.Indices, _splits.Indices, list[str]]:
    """Labels as (tensor, Target, codes to stratify by, positions kept, notes)."""
    everything = np.arange(len(labels))
    if kind == "number":
        values = _tables.numbers(labels, path, "label")
        return values, old or Target("number"), np.zeros(len(labels), np.int64), everything, []
    if kind == "class":
        kept, codes, names, notes = _splits.encode(labels, classes, old, clean(path))
        return torch.from_numpy(codes), Target("class", names), codes, kept, notes
    if classes is not None:
        raise ConfigError("dataset.classes: choosing classes is not possible for multilabel data")
    sets = [[part.strip() for part in label.split(separator) if part.strip()] for label in labels]
    _, _, names, notes = _splits.encode([name for one in sets for name in one], None, old, clean(path))
    values = torch.zeros(len(labels), len(names))
    for row, one in enumerate(sets):
        values[row, [names.index(name) for name in one]] = 1
    return values, Target("multilabel", names), np.zeros(len(labels), np.int64), everything, notes


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
