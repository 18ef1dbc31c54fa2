"""Decode images, the same way for training, evaluation and prediction, and share code between image datasets."""

from __future__ import annotations

import dataclasses
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fmeco.core import (
    Data,
    DataError,
    DataSpec,
    Given,
    Inputs,
    InputSpec,
    Samples,
    Splitting,
    Target,
    clean,
    same_modality,
)
from fmeco.datasets import _classes, _files, _splits

MAX_PIXELS = 100_000_000  # checked in the header before decoding: a 20 kB file can declare a gigapixel
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Set once per process, because all threads share the filters of `warnings`. MAX_PIXELS limits the size instead.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Palette images with Transparency")
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    MemoryError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)


def image_spec(
    known: DataSpec | None,
    *,
    size: int | None,
    color: str | None,
    default_size: int = 224,
    native: Literal["rgb", "gray"] = "rgb",
    mirror: bool = True,
) -> DataSpec:
    """Describe how images become inputs: by the keys, else as in the checkpoint (`known`), else by default.

    size, color: the config's keys; None if not set.
    default_size, native: the data's own size and colour mode.
    mirror: whether a mirror image shows the same thing, which is false for digits and text.
    By default the short side is resized to 8/7 of `size` (256 for 224) and the centre is cropped. At 96 pixels and below,
    the whole short side is used, because small images show objects that fill the frame.
    """
    same_modality(known, "image")
    old: Mapping[str, Any] = known.preprocessing if known is not None else {}
    wanted = size or old.get("size") or default_size
    mode = color or old.get("color") or native
    if old and wanted == old["size"]:
        resize = old["resize"]
    elif old:
        resize = round(wanted * old["resize"] / old["size"])
    else:
        resize = wanted if wanted <= 96 else round(wanted * 8 / 7)
    if old and mode == old["color"] and known is not None:
        mean, std = known.inputs["image"].mean, known.inputs["image"].std
    elif mode == "gray":
        mean, std = (0.449,), (0.226,)  # ImageNet's, averaged over the channels
    else:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    channels = 1 if mode == "gray" else 3
    return DataSpec(
        modality="image",
        reader="image_folder",
        inputs={"image": InputSpec((channels, wanted, wanted), "uint8", 1 / 255, tuple(mean), tuple(std))},
        preprocessing={
            "size": wanted,
            "resize": resize,
            "interpolation": old.get("interpolation", "bilinear"),
            "color": mode,
            "mirror": mirror,
        },
    )


def small_note(file: Path, spec: DataSpec) -> list[str]:
    """Return a note if images are much smaller than the model's input: enlarging them can cost fifty times the time."""
    try:
        with Image.open(file) as image:
            width, height = image.size
    except _UNREADABLE:
        return []
    size = spec.preprocessing["size"]
    if max(width, height) * 2 > size:
        return []
    return [
        f"{file.name} has {width}x{height} pixels and is enlarged to {size}; dataset.image_size={min(width, height)} would be faster"
    ]


def canonical(image: Image.Image, prep: Mapping[str, Any]) -> Tensor:
    """Convert a PIL image to uint8 (C, h, w) with min(h, w) = prep["resize"]: a pure function of image and spec.

    Training crops, evaluation and prediction all start from this. Raises ValueError for pixels of more than 16 bits, and
    for floating-point pixels.
    """
    short = prep["resize"]
    mode = "L" if prep["color"] == "gray" else "RGB"
    if image.format == "JPEG":
        image.draft(mode, (short, short))  # decodes at 1/2, 1/4 or 1/8 of the size if that is still at least `short`
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits per channel, which PIL's conversion would clip at 255
        deep = np.asarray(image, dtype=np.int64)
        if deep.max(initial=0) > 65535 or deep.min(initial=0) < 0:
            raise ValueError("more than 16 bits per channel; save it with 8 or 16 bits")
        image = Image.fromarray((deep // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    if image.mode != mode:
        image = image.convert("RGBA").convert(mode) if image.mode == "P" else image.convert(mode)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # a copy, because torch needs writable memory
    pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)  # (C, h, w)
    w, h = image.size
    scale = short / min(w, h)
    size = (max(short, round(h * scale)), max(short, round(w * scale)))
    if size == (h, w):
        return pixels
    mode = prep["interpolation"]
    # The same resampling as Pillow's, twice as fast; results differ by at most one of 255 levels.
    return F.interpolate(pixels[None], size, mode=mode, antialias=mode != "nearest")[0]


def decode(path: str, prep: Mapping[str, Any]) -> Tensor:
    """Decode a file to uint8 (C, h, w). Raises DataError that names the file and the reason."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels is more than {MAX_PIXELS:,}")
            if min(image.size) < 1:
                raise ValueError("no pixels")
            return canonical(image, prep)
    except _UNREADABLE as error:
        reason = "not an image in a known format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"cannot read the image {clean(path)}: {_files.reason(path, reason)}") from None


def from_array(value: Any) -> Image.Image:
    """Turn an array or image that was passed in Python into a PIL image. Raises ValueError that says what is expected."""
    if isinstance(value, Image.Image):
        return value.copy()
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


def given(values: Sequence[Given], prep: Mapping[str, Any]) -> Samples:
    """Serve images that were passed in Python, decoded as files are."""

    def decode(value: Any) -> Inputs:
        return {"image": canonical(from_array(value), prep)}

    return _files.GivenSamples(values, decode)


class ImageFiles(_files.FileSamples):
    """Read images from disk."""

    one, many = "image", "images"

    def decode(self, path: str) -> Inputs:
        return {"image": decode(path, self.prep)}


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
) -> Data:
    """Build a Data from images in memory, all of the same size. labels: class name of each image."""
    old = known.targets.get("label") if known is not None else None
    kept, codes, order, notes = _classes.encode(list(labels), splitting.classes, old, where)
    chosen = [names[i] for i in kept]
    parts = _splits.split(chosen, codes, splitting)
    parts["train"] = _splits.limit(chosen, codes, parts["train"], splitting)
    made: dict[str, Samples] = {}
    for part, at in parts.items():
        pixels = torch.stack([canonical(images[kept[i]], spec.preprocessing) for i in at])
        made[part] = ImageArrays(pixels, [chosen[i] for i in at], {"label": torch.from_numpy(codes[at])})
    spec = dataclasses.replace(
        spec,
        targets={"label": Target("class", order)},
        sizes={part: len(at) for part, at in parts.items()},
        fingerprint=_splits.fingerprint(
            [(chosen[i], images[kept[i]].tobytes().hex(), labels[kept[i]]) for at in parts.values() for i in at]
        ),
    )
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=tuple(notes))
