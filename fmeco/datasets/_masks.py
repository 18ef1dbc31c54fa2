"""Read the masks of images, which value of a pixel means which class, and build datasets of them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fmeco.core import (
    IGNORED,
    MISSING_CLASS,
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Inputs,
    InputSpec,
    Pixels,
    Target,
    clean,
    listing,
    nfc,
)
from fmeco.datasets import _drawing, _files, _geometry, _images, _pixels, _splits
from fmeco.datasets._splits import Indices
from fmeco.files import regular

Value = int | list[int]  # of a pixel: a number, or a colour [red, green, blue]
Array = NDArray[Any]
UNKNOWN = 254  # class number of a value that no class has, so that there are at most 254 classes
MOST = 64  # values that masks may have if the config does not name the classes
DISTORTED = 0.02  # largest relative difference between the aspects of a mask and of its image


@dataclasses.dataclass(frozen=True)
class MaskedFiles(_files.Files):
    """Hold images and, in the same order, their masks. A mask with an empty name is missing."""

    masks: _files.Files

    @staticmethod
    def together(images: _files.Files, masks: _files.Files) -> MaskedFiles:
        return MaskedFiles(images.root, images.packed, images.ends, images.sizes, images.times, masks)

    def take(self, at: Indices) -> Self:
        return dataclasses.replace(super().take(at), masks=self.masks.take(at))


class MaskedImages(_images.ImageFiles):
    """Read images from disk, with their masks.

    prep["values"]: the value of each class. prep["ignore"]: values of pixels without a class.
    """

    def __init__(self, files: _files.Files, targets: Mapping[str, Tensor | list[Any]], prep: Mapping[str, Any]) -> None:
        super().__init__(files, targets, prep)
        assert isinstance(files, MaskedFiles)
        self.masks, self.table = files.masks, Table.of(self.prep["values"], self.prep["ignore"])
        if self.content and self.stamps is not None:
            digest = hashlib.sha256(self.content.encode())
            for part in (self.masks.packed, self.masks.ends, self.masks.sizes):
                digest.update(part.tobytes())
            self.content = digest.hexdigest()
            self.stamps = self.stamps ^ (torch.from_numpy(self.masks.times) * 31)

    def mask_path(self, index: int) -> str | None:
        """Return the path of a sample's mask; None if it is missing."""
        name = self.masks.name(index)
        return os.path.join(self.masks.root, name) if name else None

    def __getitem__(self, index: int) -> Inputs:
        path, mask = self.path(index), self.mask_path(index)
        image = _images.decode(path, self.prep)
        if mask is None:
            return {"image": image, "mask": torch.full(image.shape[-2:], IGNORED, dtype=torch.uint8)}
        return {"image": image, "mask": _fitted(read_mask(mask, self.table), mask, path, self.prep)}

    def digest(self, index: int, *, stored: bool = False) -> bytes | None:
        own, mask = super().digest(index, stored=stored), self.mask_path(index)
        if own is None or mask is None:
            return own
        try:
            with open(mask, "rb", opener=regular) as file:
                return hashlib.blake2b(own + file.read(), digest_size=16).digest()
        except OSError:
            return None


class Table(NamedTuple):
    """Map values of pixels to class numbers.

    codes: (65536,) class number of each number, if values are numbers.
    colours: (n,) sorted, each as red * 65536 + green * 256 + blue; then `codes` is (n,).
    """

    codes: Array
    colours: Array | None

    @staticmethod
    def of(values: Sequence[Value], ignore: Sequence[Value]) -> Table:
        pairs = [*((value, code) for code, value in enumerate(values)), *((value, IGNORED) for value in ignore)]
        if values and isinstance(values[0], list):
            packed = sorted((_packed(value), code) for value, code in pairs if isinstance(value, list))
            colours, codes = np.array(packed, dtype=np.int64).T
            return Table(codes.astype(np.uint8), colours)
        codes = np.full(65536, UNKNOWN, dtype=np.uint8)
        for value, code in pairs:
            codes[value] = code
        return Table(codes, None)

    def look_up(self, pixels: Array) -> Array:
        """Return the class numbers (H, W) of pixels (H, W)."""
        if self.colours is None:
            found: Array = self.codes[pixels]
            return found
        at = np.searchsorted(self.colours, pixels).clip(max=len(self.colours) - 1)
        coded: Array = np.where(self.colours[at] == pixels, self.codes[at], UNKNOWN)
        return coded.astype(np.uint8)


def _packed(colour: Sequence[int]) -> int:
    return int(colour[0]) << 16 | int(colour[1]) << 8 | int(colour[2])


