"""Read samples from files; shared by class folders and tables of paths."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import operator
import os
import stat
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, AnyStr, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from fmeco.core import Data, DataError, DataSpec, Given, Inputs, Samples, Target, clean, listing
from fmeco.datasets import _columns, _splits
from fmeco.files import absence, disguise, regular

LARGEST_HASHED = 16 << 20  # bytes; of larger files, such as long recordings, often only a part is decoded


def times_of(status: os.stat_result) -> int:
    """Return one number for the times of a file's last change of its bytes and of its inode.

    The inode's time cannot be set back, unlike the other one, which copying tools and archives keep.
    """
    return status.st_mtime_ns + status.st_ctime_ns


@dataclasses.dataclass(frozen=True)
class Files:
    """Hold the paths, sizes and times of N files below a folder.

    Paths are stored as bytes in one array: a million Python strings would be copied page by page into every loader worker,
    because reference counts write to memory.
    """

    root: str
    packed: np.ndarray[Any, Any]  # relative paths, concatenated
    ends: np.ndarray[Any, Any]  # (N,) end of each path in `packed`
    sizes: np.ndarray[Any, Any]  # (N,) in bytes
    times: np.ndarray[Any, Any]  # (N,) `times_of` each file

    @staticmethod
    def of(root: Path | str, paths: Sequence[str], sizes: Sequence[int], times: Sequence[int]) -> Files:
        return Files._of(
            root, [os.fsencode(path) for path in paths], np.array(sizes, np.int64), np.array(times, np.int64)
        )

    @staticmethod
    def _of(
        root: Path | str, encoded: Sequence[bytes], sizes: np.ndarray[Any, Any], times: np.ndarray[Any, Any]
    ) -> Files:
        ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        return Files(str(root), np.frombuffer(b"".join(encoded), dtype=np.uint8), ends, sizes, times)

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.packed[start : self.ends[index]].tobytes())

    def names(self) -> list[str]:
        text = self.packed.tobytes()
        if text.isascii():  # each character is a byte: decoding them all at once takes half the time
            return _pieces(text.decode("ascii"), self.ends)
        return [os.fsdecode(path) for path in _pieces(text, self.ends)]

    def take(self, at: _splits.Indices) -> Self:
        encoded = _pieces(self.packed.tobytes(), self.ends)
        taken = Files._of(self.root, [encoded[i] for i in at.tolist()], self.sizes[at], self.times[at])
        return dataclasses.replace(self, packed=taken.packed, ends=taken.ends, sizes=taken.sizes, times=taken.times)


def _pieces(text: AnyStr, ends: np.ndarray[Any, Any]) -> list[AnyStr]:
    return [text[a:b] for a, b in itertools.pairwise([0, *ends.tolist()])]


class FileSamples(Samples):
    """Read samples from files, each decoded separately.

    one, many: the word for a file in messages, singular and plural.
    unlabelled: the dataset that reads such files without labels; "" for none.
    prep: the preprocessing of the spec.
    """

    one: str
    many: str
    unlabelled = ""

    def __init__(self, files: Files, targets: Mapping[str, Tensor | list[Any]], prep: Mapping[str, Any]) -> None:
        self.files, self.targets, self.prep = files, targets, dict(prep)
        if not len(files.times):  # without times, a changed file could not be told from the old one
            return
        self.origin = os.path.abspath(files.root)
        self.sizes = torch.from_numpy(files.sizes)
        # The folder and the times are no part of `content`: samples that were moved or touched are found in the caches,
        # and the stamps tell that their bytes must be compared.
        digest = hashlib.sha256(repr(sorted(self.prep.items())).encode())
        for part in (files.packed, files.ends, files.sizes):
            digest.update(part.tobytes())
        self.content = digest.hexdigest()
        place = hashlib.blake2b(os.fsencode(self.origin), digest_size=8).digest()
        self.stamps = torch.from_numpy(files.times ^ np.frombuffer(place, dtype=np.int64))

    @abstractmethod
    def decode(self, path: str) -> Inputs:
        """Decode a file: a pure function of the file and `prep`. Raises DataError that names the file and the reason."""

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files.name(index)

    def path(self, index: int) -> str:
        """Return the path of a sample's file."""
        return os.path.join(self.files.root, self.files.name(index))

    def __getitem__(self, index: int) -> Inputs:
        return self.decode(self.path(index))

    def digest(self, index: int, *, stored: bool = False) -> bytes | None:
        if stored:
            return None
        try:
            with open(self.path(index), "rb", buffering=0, opener=regular) as file:
                if os.fstat(file.fileno()).st_size > LARGEST_HASHED:
                    return None
                return hashlib.blake2b(file.read(), digest_size=16).digest()
        except OSError:
            return None


