"""Images without labels: a folder with its subfolders, a pattern such as photos/**/*.jpg, or a .txt file with one path per line."""

from __future__ import annotations

import dataclasses
import glob
import os
from pathlib import Path
from typing import Annotated

import numpy as np

from fmeco.core import (
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Doc,
    FilePath,
    Ge,
    Pixels,
    Splitting,
    Without,
    clean,
    decode_rule,
)
from fmeco.datasets import _files, _groups, _image_spec, _images, _splits, _text_files
from fmeco.datasets.image_folder import SUFFIXES as IMAGES
from fmeco.datasets.image_folder import read as read
from fmeco.datasets.image_folder import suffixes

MODALITY = "image"


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[
        FilePath, Doc("a folder; a pattern with *, ** and ?; or a .txt file of paths, relative to its folder")
    ],
    limit: Annotated[int | None, Doc("number of images to train on; null = all"), Ge(1)] = None,
    splitting: Annotated[Splitting, Without("classes", "limit_per_class", "limit_seed")] = Splitting(val_fraction=0.1),
    pixels: Pixels = Pixels(),
) -> Data:
    spec = _image_spec.image_spec(known, pixels)
    notes: list[str] = []
    files = _list_files(path, notes, known)
    if not len(files):
        raise DataError(f"{clean(path)}: no images", f"images are {', '.join(IMAGES)}")
    names, codes = files.names(), np.zeros(len(files), dtype=np.int64)
    groups = _groups.in_paths(names, splitting.group_split) if splitting.group_split is not None else None
    limited = dataclasses.replace(splitting, limit_per_class=limit)
    parts = _splits.assign(names, codes, limited, whole=whole, groups=groups)
    taken = {part: files.take(at) for part, at in parts.items()}
    rows = [row for part in taken.values() for row in zip(part.names(), part.sizes.tolist(), strict=True)]
    labelled = _files.Labelled(
        {part: (part_files, {}) for part, part_files in taken.items()},
        {},
        _splits.fingerprint(rows),
        notes,
        {part: {} if groups is None else {_groups.CALLED: [groups[i] for i in at]} for part, at in parts.items()},
    )
    return _images.image_data(known, spec, labelled, pixels)


def _list_files(path: str, notes: list[str], known: DataSpec | None) -> _files.Files:
    """List the images of a folder, pattern or .txt file. Raises DataError that names the line of an absent file."""
    if os.path.isdir(path):
        return _files.scan(_images.ImageFiles, suffixes(known), Path(path), notes, rule=decode_rule(known))
    if path.lower().endswith(".txt"):
        root = os.path.dirname(path) or "."
        lines = enumerate(_text_files.read_text(path).split("\n"), 1)
        numbered = [(number, line.strip()) for number, line in lines if line.strip()]
    elif glob.has_magic(path):
        root = os.path.dirname(path[: min(path.find(c) for c in "*?[" if c in path)]) or "."
        inside = glob.iglob(path, recursive=True)
        paths = sorted(os.path.relpath(file, root) for file in inside if file.lower().endswith(suffixes(known)))
        numbered = list(enumerate(paths, 1))
    else:
        raise ConfigError(f"dataset.path: {clean(path)}: no such folder, and not a pattern or .txt file")
    listed = [_files.on_disk(root, name) for _, name in numbered]
    _files.check_once(listed, path)
    status = []
    for (number, _), name in zip(numbered, listed, strict=True):
        try:
            status.append(os.stat(os.path.join(root, name)))
        except OSError as error:
            raise DataError(f"{clean(path)}:{number}: {clean(name)}: {error.strerror}") from None
    return _files.Files.of(root, listed, [s.st_size for s in status], [_files.times_of(s) for s in status])