def _pixels_of(image: Image.Image, coloured: bool) -> Array:
    """Return the values (H, W) of a mask's pixels. coloured: as packed colours. Raises ValueError."""
    if image.format in ("JPEG", "WEBP", "AVIF"):
        raise ValueError(f"{image.format} changes the values of a mask; save it as PNG")
    if image.mode == "F":
        raise ValueError("a mask with floating-point values; save it with integers")
    if coloured:
        colours = np.asarray(image.convert("RGB"), dtype=np.int64)  # (H, W, 3); of a palette, its colours
        return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]
    if image.mode in ("RGB", "RGBA", "LA"):
        channels = np.asarray(image)[..., : 1 if image.mode == "LA" else 3]
        if (channels != channels[..., :1]).any():
            raise ValueError(
                "its pixels have colours; say which is which class: dataset.classes={sky: [70, 130, 180], ...}"
            )
        first: Array = channels[..., 0]
        return first
    values = np.asarray(image)  # of a palette, the numbers of its entries
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError(f"it has values from {values.min()} to {values.max()}; a mask's are 0 to 65535")
    return values.astype(np.uint16)


def read_mask(path: str, table: Table) -> Array:
    """Read a mask as class numbers (H, W). Raises DataError that names the file and the first pixel of no class."""
    with _pixels.opened(path) as image:
        pixels = _pixels_of(image, table.colours is not None)
        codes = table.look_up(pixels)
    strange = np.argwhere(codes == UNKNOWN)
    if len(strange):
        row, column = strange[0].tolist()
        value = int(pixels[row, column])
        shown = str([value >> 16, value >> 8 & 255, value & 255]) if table.colours is not None else str(value)
        raise DataError(
            f"{clean(path)}: the pixel in column {column}, row {row} has the value {shown}, which is no class ({len(strange):,} such "
            "pixels)",
            f"name the class in dataset.classes, or leave such pixels out: dataset.ignore=[{shown}]",
        )
    return codes


def _fitted(codes: Array, mask: str, path: str, prep: Mapping[str, Any]) -> Tensor:
    """Bring a mask onto the grid of its image. Raises DataError if it has another shape."""
    ((width, height), turn), (h, w) = _pixels.size_and_turn(path), codes.shape
    if (h, w) == (width, height) != (height, width):
        if turn is not None:  # the mask was drawn on the pixels as the camera stored them
            codes = np.asarray(Image.fromarray(codes).transpose(turn))
            h, w = codes.shape
    if abs(w * height / (h * width) - 1) > DISTORTED:
        raise DataError(
            f"{clean(mask)}: the mask has {w}x{h} pixels, and its image {clean(path)} has {width}x{height}, which is another shape"
        )
    place = _geometry.Place.of(width, height, prep)._replace(file=(h, w))
    return place.forth(torch.from_numpy(np.array(codes)), "mask")


class Classes(NamedTuple):
    """Hold the classes of masks: their names and, in the same order, their values."""

    names: tuple[str, ...]
    values: list[Value]


def given_classes(classes: Sequence[str | int] | Mapping[str, Value | str], ignore: Sequence[Value]) -> Classes:
    """Read dataset.classes. Raises ConfigError that names a class."""
    if isinstance(classes, Mapping):
        names, values = [str(name) for name in classes], [_value(name, value) for name, value in classes.items()]
    else:
        names, values = [str(name) for name in classes], list(range(len(classes)))
    twice = [name for name, count in Counter(nfc(names)).items() if count > 1]
    if twice:
        raise ConfigError(f"dataset.classes: named twice: {listing(twice)}")
    if len({isinstance(value, list) for value in (*values, *ignore)}) > 1:
        raise ConfigError("dataset.classes and dataset.ignore: either all values are numbers, or all are colours")
    shared = [str(value) for value, count in Counter(map(str, [*values, *ignore])).items() if count > 1]
    if shared:
        raise ConfigError(f"dataset.classes and dataset.ignore: the value {listing(shared)} stands for two things")
    if not 2 <= len(names) <= UNKNOWN:
        raise ConfigError(f"dataset.classes: expected 2 to {UNKNOWN} classes, found {len(names)}")
    return Classes(tuple(names), values)


def ignored(values: Sequence[Value]) -> list[Value]:
    """Check dataset.ignore. Raises ConfigError that names a value that cannot be meant."""
    return [_value("", value) for value in values]


def _value(name: str, value: Value | str) -> Value:
    """Read the value of a class, or of dataset.ignore (""): a number of 0 to 65535, [red, green, blue] or '#rrggbb'.

    Raises ConfigError.
    """
    if isinstance(value, str):
        try:
            if len(value) == 7 and value[0] == "#":
                return [int(value[at : at + 2], 16) for at in (1, 3, 5)]
        except ValueError:
            pass
    elif isinstance(value, list):
        if len(value) == 3 and all(0 <= part <= 255 for part in value):
            return value
    elif 0 <= value <= 65535:
        return value
    where = f"dataset.classes: {clean(name)}" if name else "dataset.ignore"
    raise ConfigError(f"{where}: {clean(value)}: expected a number of 0 to 65535, [red, green, blue] or '#rrggbb'")


