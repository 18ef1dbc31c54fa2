"""Turn `--dataset X` into a config section, by finding the dataset plug-in that reads a folder or file."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmeco.config.check import choose
from fmeco.data import parquet
from fmeco.data.delimiters import SAMPLE, delimiter
from fmeco.errors import ConfigError, clean, listing
from fmeco.files import absence, regular
from fmeco.plugins.registry import Plugin, find, plugins


def table_header(path: Path) -> list[str]:
    """Read the column names of a CSV, TSV or Parquet file; [] for a folder."""
    if not path.is_file():
        return []
    if path.suffix.lower() == ".parquet":
        return parquet.columns(str(path))
    with open(path, encoding="utf-8-sig", errors="replace", opener=regular) as file:
        text = file.read(SAMPLE)
    return [name.strip().strip('"') for name in text.partition("\n")[0].split(delimiter(text))]


def dataset_section(text: str, reader: str | None = None, modality: str = "") -> dict[str, Any] | str:
    """Turn `--dataset X` into a config section. An existing path takes precedence over a dataset's name.

    reader: dataset plug-in of the checkpoint in use; it may claim all tables (`TABLES = True`).
    modality: of the checkpoint's data; a dataset plug-in for such data is preferred.

    Raises ConfigError.
    """
    path = Path(text)
    if path.is_dir():
        return {"name": _reader_of_folder(path, modality), "path": text}
    if path.is_file():
        return {"name": _reader_of_file(path, reader, modality), "path": text}
    if path.exists():
        raise ConfigError(f"--dataset {clean(text)}: {absence(path)}")
    if (os.sep in text and text.count("/") != 1) or text.startswith((".", "~", "/")):
        raise ConfigError(f"--dataset {clean(text)}: no such file or folder")
    try:
        find("datasets", text)
    except ConfigError as error:
        raise ConfigError(f"--dataset {clean(text)}: no such path, and {error.message}", *error.hints) from None
    return text


def section_for_training(text: str, ref: str | Path | None, *, crossing: bool) -> dict[str, Any] | str:
    """Turn `--dataset X` into a config section for a run that starts from other weights.

    ref: REF of --from.
    crossing: the data may have another modality than the weights (transfer.cross_modality).
    """
    spec, trained = described(ref) if ref is not None else ({}, {})
    reader = trained.get("name") or spec.get("reader")
    modality = "" if crossing else str(spec.get("modality") or "")
    if ref is not None and not spec and not crossing and _is_ambiguous(Path(text)):
        modality = _published_modality(str(ref))
    return dataset_section(text, str(reader) if reader else None, modality)


def _is_ambiguous(path: Path) -> bool:
    """Tell whether several dataset plug-ins read a file, or the files at the top of a folder."""
    files = [path] if path.is_file() else list(path.iterdir()) if path.is_dir() else []
    suffixes = {file.suffix.lower() for file in files}
    return sum(not suffixes.isdisjoint(plugin.files) for plugin in plugins("datasets").values()) > 1


def _published_modality(ref: str) -> str:
    """Ask the backbone's plug-in for the modality of published weights, SOURCE/ARCH@WEIGHTS. "" if it does not know them.

    This imports the plug-in, so it is slow. Raises ConfigError and ResourceError.
    """
    name, _, weights = ref.partition("@")
    if not weights or Path(ref).exists():
        return ""
    chosen = choose("backbone", {"name": name})
    find = getattr(chosen.plugin.load(), "pretrained", None)
    release = find(chosen.arch, weights) if find is not None and chosen.arch is not None else None
    return str(release.spec.modality) if release is not None and release.spec is not None else ""


def described(ref: str | Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Read the data description and the dataset's section of a run or checkpoint, unverified. Both are {} if there is none.

    A folder of `fmeco fetch` has the description alone. The weights are verified when they are read.
    """
    path = Path(ref)
    folder = path.parent if path.is_file() else path  # `best` may be a small file beside the checkpoints
    steps = [*folder.glob("step-*/meta.json"), *folder.glob("checkpoints/step-*/meta.json")]
    files = [path / "meta.json", *sorted(steps), path / "published.json"]
    for file in filter(Path.is_file, files):
        with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            meta = json.loads(file.read_bytes())
            spec, config = meta["spec"], meta.get("config", {})
            return dict(spec), dict(config["dataset"]) if "dataset" in config else {}
    return {}, {}


def section_for_use(text: str, trained: Mapping[str, Any], reader: str) -> dict[str, Any] | str:
    """Turn `--dataset X` into a config section for using a checkpoint (evaluation, prediction), not for training it.

    A file is read by the dataset plug-in that the checkpoint was trained with, with the same layout keys (`LAYOUT`). So is a folder, if
    the plug-in claims those (`OWN_FOLDERS`).

    trained: dataset section of the checkpoint's config.
    reader: dataset plug-in that reads the checkpoint's new inputs.
    """
    path, by_name = Path(text), plugins("datasets")
    candidates = [by_name[name] for name in (trained.get("name"), reader) if name in by_name]
    plugin = next((one for one in candidates if _reads_again(one, path)), None)
    if plugin is None:
        return dataset_section(text, modality=next((one.modality for one in candidates if one.modality), ""))
    inherited = _inherited(plugin, trained, path) if plugin.name == trained.get("name") else {}
    return {"name": plugin.name, **inherited, "path": text}


def _reads_again(plugin: Plugin, path: Path) -> bool:
    """Tell whether a checkpoint's dataset plug-in reads a file or folder that the checkpoint is used on."""
    return path.suffix.lower() in plugin.files if path.is_file() else path.is_dir() and plugin.own_folders


