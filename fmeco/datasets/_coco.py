"""Read boxes from JSON files in the form of COCO, such as instances_train.json, and write those that were found."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmeco.core import DataError, DataSpec, Samples, clean, listing
from fmeco.datasets import _box_lists, _columns, _files, _pictures, _splits
from fmeco.datasets._box_lists import NAMED
from fmeco.files import absence, disguise, regular

TRIED = 20  # images by which their folder is found
INNER = ("images", "data", "JPEGImages")  # folders beside the JSON that may hold the images


def files_of(path: str) -> dict[str, Path]:
    """Find the JSON file of each split, in a folder or its folders `annotations` and of splits; {"path": ...} if it is the only one.

    Files whose names begin with instances are preferred. Raises DataError for two files of one split.
    """
    root = Path(path)
    if root.is_file():
        return {"path": root}
    folders = [root, *(one for one in sorted(root.iterdir()) if one.is_dir() and _may_hold(one.name))]
    found = [file for folder in folders for file in sorted(folder.glob("*.json")) if is_coco(file)]
    if named := [file for file in found if file.name.startswith("instances")]:
        found = named
    parts: dict[str, Path] = {}
    for file in found:
        part = split_in(file.stem) or (split_in(file.parent.name) if file.parent != root else None)
        if part is None and len(found) == 1:
            part = "path"
        if part is None:
            raise DataError(
                f"{clean(file)}: one of {len(found)} JSON files of annotations, and neither its name nor its folder's says its split",
                "call it train.json, val.json or test.json; or name one file: dataset.path=FILE.json",
            )
        if part in parts:
            raise DataError(
                f"{clean(parts[part])} and {clean(file)} both hold annotations of the {part} split",
                f"name one of them: dataset.path={clean(file)}",
            )
        parts[part] = file
    return {part: parts[part] for part in ("train", "val", "test", "path") if part in parts}


def _may_hold(name: str) -> bool:
    return name.lower() == "annotations" or split_in(name) is not None


def split_in(name: str) -> str | None:
    """Find the split in the words of a name, such as instances_train2017."""
    found = {part for word in re.split(r"[^A-Za-z]+", name) if (part := _splits.split_called(word)) is not None}
    return found.pop() if len(found) == 1 else None


def is_coco(file: Path) -> bool:
    """Tell whether a JSON file lists images and categories, without parsing it."""
    try:
        with open(file, "rb", opener=regular) as opened:
            body = opened.read()
    except OSError:
        return False
    return b'"images"' in body and b'"categories"' in body


@_columns.collector_paused()
def read(files: Mapping[str, Path], images: str | None) -> _box_lists.Found:
    """Read the JSON file of each split. images: folder of the images; None = it is looked for beside the files."""
    classes: list[str] = []
    notes: list[str] = []
    folders: dict[str, Path] = {}
    parts: dict[str, _box_lists.Listed] = {}
    for part, file in files.items():
        content = _content(file)
        entries = _by_id(content["images"], f"{clean(file)}: images")
        names = {number: _named(entry, number, file) for number, entry in entries.items()}
        folder = folders[part] = _folder(file, list(names.values()), images)
        categories = _categories(content["categories"], file)
        classes += [name for name in categories.values() if name not in classes]
        parts[part] = _listed(file, content, entries, names, folder, categories, classes, notes)
    root = Path(os.path.commonpath([folder.absolute() for folder in folders.values()]))
    for part, listed in parts.items():  # so that names say which split a sample is from
        beside = os.path.relpath(folders[part].absolute(), root)
        listed.names = [posixpath.normpath(os.path.join(beside, name)) for name in listed.names]
    return _box_lists.Found(str(root), parts, classes, True, notes)


def _content(file: Path) -> dict[str, Any]:
    """Parse a JSON file. Raises DataError if it does not hold lists of images and categories."""
    try:
        with open(file, "rb", opener=regular) as opened:
            body = opened.read()
        content = json.loads(body.decode("utf-8-sig"))
    except OSError:
        raise DataError(f"{clean(file)}: {absence(file)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{clean(file)}: {disguise(body[:64]) or f'not valid JSON: {clean(error)}'}") from None
    for key in ("images", "categories", "annotations"):
        present = isinstance(content, dict) and isinstance(content.get(key), list)
        if not present and (key != "annotations" or "annotations" in content):
            raise DataError(f"{clean(file)}: no list '{key}', which annotations in the form of COCO have")
    return dict(content)


def _by_id(entries: Sequence[Any], where: str) -> dict[Any, Mapping[str, Any]]:
    """Map ids to entries. Raises DataError for entries without an id, and for an id that two have."""
    found: dict[Any, Mapping[str, Any]] = {}
    for at, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            raise DataError(f"{where}[{at}] has no id")
        if entry["id"] in found:
            raise DataError(f"{where}: two have the id {clean(entry['id'])}")
        found[entry["id"]] = entry
    return found


def _named(entry: Mapping[str, Any], number: Any, file: Path) -> str:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise DataError(f"{clean(file)}: image {clean(number)} has no file_name")
    return name


def _categories(entries: Sequence[Any], file: Path) -> dict[Any, str]:
    """Map the ids of categories to their names. Raises DataError for categories without a name, and for two of one name."""
    found: dict[Any, str] = {}
    for number, entry in _by_id(entries, f"{clean(file)}: categories").items():
        if not isinstance(entry.get("name"), str | int):
            raise DataError(f"{clean(file)}: category {clean(number)} has no name")
        found[number] = str(entry["name"])
    _box_lists.check_distinct(list(found.values()), f"{clean(file)}: categories")
    return found


def _folder(file: Path, names: Sequence[str], images: str | None) -> Path:
    """Find the folder that the names of images are relative to: where most of the first ones exist.

    It is beside or above the file, in a folder of images there, or in one of the file's split. Raises DataError.
    """
    bases = [Path(images)] if images is not None else [file.parent, file.absolute().parent.parent]
    part = split_in(file.stem)
    folders: list[Path] = []
    for base in bases:
        if not base.is_dir():
            raise DataError(f"dataset.images: {clean(base)}: no such folder")
        for inner in (base, *(base / name for name in INNER if (base / name).is_dir())):
            own = [one for one in sorted(inner.iterdir()) if part is not None and split_in(one.name) == part]
            folders += [inner, *(one for one in own if one.is_dir())]

    def hits(folder: Path) -> int:
        return sum((folder / _files.on_disk(folder, name)).is_file() for name in names[:TRIED])

    best = max(folders, key=hits)
    if names and not hits(best):
        raise DataError(
            f"{clean(file)}: its images, such as {clean(names[0])}, are not in {listing([str(one) for one in folders], NAMED)}",
            "say where they are: dataset.images=FOLDER",
        )
    return best


def _listed(
    file: Path,
    content: Mapping[str, Any],
    entries: Mapping[Any, Mapping[str, Any]],
    names: Mapping[Any, str],
    folder: Path,
    categories: Mapping[Any, str],
    classes: Sequence[str],
    notes: list[str],
) -> _box_lists.Listed:
    """List the images of a file with their objects, and count the crowds, which are left out."""
    where, source = clean(file), str(file)
    objects: dict[Any, list[tuple[int, int, list[float]]]] = {number: [] for number in entries}
    positions = {number: classes.index(name) for number, name in categories.items()}
    crowds = 0
    for at, one in enumerate(content.get("annotations", ())):
        number = one.get("id", at) if isinstance(one, dict) else at
        if not isinstance(one, dict) or not _is_key(one.get("image_id"), objects):
            raise DataError(f"{where}: annotation {clean(number)} is of no image in the list 'images'")
        if not _is_key(one.get("category_id"), positions):
            raise DataError(f"{where}: annotation {clean(number)} has no category_id of the list 'categories'")
        if one.get("iscrowd"):
            crowds += 1
            continue
        left, top, width, height = _box(one.get("bbox"), f"{where}: annotation {clean(number)}")
        objects[one["image_id"]].append(
            (
                positions[one["category_id"]],
                number if isinstance(number, int) and abs(number) < 1 << 62 else at,
                [left, top, left + width, top + height],
            )
        )
    if crowds:
        notes.append(f"{where}: {crowds:,} boxes around crowds (iscrowd) are left out")
    listed = _box_lists.Listed("{source}: annotation {number} ({image})")
    for number, entry in entries.items():
        size = _box_lists.size_of((entry.get("width"), entry.get("height")), f"{where}: image {clean(number)}")
        listed.image(_files.on_disk(folder, names[number]), source, size, annotated="annotations" in content)
        for label, count, corners in objects[number]:
            listed.object(label, count, corners)
    return listed


def _is_key(value: Any, table: Mapping[Any, Any]) -> bool:
    """Tell whether a value of a JSON file, which may be a list, is a key of a table."""
    return isinstance(value, int | float | str) and value in table


def _box(value: Any, where: str) -> list[float]:
    """Read x, y, width and height. Raises DataError."""
    numbers = isinstance(value, list) and all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in value
    )
    if not numbers or len(value) != 4:
        raise DataError(f"{where}: expected bbox: [x, y, width, height], found {clean(value)}")
    try:
        return [float(one) for one in value]
    except OverflowError:
        raise DataError(f"{where}: a number of bbox is too large") from None


def write(spec: DataSpec, answers: Sequence[tuple[Samples, int, Mapping[str, Any]]], file: Path) -> None:
    """Write the objects that were found in images, with their scores: https://cocodataset.org/#format-data.

    Ids of categories are 1, 2, ... in the order of the model's classes.
    """
    classes = next(target.classes for target in spec.targets.values() if target.input)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (samples, index, answer) in enumerate(answers, 1):
        width, height = _pictures.size(samples, index)
        images.append(
            {"id": number, "file_name": samples.name(index), "width": width, "height": height},
        )
        for (*sides, label), score in zip(answer["boxes"].tolist(), answer["scores"].tolist(), strict=True):
            if not label:  # nothing of it lies in the picture
                continue
            left, top, right, bottom = (round(side, 2) for side in sides)
            w, h = round(right - left, 2), round(bottom - top, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label),
                    "bbox": [left, top, w, h],
                    "area": round(w * h, 2),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    body = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8", errors="backslashreplace")
