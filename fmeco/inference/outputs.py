"""Write predictions to files, in the format of their suffix.

To add a format, add a line to WRITERS.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from fmeco.errors import ConfigError
from fmeco.files import replacing

ERRORS = "backslashreplace"  # halves of surrogate pairs, which UTF-8 cannot hold, become \\ud800, as JSON writes them
Rows = Sequence[Mapping[str, Any]]


def check_place(option: str, path: Path | None, suffixes: Iterable[str], force: bool) -> None:
    """Check an output path before anything is computed.

    option: that names the path, for messages.

    Raises ConfigError for an unknown suffix, and for an existing file without `force`.
    """
    if path is None:
        return
    if path.suffix not in suffixes:
        raise ConfigError(f"{option} {path}: expected a name that ends in {' or '.join(suffixes)}")
    if path.exists() and not force:
        raise ConfigError(f"{path} already exists", "--force replaces it")


def write_rows(rows: Rows, path: Path) -> None:
    """Write the rows of `predict`, all or none, in the format of the path's suffix. Raises DiskError if that fails."""
    with replacing(path) as temporary:
        WRITERS[path.suffix](rows, temporary)


def write_csv(rows: Rows, file: TextIO) -> None:
    """Write rows as CSV to an open file, probabilities with six decimals."""
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["input", "prediction", "probability", "error"])
    writer.writeheader()
    rounded = {key for key in writer.fieldnames if key.endswith("probability")}
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


WRITERS: dict[str, Callable[[Rows, Path], None]] = {
    ".csv": _csv_file,
    ".jsonl": _jsonl_file,
}
