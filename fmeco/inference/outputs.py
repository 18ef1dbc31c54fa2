"""Write predictions to files, in the format of their suffix.

To add a format, add a line to WRITERS.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from fmeco.core.data import Samples
from fmeco.errors import ConfigError
from fmeco.files import disk_error, replacing
from fmeco.inference.model import Model, Row, in_columns

ERRORS = "backslashreplace"  # halves of surrogate pairs, which UTF-8 cannot hold, become \\ud800, as JSON writes them
Rows = Sequence[Mapping[str, Any]]
Save = Callable[[str, Mapping[str, Any], Path], tuple[str, Path]]


def check_place(option: str, path: Path | None, suffixes: Iterable[str], force: bool) -> None:
    """Check an output path before anything is computed.

    option: that names the path, for messages.

    Raises ConfigError for an unknown suffix, for an existing file without `force`, and for a folder that holds files.
    A name without a suffix is a folder, if `suffixes` has "".
    """
    if path is None:
        return
    if path.suffix not in suffixes:
        named = [f"that ends in {' or '.join(filter(None, suffixes))}", *(["of a folder"] if "" in suffixes else [])]
        raise ConfigError(f"{option} {path}: expected a name {', or '.join(named)}")
    if path.is_dir() if not path.suffix else False:
        if any(path.iterdir()) and not force:
            raise ConfigError(f"{path} already holds files", "--force replaces those of the same names")
    elif path.exists() and not force:
        raise ConfigError(f"{path} already exists", "--force replaces it")


def write_rows(rows: Rows, path: Path) -> None:
    """Write the rows of `predict`, all or none, in the format of the path's suffix. Raises DiskError if that fails."""
    with replacing(path) as temporary:
        WRITERS[path.suffix](rows, temporary)


def in_cells(rows: Rows) -> list[dict[str, Any]]:
    """Leave out what no cell of a table can hold: answers that lie on the image."""
    return [{key: value for key, value in row.items() if not isinstance(value, Tensor)} for row in rows]


def write_folder(model: Model, samples: Samples, folder: Path, save: Save) -> list[dict[str, Any]]:
    """Predict samples, and write what lies on images to a folder: a file per image, and index.csv with the other answers.

    save: writes an answer to a file whose path begins as given; returns the name of the answer and the file.

    Answers are written as they come, so that a million masks need not be in memory, each file whole or not at all, and index.csv
    last. Returns its rows. Raises DiskError.
    """
    names, rows = set[str](), list[Row]()
    for found in model.answers(samples):
        made: dict[str, str] = {}
        if found.error is None:
            name = _unused(Path(found.input).stem or "input", names)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                called, file = save(found.input, found.answer, folder / name)
            except OSError as error:
                raise disk_error(error, folder / name) from None
            made = {called: file.name}
        rows += [row._replace(answer={**row.answer, **made}) for row in model.rows(samples, found)]
    table = in_cells(in_columns(rows, model.columns(samples)))
    with replacing(folder / "index.csv") as temporary:
        _csv_file(table, temporary)
    return table


def _unused(name: str, names: set[str]) -> str:
    """Choose a file name that is not taken: inputs of several folders may be called the same."""
    chosen, number = name, 2
    while chosen in names:
        chosen, number = f"{name}-{number}", number + 1
    names.add(chosen)
    return chosen


def write_csv(rows: Rows, file: TextIO) -> None:
    """Write rows as CSV to an open file, probabilities and areas with six decimals."""
    rows = in_cells(rows)
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["input", "prediction", "probability", "error"])
    writer.writeheader()
    rounded = {key for key in writer.fieldnames if key.endswith("probability") or key.startswith("area/")}
    writer.writerows(
        {key: f"{value:.6f}" if key in rounded and value is not None else value for key, value in row.items()}
        for row in rows
    )


def _csv_file(rows: Rows, path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="", errors=ERRORS) as file:
        write_csv(rows, file)


def _jsonl_file(rows: Rows, path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="", errors=ERRORS) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in in_cells(rows))


def _coco_file(rows: Rows, path: Path) -> None:
    """Write detected objects as a dataset of COCO, https://cocodataset.org/#format-data: images, annotations with scores, categories.

    Raises ConfigError for rows that are not objects with a place.
    """
    if any(column not in row for row in rows for column in PLACE):
        raise ConfigError(f"{path.suffix} is for detected objects", "write other predictions to a .csv or .jsonl file")
    files = {name: number for number, name in enumerate(dict.fromkeys(row["input"] for row in rows), 1)}
    found = [row for row in rows if row["left"] is not None]
    names = {name: number for number, name in enumerate(sorted({row["prediction"] for row in found}), 1)}
    annotations = []
    for number, row in enumerate(found, 1):
        left, top, right, bottom = (row[column] for column in PLACE)
        annotations.append(
            {
                "id": number,
                "image_id": files[row["input"]],
                "category_id": names[row["prediction"]],
                "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
                "area": round((right - left) * (bottom - top), 2),
                "iscrowd": 0,
                "score": row["probability"],
            }
        )
    body = {
        "images": [{"id": number, "file_name": name} for name, number in files.items()],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in names.items()],
    }
    path.write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8", errors=ERRORS)


PLACE = ("left", "top", "right", "bottom")  # columns of an object, in pixels

WRITERS: dict[str, Callable[[Rows, Path], None]] = {
    ".csv": _csv_file,
    ".jsonl": _jsonl_file,
    ".json": _coco_file,
}
