"""Read tables of file paths and labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fmeco.core import ConfigError, DataError, DataSpec, Spelling, Splitting, clean, decode_rule, listing
from fmeco.datasets import _columns, _groups, _numbers, _splits, _targets, _transcripts
from fmeco.datasets._files import Files, FileSamples, Labelled, check_once, on_disk, times_of
from fmeco.files import absence


class Layout(NamedTuple):
    """Hold the keys of the config that name a table's columns and say what they hold."""

    split_column: str | None = None
    root: str | None = None  # folder of the files, if it is not the table's
    path_column: str = "path"
    label_column: str | Sequence[str] = "label"
    task: str = "auto"  # text: labels are transcripts
    lowercase: bool = False  # convert transcripts to lower case
    separator: str = "|"  # between the labels of a multilabel cell
    spelling: Spelling = Spelling()  # of missing labels and of numbers


def in_table(
    kind: type[FileSamples],
    known: DataSpec | None,
    whole: bool,
    path: str,
    layout: Layout,
    splitting: Splitting,
) -> Labelled:
    """Read a table of files: check the files, read the labels, and split the rows.

    kind: class that reads the files.
    whole: assign all rows to the test split.
    Raises DataError that names the row, ConfigError for an absent column.
    """
    table, char = _columns.read_separated(path, decode=decode_rule(known))
    folder = Path(layout.root or os.path.dirname(path) or ".")
    files = [on_disk(folder, file) for file in _columns.column(table, layout.path_column, path)]
    labels, of_targets = _targets.target_columns(table, layout.label_column, path)
    every = listed(kind, files, folder, path, "paths are relative to the table's folder, or to dataset.root")
    old = known.targets if known is not None else {}
    texts_of_rows = _transcripts_of(labels, layout, splitting, path) if layout.task == "text" else None
    rules = _numbers.Rules.of(known, layout.spelling, semicolons=char == ";")
    _targets.check_decimal(rules, list(of_targets.values()))
    targets = (
        _targets.read_targets(
            labels,
            old,
            _targets.Layout(of_targets, layout.task, separator=layout.separator, classes=splitting.classes),
            rules,
            where=clean(path),
            names=[f"{clean(path)}:{line}" for line in range(2, len(files) + 2)],
        )
        if texts_of_rows is None
        else _targets.without_targets(len(files))
    )
    kept = targets.kept
    names = [files[i] for i in kept]
    columns, groups = {name: table[name] for name in table if name != layout.path_column}, None
    if splitting.group_split is not None:
        groups = _groups.find(table, splitting.group_split, files, path)
        columns[groups.called] = groups.names
        groups = groups._replace(names=[groups.names[i] for i in kept])
    decided = None
    if layout.split_column is not None:
        column = _columns.column(table, layout.split_column, path)
        decided = _splits.split_by_column([column[i] for i in kept], path, layout.split_column)
    parts = _splits.assign(
        names, targets.codes, splitting, whole=whole, decided=decided, groups=groups and groups.names
    )
    columns = _columns.take(_columns.grouping(columns, [groups.called] if groups is not None else []), kept)
    described, values = targets.targets, {part: dict[str, Any](targets.at(at)) for part, at in parts.items()}
    if texts_of_rows is not None:
        described["label"], texts = _transcripts.encode(texts_of_rows, parts, old.get("label"), path)
        values = {part: {"label": each} for part, each in texts.items()}
    files_kept = every.take(kept)
    rows = list(
        zip(names, files_kept.sizes.tolist(), *([column[i] for i in kept] for column in labels.values()), strict=True)
    )
    return Labelled(
        {part: (files_kept.take(at), values[part]) for part, at in parts.items()},
        described,
        _splits.fingerprint([rows[i] for at in parts.values() for i in at]),
        targets.notes,
        {part: _columns.take(columns, at) for part, at in parts.items()},
        groups.called if groups is not None else None,
    )


def listed(
    kind: type[FileSamples],
    files: Sequence[str],
    folder: Path,
    path: str,
    hint: str = "paths are relative to the table's folder",
) -> Files:
    """Look up the file of each row. Raises DataError for rows without a file, files named twice, and absent files.

    hint: what to say beside an absent file.
    """
    if blank := [line for line, file in enumerate(files, 2) if not file]:
        raise DataError(f"{clean(path)}: no {kind.one} in line {listing(blank)}")
    check_once(files, path)
    status = [_status(kind, folder / file, path, line, hint) for line, file in enumerate(files, 2)]
    return Files.of(folder, files, [size for size, _ in status], [time for _, time in status])


def _transcripts_of(labels: Mapping[str, Sequence[str]], layout: Layout, splitting: Splitting, path: str) -> list[str]:
    """Read the transcript of each row. Raises ConfigError if the config chooses classes."""
    if splitting.classes is not None:
        raise ConfigError("dataset.classes: transcripts have no classes to choose", "leave the key out")
    return _transcripts.transcripts(labels, path, layout.lowercase)


def _status(kind: type[FileSamples], file: Path, table: str, line: int, hint: str) -> tuple[int, int]:
    """Return a file's size in bytes and its `times_of`. Raises DataError if the file does not exist."""
    try:
        status = file.stat()
        if not file.is_file():
            raise DataError(f"{clean(table)}:{line}: the {kind.one} {clean(file)}: {absence(file)}")
        return status.st_size, times_of(status)
    except OSError:
        raise DataError(
            f"{clean(table)}:{line}: the {kind.one} {clean(file)} does not exist",
            hint,
        ) from None
