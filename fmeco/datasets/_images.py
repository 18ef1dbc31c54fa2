"""Decode images, the same way for training, evaluation and prediction, and share code between image datasets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fmeco.core import (
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Given,
    Inputs,
    InputSpec,
    Pixels,
    Samples,
    Splitting,
    Target,
    decode_rule,
    same_modality,
)
from fmeco.datasets import _classes, _depth, _files, _pixels, _splits

MAX_RESIZED = 32_000_000  # pixels after resizing: a line of 10,000 x 1 pixels would become 2,240,000 x 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WHITE = [255, 255, 255]


def image_spec(
    known: DataSpec | None,
    pixels: Pixels,
    *,
    default_size: int = 224,
    native: Literal["rgb", "gray"] = "rgb",
    mirror: bool = True,
) -> DataSpec:
    """Describe how images become inputs: by the keys, else as in the checkpoint (`known`), else by default.

    default_size, native: the data's own size and colour mode.
    mirror: whether a mirror image shows the same thing, which is false for digits and text.
    By default the short side is resized to 8/7 of `size` (256 for 224) and the centre is cropped. At 96 pixels and below,
    the whole short side is used, because small images show objects that fill the frame.

    Raises ConfigError that names a key with a wrong value.
    """
    same_modality(known, "image")
    old: Mapping[str, Any] = known.preprocessing if known is not None else {}
    wanted = pixels.image_size or old.get("size") or default_size
    mode = pixels.color or old.get("color") or native
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
            **_decoding(known, pixels),
        },
    )


def _decoding(known: DataSpec | None, pixels: Pixels) -> dict[str, Any]:
    """Return the part of the preprocessing that came with rule 2: decode, background and, if it is known, range.

    Raises ConfigError that names a key with a wrong value, or one that a checkpoint of rule 1 cannot have.
    """
    set_here = {"background": pixels.background, "range": pixels.range}
    if decode_rule(known) == 1:
        if key := next((key for key, value in set_here.items() if value is not None), None):
            raise ConfigError(
                f"dataset.{key}: the checkpoint is older than this key, and its images are read as they were then",
                "leave the key out, or train from published weights",
            )
        return {}
    if pixels.background is not None and (
        len(pixels.background) != 3 or not all(0 <= c <= 255 for c in pixels.background)
    ):
        raise ConfigError(f"dataset.background: {pixels.background}: expected [red, green, blue] of 0 to 255")
    if pixels.range is not None:
        if len(pixels.range) != 2 or not -32768 <= pixels.range[0] < pixels.range[1] <= 65535:
            raise ConfigError(
                f"dataset.range: {pixels.range}: expected [LOW, HIGH], from -32768 to 65535, such as [0, 4095]"
            )
    old = known.preprocessing if known is not None else {}
    range_ = pixels.range or old.get("range")
    return {
        "decode": decode_rule(known),
        "background": pixels.background or old.get("background") or WHITE,
        **({"range": list(range_)} if range_ is not None else {}),
    }


def image_data(known: DataSpec | None, spec: DataSpec, labelled: _files.Labelled, pixels: Pixels) -> Data:
    """Build a Data from image files. Adds the range of 16-bit images to the spec, and notes to the data.

    known: the checkpoint's spec. pixels: keys of the config.
    """
    files, _ = next(iter(labelled.parts.values()))
    if known is None and pixels.image_size is None:
        labelled.notes.extend(_small_note(Path(files.root, files.name(0)), spec))
    if spec.decode > 1:
        new = known is None or not known.targets  # a spec with targets is whole: it has the range, or needs none
        spec = _depth.with_range(spec, labelled, measure=new)
    return _files.data(ImageFiles, spec, labelled)


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
    """Convert a PIL image to uint8 (C, h, w) with min(h, w) = prep["resize"]: a pure function of image and spec.

    facts: of the file that the image is a copy of; None = the image is as it was opened.

    Training crops, evaluation and prediction all start from this. Raises ValueError for an image that cannot be converted to
    8 bits, or that would have more than MAX_RESIZED pixels.
    """
    short = prep["resize"]
    mode = "L" if prep["color"] == "gray" else "RGB"
    scale = short / min(image.size)
    if scale > 1 and image.width * scale * image.height * scale > MAX_RESIZED:
        raise ValueError(
            f"{image.width}x{image.height} pixels: enlarged to a short side of {short}, it would have more than "
            f"{MAX_RESIZED:,} pixels"
        )
    first_rule, facts = prep.get("decode", 1) == 1, facts or _pixels.facts(image)
    if image.format == "JPEG":
        # Decodes at 1/2, 1/4 or 1/8 of the size if that still leaves this many pixels. With only `short` of them, the picture
        # would differ visibly from one that is decoded whole and resized.
        least = short if first_rule else 2 * short
        image.draft(mode, (least, least))
    image = _pixels.eight_bit(_pixels.upright(image), mode, prep, facts)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # a copy, because torch needs writable memory
    pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)  # (C, h, w)
    w, h = image.size
    scale = short / min(w, h)
    if first_rule:
        size = (max(short, round(h * scale)), max(short, round(w * scale)))
    else:  # as torchvision and timm do
        size = (int(short * h / min(w, h)), int(short * w / min(w, h)))
    if size == (h, w):
        return pixels
    mode = prep["interpolation"]
    # The same resampling as Pillow's, twice as fast; results differ by at most one of 255 levels.
    return F.interpolate(pixels[None], size, mode=mode, antialias=mode != "nearest")[0]


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


def given(values: Sequence[Given], prep: Mapping[str, Any]) -> Samples:
    """Serve images that were passed in Python, decoded as files are."""

    def decode(value: Any) -> Inputs:
        if not isinstance(value, Image.Image):
            return {"image": canonical(_from_array(value), prep)}
        facts = _pixels.facts(value)  # a copy no longer knows its file
        return {"image": canonical(value.copy(), prep, facts)}

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
