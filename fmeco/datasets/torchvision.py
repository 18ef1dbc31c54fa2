"""Public image datasets of torchvision, downloaded on first use: torchvision/cifar10, torchvision/flowers102, ..."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch

from fmeco.core import (
    CheckpointError,
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Doc,
    FilePath,
    Inputs,
    Pixels,
    Samples,
    Splitting,
    Target,
    Without,
    clean,
    listing,
)
from fmeco.datasets import _classes, _dense, _image_spec, _images, _masks, _splits
from fmeco.download import File, NotHere, get
from fmeco.errors import ResourceError
from fmeco.nn.libraries import import_torchvision

MODALITY = "image"

NAMES = (
    "cifar10",
    "cifar100",
    "country211",
    "dtd",
    "eurosat",
    "fashion_mnist",
    "fgvc_aircraft",
    "flowers102",
    "food101",
    "gtsrb",
    "imagenette",
    "kmnist",
    "mnist",
    "oxford_iiit_pet",
    "rendered_sst2",
    "stl10",
    "svhn",
    "usps",
)
_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
# name -> (class in torchvision.datasets, the published splits as its arguments, native image size)
_SOURCES: dict[str, tuple[str, dict[str, dict[str, Any]], int]] = {
    "cifar10": ("CIFAR10", _TRAIN_FLAG, 32),
    "cifar100": ("CIFAR100", _TRAIN_FLAG, 32),
    "country211": ("Country211", {**_TWO, "val": {"split": "valid"}}, 224),
    "dtd": ("DTD", _THREE, 224),
    "eurosat": ("EuroSAT", {"train": {}}, 64),
    "fashion_mnist": ("FashionMNIST", _TRAIN_FLAG, 28),
    "fgvc_aircraft": ("FGVCAircraft", _THREE, 224),
    "flowers102": ("Flowers102", _THREE, 224),
    "food101": ("Food101", _TWO, 224),
    "gtsrb": ("GTSRB", _TWO, 32),
    "imagenette": ("Imagenette", {"train": {"split": "train"}, "test": {"split": "val"}}, 224),
    "kmnist": ("KMNIST", _TRAIN_FLAG, 28),
    "mnist": ("MNIST", _TRAIN_FLAG, 28),
    "oxford_iiit_pet": ("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}, 224),
    "rendered_sst2": ("RenderedSST2", _THREE, 224),
    "stl10": ("STL10", _TWO, 96),
    "svhn": ("SVHN", _TWO, 32),
    "usps": ("USPS", _TRAIN_FLAG, 16),
}

_GRAY = ("fashion_mnist", "kmnist", "mnist", "usps")
_ORIENTED = (
    "gtsrb",
    "kmnist",
    "mnist",
    "rendered_sst2",
    "svhn",
    "usps",
)  # here a mirror image means something else


class _Masks(NamedTuple):
    """Say where a dataset of the library keeps masks.

    images, masks: attributes that list the files.
    classes: name -> value.
    ignore: values of pixels without a class.
    """

    images: str
    masks: str
    classes: dict[str, int | list[int] | str]
    ignore: list[int | list[int]]


# 3 is the border, "not classified" in the dataset's own words
_MASKS = {"oxford_iiit_pet": _Masks("_images", "_segs", {"pet": 1, "background": 2}, [3])}


def build(
    known: DataSpec | None,
    whole: bool,
    arch: str,
    *,
    target: Annotated[
        Literal["class", "mask"],
        Doc("what to learn: the class of each image or, of a dataset that has masks (oxford_iiit_pet), of each pixel"),
    ] = "class",
    root: Annotated[FilePath, Doc("folder for the download")] = "data",
    download: Annotated[bool, Doc("download the data if it is not in `root`")] = True,
    splitting: Annotated[Splitting, Without("test_fraction", "group_split")] = Splitting(val_fraction=0.1),
    pixels: Annotated[Pixels, Without("background", "range")] = Pixels(),
) -> Data:
    """Build the dataset. `test` and `val` are the published splits; without a published `val`, it is split off training."""
    _, published, size = _SOURCES[arch]
    if target == "mask":
        _check_masks(arch, splitting)  # before the download
    sets = {part: _open(arch, root, download, arguments) for part, arguments in published.items()}
    if target == "mask":
        return _masked(known, whole, arch, sets, splitting, pixels)
    native: Literal["gray", "rgb"] = "gray" if arch in _GRAY else "rgb"
    spec = _image_spec.image_spec(
        known,
        pixels,
        default_size=size,
        native=native,
        mirror=arch not in _ORIENTED,
    )
    old = known.targets.get("label") if known is not None else None
    where = f"torchvision/{arch}"
    notes: list[str] = _image_spec.changes(known, pixels)
    parts: dict[str, tuple[str, _splits.Indices, _splits.Indices]] = {}  # split -> (published split, positions, codes)
    described = old
    for part, dataset in sets.items():
        labels = _labels(dataset)
        kept, codes, names, more = _classes.encode(labels, splitting.classes, described, where)
        described = described or Target("class", names)
        notes += more
        parts[part] = (part, kept, codes)
    assert described is not None
    if "val" not in parts:
        _, kept, codes = parts["train"]
        rows = [f"{i:06}" for i in kept]
        for part, at in _splits.split(rows, codes, splitting).items():
            parts[part] = ("train", kept[at], codes[at])
    source, kept, codes = parts["train"]
    at = _splits.limit([f"{i:06}" for i in kept], codes, np.arange(len(kept)), splitting)
    parts["train"] = (source, kept[at], codes[at])
    spec = dataclasses.replace(
        spec,
        targets={"label": described},
        sizes={part: len(at) for part, (_, at, _) in parts.items()},
        fingerprint=_splits.fingerprint(
            [
                (where, source, int(i), int(c))
                for source, at, codes in parts.values()
                for i, c in zip(at, codes, strict=True)
            ]
        ),
    )
    made = {
        part: _Images(sets[source], at, codes, spec, f"{arch}-{source}") for part, (source, at, codes) in parts.items()
    }
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=tuple(dict.fromkeys(notes)))


def _check_masks(arch: str, splitting: Splitting) -> None:
    """Raise ConfigError for a dataset without masks, and for classes that are chosen."""
    where = f"torchvision/{arch}"
    if arch not in _MASKS:
        raise ConfigError(f"dataset.target: {where} has no masks", f"datasets with masks: {listing([*_MASKS])}")
    if splitting.classes is not None:
        raise ConfigError(f"dataset.classes: the masks of {where} have the classes {listing([*_MASKS[arch].classes])}")


def _masked(
    known: DataSpec | None, whole: bool, arch: str, sets: Mapping[str, Any], splitting: Splitting, pixels: Pixels
) -> Data:
    """Build the dataset of images and masks. Raises DataError for absent files."""
    where, found, parts = f"torchvision/{arch}", _MASKS[arch], {}
    for part, dataset in sets.items():
        root = Path(os.path.abspath(dataset.root))
        images, masks = (
            [os.path.relpath(file, root) for file in getattr(dataset, attribute)]
            for attribute in (found.images, found.masks)
        )
        if absent := [name for name in [*images, *masks] if not (root / name).is_file()]:
            raise DataError(f"{where} is incomplete under {clean(dataset.root)}: {listing(absent, 5)}")
        parts[part] = _masks.MaskedFiles.together(_dense.listed(root, images), _dense.listed(root, masks))
    spec = _dense.dense_spec(known, pixels)
    cut, groups = _dense.divided(parts, whole, splitting, where)
    return _masks.masked_data(known, spec, cut, groups, [], found.classes, found.ignore, pixels)


class _Images(Samples):
    """Serve images of one of the library's datasets. at: positions in it; label: prefix of the samples' names."""

    def __init__(self, dataset: Any, at: _splits.Indices, codes: _splits.Indices, spec: DataSpec, label: str) -> None:
        self.dataset, self.at, self.label, self.prep = dataset, at, label, dict(spec.preprocessing)
        self.targets = {"label": torch.from_numpy(codes)}

    def __len__(self) -> int:
        return len(self.at)

    def name(self, index: int) -> str:
        return f"{self.label}-{self.at[index]:06}"

    def __getitem__(self, index: int) -> Inputs:
        try:
            image = self.dataset[int(self.at[index])][0]
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"cannot read the image {self.name(index)}: {clean(error)}") from None
        return {"image": _images.canonical(image, self.prep)}


def files(arch: str, options: Mapping[str, Any]) -> list[File]:
    """List the files that `build` downloads with these options, as the library states them. [] if the data is complete."""
    kind, published, _ = _SOURCES[arch]
    asked: dict[Path, File] = {}
    existed = os.path.exists(options["root"])
    for arguments in published.values() if options["download"] else ():
        # The archives that were only asked for are missing, which the library reports by errors of many classes.
        with (
            _downloads(arch, lambda file: asked.setdefault(file.path, file), unpack=False),
            contextlib.suppress(Exception),
        ):
            getattr(import_torchvision().datasets, kind)(options["root"], download=True, **arguments)
    if not existed:  # the library makes folders before it downloads
        for folder, _, _ in os.walk(options["root"], topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    return list(asked.values())


@contextlib.contextmanager
def _downloads(arch: str, handle: Callable[[File], Any], *, unpack: bool) -> Iterator[None]:
    """Call `handle` for every file that the library would download inside the `with` block, in place of its own download.

    unpack: whether the library then unpacks archives.
    """
    datasets = import_torchvision().datasets
    kind = getattr(datasets, _SOURCES[arch][0])

    def download_url(url: str, root: Any, filename: Any = None, md5: str | None = None, *_: Any) -> None:
        path = Path(os.path.expanduser(root)) / (filename or os.path.basename(url))
        bring = f"fmeco fetch --dataset torchvision/{arch} --out FOLDER"
        handle(File(url, path, digest=f"md5:{md5}" if md5 else "", bring=bring))

    def download_archive(
        url: str, download_root: Any, *_: Any, filename: Any = None, md5: Any = None, **__: Any
    ) -> None:
        download_url(url, download_root, filename, md5)

    replaced = {"download_url": download_url} | ({} if unpack else {"download_and_extract_archive": download_archive})
    places = {id(module): module for cls in kind.__mro__ if (module := sys.modules.get(cls.__module__)) is not None}
    with contextlib.ExitStack() as stack:
        for module in (datasets.utils, *places.values()):
            for name, function in replaced.items():
                if hasattr(module, name):
                    stack.callback(setattr, module, name, getattr(module, name))
                    setattr(module, name, function)
        yield


def _get(file: File) -> None:
    """Download a file. Raises URLError, which lets the library try its next mirror, NotHere and DataError."""
    from urllib.error import URLError

    try:
        get(file)
    except NotHere:
        raise
    except ResourceError as error:
        raise URLError(error.message) from None
    except CheckpointError as error:
        raise DataError(error.message, *error.hints) from None


def _open(arch: str, root: str, download: bool, arguments: dict[str, Any]) -> Any:
    """Open one split of the library's dataset, and download it if needed.

    Raises ResourceError if the download fails, DataError if files are absent or damaged.
    """
    from urllib.error import URLError

    kind = _SOURCES[arch][0]
    try:
        with _downloads(arch, _get, unpack=True):
            return getattr(import_torchvision().datasets, kind)(root, download=download, **arguments)
    except URLError as error:
        raise ResourceError(
            f"could not download {kind}: {clean(error.reason)}",
            f"check the network connection, or put the files under {clean(root)} yourself",
        ) from None
    except (RuntimeError, OSError) as error:
        if "Error downloading" not in str(error):
            raise DataError(f"{kind} is incomplete under {clean(root)}: {clean(error)}") from None
        raise ResourceError(f"could not download {kind} under {clean(root)}: {clean(error)}") from None


def _labels(dataset: Any) -> Sequence[str]:
    """Return the class name of each sample. The library's datasets keep labels under different attribute names."""
    codes: Any = next(
        (getattr(dataset, name) for name in ("targets", "labels", "_labels") if hasattr(dataset, name)), None
    )
    if codes is None:
        pairs = getattr(dataset, "samples", None) or dataset._samples
        codes = [code for _, code in pairs]
    names = getattr(dataset, "classes", None)
    codes = [int(code) for code in codes]
    return [str(code) if names is None else str(names[code]) for code in codes]
