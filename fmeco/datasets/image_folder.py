"""A folder of images: one folder per class, alone or inside train/, val/ and test/."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch

from fmeco.core import (
    Classes,
    Color,
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Doc,
    FilePath,
    Fold,
    ImageSize,
    LimitPerClass,
    LimitSeed,
    Samples,
    Target,
    ValFraction,
    clean,
    listing,
)
from fmeco.datasets import _images, _splits

_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


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
    notes: list[str] = []
    folders = _folders(path, {"train": train, "val": val, "test": test}, whole)
    scanned = {part: _scan(folder, notes) for part, folder in folders.items()}
    for part, folder in folders.items():
        _inspect(folder, scanned[part].labels, notes)

    # Classes are those of the training folder; every other folder is held to them by name.
    first = next(iter(scanned))
    old = known.targets.get("label") if known is not None else None
    _, _, names, found = _splits.encode(scanned[first].labels, classes, old, str(folders[first]))
    notes += found
    target = Target("class", names)
    spec = _images.image_spec(known, size=image_size, color=color)

    if known is None and image_size is None and scanned[first].labels:
        notes += _images.small_note(folders[first] / scanned[first].files.name(0), spec)

    parts: dict[str, tuple[_images.Files, _splits.Indices]] = {}
    for part, one in scanned.items():
        present = set(one.labels)
        chosen = None if classes is None else [c for c in classes if str(c) in present]
        kept, codes, _, found = _splits.encode(one.labels, chosen, target, str(folders[part]), "the training folder")
        notes += found if part != first else []
        parts[part] = (one.files if len(kept) == len(one.files) else one.files.take(kept), codes)
    if whole and "path" in parts:
        parts = {"test": parts["path"]}
    elif "path" in parts or ("train" in parts and "val" not in parts):
        files, codes = parts.pop("path" if "path" in parts else "train")
        cut = _splits.split(files.names(), codes, val_fraction, fold=split)
        parts = {**{part: (files.take(at), codes[at]) for part, at in cut.items()}, **parts}
    elif split is not None:
        raise ConfigError(f"dataset.split: {clean(path or train)} has a validation folder of its own")
    if "train" in parts and limit_per_class is not None:
        files, codes = parts["train"]
        at = _splits.limit(files.names(), codes, np.arange(len(files)), limit_per_class, limit_seed)
        parts["train"] = (files.take(at), codes[at])
    spec = dataclasses.replace(
        spec,
        targets={"label": target},
        sizes={part: len(files) for part, (files, _) in parts.items()},
        fingerprint=_splits.fingerprint(
            [row for files, _ in parts.values() for row in zip(files.names(), files.sizes.tolist(), strict=True)]
        ),
    )
    made = {
        part: _images.ImageFiles(files, {"label": torch.from_numpy(codes)}, spec.preprocessing)
        for part, (files, codes) in parts.items()
    }
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=tuple(dict.fromkeys(notes)))


def read(spec: DataSpec, sources: Sequence[str]) -> Samples:
    """Image files, and the images below folders, in the order given."""
    files: list[str] = []
    notes: list[str] = []
    for source in sources:
        if Path(source).is_dir():
            inside = [str(Path(source) / file) for file in _images.scan(Path(source), notes).names()]
            if not inside:
                raise DataError(f"{clean(source)}: no images in this folder")
            files += inside
        else:
            files.append(source)
    samples = _images.ImageFiles(_images.Files.of("", files, [], []), {}, spec.preprocessing)
    samples.notes = tuple(notes)
    return samples


class _Scanned(NamedTuple):
    files: _images.Files
    labels: list[str]  # the first folder of each path


def _scan(folder: Path, notes: list[str]) -> _Scanned:
    files = _images.scan(folder, notes)
    names = files.names()
    inside = np.array([i for i, name in enumerate(names) if "/" in name], dtype=np.int64)  # loose files have no class
    if len(inside) < len(files):
        files, names = files.take(inside), [names[i] for i in inside]
    return _Scanned(files, [name.partition("/")[0] for name in names])


def _folders(path: str | None, parts: dict[str, str | None], whole: bool) -> dict[str, Path]:
    """Where each split is. {"path": P} when P holds class folders directly. Training comes first."""
    given = {part: Path(folder) for part, folder in parts.items() if folder is not None}
    if (path is None) == (not given):
        raise ConfigError("dataset: image_folder needs either `path` or `train` (with `val` and `test`)")
    if path is not None:
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"{clean(path)}: {'not a folder' if root.exists() else 'no such folder'}")
        present = {part: root / name for part, names in _FOLDERS.items() for name in names if (root / name).is_dir()}
        given = present if "train" in present or (whole and present) else {"path": root}
    elif "train" not in given and not whole:
        raise ConfigError("dataset: image_folder needs `train` beside `val` and `test`")
    for folder in given.values():
        if not folder.is_dir():
            raise DataError(f"{clean(folder)}: no such folder")
    return given


def _inspect(folder: Path, labels: list[str], notes: list[str]) -> None:
    empty = sorted(
        {
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith((".", "__MACOSX"))
        }
        - set(labels)
    )
    if not labels:
        loose = any(entry.suffix.lower() in _images.SUFFIXES for entry in folder.iterdir() if entry.is_file())
        raise DataError(
            f"{clean(folder)}: {'images, but no class folders' if loose else 'no images'}",
            "put the images of each class in a folder of its own, named after the class",
        )
    if empty:
        raise DataError(
            f"{clean(folder)}: no images in the class folder {listing(empty)}",
            "fill or remove it, or choose classes with dataset.classes",
        )
    lower: dict[str, str] = {}
    for name in dict.fromkeys(labels):
        if (twin := lower.setdefault(name.lower(), name)) != name:
            notes.append(f"{folder}: the classes '{clean(twin)}' and '{clean(name)}' differ only in case")