def found_classes(files: MaskedFiles, ignore: Sequence[Value]) -> Classes:
    """Take the values of the training masks as classes. Raises DataError for masks that are not labelled by numbers."""
    paths = [os.path.join(files.masks.root, name) for name in files.masks.names() if name]

    def values_of(path: str) -> Array:
        with _pixels.opened(path) as image:
            return np.unique(_pixels_of(image, False))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        values = sorted(
            {int(value) for found in pool.map(values_of, paths) for value in found} - {*map(_number, ignore)}
        )
    if 255 in values and len(values) > 2:
        raise DataError(
            "255 is a value of the masks, as pixels without a class often have",
            "if they have none: dataset.ignore=[255]",
            f"if it is a class, name all: dataset.classes={{{', '.join(f'c{v}: {v}' for v in values[:4])}, ...}}",
        )
    if not 2 <= len(values) <= MOST:
        raise DataError(
            f"the training masks have {len(values)} different values, where 2 to {MOST} can be classes: {listing(map(str, values), 5)}",
            "say which value is which class: dataset.classes={background: 0, road: 7, ...}",
        )
    return Classes(tuple(map(str, values)), list(values))


def _number(value: Value) -> int:
    if isinstance(value, list):
        raise ConfigError("dataset.ignore: colours need dataset.classes, with the colour of each class")
    return value


def picture(codes: Tensor, values: Sequence[Value]) -> Image.Image:
    """Draw class numbers (H, W) as a mask: by the classes' colours, or their values, which get colours of a palette."""
    at = codes.numpy()
    if isinstance(values[0], list):
        return Image.fromarray(np.array(values, dtype=np.uint8)[at])
    numbers = np.array(values)
    if numbers.max() > 255:
        return Image.fromarray(numbers.astype(np.uint16)[at])
    image = Image.fromarray(numbers.astype(np.uint8)[at], mode="P")
    image.putpalette(_palette(values))
    return image


def _palette(values: Sequence[Value]) -> list[int]:
    """Give each class a colour that differs from the others'; the first class is black."""
    colours = [0] * 768
    for value, colour in zip(values[1:], _drawing.colours(len(values) - 1), strict=True):
        assert isinstance(value, int)
        colours[3 * value : 3 * value + 3] = colour
    return colours


def masked_data(
    known: DataSpec | None,
    spec: DataSpec,
    parts: Mapping[str, MaskedFiles],
    groups: dict[str, dict[str, list[str]]],
    notes: list[str],
    classes: Sequence[str | int] | Mapping[str, Value | str] | None,
    ignore: list[Value] | None,
    pixels: Pixels,
) -> Data:
    """Build the dataset of images with masks in files.

    spec: describes the images, as `_dense.dense_spec` does.
    parts, groups: files and groups of each split.
    classes, ignore: classes and values without a class, as in a config; None = those of the checkpoint.

    Raises ConfigError and DataError.
    """
    first = next(iter(parts.values()))
    if ignore is None:  # a new task of a checkpoint has masks of its own
        ignore = known.preprocessing["ignore"] if known is not None and "mask" in known.targets else []
    left_out = ignored(ignore)
    chosen = _classes(known, classes, left_out, first)
    target = Target("mask", chosen.names, input="mask")
    side = spec.preprocessing["size"]
    spec = dataclasses.replace(
        spec,
        inputs={**spec.inputs, "mask": InputSpec((side, side), "uint8", rides="image", form="mask")},
        preprocessing={**spec.preprocessing, "values": chosen.values, "ignore": left_out},
        reader="masks",
    )
    rows = [
        row
        for part in parts.values()
        for row in zip(part.names(), part.sizes.tolist(), part.masks.sizes.tolist(), strict=True)
    ]
    labelled = _files.Labelled(
        {part: (files, {"mask": _present(files)}) for part, files in parts.items()},
        {"mask": target},
        _splits.fingerprint(rows),
        notes,
        groups,
    )
    return _images.image_data(known, spec, labelled, pixels, kind=MaskedImages)


def _classes(
    known: DataSpec | None,
    classes: Sequence[str | int] | Mapping[str, int | list[int] | str] | None,
    ignore: Sequence[int | list[int]],
    files: MaskedFiles,
) -> Classes:
    """Choose the classes and their values: of the config, else of the checkpoint, else of the training masks.

    Classes that a checkpoint has too get its order. Raises ConfigError and DataError.
    """
    old = known.targets.get("mask") if known is not None else None
    if classes is None:
        if known is not None and old is not None:
            return Classes(old.classes, list(known.preprocessing["values"]))
        return found_classes(files, ignore)
    chosen = given_classes(classes, ignore)
    if old is None:
        return chosen
    values, theirs = dict(zip(nfc(chosen.names), chosen.values, strict=True)), nfc(old.classes)
    if strange := [name for name in values if name not in theirs]:
        raise DataError(f"dataset.classes: {listing(strange)}: not classes of the checkpoint: {listing(old.classes)}")
    if absent := [name for name in theirs if name not in values]:
        raise DataError(f"dataset.classes: the checkpoint has the class {listing(absent)}, too: say its value")
    return Classes(old.classes, [values[name] for name in theirs])


def _present(files: MaskedFiles) -> Tensor:
    """Return the target (N,) of images: 0 with a mask, MISSING_CLASS without."""
    return torch.tensor([0 if name else MISSING_CLASS for name in files.masks.names()])
