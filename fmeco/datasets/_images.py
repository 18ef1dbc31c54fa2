"""Decode images, the same way for training, evaluation and prediction, and share code between image datasets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fmeco.core import (
    Data,
    DataError,
    DataSpec,
    Form,
    Given,
    Inputs,
    Pixels,
    Samples,
    Splitting,
    Target,
    geometry,
)
from fmeco.datasets import _classes, _depth, _files, _geometry, _image_spec, _pixels, _splits

MAX_RESIZED = 32_000_000  # pixels after resizing: a line of 10,000 x 1 pixels would become 2,240,000 x 224


def image_data(
    known: DataSpec | None,
    spec: DataSpec,
    labelled: _files.Labelled,
    pixels: Pixels,
    kind: type[_files.FileSamples] | None = None,
) -> Data:
    """Build a Data from image files. Adds the range of 16-bit images to the spec, and notes to the data.

    known: the checkpoint's spec. pixels: keys of the config. kind: class that reads the files; None = ImageFiles.
    """
    files, _ = next(iter(labelled.parts.values()))
    labelled.notes.extend(_image_spec.changes(known, pixels))
    if known is None and pixels.image_size is None:
        labelled.notes.extend(_small_note(Path(files.root, files.name(0)), spec))
    if spec.decode > 1:
        new = known is None or not known.targets  # a spec with targets is whole: it has the range, or needs none
        spec = _depth.with_range(spec, labelled, measure=new)
    return _files.data(kind or ImageFiles, spec, labelled)


def _small_note(file: Path, spec: DataSpec) -> list[str]:
    """Return a note if images are much smaller than the model's input: enlarging them can cost fifty times the time."""
    try:
        with _pixels.opened(str(file)) as image:
            width, height = image.size
    except DataError:
        return []
    size = spec.preprocessing["size"]
    if max(width, height) * 2 > size:
        return []
    return [
        f"{file.name} has {width}x{height} pixels and is enlarged to {size}; dataset.image_size={min(width, height)} would be faster"
    ]


def canonical(image: Image.Image, prep: Mapping[str, Any], facts: _pixels.Facts | None = None) -> Tensor:
    """Convert a PIL image to uint8 (C, h, w), a pure function of image and spec.

    By `prep["fit"]`, min(h, w) is prep["resize"] (crop), or both are (squash, letterbox).
    facts: of the file that the image is a copy of; None = the image is as it was opened.

    Training crops, evaluation and prediction all start from this. Raises ValueError for an image that cannot be converted to
    8 bits, or that would have more than MAX_RESIZED pixels.
    """
    fit = prep.get("fit", "crop")
    mode = "L" if prep["color"] == "gray" else "RGB"
    scale = prep["resize"] / min(image.size)
    if fit == "crop" and scale > 1 and image.width * scale * image.height * scale > MAX_RESIZED:
        raise ValueError(
            f"{image.width}x{image.height} pixels: enlarged to a short side of {prep['resize']}, it would have more than "
            f"{MAX_RESIZED:,} pixels"
        )
    first_rule, facts = prep.get("decode", 1) == 1, facts or _pixels.facts(image)
    stated = None
    if image.format == "JPEG":
        if "windows" in prep:  # what lies on the image goes by the size of its file, and not by that of the next line
            stated = _pixels.upright_size_of(image)
        # Decodes at 1/2, 1/4 or 1/8 of the size if that still leaves this many pixels. With only as many as are wanted, the
        # picture would differ visibly from one that is decoded whole and resized.
        image.draft(mode, _geometry.least(*image.size, prep["resize"], fit, first_rule))
    image = _pixels.eight_bit(_pixels.upright(image), mode, prep, facts)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # a copy, because torch needs writable memory
    pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)  # (C, h, w)
    size = _geometry.resized(*(stated or image.size), prep["resize"], fit, first_rule)
    if size != (image.height, image.width):
        how = prep["interpolation"]
        # The same resampling as Pillow's, twice as fast; results differ by at most one of 255 levels.
        pixels = F.interpolate(pixels[None], size, mode=how, antialias=how in ("bilinear", "bicubic"))[0]
    return _geometry.boxed(pixels, prep["resize"], prep["background"]) if fit == "letterbox" else pixels


