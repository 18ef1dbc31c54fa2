"""Read samples from files; shared by class folders and tables of paths."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import operator
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fmeco.core import Data, DataError, DataSpec, Given, Inputs, Samples, Target, clean, listing
from fmeco.datasets import _columns, _splits


@dataclasses.dataclass(frozen=True)
class Files:
    """Hold the paths, sizes and times of change of N files below a folder.

    Paths are stored as bytes in one array: a million Python strings would be copied page by page into every loader worker,
    because reference counts write to memory.
    """

    root: str
    packed: np.ndarray[Any, Any]  # relative paths, concatenated
    ends: np.ndarray[Any, Any]  # (N,) end of each path in `packed`
    sizes: np.ndarray[Any, Any]  # (N,) in bytes
    times: np.ndarray[Any, Any]  # (N,) in ns

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
    """Read samples from files, each decoded separately.

    one, many: the word for a file in messages, singular and plural.
    prep: the preprocessing of the spec.
    """

    one: str
    many: str

    def __init__(self, files: Files, targets: Mapping[str, Tensor | list[Any]], prep: Mapping[str, Any]) -> None:
        self.files, self.targets, self.prep = files, targets, dict(prep)
        if not len(files.times):  # without times, a changed file could not be told from the old one
            return
        digest = hashlib.sha256(repr((os.path.abspath(files.root), sorted(self.prep.items()))).encode())
        for part in (files.packed, files.ends, files.sizes, files.times):
            digest.update(part.tobytes())
        self.content = digest.hexdigest()

    @abstractmethod
    def decode(self, path: str) -> Inputs:
        """Decode a file: a pure function of the file and `prep`. Raises DataError that names the file and the reason."""

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files.name(index)

    def __getitem__(self, index: int) -> Inputs:
        return self.decode(os.path.join(self.files.root, self.files.name(index)))


class GivenSamples(Samples):
    """Serve inputs that were passed in Python, each decoded separately.

    decode: turns an input into Inputs. Raises ValueError with the reason if it cannot.
    """

    def __init__(self, given: Sequence[Given], decode: Callable[[Any], Inputs]) -> None:
        self.given, self.decode = given, decode

    def __len__(self) -> int:
        return len(self.given)

    def name(self, index: int) -> str:
        return str(self.given[index])

    def __getitem__(self, index: int) -> Inputs:
        try:
            return self.decode(self.given[index].value)
        except (ValueError, TypeError, OSError) as error:
            raise DataError(f"{self.given[index]}: {clean(error)}") from None


class Labelled(NamedTuple):
    """Hold the files and targets of each split.

    parts: split -> (files, the values (N, ...) of each target).
    targets: description of each target.
    fingerprint: of the data.
    notes: findings for the user.
    groups: split -> columns to measure by.
    grouped_by: the column of these that group_split keeps within one split.
    """

    parts: dict[str, tuple[Files, dict[str, Tensor | list[Any]]]]
    targets: dict[str, Target]
    fingerprint: str
    notes: list[str]
    groups: dict[str, _columns.Table]
    grouped_by: str | None = None


def data(kind: type[FileSamples], spec: DataSpec, labelled: Labelled) -> Data:
    """Build a Data from labelled files. kind: class that reads them. spec: how they are read."""
    spec = dataclasses.replace(
        spec,
        targets=labelled.targets,
        sizes={part: len(files) for part, (files, _) in labelled.parts.items()},
        fingerprint=labelled.fingerprint,
    )
    made = {part: kind(files, targets, spec.preprocessing) for part, (files, targets) in labelled.parts.items()}
    for part, samples in made.items():
        samples.groups = labelled.groups[part]
    notes = tuple(dict.fromkeys(labelled.notes))
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=notes)


def read(kind: type[FileSamples], suffixes: Collection[str], spec: DataSpec, sources: Sequence[str]) -> Samples:
    """Read files, and all files below folders, in the order of `sources`. Raises DataError for a folder without any."""
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
    """Explain why a file cannot be read: what it is instead (empty, a web page, a Git LFS pointer), else `error` itself."""
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
    """List the files below `root` whose names end in one of `suffixes`, sorted by relative path.

    Hidden files and folders, linked folders and files of other types are skipped; `notes` gets their counts.
    Raises DataError for folders that cannot be listed, and broken links.
    """
    paths: list[str] = []
    sizes: list[int] = []
    times: list[int] = []
    others = f"files that are not {kind.many}"
    skipped = {"hidden entries": 0, "linked folders": 0, others: 0}

    def walk(folder: str) -> None:
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                inside = [(entry.name + "/" if entry.is_dir() else entry.name, entry) for entry in entries]
        except OSError as error:
            raise DataError(f"cannot list the folder {clean(root / folder)}: {error.strerror}") from None
        inside.sort(key=operator.itemgetter(0))  # the slash sorts a folder where the paths of its files belong
        for name, entry in inside:
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
                    raise DataError(f"cannot read the {kind.one} {clean(entry.path)}: it is a broken link") from None
                paths.append(folder + name)
                sizes.append(status.st_size)
                times.append(status.st_mtime_ns)
            else:
                skipped[others] += 1

    walk("")
    notes += [f"{root}: skipped {count} {what}" for what, count in skipped.items() if count]
    return Files.of(root, paths, sizes, times)


def check_once(files: Sequence[str], where: str) -> None:
    """Check that a list names no file twice. Raises DataError that names those that it does."""
    if twice := sorted(file for file, count in Counter(files).items() if count > 1):
        raise DataError(f"{clean(where)}: listed more than once: {listing(twice)}")
