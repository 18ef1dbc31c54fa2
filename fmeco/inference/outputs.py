"""Predict samples, and write the answers to files, in the format of their suffix, or to a folder.

To add a format for rows, add a line to WRITERS. Dataset plug-ins bring formats for what lies on their samples.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from fmeco.core.data import Samples
from fmeco.data import parquet
from fmeco.errors import ConfigError, DataError
from fmeco.files import disk_error, replacing
from fmeco.inference.inputs import in_part
from fmeco.inference.model import Answered, Model, Row, in_columns

ERRORS = "backslashreplace"  # halves of surrogate pairs, which UTF-8 cannot hold, become \\ud800, as JSON writes them
ROUNDED = ("area/", "probability/", "probability_")  # columns besides those that end in "probability"
Rows = Sequence[Mapping[str, Any]]
Save = Callable[[Samples, int, Mapping[str, Any], Path], Mapping[str, Path]]
Write = Callable[[Sequence[tuple[Samples, int, Mapping[str, Any]]], Path], None]


def is_folder(path: str | Path) -> bool:
    """Tell whether an output path names a folder: one that exists, or a name without a suffix or with a slash at its end."""
    return str(path).endswith("/") or not Path(path).suffix or Path(path).is_dir()


def check_place(option: str, path: Path | None, suffixes: Iterable[str], force: bool, or_folder: bool = False) -> None:
    """Check the path of an output file before anything is computed.

    option: that names the path, for messages. or_folder: whether it could also be a folder, for messages.

    Raises ConfigError for an unknown suffix, for an existing file without `force`, and for a format whose package is missing.
    """
    if path is None:
        return
    if path.suffix not in suffixes or path.is_dir():
        *others, last = suffixes
        wanted = f"that ends in {', '.join(others)}{' or ' if others else ''}{last}" + (
            ", or of a folder" if or_folder else ""
        )
        raise ConfigError(f"{option} {path}: expected a name {wanted}")
    if path.exists() and not force:
        raise ConfigError(f"{path} already exists", "--force replaces it")
    if path.suffix == ".parquet":
        parquet.library()


def check_folder(option: str, folder: Path, force: bool) -> None:
    """Check the path of an output folder. Raises ConfigError for a file, and for a folder that holds files without `force`."""
    if folder.is_dir():
        if any(folder.iterdir()) and not force:
            raise ConfigError(f"{folder} already holds files", "--force replaces those of the same names")
    elif folder.exists():
        raise ConfigError(f"{option} {folder}: this is a file, and not a folder")


def predicted(model: Model, samples: Samples, *, tensors: bool) -> list[dict[str, Any]]:
    """Predict samples. Returns rows as `Model.predict` does. tensors: keep answers that lie on the image.

    Raises DataError if no sample could be read.
    """
    rows = [row for found in model.answers(samples) for row in _rows(model, samples, found, tensors)]
    return _table(model, samples, rows)


def write_rows(model: Model, samples: Samples, path: Path) -> list[dict[str, Any]]:
    """Predict samples, and write the rows, all or none, in the format of the path's suffix.

    Returns the rows, without what lies on images. Raises DataError if no sample could be read, and DiskError.
    """
    rows = predicted(model, samples, tensors=False)
    with replacing(path) as temporary:
        WRITERS[path.suffix](rows, temporary)
    return rows


def write_answers(model: Model, samples: Samples, path: Path, write: Write) -> list[dict[str, Any]]:
    """Predict samples, and write the answers to those that could be read to a file, all or none.

    write: writes samples, each with its position and answer, to a file. Returns and raises what `write_rows` does.
    """
    rows, answers = list[Row](), []
    for found in model.answers(samples):
        rows += _rows(model, samples, found)
        if found.error is None:
            answers.append((*in_part(samples, found.position), found.answer))
    table = _table(model, samples, rows)
    with replacing(path) as temporary:
        write(answers, temporary)
    return table


def write_folder(model: Model, samples: Samples, folder: Path, save: Save) -> list[dict[str, Any]]:
    """Predict samples, and write what lies on images to a folder: files for each image, and index.csv with the other answers.

    save: writes the answer to the sample at a position to files whose paths begin as given. Returns columns of index.csv, each
        with a file; there, paths are relative to the folder.

    Answers are written as they come, so that a million masks need not be in memory, each file whole or not at all, and index.csv
    last. An answer that cannot be saved becomes a row with the error. Returns the rows of index.csv. Raises as `write_rows` does.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from None
    root, names, rows, files = os.path.realpath(folder), set[str](), list[Row](), list[dict[str, str]]()
    for found in model.answers(samples):
        made: dict[str, str] = {}
        if found.error is None:
            stem = folder / _unused(Path(found.input).stem or "input", names)
            try:
                saved = save(*in_part(samples, found.position), found.answer, stem)
                made = {column: os.path.relpath(os.path.abspath(file), root) for column, file in saved.items()}
            except DataError as error:
                found = found._replace(answer={}, error=error.message)
            except OSError as error:
                raise disk_error(error, stem) from None
        new = _rows(model, samples, found)
        rows += new
        files += [made] * len(new)
    columns = dict.fromkeys(column for made in files for column in made)
    table = [
        {**{column: made.get(column) for column in columns}, **row}
        for made, row in zip(files, _table(model, samples, rows), strict=True)
    ]
    with replacing(folder / "index.csv") as temporary:
        _csv_file(table, temporary)
    return table


def _rows(model: Model, samples: Samples, found: Answered, tensors: bool = False) -> list[Row]:
    """Turn an answer into rows of `predict`. tensors: keep what lies on the image, which no cell of a table can hold."""
    rows = model.rows(samples, found)
    if tensors:
        return rows
    return [
        row._replace(answer={key: value for key, value in row.answer.items() if not isinstance(value, Tensor)})
        for row in rows
    ]


def _table(model: Model, samples: Samples, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Give all rows the same columns. Raises DataError if all are errors."""
    if rows and all(row.error for row in rows):
        raise DataError(f"none of the {len(rows)} inputs could be read; the first: {rows[0].error}")
    return in_columns(rows, model.columns(samples))


def _unused(name: str, names: set[str]) -> str:
    """Choose a file name that is not taken: inputs of several folders may be called the same."""
    chosen, number = name, 2
    while chosen in names:
        chosen, number = f"{name}-{number}", number + 1
    names.add(chosen)
    return chosen


def write_csv(rows: Rows, file: TextIO) -> None:
    """Write rows as CSV to an open file, probabilities and areas with six decimals."""
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["input", "prediction", "probability", "error"])
    writer.writeheader()
    rounded = {key for key in writer.fieldnames if key.endswith("probability") or key.startswith(ROUNDED)}
    writer.writerows(
        {key: f"{value:.6f}" if key in rounded and value is not None else value for key, value in row.items()}
        for row in rows
    )


def _csv_file(rows: Rows, path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="", errors=ERRORS) as file:
        write_csv(rows, file)


def _jsonl_file(rows: Rows, path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="", errors=ERRORS) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


WRITERS: dict[str, Callable[[Rows, Path], None]] = {".csv": _csv_file, ".jsonl": _jsonl_file, ".parquet": parquet.write}
