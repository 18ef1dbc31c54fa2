"""Images in class folders, one folder per class, directly or inside train/, val/ and test/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fmeco.core import Data, DataSpec, Doc, FilePath, Given, Pixels, Samples, Splitting, Without, decode_rule
from fmeco.datasets import _drawing, _files, _folders, _image_spec, _images, _stored
from fmeco.datasets._drawing import sheet as sheet

MODALITY = "image"

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
    ".jfif",
    ".jpe",
    ".apng",
    ".avif",
)
# of files that a checkpoint without later rules looks for
SUFFIXES_OF_RULE_1 = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FALLBACK = True
SPEC = _stored.Images
TAKES = {"arrays": "images: uint8 arrays of HxWxC, or images of Pillow"}

show = _drawing.picture


def shown(spec: DataSpec) -> str:
    """Describe in a few words how images are prepared."""
    prep = spec.preprocessing
    fit = {"squash": " squashed", "letterbox": " letterboxed"}.get(prep.get("fit", "crop"), "")
    parts = [f"{prep['size']} pixels from {prep['resize']}{fit}", prep["interpolation"], prep["color"]]
    if (image := spec.inputs.get("image")) is not None and image.mean:
        factor = image.scale * 255
        parts += [f"{name} {_numbers(values, factor)}" for name, values in (("mean", image.mean), ("std", image.std))]
    if "range" in prep:
        parts.append(f"16-bit values {prep['range'][0]} to {prep['range'][1]}")
    return ", ".join(parts)


def _numbers(values: Sequence[float], factor: float) -> str:
    """Write one value per channel; equal ones once. factor: of pixels of 0 to 1."""
    return " ".join(dict.fromkeys(f"{value / factor:.4g}" for value in values))


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[FilePath | None, Doc("folder with train/, val/ and test/, or folder of class folders")] = None,
    train: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    val: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    test: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    splitting: Annotated[Splitting, Without("test_fraction")] = Splitting(),
    pixels: Pixels = Pixels(),
) -> Data:
    spec = _image_spec.image_spec(known, pixels)
    labelled = _folders.in_folders(
        _images.ImageFiles,
        suffixes(known),
        known,
        whole,
        path=path,
        split_folders={"train": train, "val": val, "test": test},
        splitting=splitting,
    )
    return _images.image_data(known, spec, labelled, pixels)


def suffixes(known: DataSpec | None) -> tuple[str, ...]:
    """Return the endings of image files, by the decode rule of the checkpoint (`known`)."""
    return SUFFIXES if decode_rule(known) > 1 else SUFFIXES_OF_RULE_1


def read(spec: DataSpec, sources: Sequence[str | Given]) -> Samples:
    """Read image files, and all images below folders, in the order of `sources`; or images that were passed in Python."""
    if given := [source for source in sources if isinstance(source, Given)]:
        return _images.GivenImages(given, spec.preprocessing)
    return _files.read(_images.ImageFiles, suffixes(spec), spec, [str(source) for source in sources])