def back(size: tuple[int, int], prep: Mapping[str, Any], form: Form, answer: Tensor) -> Tensor:
    """Map an answer from what the model saw of an image to its file. size: width and height of the file's picture."""
    place = _geometry.Place.of(*size, prep)
    if not prep.get("windows"):  # the model saw the centre of the image
        seen, (height, width) = int(prep["size"]), place.image
        top, left = (geometry.centred(max(0, side - seen), prep) for side in (height, width))
        answer = geometry.cropped(answer, form, -top, -left, height, width)
    return place.back(answer, form)


def decode(path: str, prep: Mapping[str, Any]) -> Tensor:
    """Decode a file to uint8 (C, h, w). Raises DataError that names the file and the reason."""
    with _pixels.opened(path) as image:
        return canonical(image, prep)


def _from_array(value: Any) -> Image.Image:
    """Turn an array that was passed in Python into a PIL image. Raises ValueError that says what is expected."""
    array = np.asarray(value)
    shape = "x".join(map(str, array.shape))
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise ValueError(f"an image array is HxWxC, and this one is {shape}: move its channels to the end")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    deep = array.dtype == np.uint16 and array.ndim == 2
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"an image array is HxW or HxWxC with 1, 3 or 4 channels, and this one is {shape}")
    if array.dtype != np.uint8 and not deep:
        raise ValueError(f"an image array is uint8 (one of HxW also uint16), and this one is {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array))


class GivenImages(_files.GivenSamples):
    """Serve images that were passed in Python, decoded as files are."""

    def __init__(self, values: Sequence[Given], prep: Mapping[str, Any]) -> None:
        super().__init__(values, self._decoded)
        self.prep = prep

    def _decoded(self, value: Any) -> Inputs:
        if not isinstance(value, Image.Image):
            return {"image": canonical(_from_array(value), self.prep)}
        facts = _pixels.facts(value)  # a copy no longer knows its file
        return {"image": canonical(value.copy(), self.prep, facts)}

    def back(self, index: int, form: Form, answer: Tensor) -> Tensor:
        value = self.given[index].value
        image = _pixels.upright(value.copy()) if isinstance(value, Image.Image) else _from_array(value)
        return back(image.size, self.prep, form, answer)


class ImageFiles(_files.FileSamples):
    """Read images from disk."""

    one, many, unlabelled = "image", "images", "images"

    def decode(self, path: str) -> Inputs:
        return {"image": decode(path, self.prep)}

    def back(self, index: int, form: Form, answer: Tensor) -> Tensor:
        return back(_pixels.upright_size(self.path(index)), self.prep, form, answer)


class ImageArrays(Samples):
    """Serve decoded images, (N, C, h, w) uint8, from memory."""

    in_memory = True

    def __init__(self, images: Tensor, names: Sequence[str], targets: Mapping[str, Tensor]) -> None:
        self.images, self.names, self.targets = images, list(names), targets
        self.tensors = {"image": images}

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.names[index]

    def __getitem__(self, index: int) -> Inputs:
        return {"image": self.images[index]}


def build_arrays(
    known: DataSpec | None,
    spec: DataSpec,
    images: Sequence[Image.Image],
    labels: Sequence[str],
    *,
    names: Sequence[str],
    where: str,
    splitting: Splitting,
    pixels: Pixels,
) -> Data:
    """Build a Data from images in memory, all of the same size. labels: class name of each image. pixels: keys of the config."""
    old = known.targets.get("label") if known is not None else None
    kept, codes, order, notes = _classes.encode(list(labels), splitting.classes, old, where)
    chosen = [names[i] for i in kept]
    parts = _splits.split(chosen, codes, splitting)
    parts["train"] = _splits.limit(chosen, codes, parts["train"], splitting)
    made: dict[str, Samples] = {}
    for part, at in parts.items():
        decoded = torch.stack([canonical(images[kept[i]], spec.preprocessing) for i in at])
        made[part] = ImageArrays(decoded, [chosen[i] for i in at], {"label": torch.from_numpy(codes[at])})
    spec = dataclasses.replace(
        spec,
        targets={"label": Target("class", order)},
        sizes={part: len(at) for part, at in parts.items()},
        fingerprint=_splits.fingerprint(
            [(chosen[i], images[kept[i]].tobytes().hex(), labels[kept[i]]) for at in parts.values() for i in at]
        ),
    )
    return Data(
        spec, made.get("train"), made.get("val"), made.get("test"), notes=(*notes, *_image_spec.changes(known, pixels))
    )
