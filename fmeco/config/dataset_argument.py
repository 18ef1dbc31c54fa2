"""Turn `--dataset X` into a config section: find the dataset plug-in that reads a folder or file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmeco.data import parquet
from fmeco.errors import ConfigError, clean, listing
from fmeco.plugins.registry import Plugin, find, plugins


def table_header(path: Path) -> list[str]:
    """The column names of a CSV, TSV or Parquet file; [] for a folder."""
    if not path.is_file():
        return []
    if path.suffix.lower() == ".parquet":
        return parquet.columns(str(path))
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = file.readline()
    return [name.strip().strip('"') for name in line.split(max(",;\t", key=line.count))]


def dataset_section(text: str, reader: str | None = None) -> dict[str, Any] | str:
    """--dataset X as a config section: an existing path first, else a name. reader: the dataset plug-in of the checkpoint
    that it is for, which may read tables in its own way. Raises ConfigError."""
    path = Path(text)
    if path.is_dir():
        return {"name": _reader_of_folder(path), "path": text}
    if path.is_file():
        return {"name": _reader_of_file(path, reader), "path": text}
    if (os.sep in text and text.count("/") != 1) or text.startswith((".", "~", "/")):
        raise ConfigError(f"--dataset {clean(text)}: no such file or folder")
    try:
        find("datasets", text)
    except ConfigError as error:
        raise ConfigError(f"--dataset {clean(text)}: no such path, and {error.message}", *error.hints) from None
    return text


def section_for_use(text: str, trained: Mapping[str, Any], reader: str) -> dict[str, Any] | str:
    """Turn --dataset X into a config section for a checkpoint that is used on it, not trained further.

    A file is read by the dataset that the checkpoint was trained on, with the layout of that one's own table. trained: its
    dataset section. reader: the dataset plug-in that reads its new inputs.
    """
    path, known = Path(text), plugins("datasets")
    candidates = [known[name] for name in (trained.get("name"), reader) if name in known]
    own = next((plugin for plugin in candidates if path.is_file() and path.suffix.lower() in plugin.files), None)
    if own is None:
        return dataset_section(text)
    inherited = _inherited(own, trained, path) if own.name == trained.get("name") else {}
    return {"name": own.name, **inherited, "path": text}


def _inherited(plugin: Plugin, trained: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Take over the layout of the table in training; of columns that a table may lack, those that are there."""
    options = {plugin.renamed.get(key, key): value for key, value in trained.items()}
    found: dict[str, Any] = {}
    for name in plugin.layout:
        key = name.removesuffix("?")
        if key not in options:
            continue
        value = options[key]
        if name.endswith("?"):
            columns = table_header(path)
            value = [one for one in value if one in columns] if isinstance(value, list) else value
            if not isinstance(value, list) and value not in columns:
                continue
        found[key] = value
    return found


def _usual(readers: list[Plugin]) -> Plugin | None:
    """Choose the dataset that is taken where nothing tells which."""
    return next((plugin for plugin in reversed(readers) if plugin.fallback), None)


def _folder_readers() -> tuple[dict[str, Plugin], Plugin | None]:
    """Map the suffixes of files to the dataset that reads them from class folders; the usual one comes second."""
    readers = [plugin for plugin in plugins("datasets").values() if plugin.suffixes]
    return {suffix: plugin for plugin in readers for suffix in plugin.suffixes}, _usual(readers)


def _reader_of_folder(folder: Path) -> str:
    """Find the dataset for what lies below a folder: the usual one, unless it has no files there and another one has."""
    known, usual = _folder_readers()
    seen = set[str]()
    for inside, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if inside != str(folder):  # loose files have no class
            seen |= {known[suffix].name for file in files if (suffix := os.path.splitext(file)[1].lower()) in known}
        if usual is not None and usual.name in seen:
            break
    return usual.name if usual is not None and (usual.name in seen or not seen) else min(seen)


def _reader_of_file(file: Path, reader: str | None) -> str:
    """Find the dataset for a file: the checkpoint's (`reader`), if every table that it is given is its own; else by the files
    that the table names; else the usual one, or the only one, of those that read such files."""
    known, suffix = plugins("datasets"), file.suffix.lower()
    readers = [plugin for plugin in known.values() if suffix in plugin.files]
    if not readers:
        suffixes = sorted({suffix for plugin in known.values() for suffix in plugin.files})
        raise ConfigError(
            f"--dataset {clean(file)}: expected a folder, a file ({', '.join(suffixes)}), or a dataset's name"
        )
    if reader in known and known[reader].tables and known[reader] in readers:
        return reader
    if any(plugin.lists for plugin in readers) and (listed := _reader_of_listed(file)) is not None:
        return listed
    chosen = _usual(readers) or (readers[0] if len(readers) == 1 else None)
    if chosen is None:
        names = listing([plugin.name for plugin in readers])
        raise ConfigError(
            f"--dataset {clean(file)}: {names} read such files", "say which in a config: dataset: {name: ...}"
        )
    return chosen.name


def _reader_of_listed(file: Path) -> str | None:
    """Find the dataset for a table of files by what its first row names; None for a table without the column `path`."""
    header = table_header(file)
    if "path" not in header:
        return None
    at, (known, usual) = header.index("path"), _folder_readers()
    with (
        io.StringIO(parquet.as_csv(str(file), 1))
        if file.suffix.lower() == ".parquet"
        else open(file, encoding="utf-8-sig", errors="replace", newline="")
    ) as text:
        first = text.readline()
        rows = csv.reader(text, delimiter=max(",;\t", key=first.count))
        row = next((row for row in rows if len(row) > at), None)
    named = known.get(os.path.splitext(row[at].strip())[1].lower(), usual) if row is not None else usual
    if named is None:
        return None
    listers = [plugin.name for plugin in plugins("datasets").values() if plugin.lists == named.name]
    return listers[-1] if listers else named.name
