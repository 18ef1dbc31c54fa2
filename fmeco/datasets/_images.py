"""Images: the one canonical decode, the folder scanner, and what every image dataset shares."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import operator
import os
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

from fmeco.core import CheckpointError, Data, DataError, DataSpec, Inputs, InputSpec, Samples, Target, clean
from fmeco.datasets import _splits

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
MAX_PIXELS = 100_000_000  # a 20 kB file can declare a gigapixel; the header is checked before anything is decoded
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Once for the process: the filters of `warnings` are shared by all threads. The size has a limit of its own, above.
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
    """How images become inputs: the checkpoint's way (`known`), where no key says otherwise; else the default.

    The short side is resized to 8/7 of `size` (256 for 224) and the middle cropped; at 96 pixels and below images
    are small objects that fill the frame, and the whole short side is used. `mirror`: whether a mirror image shows the
    same thing, as it does not for digits and text.
    """
    if known is not None and known.modality not in ("image", ""):
        raise CheckpointError(f"this checkpoint is for {known.modality} data, and the dataset holds images")
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
    """A word to who trains on thumbnails at the default size, which costs fifty times the time."""
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


def canonical(image: Image.Image, how: Mapping[str, Any]) -> Tensor:
    """A PIL image -> uint8 (C, h, w) with min(h, w) = how["resize"]: a pure function of the file and the spec.

    Training crops, evaluation and prediction all start from exactly this.
    """
    short = how["resize"]
    mode = "L" if how["color"] == "gray" else "RGB"
    if image.format == "JPEG":
        image.draft(mode, (short, short))  # decodes at 1/2, 1/4 or 1/8 when that is still larger than `short`
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits per channel: PIL would clip at 255
        deep = np.asarray(image, dtype=np.int64)
        if deep.max(initial=0) > 65535 or deep.min(initial=0) < 0:
            raise ValueError("more than 16 bits per channel; save it with 8 or 16")
        image = Image.fromarray((deep // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    if image.mode != mode:
        image = image.convert("RGBA").convert(mode) if image.mode == "P" else image.convert(mode)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # a copy: torch wants to own writable memory
    pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)  # (C, h, w)
    w, h = image.size
    scale = short / min(w, h)
    size = (max(short, round(h * scale)), max(short, round(w * scale)))
    if size == (h, w):
        return pixels
    mode = how["interpolation"]
    # Pillow's arithmetic, vectorised: twice as fast, and at most one level of 255 apart.
    return F.interpolate(pixels[None], size, mode=mode, antialias=mode != "nearest")[0]


def decode(path: str, how: Mapping[str, Any]) -> Tensor:
    """A file -> uint8 (C, h, w). Raises DataError that names the file and the reason."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels is more than {MAX_PIXELS:,}")
            if min(image.size) < 1:
                raise ValueError("no pixels")
            return canonical(image, how)
    except _UNREADABLE as error:
        raise DataError(f"cannot read the image {clean(path)}: {_reason(path, error)}") from None


def _reason(path: str, error: BaseException) -> str:
    try:
        if os.path.getsize(path) == 0:
            return "the file is empty"
        with open(path, "rb") as file:
            head = file.read(64).lstrip().lower()
        if head.startswith((b"<!doctype", b"<html")):
            return "it is a web page, not an image"
        if head.startswith(b"version https://git-lfs"):
            return "it is a Git LFS pointer; run `git lfs pull`"
    except OSError:
        pass
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    return clean(error) or type(error).__name__


