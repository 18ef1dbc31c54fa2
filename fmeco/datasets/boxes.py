"""Images with boxes around objects, each of a class: COCO, Pascal VOC, YOLO, or a table with a row per box."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from fmeco.core import (
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Doc,
    FilePath,
    Ge,
    InputSpec,
    Pixels,
    Samples,
    Splitting,
    Target,
    Without,
    clean,
    decode_rule,
    listing,
)
from fmeco.datasets import (
    _annotation_files,
    _box_checks,
    _box_formats,
    _box_lists,
    _box_tables,
    _boxes,
    _coco,
    _dense,
    _drawing,
    _files,
    _folders,
    _images,
    _pictures,
    _splits,
    _stored,
    _voc,
    _yolo,
)
from fmeco.datasets.image_folder import read as read
from fmeco.datasets.image_folder import sheet as sheet
from fmeco.datasets.image_folder import show as show
from fmeco.datasets.image_folder import shown as shown

MODALITY = "image"
FILES = (".json", ".yaml", ".yml", ".csv", ".tsv", ".parquet")
LAYOUT = ("image_column", "label_column", "box_columns", "split_column?", "classes", "difficult")
OWN_FOLDERS = True

SPEC = _stored.Images
WRITES = {".json": _coco.write}
TAKES = {"arrays": "images: uint8 arrays of HxWxC, or images of Pillow"}


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[
        FilePath,
        Doc(
            "a folder or file of annotations: COCO (.json), Pascal VOC (.xml), YOLO (.txt, data.yaml) or a table (.csv, ...)"
        ),
    ],
    format: Annotated[
        Literal["auto", "coco", "voc", "yolo", "table"], Doc("form of the annotations; auto = by what `path` holds")
    ] = "auto",
    images: Annotated[
        FilePath | None,
        Doc("of COCO and tables: folder of the images, if they do not lie beside the file or above it"),
    ] = None,
    image_column: Annotated[str, Doc("in a table: column of the image paths, relative to the table's folder")] = "path",
    label_column: Annotated[str, Doc("in a table: column of the class")] = "label",
    box_columns: Annotated[
        list[str],
        Doc(
            "in a table: columns of left, top, right and bottom, in pixels; a row with empty cells = an image without objects"
        ),
    ] = ["xmin", "ymin", "xmax", "ymax"],
    split_column: Annotated[
        str | None, Doc("in a table: column that holds train, val or test; null = split by val_fraction")
    ] = None,
    unannotated: Annotated[
        Literal["error", "background", "unlabelled"],
        Doc(
            "of Pascal VOC and YOLO: what an image without a file of annotations is; background = nothing is to be seen in it, as "
            "YOLO's own training has it; unlabelled = it is not known what"
        ),
    ] = "error",
    difficult: Annotated[bool, Doc("of Pascal VOC: keep objects that are marked as difficult")] = False,
    bad_boxes: Annotated[
        Literal["error", "skip"],
        Doc("what to do about boxes that are empty, inverted, not finite or outside of their picture"),
    ] = "error",
    classes: Annotated[
        list[str | int] | None,
        Doc(
            "use only these classes, in this order; null = all, in the order of the data, or sorted by name if it has none"
        ),
    ] = None,
    limit: Annotated[int | None, Doc("number of images to train on; null = all"), Ge(1)] = None,
    splitting: Annotated[Splitting, Without("classes", "limit_per_class", "limit_seed")] = Splitting(),
    pixels: Pixels = Pixels(),
) -> Data:
    spec = _spec(known, pixels)
    find = functools.partial(_images_below, known, whole)
    form = _box_formats.format_of(path) if format == "auto" else format
    if form == "coco":
        found = _coco.read(_coco_files(path), images)
    elif form == "voc":
        found = _voc.read(path, find, unannotated, difficult)
    elif form == "yolo":
        found = _yolo.read(known, path, find, unannotated)
    else:
        layout = _box_tables.Layout(image_column, label_column, box_columns, split_column, images)
        found = _box_tables.read(known, path, layout)
    _check_parts(found, whole, path)
    old = known.targets.get("boxes") if known is not None else None
    chosen = _box_formats.choose(found, classes, old, clean(path))
    tally = _box_lists.Tally()
    files = {
        part: _box_checks.verified(listed, found.root, chosen.codes, bad_boxes, tally)
        for part, listed in found.parts.items()
    }
    parts, groups = _dense.divided(files, whole, dataclasses.replace(splitting, limit_per_class=limit), path)
    notes = [*found.notes, *chosen.notes, *tally.notes(found.classes), *_notes(parts, chosen.names, spec)]
    spec = dataclasses.replace(
        spec,
        inputs={**spec.inputs, "boxes": InputSpec((_most(parts, known), 5), ragged=True, rides="image", form="boxes")},
    )
    labelled = _files.Labelled(
        {part: (one, {"boxes": one.target()}) for part, one in parts.items()},
        {"boxes": Target("boxes", chosen.names, input="boxes")},
        _splits.fingerprint([row for one in parts.values() for row in one.rows()]),
        notes,
        groups,
    )
    return _images.image_data(known, spec, labelled, pixels, kind=_boxes.BoxedImages)


def _spec(known: DataSpec | None, pixels: Pixels) -> DataSpec:
    """Describe how images are prepared. Raises ConfigError for `fit: crop`, and for a checkpoint that can only crop."""
    if decode_rule(known) == 1:
        raise ConfigError(
            "the checkpoint is older than images that are fitted whole (letterbox, squash), which boxes need",
            "start from published weights, or from a newer checkpoint",
        )
    if known is not None and known.preprocessing.get("windows"):
        # A checkpoint of masks went over large images in windows; an object may lie across several of them.
        kept = {key: value for key, value in known.preprocessing.items() if key != "windows"}
        known = dataclasses.replace(known, preprocessing=kept)
    if pixels.fit == "crop":
        raise ConfigError(
            "dataset.fit: crop would cut off objects at the border of images",
            "letterbox shows the whole image, squash also changes its shape",
        )
    return dataclasses.replace(_dense.dense_spec(known, pixels), reader="boxes")


def _images_below(known: DataSpec | None, whole: bool, path: str, *folders: str) -> _annotation_files.Images:
    """Find the images of a folder, with folders for splits or without.

    folders: names that the folder of images may have, such as images in images/train or train/images. Without one, images
    may lie anywhere, beside their annotations.
    """
    root = Path(path)
    around = [root, *(_folders.split_folders(root, decode_rule(known)).values() if root.is_dir() else ())]
    inner = next((name for name in folders if any((folder / name).is_dir() for folder in around)), None)
    found = _dense.images_below(known, whole, path, inner)
    # Among images lie their annotations, which are read, too.
    notes = [note for note in found.notes if not note.endswith("files that are not images")]
    return _annotation_files.Images({part: files.names() for part, files in found.parts.items()}, notes)


def _coco_files(path: str) -> dict[str, Path]:
    """Find the JSON files. Raises DataError if there are none."""
    if not (files := _coco.files_of(path)):
        raise DataError(
            f"{clean(path)}: no JSON file with images and categories, as COCO has", _box_formats.EXPECTED[0]
        )
    return files


def _check_parts(found: _box_lists.Found, whole: bool, path: str) -> None:
    """Raise DataError for splits without images, for a lack of training images, and for an image in two splits."""
    if not whole and "path" not in found.parts and "train" not in found.parts:
        raise DataError(f"{clean(path)}: has a {listing(sorted(found.parts))} split, but none to train on")
    seen: dict[str, str] = {}
    for part, listed in found.parts.items():
        if not listed.names:
            raise DataError(f"{clean(path)}: no images" + (f" in the {part} split" if part != "path" else ""))
        if both := [name for name in listed.names if name in seen]:
            raise DataError(
                f"{clean(path)}: in both the {seen[both[0]]} and the {part} split: {listing(both, _box_lists.NAMED)}"
            )
        seen |= dict.fromkeys(listed.names, part)


def _most(parts: Mapping[str, _boxes.BoxedFiles], known: DataSpec | None) -> int:
    """Return the largest number of boxes of a training image, at least 1 and the checkpoint's."""
    old = known.inputs.get("boxes") if known is not None else None
    counts = parts["train"].counts if "train" in parts else [0]
    return max(1, int(max(counts, default=0)), old.shape[0] if old is not None else 1)