class GivenSamples(Samples):
    """Serve inputs that were passed in Python, each decoded separately.

    decode: turns an input into Inputs. Raises an error with the reason if it cannot.
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
        except Exception as error:  # an image of a damaged file can raise anything when it is decoded
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
            inside = [
                str(Path(source) / file) for file in scan(kind, suffixes, Path(source), notes, rule=spec.decode).names()
            ]
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
        if not os.path.isfile(path):
            return absence(path)
        if os.path.getsize(path) == 0:
            return "the file is empty"
        with open(path, "rb") as file:
            if what := disguise(file.read(64)):
                return what
    except OSError:
        pass
    return clean(error) or type(error).__name__


# Folders that operating systems and network storage make, by their lower-case names.
SYSTEM_FOLDERS = frozenset(
    {"@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "system volume information", "__macosx"}
)


def scan(kind: type[FileSamples], suffixes: Collection[str], root: Path, notes: list[str], *, rule: int) -> Files:
    """List the files below `root` whose names end in one of `suffixes`, sorted by relative path.

    rule: the decode rule. By rule 1, linked folders are not followed; by rule 2, they are, unless they lead to a folder
        that is listed anyway.
    Hidden files and folders, folders of the system, special files and files of other types are skipped; `notes` gets their
    counts. Raises DataError for folders that cannot be listed, and broken links.
    """
    walk = _Walk(kind, suffixes, root, rule)
    walk.folder("")
    notes += [f"{clean(root)}: skipped {count} {what}" for what, count in walk.skipped.items() if count]
    return Files.of(root, walk.paths, walk.sizes, walk.times)


def is_skipped(name: str, rule: int) -> bool:
    """Tell whether a folder of this name is hidden, or made by the system. rule: the decode rule; rule 1 knows one such name."""
    if rule == 1:
        return name.startswith((".", "__MACOSX"))
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


class _Walk:
    """Walk through a folder and its subfolders, and collect the files of one type.

    paths, sizes, times: of the files. skipped: description -> number of entries that were left out.
    """

    def __init__(self, kind: type[FileSamples], suffixes: Collection[str], root: Path, rule: int) -> None:
        self.kind, self.suffixes, self.root, self.rule = kind, suffixes, root, rule
        self.paths: list[str] = []
        self.sizes: list[int] = []
        self.times: list[int] = []
        self.trees = [os.path.realpath(root)]  # folders that are listed with all that is below them
        self.skipped: Counter[str] = Counter()

    def folder(self, folder: str) -> None:
        """List a folder. Its path is relative to the root, and ends in a slash unless it is empty."""
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                inside = [(entry.name + "/" if entry.is_dir() else entry.name, entry) for entry in entries]
        except OSError as error:
            raise DataError(f"cannot list the folder {clean(self.root / folder)}: {error.strerror}") from None
        inside.sort(key=operator.itemgetter(0))  # the slash sorts a folder where the paths of its files belong
        suffixes = self.suffixes
        for name, entry in inside:
            if name[0] == "." or (self.rule == 1 and name.startswith("__MACOSX")):
                self.skipped["hidden entries"] += 1
            elif name[-1] == "/":
                if is_skipped(name[:-1], self.rule):
                    self.skipped["folders of the system, such as " + clean(name[:-1])] += 1
                elif not entry.is_symlink() or self._follow(entry):
                    self.folder(folder + name)
            elif name[name.rfind(".") :].lower() in suffixes:
                self._file(folder + name, entry)
            else:
                self.skipped[f"files that are not {self.kind.many}"] += 1

    def _file(self, path: str, entry: os.DirEntry[str]) -> None:
        try:
            status = entry.stat()
        except OSError:
            raise DataError(f"cannot read the {self.kind.one} {clean(entry.path)}: it is a broken link") from None
        if not stat.S_ISREG(status.st_mode):
            self.skipped["pipes, sockets and devices"] += 1
            return
        self.paths.append(path)
        self.sizes.append(status.st_size)
        self.times.append(times_of(status))

    def _follow(self, entry: os.DirEntry[str]) -> bool:
        """Tell whether to follow a linked folder: not if it holds, or lies in, a folder that is listed anyway."""
        target = os.path.realpath(entry.path)
        if self.rule == 1:
            self.skipped["linked folders"] += 1
            return False
        if any(os.path.commonpath([target, tree]) in (target, tree) for tree in self.trees):
            self.skipped["linked folders that lead to files listed anyway"] += 1
            return False
        self.trees.append(target)
        return True


def on_disk(folder: Path | str, name: str) -> str:
    """Return a relative path as the file system spells it: with slashes for backslashes, or in another Unicode form.

    If no spelling exists, the path stays as it is.
    """
    if name.isascii() and "\\" not in name:
        return name
    forward = name.replace("\\", "/")
    spellings = (name, forward, *(unicodedata.normalize(form, forward) for form in ("NFC", "NFD")))
    return next((spelled for spelled in spellings if os.path.lexists(os.path.join(folder, spelled))), name)


def check_once(files: Sequence[str], where: str) -> None:
    """Check that a list names no file twice. Raises DataError that names those that it does."""
    if twice := sorted(file for file, count in Counter(files).items() if count > 1):
        raise DataError(f"{clean(where)}: listed more than once: {listing(twice)}")