@dataclasses.dataclass(frozen=True)
class Files:
    """Files below a folder, with sizes and times of change. Paths are packed bytes: a million of them must not become
    a million Python objects, which loader workers would copy page by page."""

    root: str
    packed: np.ndarray[Any, Any]  # the relative paths, end to end
    ends: np.ndarray[Any, Any]  # (N,) where each of them ends
    sizes: np.ndarray[Any, Any]  # (N,) bytes
    times: np.ndarray[Any, Any]  # (N,) ns

    @staticmethod
    def of(root: Path | str, paths: Sequence[str], sizes: Sequence[int], times: Sequence[int]) -> Files:
        encoded = [os.fsencode(path) for path in paths]
        return Files(
            str(root),
            np.frombuffer(b"".join(encoded), dtype=np.uint8),
            np.cumsum([len(path) for path in encoded], dtype=np.int64),
            np.array(sizes, dtype=np.int64),
            np.array(times, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.packed[start : self.ends[index]].tobytes())

    def names(self) -> list[str]:
        text, ends = self.packed.tobytes(), [0, *self.ends.tolist()]
        return [os.fsdecode(text[a:b]) for a, b in itertools.pairwise(ends)]

    def take(self, at: _splits.Indices) -> Files:
        names = self.names()
        return Files.of(self.root, [names[i] for i in at.tolist()], self.sizes[at].tolist(), self.times[at].tolist())


class ImageFiles(Samples):
    """Images on disk."""

    def __init__(self, files: Files, targets: Mapping[str, Tensor], how: Mapping[str, Any]) -> None:
        self.files, self.targets, self.how = files, targets, dict(how)
        if not len(files.times):  # not known: nothing tells a changed file from an old one
            return
        digest = hashlib.sha256(repr((os.path.abspath(files.root), sorted(self.how.items()))).encode())
        for part in (files.packed, files.ends, files.sizes, files.times):
            digest.update(part.tobytes())
        self.content = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files.name(index)

    def __getitem__(self, index: int) -> Inputs:
        return {"image": decode(os.path.join(self.files.root, self.files.name(index)), self.how)}


class ImageArrays(Samples):
    """Images already decoded, (N, C, h, w) uint8."""

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


def scan(root: Path, notes: list[str]) -> Files:
    """Image files below `root`, sorted by relative path.

    Hidden files and folders, linked folders and files of other types are left out, and said so in `notes`.
    """
    paths: list[str] = []
    sizes: list[int] = []
    times: list[int] = []
    skipped = {"hidden entries": 0, "linked folders": 0, "files that are not images": 0}

    def walk(folder: str) -> None:
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                found = [(entry.name + "/" if entry.is_dir() else entry.name, entry) for entry in entries]
        except OSError as error:
            raise DataError(f"cannot list the folder {clean(root / folder)}: {error.strerror}") from None
        found.sort(key=operator.itemgetter(0))  # with the slash, folders fall where their files' paths do
        for name, entry in found:
            if name[0] == "." or name.startswith("__MACOSX"):
                skipped["hidden entries"] += 1
            elif name[-1] == "/":
                if entry.is_symlink():
                    skipped["linked folders"] += 1
                else:
                    walk(folder + name)
            elif name[name.rfind(".") :].lower() in SUFFIXES:
                try:
                    status = entry.stat()
                except OSError:
                    raise DataError(f"cannot read the image {clean(entry.path)}: it is a link to nothing") from None
                paths.append(folder + name)
                sizes.append(status.st_size)
                times.append(status.st_mtime_ns)
            else:
                skipped["files that are not images"] += 1

    walk("")
    notes += [f"{root}: skipped {count} {what}" for what, count in skipped.items() if count]
    return Files.of(root, paths, sizes, times)


def build_arrays(
    known: DataSpec | None,
    spec: DataSpec,
    images: Sequence[Image.Image],
    labels: Sequence[str],
    *,
    names: Sequence[str],
    where: str,
    classes: list[str | int] | None,
    limit_per_class: int | None,
    limit_seed: int,
    val_fraction: float,
    test_fraction: float,
    fold: Mapping[str, int] | None,
) -> Data:
    """A Data from images in memory, all of one size, with one class name each."""
    old = known.targets.get("label") if known is not None else None
    kept, codes, order, notes = _splits.encode(list(labels), classes, old, where)
    chosen = [names[i] for i in kept]
    parts = _splits.split(chosen, codes, val_fraction, test_fraction, fold)
    parts["train"] = _splits.limit(chosen, codes, parts["train"], limit_per_class, limit_seed)
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