def _notes(parts: Mapping[str, _boxes.BoxedFiles], classes: tuple[str, ...], spec: DataSpec) -> list[str]:
    """Say which classes have no box to learn from, and how many boxes are too small to be seen."""
    notes = []
    if "train" in parts:
        trained = {int(code) for code in set(parts["train"].boxes[:, 4].tolist())}
        if untrained := [name for number, name in enumerate(classes, 1) if number not in trained]:
            notes.append(f"no training boxes of {listing(untrained)}")
    small = sum(int(_boxes.shrunk(one, spec.preprocessing).sum()) for one in parts.values())
    if small:
        size = spec.preprocessing["size"]
        notes.append(
            f"{small:,} boxes are narrower or lower than a pixel in images of {size}, and are dropped; a larger dataset.image_size keeps them"
        )
    return notes


def save(spec: DataSpec, samples: Samples, index: int, answer: Mapping[str, Any], stem: Path) -> dict[str, Path]:
    """Draw the objects that were found in an image, with their scores, into a PNG file."""
    classes = next(target.classes for target in spec.targets.values() if target.input)
    image = _pictures.picture(samples, index, spec.preprocessing)
    _drawing.draw_boxes(image, answer["boxes"], classes, answer["scores"].tolist())
    return {**_pictures.columns(samples, index), "picture": _pictures.write(image, stem)}
