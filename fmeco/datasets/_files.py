"""Read samples that are files: what folders of class folders and tables of paths share."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import operator
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fmeco.core import Data, DataError, DataSpec, Inputs, Samples, Target, clean, listing
from fmeco.datasets import _columns, _splits


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


class FileSamples(Samples):
    """Files on disk, each decoded by itself. `one` and `many`: what a file is called in messages."""

    one: str
    many: str

    def __init__(self, files: Files, targets: Mapping[str, Tensor | list[Any]], how: Mapping[str, Any]) -> None:
        self.files, self.targets, self.how = files, targets, dict(how)
        if not len(files.times):  # not known: nothing tells a changed file from an old one
            return
        digest = hashlib.sha256(repr((os.path.abspath(files.root), sorted(self.how.items()))).encode())
        for part in (files.packed, files.ends, files.sizes, files.times):
            digest.update(part.tobytes())
        self.content = digest.hexdigest()

    @abstractmethod
    def decode(self, path: str) -> Inputs:
        """A pure function of the file and `how`. Raises DataError that names the file and the reason."""

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files.name(index)

    def __getitem__(self, index: int) -> Inputs:
        return self.decode(os.path.join(self.files.root, self.files.name(index)))


class Labelled(NamedTuple):
    """Files by split, with the targets (N, ...) of each; and what the description of the data says of them."""

    parts: dict[str, tuple[Files, dict[str, Tensor | list[Any]]]]
    targets: dict[str, Target]
    fingerprint: str
    notes: list[str]
    groups: dict[str, _columns.Table]  # by split: columns to measure by
    grouped_by: str | None = None  # the one of these columns whose groups are in one split each


def data(kind: type[FileSamples], spec: DataSpec, found: Labelled) -> Data:
    """A Data of the files that were found, read by `spec`."""
    spec = dataclasses.replace(
        spec,
        targets=found.targets,
        sizes={part: len(files) for part, (files, _) in found.parts.items()},
        fingerprint=found.fingerprint,
    )
    made = {part: kind(files, targets, spec.preprocessing) for part, (files, targets) in found.parts.items()}
    for part, samples in made.items():
        samples.groups = found.groups[part]
    notes = tuple(dict.fromkeys(found.notes))
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=notes)


def read(kind: type[FileSamples], suffixes: Collection[str], spec: DataSpec, sources: Sequence[str]) -> Samples:
    """Files, and those below folders, in the order given."""
    files: list[str] = []
    notes: list[str] = []
    for source in sources:
        if Path(source).is_dir():
            inside = [str(Path(source) / file) for file in scan(kind, suffixes, Path(source), notes).names()]
            if not inside:
                raise DataError(f"{clean(source)}: no {kind.many} in this folder")
            files += inside
        else:
            files.append(source)
    samples = kind(Files.of("", files, [], []), {}, spec.preprocessing)
    samples.notes = tuple(notes)
    return samples


def reason(path: str, error: object) -> str:
    """Why a file cannot be read: what it is instead, where that is common, else what its library said."""
    try:
        if os.path.getsize(path) == 0:
            return "the file is empty"
        with open(path, "rb") as file:
            head = file.read(64).lstrip().lower()
        if head.startswith((b"<!doctype", b"<html")):
            return "it is a web page"
        if head.startswith(b"version https://git-lfs"):
            return "it is a Git LFS pointer; run `git lfs pull`"
    except FileNotFoundError:
        return "the file does not exist"
    except OSError:
        pass
    return clean(error) or type(error).__name__


def scan(kind: type[FileSamples], suffixes: Collection[str], root: Path, notes: list[str]) -> Files:
    """Files below `root` whose names end in one of `suffixes`, sorted by relative path.

    Hidden files and folders, linked folders and files of other types are left out, and said so in `notes`.
    """
    paths: list[str] = []
    sizes: list[int] = []
    times: list[int] = []
    others = f"files that are not {kind.many}"
    skipped = {"hidden entries": 0, "linked folders": 0, others: 0}

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
            elif name[name.rfind(".") :].lower() in suffixes:
                try:
                    status = entry.stat()
                except OSError:
                    raise DataError(
                        f"cannot read the {kind.one} {clean(entry.path)}: it is a link to nothing"
                    ) from None
                paths.append(folder + name)
                sizes.append(status.st_size)
                times.append(status.st_mtime_ns)
            else:
                skipped[others] += 1

    walk("")
    notes += [f"{root}: skipped {count} {what}" for what, count in skipped.items() if count]
    return Files.of(root, paths, sizes, times)


def check_once(files: Sequence[str], where: str) -> None:
    """Raises DataError for files that a list names twice."""
    if twice := sorted(file for file, count in Counter(files).items() if count > 1):
        raise DataError(f"{clean(where)}: listed more than once: {listing(twice)}")