def _inherited(plugin: Plugin, trained: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Copy the layout keys of the training table; of optional columns (KEY?) only those that this table has."""
    options = {plugin.renamed.get(key, key): value for key, value in trained.items()}
    inherited: dict[str, Any] = {}
    for name in plugin.layout:
        key = name.removesuffix("?")
        if key not in options:
            continue
        value = options[key]
        if name.endswith("?"):
            columns = table_header(path)
            value = [column for column in value if column in columns] if isinstance(value, list) else value
            if not isinstance(value, list) and value not in columns:
                continue
        inherited[key] = value
    return inherited


def _fallback(readers: list[Plugin]) -> Plugin | None:
    """Return the last dataset plug-in with `FALLBACK = True`, or None."""
    return next((plugin for plugin in reversed(readers) if plugin.fallback), None)


def _folder_readers() -> tuple[dict[str, Plugin], Plugin | None]:
    """Map file suffixes to the dataset plug-in that reads them from class folders. Also returns the fallback of these."""
    readers = [plugin for plugin in plugins("datasets").values() if plugin.suffixes]
    return {suffix: plugin for plugin in readers for suffix in plugin.suffixes}, _fallback(readers)


def _reader_of_folder(folder: Path, modality: str) -> str:
    """Find the dataset plug-in for a folder by its files, by the first of these rules that applies.

    1. A plug-in for data of this modality that has files in it: in class folders, or at its top (`FOLDERS`).
    2. The fallback of the plug-ins that read class folders, unless only another one has files there.
    3. A plug-in that has files at its top, in a folder without subfolders.
    4. The fallback.
    """
    by_suffix, fallback = _folder_readers()
    seen = dict[str, Plugin]()
    top = set[str]()
    has_folders = False
    for inside, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        suffixes = {os.path.splitext(file)[1].lower() for file in files}
        if inside == str(folder):  # files outside of class folders have no class
            top, has_folders = suffixes, bool(folders)
        else:
            seen |= {by_suffix[suffix].name: by_suffix[suffix] for suffix in suffixes & by_suffix.keys()}
        if fallback is not None and fallback.name in seen and modality in ("", fallback.modality):
            break
    flat = [plugin for plugin in plugins("datasets").values() if plugin.folders and top & {*plugin.files}]
    if own := [plugin for plugin in (*seen.values(), *flat) if plugin.modality == modality != ""]:
        return own[0].name
    if seen and (fallback is None or fallback.name not in seen):
        return min(seen)
    if not seen and flat and not has_folders and not top & by_suffix.keys():
        return flat[0].name
    if fallback is None:
        raise ConfigError(f"--dataset {clean(folder)}: no dataset reads a folder of such files")
    return fallback.name


def _reader_of_file(file: Path, reader: str | None, modality: str) -> str:
    """Find the dataset plug-in for a file, by the first of these rules that applies. Raises ConfigError if none does.

    1. The checkpoint's plug-in (`reader`), if it claims all tables (`TABLES`).
    2. A plug-in for data of the checkpoint's modality that reads no other files through this one.
    3. For a table that lists files, the plug-in that reads these files.
    4. The fallback of the plug-ins that read such files, or the only one.
    """
    by_name, suffix = plugins("datasets"), file.suffix.lower()
    readers = [plugin for plugin in by_name.values() if suffix in plugin.files]
    if not readers:
        suffixes = sorted({suffix for plugin in by_name.values() for suffix in plugin.files})
        raise ConfigError(
            f"--dataset {clean(file)}: expected a folder, a file ({', '.join(suffixes)}), or a dataset's name"
        )
    if reader in by_name and by_name[reader].tables and by_name[reader] in readers:
        return reader
    own = [plugin for plugin in readers if plugin.modality == modality != ""]
    if own and not any(plugin.lists or plugin.suffixes for plugin in own):
        return own[0].name
    if any(plugin.lists for plugin in readers) and (listed := _reader_of_listed(file, modality)) is not None:
        return listed
    chosen = _fallback(readers) or (readers[0] if len(readers) == 1 else None)
    if chosen is None:
        names = listing([plugin.name for plugin in readers])
        raise ConfigError(
            f"--dataset {clean(file)}: {names} read such files", "choose one in a config: dataset: {name: ...}"
        )
    return chosen.name


def _reader_of_listed(file: Path, modality: str) -> str | None:
    """Find the dataset plug-in for a table that lists files, by the files in its first row; None if it lists none.

    The files are in the column `path`, or else in any column that names files of data of this modality.
    """
    header, (by_suffix, fallback) = table_header(file), _folder_readers()
    row = _first_row(file, len(header))
    named = {
        name: by_suffix.get(os.path.splitext(cell.strip())[1].lower())
        for name, cell in zip(header[: len(row)], row[: len(header)], strict=True)
    }
    if "path" in header:
        plugin = named.get("path") or fallback
    else:
        plugin = next((one for one in named.values() if one is not None and one.modality == modality != ""), None)
    if plugin is None:
        return None
    listers = [lister.name for lister in plugins("datasets").values() if lister.lists == plugin.name]
    return listers[-1] if listers else plugin.name


def _first_row(file: Path, columns: int) -> list[str]:
    """Read the first row of a table below its header that has this many columns; [] if there is none."""
    with (
        io.StringIO(parquet.as_csv(str(file), 1))
        if file.suffix.lower() == ".parquet"
        else open(file, encoding="utf-8-sig", errors="replace", newline="", opener=regular)
    ) as table:
        text = table.read(SAMPLE)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter(text))
    next(rows, None)  # the header
    return next((row for row in rows if len(row) >= columns), [])
