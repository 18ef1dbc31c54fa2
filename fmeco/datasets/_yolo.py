"""Read boxes from text files in the form of YOLO, one for each image, and the names of classes beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmeco.core import DataError, DataSpec, clean, decode_rule, listing
from fmeco.datasets import _annotation_files, _box_lists, _columns, _files, _images, _text_files, _yolo_classes
from fmeco.datasets._coco import split_in
from fmeco.datasets.image_folder import suffixes

FOLDERS = {"images": ("labels",)}
VALUES = "class, x_center, y_center, width, height"


@_columns.collector_paused()
def read(
    known: DataSpec | None, path: str, find: _annotation_files.Find, unannotated: _annotation_files.Unannotated
) -> _box_lists.Found:
    """Read the text file of each image. It lies beside the image, or in labels/ beside images/.

    path: a folder, or its data.yaml, whose `names` are the classes and whose `train`, `val` and `test` may name folders.
    find: lists the images of a folder.
    """
    root = path if os.path.isdir(path) else os.path.dirname(path) or "."
    described = _yolo_classes.described_in(root) if root == path else Path(path)
    content = _yolo_classes.content_of(described) if described is not None else {}
    classes, named_in = _yolo_classes.classes_of(root, content, described)
    images = _of_yaml(known, root, content, described) if described is not None else None
    if images is None:
        images = find(root, "images")
        _check_undivided(root, images)
    beside = _annotation_files.Beside(root, ".txt", FOLDERS, "text file", unannotated)
    parts: dict[str, _box_lists.Listed] = {}
    for part, names in images.parts.items():
        parts[part] = _box_lists.Listed("{source}:{number}", relative=True)
        for name, file in zip(names, beside.of(names), strict=True):
            parts[part].image(name, file or name, annotated=beside.annotated(file))
            if file is not None:
                _objects(parts[part], file, classes, named_in)
    for files in beside.spare.values():
        for stem in [stem for stem, file in files.items() if file in _yolo_classes.NAMES]:
            del files[stem]
    notes = [*images.notes, *beside.unused(complete=True)]
    return _box_lists.Found(root, parts, classes, True, notes)


def _of_yaml(
    known: DataSpec | None, root: str, content: Mapping[str, Any], described: Path
) -> _annotation_files.Images | None:
    """List the images in the folders that a YAML file names for the splits; None if it names none.

    Raises DataError for folders that do not exist, and for lists of files.
    """
    parts: dict[str, list[str]] = {}
    notes: list[str] = []
    for part in ("train", "val", "test"):
        value = content.get(part)
        for folder in [value] if isinstance(value, str) else value or ():
            inside = _folder(root, content, str(folder), described, part)
            found = _files.scan(_images.ImageFiles, suffixes(known), inside, notes, rule=decode_rule(known))
            if not len(found):
                raise DataError(f"{clean(inside)}: no images")
            beside = os.path.relpath(inside, root)
            names = [os.path.normpath(os.path.join(beside, name)) for name in found.names()]
            parts.setdefault(part, []).extend(names)
    notes = [note for note in notes if not note.endswith("files that are not images")]
    return _annotation_files.Images(parts, notes) if parts else None


def _folder(root: str, content: Mapping[str, Any], folder: str, described: Path, part: str) -> Path:
    """Find a folder that a YAML file names: below its `path`, below its own folder, or where ../ leads out of it by mistake."""
    bases = [Path(root, str(content.get("path") or "")), Path(root)]
    inner = folder.replace("\\", "/")
    while inner.startswith("../"):
        inner = inner[3:]
    places = [*(base / folder for base in bases), Path(root, inner)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        lists = any(place.is_file() for place in places)
        raise DataError(
            f"{clean(described)}: {part}: {clean(folder)}: {'a list of files, where a folder is expected' if lists else 'no such folder'}",
            "folders are relative to the file's own, or to its `path`",
        )
    return found


def _check_undivided(root: str, images: _annotation_files.Images) -> None:
    """Raise DataError if folders that nothing names look like splits, such as images/train2017."""
    folders = {part for name in images.parts.get("path", ()) for part in name.split("/")[:-1]}
    named = {folder: part for folder in folders if (part := split_in(folder)) is not None}
    if len(set(named.values())) > 1:
        raise DataError(
            f"{clean(root)}: the folders {listing(sorted(named))} look like splits",
            "name them in a data.yaml: train: images/train2017, val: images/val2017; or call them train, val and test",
        )


def _objects(listed: _box_lists.Listed, file: str, classes: list[str], named_in: Path) -> None:
    """Read the objects of one image. Raises DataError that names the line."""
    for number, line in enumerate(_text_files.read_text(file).splitlines(), 1):
        if not (cells := line.split()):
            continue
        where = f"{clean(file)}:{number}"
        if len(cells) != 5:
            what = "; outlines of objects are not read" if len(cells) > 6 else ""
            raise DataError(f"{where}: {len(cells)} values, where 5 are expected: {VALUES}{what}")
        label, x, y, width, height = (_box_lists.number_of(cell, where) for cell in cells)
        if not (label.is_integer() and 0 <= label < len(classes)):
            raise DataError(f"{where}: there is no class {cells[0]}: {clean(named_in)} names 0 to {len(classes) - 1}")
        if max(map(abs, (x, y, width, height))) > 2:
            raise DataError(
                f"{where}: {' '.join(cells[1:])}: expected shares of the picture's width and height, from 0 to 1",
                "boxes in pixels are read from tables (.csv), or in the forms of COCO and Pascal VOC",
            )
        listed.object(int(label), number, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
