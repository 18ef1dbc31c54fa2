"""Read boxes from XML files in the form of Pascal VOC, one for each image."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from fmeco.core import DataError, clean, listing
from fmeco.datasets import _annotation_files, _box_lists, _columns, _files
from fmeco.files import regular

CORNERS = ("xmin", "ymin", "xmax", "ymax")
FOLDERS = {"JPEGImages": ("Annotations",), "images": ("Annotations", "annotations", "xmls")}
LISTS = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}  # in ImageSets/Main


@_columns.collector_paused()
def read(
    path: str, find: _annotation_files.Find, unannotated: _annotation_files.Unannotated, difficult: bool
) -> _box_lists.Found:
    """Read the XML file of each image. It lies beside the image, or in Annotations/ beside JPEGImages/.

    The lists in ImageSets/Main decide the splits, else folders do.
    find: lists the images of a folder. difficult: keep objects that are marked so.
    """
    images = find(path, "JPEGImages", "images")
    parts, notes = images.parts, list(images.notes)
    if lists := _lists(Path(path)):
        parts = _by_list(path, parts, lists, notes)
    beside = _annotation_files.Beside(path, ".xml", FOLDERS, "XML file", unannotated)
    classes: dict[str, int] = {}
    listed, left_out = dict[str, _box_lists.Listed](), 0
    for part, names in parts.items():
        listed[part] = _box_lists.Listed("{source}: object {number}")
        for name, file in zip(names, beside.of(names), strict=True):
            left_out += _one(listed[part], name, file, beside.annotated(file), classes, difficult)
    if left_out:
        notes.append(
            f"{clean(path)}: {left_out:,} objects marked as difficult are left out; dataset.difficult=true keeps them"
        )
    notes += beside.unused(complete=not lists)
    return _box_lists.Found(path, listed, list(classes), False, notes)


def _one(
    listed: _box_lists.Listed, name: str, file: str | None, annotated: bool, classes: dict[str, int], difficult: bool
) -> int:
    """Add an image and the objects in its file. Returns how many are left out as difficult. classes: gets new names."""
    if file is None:
        listed.image(name, name, annotated=annotated)
        return 0
    root, left_out = _parsed(file), 0
    size = root.find("size")
    sides = (None, None) if size is None else (size.findtext("width"), size.findtext("height"))
    listed.image(name, file, _box_lists.size_of([(side or "").strip() for side in sides], clean(file)))
    for number, one in enumerate(root.findall("object"), 1):
        where, label = f"{clean(file)}: object {number}", (one.findtext("name") or "").strip()
        if not label:
            raise DataError(f"{where} has no name")
        if not difficult and (one.findtext("difficult") or "0").strip() not in ("0", ""):
            left_out += 1
            continue
        box = one.find("bndbox")
        if box is None:
            raise DataError(f"{where} has no bndbox")
        left, top, right, bottom = (_box_lists.number_of(box.findtext(key, ""), f"{where}: {key}") for key in CORNERS)
        # Pixels are counted from 1, and the last one belongs to the box.
        listed.object(classes.setdefault(label, len(classes)), number, (left - 1, top - 1, right, bottom))
    return left_out


def _parsed(file: str) -> Element:
    """Parse an XML file. Raises DataError that names the line."""
    try:
        with open(file, "rb", opener=regular) as opened:
            root = ElementTree.parse(opened).getroot()
    except OSError as error:
        raise DataError(f"{clean(file)}: {error.strerror}") from None
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"{clean(file)}: not valid XML: {_files.reason(file, error)}") from None
    if root.tag != "annotation":
        raise DataError(f"{clean(file)}: expected an <annotation>, as Pascal VOC has, and not <{clean(root.tag)}>")
    return root


def _lists(root: Path) -> dict[str, Path]:
    """Find the lists of the splits' images. trainval stands for train where there is no list of that name."""
    folder = root / "ImageSets" / "Main"
    found = {part: folder / name for part, name in LISTS.items() if (folder / name).is_file()}
    if "train" not in found and "val" not in found and (folder / "trainval.txt").is_file():
        return {"train": folder / "trainval.txt", **found}
    return found


def _by_list(
    path: str, parts: Mapping[str, Sequence[str]], lists: Mapping[str, Path], notes: list[str]
) -> dict[str, list[str]]:
    """Divide images by lists of names without suffixes. Raises DataError for names without an image, and those in two lists."""
    stems: dict[str, str] = {}
    for name in (name for names in parts.values() for name in names):
        stem = os.path.splitext(os.path.basename(name))[0]
        if (twin := stems.setdefault(stem, name)) != name:
            raise DataError(f"{clean(path)}: {clean(twin)} and {clean(name)} are images of the same name")
    divided: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    for part, file in lists.items():
        wanted = [line.split()[0] for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
        _files.check_once(wanted, str(file))
        if absent := [name for name in wanted if name not in stems]:
            raise DataError(f"{clean(file)}: no image of {listing(absent)} in {clean(path)}")
        if both := [name for name in wanted if name in taken]:
            raise DataError(f"{clean(file)}: {listing(both)}: also listed in {taken[both[0]]}")
        taken |= dict.fromkeys(wanted, lists[part].name)
        divided[part] = [stems[name] for name in wanted]
    if unlisted := len(stems) - len(taken):
        notes.append(
            f"{clean(path)}: {unlisted:,} images are in none of {listing([file.name for file in lists.values()])}"
        )
    return divided
