"""Share code between datasets whose answers lie on the image: find their files, and describe how images are prepared."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmeco.core import DataError, DataSpec, Pixels, Splitting, clean, decode_rule, listing
from fmeco.datasets import _files, _folders, _groups, _image_spec, _images, _splits
from fmeco.datasets.image_folder import suffixes


def dense_spec(known: DataSpec | None, pixels: Pixels) -> DataSpec:
    """Describe images as for classes, but so that none of a picture is cut away.

    By default the whole picture is fitted into the square (letterbox). With `fit: crop`, its short side is fitted, and
    evaluation goes over all of it in windows. A checkpoint's `fit` is kept only if its own answers lay on the image: a
    classifier, which may ignore the border, says nothing about this.
    """
    if known is not None and "windows" not in known.preprocessing:
        prep = {k: v for k, v in known.preprocessing.items() if k not in ("crop_share", "crop_rounding")}
        whole = "letterbox" if decode_rule(known) > 1 else "crop"  # which the first rule does not have
        prep |= {"fit": pixels.fit or whole, "resize": prep["size"]}
        known = dataclasses.replace(known, preprocessing=prep)
    elif known is None and pixels.fit is None:
        pixels = dataclasses.replace(pixels, fit="letterbox")
    if known is None and pixels.crop_share is None:
        pixels = dataclasses.replace(pixels, crop_share=1.0)
    spec = _image_spec.image_spec(known, pixels)
    windows = spec.preprocessing.get("fit", "crop") == "crop"
    image = dataclasses.replace(spec.inputs["image"], windows=windows)
    return dataclasses.replace(spec, inputs={"image": image}, preprocessing={**spec.preprocessing, "windows": windows})


class Found(NamedTuple):
    """Hold the images of each split, or all under "path" if no folders or columns divide them, and notes for the user."""

    parts: dict[str, _files.Files]
    notes: list[str]


def images_below(known: DataSpec | None, whole: bool, path: str, subfolder: str | None) -> Found:
    """Find the images of a folder with folders for splits, or without.

    subfolder: folder that holds the images, such as images in train/images or images/train; None = any. Other folders are
    not looked at.

    Raises DataError if there are none.
    """
    root, rule, notes = Path(path), decode_rule(known), list[str]()
    if not root.is_dir():
        raise DataError(f"{clean(path)}: {'not a folder' if root.exists() else 'no such folder'}")
    inner = root / subfolder if subfolder and (root / subfolder).is_dir() else root
    folders = _folders.split_folders(inner, rule)
    if inner is not root and (both := _folders.split_folders(root, rule)):
        raise DataError(
            f"{clean(path)}: holds both {clean(inner.name)}/ and {listing([folder.name for folder in both.values()])}",
            "move the folders that are not meant to another place",
        )
    if not whole and folders and "train" not in folders:
        raise DataError(
            f"{clean(inner)}: holds {listing([folder.name for folder in folders.values()])}, but no folder called train",
        )
    if not folders:
        folders = {"path": inner}
    parts = {}
    for part, folder in folders.items():
        deeper = folder / subfolder if subfolder and inner is root and (folder / subfolder).is_dir() else folder
        found = _files.scan(_images.ImageFiles, suffixes(known), deeper, notes, rule=rule)
        if not len(found):
            raise DataError(f"{clean(deeper)}: no images")
        # Paths are relative to the root, so that names say which split a sample is from.
        names = [os.path.relpath(os.path.join(deeper, name), root) for name in found.names()]
        parts[part] = _files.Files.of(root, names, found.sizes.tolist(), found.times.tolist())
    return Found(parts, notes)


def divided(
    parts: Mapping[str, _folders.F], whole: bool, splitting: Splitting, path: str
) -> tuple[dict[str, _folders.F], dict[str, dict[str, list[str]]]]:
    """Split the files that folders or columns do not, and limit the training files.

    Returns the files of each split, and their groups as `Labelled.groups`. Raises ConfigError for `split` beside a
    validation folder.
    """
    without_classes = {part: (files, np.zeros(len(files), dtype=np.int64)) for part, files in parts.items()}
    cut = {part: files for part, (files, _) in _folders.divide(without_classes, splitting, whole, path).items()}
    pattern = splitting.group_split
    columns: dict[str, dict[str, list[str]]] = {part: {} for part in cut}
    if pattern is not None:
        named = {part: _groups.in_paths(files.names(), pattern) for part, files in cut.items()}
        _splits.check_apart(named)
        columns = {part: {_groups.CALLED: names} for part, names in named.items()}
    return cut, columns


def listed(root: Path, names: Sequence[str]) -> _files.Files:
    """Hold files beside the images, in their order. An empty name is an absent file."""
    status = [os.stat(root / name) if name else None for name in names]
    sizes, times = ([0 if one is None else of(one) for one in status] for of in (lambda s: s.st_size, _files.times_of))
    return _files.Files.of(root, names, sizes, times)
