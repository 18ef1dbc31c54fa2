"""Read tables that name files, with their labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmeco.core import ConfigError, DataError, DataSpec, clean, listing
from fmeco.datasets import _columns, _groups, _splits, _targets, _transcripts
from fmeco.datasets._files import Files, FileSamples, Labelled, check_once


def in_table(
    kind: type[FileSamples],
    known: DataSpec | None,
    whole: bool,
    *,
    path: str,
    path_column: str,
    label_column: str | Sequence[str],
    split_column: str | None,
    root: str | None,
    task: str,
    separator: str,
    classes: list[str | int] | None,
    limit_per_class: int | None,
    limit_seed: int,
    val_fraction: float,
    test_fraction: float,
    fold: Mapping[str, int] | None,
    speaker: str | None = None,
    lowercase: bool = False,
) -> Labelled:
    """Files that a table names, and their labels. speaker: a column, or a regular expression that finds the speaker in a
    file's name; what was said by one stays in one split. task text: labels are transcripts, `lowercase` or as they are."""
    table = _columns.read_table(path)
    files = _columns.column(table, path_column, path)
    labels = _targets.target_columns(table, label_column, path)
    folder = Path(root or os.path.dirname(path) or ".")
    if blank := [i + 2 for i, file in enumerate(files) if not file]:
        raise DataError(f"{clean(path)}: no {kind.one} in line {listing(blank)}")
    check_once(files, path)
    found = [_status(kind, folder / file, path, line + 2) for line, file in enumerate(files)]

    old = known.targets if known is not None else {}
    text = task == "text"
    if text:
        if classes is not None:
            raise ConfigError("dataset.classes: choosing classes is not possible for transcripts")
        transcripts, every = _transcripts.transcripts(labels, path, lowercase), np.arange(len(files))
        targets = _targets.Targets({}, {}, np.zeros(len(files), np.int64), every, [])
    else:
        targets = _targets.read_targets(
            labels,
            old,
            classes,
            where=clean(path),
            names=[f"{clean(path)}:{line}" for line in range(2, len(files) + 2)],
            kind_of=lambda values: _kind(values, task),
            separator=separator,
        )
    kept, codes = targets.kept, targets.codes
    speakers: list[str] | None = None
    if speaker is not None:
        said = speaker in table or "(" not in speaker  # what has no group can only be meant as a column
        speakers = _columns.column(table, speaker, path) if said else _groups.speakers(files, speaker)
        if said and (blank := [i + 2 for i, name in enumerate(speakers) if not name]):
            raise DataError(f"{clean(path)}: no speaker in line {listing(blank)}")
        speakers = [speakers[i] for i in kept]
    files, found = [files[i] for i in kept], [found[i] for i in kept]
    if split_column is not None:
        parts = _splits.split_by_column(
            [_columns.column(table, split_column, path)[i] for i in kept], path, split_column
        )
    elif whole:
        parts = {"test": np.arange(len(files))}
    elif speakers is not None:
        parts = _groups.by_speaker(speakers, val_fraction, test_fraction, fold)
    else:
        parts = _splits.split(files, codes, val_fraction, test_fraction, fold)
    if speakers is not None:
        _groups.apart({part: [speakers[i] for i in at] for part, at in parts.items()})
    if "train" in parts:
        parts["train"] = _splits.limit(files, codes, parts["train"], limit_per_class, limit_seed)
    columns = _columns.grouping({name: values for name, values in table.items() if name != path_column})
    if speakers is not None:
        columns["speaker"] = [""] * len(table[path_column])
        for i, name in zip(kept.tolist(), speakers, strict=True):
            columns["speaker"][i] = name
    described, values = targets.targets, {part: dict[str, Any](targets.at(at)) for part, at in parts.items()}
    if text:
        described["label"], said_in = _transcripts.encode(transcripts, parts, old.get("label"), path)
        values = {part: {"label": texts} for part, texts in said_in.items()}
    listed = Files.of(folder, files, [size for size, _ in found], [time for _, time in found])
    return Labelled(
        {part: (listed.take(at), values[part]) for part, at in parts.items()},
        described,
        _splits.fingerprint(
            [
                (files[i], found[i][0], *(column[kept[i]] for column in labels.values()))
                for at in parts.values()
                for i in at
            ]
        ),
        targets.notes,
        {part: _columns.take(columns, kept[at]) for part, at in parts.items()},
    )


def _kind(labels: Sequence[str], task: str) -> str:
    return task if task != "auto" else "number" if all(map(_columns.is_decimal, labels)) else "class"


def _status(kind: type[FileSamples], file: Path, table: str, line: int) -> tuple[int, int]:
    """Size in bytes and time of change in ns."""
    try:
        status = file.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:
        raise DataError(
            f"{clean(table)}:{line}: the {kind.one} {clean(file)} does not exist",
            "paths are relative to the CSV's folder, or to dataset.root",
        ) from None
