"""Turn `--dataset X` into a config section: find the dataset plug-in that reads a folder or file."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from fmeco.data import parquet
from fmeco.errors import ConfigError, clean
from fmeco.plugins.registry import find, plugins


def table_header(path: Path) -> list[str]:
    """The column names of a CSV, TSV or Parquet file; [] for a folder."""
    if not path.is_file():
        return []
    if path.suffix.lower() == ".parquet":
        return parquet.columns(str(path))
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = file.readline()
    return [name.strip().strip('"') for name in line.split(max(",;\t", key=line.count))]


def _suffixes() -> dict[str, str]:
    """Suffix of a file -> the dataset plug-in that reads it from class folders."""
    return {suffix: plugin.name for plugin in plugins("datasets").values() for suffix in plugin.suffixes}


def _reader_of(folder: Path) -> str:
    """The dataset plug-in for what lies below a folder: images, unless there are none and another plug-in's files are."""
    known, seen = _suffixes(), set[str]()
    for inside, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if inside != str(folder):  # loose files have no class
            seen |= {known[suffix] for file in files if (suffix := os.path.splitext(file)[1].lower()) in known}
        if "image_folder" in seen:
            break
    return "image_folder" if "image_folder" in seen or not seen else min(seen)


def _reader_of_table(file: Path) -> str:
    """The dataset plug-in for a table: of its rows, or of the files that its column `path` names."""
    header = table_header(file)
    if "path" not in header:
        return "csv_table"
    at, known = header.index("path"), _suffixes()
    with (
        io.StringIO(parquet.as_csv(str(file), 1))
        if file.suffix.lower() == ".parquet"
        else open(file, encoding="utf-8-sig", errors="replace", newline="")
    ) as text:
        first = text.readline()
        rows = csv.reader(text, delimiter=max(",;\t", key=first.count))
        row = next((row for row in rows if len(row) > at), None)
    reader = known.get(os.path.splitext(row[at].strip())[1].lower()) if row is not None else None
    return "csv_images" if reader in (None, "image_folder") else str(reader)


def dataset_section(text: str, reader: str | None = None) -> dict[str, Any] | str:
    """--dataset X as a config section: an existing path first, else a name. reader: the dataset plug-in of the checkpoint
    that it is for, which may read tables in its own way. Raises ConfigError."""
    path = Path(text)
    if path.is_dir():
        return {"name": _reader_of(path), "path": text}
    if path.is_file():
        if path.suffix.lower() in (".jsonl", ".ndjson", ".txt"):
            return {"name": "text", "path": text}
        if path.suffix.lower() not in (".csv", ".tsv", ".parquet"):
            raise ConfigError(
                f"--dataset {clean(text)}: a folder, a table (CSV, TSV, Parquet), texts (JSONL, TXT), or a dataset's name"
            )
        known = plugins("datasets").get(reader or "")
        return {"name": known.name if known is not None and known.tables else _reader_of_table(path), "path": text}
    if (os.sep in text and text.count("/") != 1) or text.startswith((".", "~", "/")):
        raise ConfigError(f"--dataset {clean(text)}: no such file or folder")
    try:
        find("datasets", text)
    except ConfigError as error:
        raise ConfigError(f"--dataset {clean(text)}: no such path, and {error.message}", *error.hints) from None
    return text
