"""Images in class folders, one folder per class, directly or inside train/, val/ and test/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fmeco.core import Color, Data, DataSpec, Doc, FilePath, Given, ImageSize, Samples, Splitting, Without
from fmeco.datasets import _files, _folders, _images, _stored

MODALITY = "image"

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FALLBACK = True
SPEC = _stored.Images
TAKES = {"arrays": "images: uint8 arrays of HxWxC, or images of Pillow"}


def shown(spec: DataSpec) -> str:
    """Describe in a few words how images are prepared."""
    prep = spec.preprocessing
    return f"{prep['size']} pixels from {prep['resize']}, {prep['interpolation']}, {prep['color']}"


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[FilePath | None, Doc("folder with train/, val/ and test/, or folder of class folders")] = None,
    train: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    val: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    test: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    splitting: Annotated[Splitting, Without("test_fraction")] = Splitting(),
    image_size: ImageSize = None,
    color: Color = None,
) -> Data:
    spec = _images.image_spec(known, size=image_size, color=color)
    labelled = _folders.in_folders(
        _images.ImageFiles,
        SUFFIXES,
        known,
        whole,
        path=path,
        split_folders={"train": train, "val": val, "test": test},
        splitting=splitting,
    )
    if known is None and image_size is None:
        files, _ = next(iter(labelled.parts.values()))
        labelled.notes.extend(_images.small_note(Path(files.root, files.name(0)), spec))
    return _files.data(_images.ImageFiles, spec, labelled)


def read(spec: DataSpec, sources: Sequence[str | Given]) -> Samples:
    """Read image files, and all images below folders, in the order of `sources`; or images that were passed in Python."""
    if given := [source for source in sources if isinstance(source, Given)]:
        return _images.given(given, spec.preprocessing)
    return _files.read(_images.ImageFiles, SUFFIXES, spec, [str(source) for source in sources])
