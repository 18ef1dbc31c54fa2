"""Find out in which form boxes are stored, and which of the data's classes are used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fmeco.core import ConfigError, DataError, Target, clean, listing, nearest, nfc
from fmeco.datasets import _box_lists, _classes, _coco, _yolo_classes
from fmeco.datasets._box_lists import Array
from fmeco.datasets.image_folder import SUFFIXES
from fmeco.files import absence

Format = Literal["coco", "voc", "yolo", "table"]
FILES: dict[str, Format] = {
    ".json": "coco",
    ".csv": "table",
    ".tsv": "table",
    ".parquet": "table",
    **dict.fromkeys(_yolo_classes.YAML, "yolo"),
}
EXPECTED = (
    "COCO: a JSON file with images, annotations and categories",
    "Pascal VOC: an XML file for each image, beside it or in Annotations/",
    "YOLO: a text file for each image, beside it or in labels/",
    "tables: name the file, dataset.path=FILE.csv",
)


def format_of(path: str) -> Format:
    """Find the form of the annotations in a folder or file. Raises DataError for none, ConfigError for several."""
    place = Path(path)
    if place.is_file():
        if (found := FILES.get(place.suffix.lower())) is None:
            raise DataError(f"{clean(path)}: boxes are read from folders and from files {', '.join(FILES)}")
        return found
    if not place.is_dir():
        raise DataError(f"{clean(path)}: {absence(path)}")
    forms: list[Format] = []
    if _coco.files_of(path):
        forms.append("coco")
    forms += _beside_images(path)
    if not forms:
        raise DataError(f"{clean(path)}: no annotations of boxes were found", *EXPECTED)
    if len(forms) > 1:
        raise ConfigError(
            f"{clean(path)}: holds annotations in {len(forms)} forms: {', '.join(forms)}",
            f"say which to read: dataset.format={forms[0]}",
        )
    return forms[0]


def _beside_images(path: str) -> list[Format]:
    """Find the forms that have a file for each image: XML files, and text files in labels/ or beside images."""
    xml = text = False
    for inside, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        stems: dict[str, set[str]] = {}
        for file in files:
            stem, suffix = os.path.splitext(file)
            stems.setdefault(suffix.lower(), set()).add(stem)
        xml = xml or bool(stems.get(".xml"))
        images = set().union(*(stems.get(suffix, set()) for suffix in SUFFIXES))
        in_labels = "labels" in Path(os.path.relpath(inside, path)).parts
        text = text or bool(stems.get(".txt") and (in_labels or stems[".txt"] & images))
        if xml and text:
            break
    text = text or _yolo_classes.described_in(path) is not None
    return [*(["voc"] if xml else []), *(["yolo"] if text else [])]  # type: ignore[list-item]


class Chosen(NamedTuple):
    """Hold the classes of a dataset.

    names: in the order of their numbers.
    codes: the number of each of the data's own classes, or -1 if its boxes are left out.
    notes: messages for the user.
    """

    names: tuple[str, ...]
    codes: Array
    notes: list[str]


def choose(found: _box_lists.Found, classes: Sequence[str | int] | None, known: Target | None, where: str) -> Chosen:
    """Choose classes and their order: the checkpoint's (`known`), else those of `classes`, else the data's own order or by name.

    Raises ConfigError for `classes` that the data does not have, DataError for classes that the checkpoint does not have.
    """
    own = _classes.comparable(found.classes, known)
    notes = [] if found.defined else _spellings(found.classes, own, where)
    used = {own[label] for part in found.parts.values() for label in set(part.labels)}
    present = list(dict.fromkeys(own)) if found.defined else _classes.natural(own)
    order = present if known is None else _classes.comparable(known.classes, known)
    wanted = None if classes is None else nfc([str(name) for name in classes])
    if wanted is not None:
        if len(set(wanted)) < len(wanted):
            raise ConfigError("dataset.classes names a class twice")
        strange = [name for name in wanted if name not in (present if known is None else order)]
        if strange and known is None:
            raise ConfigError(
                f"{where}: dataset.classes names {listing(strange)}, which the data does not have{nearest(strange[0], present)}",
                f"classes in the data: {listing(present, 20)}",
            )
    else:
        strange = [name for name in present if name in used and name not in order]
    if strange:
        raise DataError(
            f"{where}: the checkpoint has no class {listing(strange)}; it has: {listing(order, 20)}",
            "use only its classes with --set dataset.classes=[...], or finetune to learn the new ones",
        )
    if known is None and wanted is not None:
        order = wanted
    if not order:
        raise DataError(f"{where}: no image has an object, and nothing names the classes")
    taken = order if wanted is None else wanted
    codes = np.array([order.index(name) if name in taken and name in order else -1 for name in own], dtype=np.int64)
    return Chosen(known.classes if known is not None else tuple(order), codes, notes)


def _spellings(written: Sequence[str], own: Sequence[str], where: str) -> list[str]:
    """Return notes on names of classes that differ in what cannot be seen, or only in case."""
    double = len(set(written)) - len(set(own))
    notes = (
        [f"{where}: {double} class names are written in two ways (Unicode NFC and NFD): one class each"]
        if double
        else []
    )
    return notes + _classes.doubtful(_classes.natural(own), where)
