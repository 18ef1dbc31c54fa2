"""A folder of images: one folder per class, alone or inside train/, val/ and test/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fmeco.core import (
    Classes,
    Color,
    Data,
    DataSpec,
    Doc,
    FilePath,
    Fold,
    ImageSize,
    LimitPerClass,
    LimitSeed,
    Samples,
    ValFraction,
)
from fmeco.datasets import _files, _images

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def shown(spec: DataSpec) -> str:
    """Say how images are prepared, in a few words."""
    how = spec.preprocessing
    return f"{how['size']} pixels from {how['resize']}, {how['interpolation']}, {how['color']}"


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[FilePath | None, Doc("folder with train/, val/, test/, or with class folders directly")] = None,
    train: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    val: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    test: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    classes: Classes = None,
    limit_per_class: LimitPerClass = None,
    limit_seed: LimitSeed = 0,
    val_fraction: ValFraction = 0.2,
    split: Fold = None,
    image_size: ImageSize = None,
    color: Color = None,
) -> Data:
    spec = _images.image_spec(known, size=image_size, color=color)
    found = _files.in_folders(
        _images.ImageFiles,
        SUFFIXES,
        known,
        whole,
        path=path,
        given={"train": train, "val": val, "test": test},
        classes=classes,
        limit_per_class=limit_per_class,
        limit_seed=limit_seed,
        val_fraction=val_fraction,
        test_fraction=0.0,
        fold=split,
    )
    if known is None and image_size is None:
        files, _ = next(iter(found.parts.values()))
        found.notes.extend(_images.small_note(Path(files.root, files.name(0)), spec))
    return _files.data(_images.ImageFiles, spec, found)


def read(spec: DataSpec, sources: Sequence[str]) -> Samples:
    """Image files, and the images below folders, in the order given."""
    return _files.read(_images.ImageFiles, SUFFIXES, spec, sources)
