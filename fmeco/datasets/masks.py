"""Images with masks, which give each pixel a class: images/ and masks/ with files of the same names, or a table of both."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fmeco.core import (
    Data,
    DataError,
    DataSpec,
    Doc,
    FilePath,
    Ge,
    Pixels,
    Samples,
    Splitting,
    Without,
    clean,
    decode_rule,
    listing,
)
from fmeco.datasets import _columns, _dense, _file_tables, _files, _images, _masks, _pictures, _splits, _stored
from fmeco.datasets.image_folder import read as read
from fmeco.datasets.image_folder import sheet as sheet
from fmeco.datasets.image_folder import show as show
from fmeco.datasets.image_folder import shown as shown

MODALITY = "image"
LAYOUT = ("image_column", "mask_column", "split_column?", "images", "masks", "classes", "ignore")
FILES = (".csv", ".tsv", ".parquet")
OWN_FOLDERS = True
MASKS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm")  # formats that keep values
NAMED = 5  # files in a message

SPEC = _stored.MaskedImages
TAKES = {"arrays": "images: uint8 arrays of HxWxC, or images of Pillow"}


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[
        FilePath,
        Doc(
            "a folder with images/ and masks/, with folders for splits inside or around them; or a table (.csv, .tsv, .parquet)"
        ),
    ],
    images: Annotated[str, Doc("name of the folder of images")] = "images",
    masks: Annotated[str, Doc("name of the folder of masks, whose files are called as those of the images")] = "masks",
    image_column: Annotated[
        str, Doc("in a table: column of the image paths, relative to the table's folder")
    ] = "image",
    mask_column: Annotated[str, Doc("in a table: column of the mask paths; an empty cell = no mask")] = "mask",
    split_column: Annotated[
        str | None, Doc("in a table: column that holds train, val or test; null = split by val_fraction")
    ] = None,
    classes: Annotated[
        list[str | int] | dict[str, int | list[int] | str] | None,
        Doc(
            "the classes: names of the values 0, 1, 2, ...; or name -> value, as a number or a colour, {sky: 3} or {sky: [70, 130, 180]} "
            "or {sky: '#4682b4'}; null = the checkpoint's, else the values of the training masks"
        ),
    ] = None,
    ignore: Annotated[
        list[int | list[int]] | None,
        Doc(
            "values of pixels that have no class, such as [255]; null = the checkpoint's, or none without a checkpoint"
        ),
    ] = None,
    limit: Annotated[int | None, Doc("number of images to train on; null = all"), Ge(1)] = None,
    splitting: Annotated[Splitting, Without("classes", "limit_per_class", "limit_seed")] = Splitting(),
    pixels: Pixels = Pixels(),
) -> Data:
    spec = _dense.dense_spec(known, pixels)
    splitting = dataclasses.replace(splitting, limit_per_class=limit)
    notes: list[str] = []
    if Path(path).is_file():
        found = _in_table(known, path, image_column, mask_column, split_column)
    else:
        found = _in_folders(known, whole, path, images, masks, notes)
    parts, groups = _dense.divided(found, whole, splitting, path)
    return _masks.masked_data(known, spec, parts, groups, notes, classes, ignore, pixels)


def _in_folders(
    known: DataSpec | None, whole: bool, path: str, images: str, masks: str, notes: list[str]
) -> dict[str, _masks.MaskedFiles]:
    """Find images and their masks in folders. Raises DataError for images without a mask."""
    found = _dense.images_below(known, whole, path, images)
    notes += found.notes
    parts: dict[str, _masks.MaskedFiles] = {}
    for part, files in found.parts.items():
        names, unused = files.names(), dict[str, dict[str, str]]()
        chosen, absent = [], []
        for name in names:
            folder, stem = _beside(name, images, masks)
            if folder not in unused:
                unused[folder] = _by_stem(path, folder)
            mask = unused[folder].pop(stem, None)
            chosen.append(f"{folder}/{mask}" if mask is not None else "")
            if mask is None:
                absent.append(name)
        if absent:
            raise DataError(
                f"{clean(path)}: {len(absent)} of {len(names)} images have no mask of the same name in {clean(masks)}/: "
                f"{listing(absent, NAMED)}",
                "to use images without a mask, too, list all in a table, with an empty cell for the mask",
            )
        if left := sum(map(len, unused.values())):
            notes.append(f"{clean(path)}: {left} masks belong to no image of the {part if part != 'path' else 'data'}")
        parts[part] = _masks.MaskedFiles.together(files, _dense.listed(Path(path), chosen))
    return parts


def _beside(name: str, images: str, masks: str) -> tuple[str, str]:
    """Return the folder of an image's mask, relative to the dataset's, and the name of the mask without its suffix."""
    folder, _, file = name.rpartition("/")
    parts = folder.split("/")
    if images not in parts:
        raise DataError(
            f"the images lie in no folder called {clean(images)}, beside one of masks, {clean(masks)}",
            "name the folders: dataset.images=FOLDER, dataset.masks=FOLDER; or list images and masks in a table",
        )
    parts[parts.index(images)] = masks
    return "/".join(parts), os.path.splitext(file)[0]


def _by_stem(path: str, folder: str) -> dict[str, str]:
    """Map the names of a folder's masks without their suffixes to the files. Raises DataError for two masks of one name."""
    if not (inside := Path(path, folder)).is_dir():
        raise DataError(f"{clean(inside)}: no such folder of masks")
    found: dict[str, str] = {}
    for file in sorted(entry.name for entry in inside.iterdir() if not entry.name.startswith(".")):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() not in MASKS:
            continue
        if stem in found:
            raise DataError(f"{clean(inside)}: {clean(found[stem])} and {clean(file)} are masks of the same image")
        found[stem] = file
    return found


def _in_table(
    known: DataSpec | None, path: str, image_column: str, mask_column: str, split_column: str | None
) -> dict[str, _masks.MaskedFiles]:
    """Read a table of images and masks. Raises DataError that names the line of an absent file."""
    table, _ = _columns.read_separated(path, decode=decode_rule(known))
    root = Path(os.path.dirname(path) or ".")
    images = [_files.on_disk(root, name) for name in _columns.column(table, image_column, path)]
    masks = [_files.on_disk(root, name) if name else "" for name in _columns.column(table, mask_column, path)]
    files = _file_tables.listed(_images.ImageFiles, images, root, path)
    for line, mask in enumerate(masks, 2):
        if mask and not (root / mask).is_file():
            raise DataError(f"{clean(path)}:{line}: the mask {clean(root / mask)} does not exist")
    every = _masks.MaskedFiles.together(files, _dense.listed(root, masks))
    if split_column is None:
        return {"path": every}
    column = _columns.column(table, split_column, path)
    parts = _splits.split_by_column(column, path, split_column)
    return {part: every.take(at) for part, at in parts.items()}


def save(spec: DataSpec, samples: Samples, index: int, answer: Mapping[str, Any], stem: Path) -> dict[str, Path]:
    """Write a mask as PNG, each class by its value in the training masks, so that the file can be a mask of this dataset.

    Returns columns of a table, image and mask, as this dataset reads them.
    """
    mask = _masks.picture(answer["mask"], spec.preprocessing["values"])
    return {**_pictures.columns(samples, index), "mask": _pictures.write(mask, stem)}
