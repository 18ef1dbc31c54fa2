"""Read the names of classes that lie beside annotations in the form of YOLO."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fmeco.core import DataError, clean, listing
from fmeco.datasets import _box_lists, _text_files

YAML = (".yaml", ".yml")
NAMES = ("classes.txt", "obj.names", "labels.txt")  # files with the name of a class in each line


def described_in(root: str) -> Path | None:
    """Find the YAML file with the names of the classes in a folder. Raises DataError for several."""
    files = [file for file in sorted(Path(root).iterdir()) if file.suffix.lower() in YAML and file.is_file()]
    if usual := [file for file in files if file.stem in ("data", "dataset")]:
        return usual[0]
    files = [file for file in files if _names(file)]
    if len(files) > 1:
        raise DataError(
            f"{clean(root)}: {listing([file.name for file in files])} could each describe the data",
            "name one of them: dataset.path=FILE.yaml",
        )
    return files[0] if files else None


def _names(file: Path) -> bool:
    """Tell whether a YAML file names classes. Files for other programs may hold anything."""
    try:
        return "names" in content_of(file)
    except DataError:
        return False


def content_of(file: Path) -> dict[str, Any]:
    """Parse a YAML file; {} if it holds no keys. Raises DataError."""
    try:
        content = yaml.safe_load(_text_files.read_text(str(file)))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{clean(file)}: not valid YAML: {clean(error)}") from None
    return dict(content) if isinstance(content, dict) else {}


def classes_of(root: str, content: Mapping[str, Any], described: Path | None) -> tuple[list[str], Path]:
    """Read the names of the classes 0, 1, 2, ... and say which file has them. Raises DataError if none does."""
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{clean(described)}: names: expected a name for each of the classes 0, 1, 2, ...")
        names = [names[number] for number in range(len(names))]
    if names is not None and described is not None:
        if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names) or not names:
            raise DataError(f"{clean(described)}: names: expected a list of names, or number: name")
        found, file = [str(name) for name in names], described
    else:
        places = [Path(root, folder, name) for folder in ("", "labels") for name in NAMES]
        listed = next((place for place in places if place.is_file()), None)
        if listed is None:
            raise DataError(
                f"{clean(root)}: nothing says what the classes of the text files are called",
                "add a data.yaml with names: [cat, dog], or a classes.txt with a name in each line",
            )
        found = [line.strip() for line in _text_files.read_text(str(listed)).splitlines() if line.strip()]
        file = listed
    _box_lists.check_distinct(found, clean(file))
    return found, file
