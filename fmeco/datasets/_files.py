"""Samples that are files: folders of class folders, tables of paths, and what every such dataset shares."""

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
import torch
from torch import Tensor

from fmeco.core import ConfigError, Data, DataError, DataSpec, Inputs, Samples, Target, clean, listing
from fmeco.datasets import _splits, _tables, _transcripts

_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


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
    groups: dict[str, _tables.Table]  # by split: columns to measure by


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


# ---------------------------------------------------------------- folders


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


def in_folders(
    kind: type[FileSamples],
    suffixes: Collection[str],
    known: DataSpec | None,
    whole: bool,
    *,
    path: str | None,
    given: Mapping[str, str | None],
    classes: Sequence[str | int] | None,
    limit_per_class: int | None,
    limit_seed: int,
    val_fraction: float,
    test_fraction: float,
    fold: Mapping[str, int] | None,
    speaker: str | None = None,
) -> Labelled:
    """Files in class folders, below `path` or below the `given` folder of each split. speaker: a regular expression
    that finds the speaker in a file's name; what was said by one stays in one split."""
    notes: list[str] = []
    folders = _folders(path, given, whole)
    scanned = {part: _scan(kind, suffixes, folder, notes) for part, folder in folders.items()}
    for part, folder in folders.items():
        _inspect(kind, suffixes, folder, scanned[part].labels, notes)

    # Classes are those of the training folder; every other folder is held to them by name.
    first = next(iter(scanned))
    old = known.targets.get("label") if known is not None else None
    _, _, names, found = _splits.encode(scanned[first].labels, classes, old, str(folders[first]))
    notes += found
    target = Target("class", names)

    parts: dict[str, tuple[Files, _splits.Indices]] = {}
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
        held = 0.0 if "test" in parts else test_fraction
        if speaker is None:
            cut = _splits.split(files.names(), codes, val_fraction, held, fold)
        else:
            cut = _splits.by_speaker(_splits.speakers(files.names(), speaker), val_fraction, held, fold)
        parts = {**{part: (files.take(at), codes[at]) for part, at in cut.items()}, **parts}
    elif fold is not None:
        raise ConfigError(f"dataset.split: {clean(path or given['train'])} has a validation folder of its own")
    if "train" in parts and limit_per_class is not None:
        files, codes = parts["train"]
        at = _splits.limit(files.names(), codes, np.arange(len(files)), limit_per_class, limit_seed)
        parts["train"] = (files.take(at), codes[at])
    groups: dict[str, _tables.Table] = {part: {} for part in parts}
    if speaker is not None:
        said = {part: _splits.speakers(files.names(), speaker) for part, (files, _) in parts.items()}
        _splits.apart(said)
        groups = {part: {"speaker": names} for part, names in said.items()}
    return Labelled(
        {part: (files, {"label": torch.from_numpy(codes)}) for part, (files, codes) in parts.items()},
        {"label": target},
        _splits.fingerprint(
            [row for files, _ in parts.values() for row in zip(files.names(), files.sizes.tolist(), strict=True)]
        ),
        notes,
        groups,
    )


class _Scanned(NamedTuple):
    files: Files
    labels: list[str]  # the first folder of each path


def _scan(kind: type[FileSamples], suffixes: Collection[str], folder: Path, notes: list[str]) -> _Scanned:
    files = scan(kind, suffixes, folder, notes)
    names = files.names()
    inside = np.array([i for i, name in enumerate(names) if "/" in name], dtype=np.int64)  # loose files have no class
    if len(inside) < len(files):
        files, names = files.take(inside), [names[i] for i in inside]
    return _Scanned(files, [name.partition("/")[0] for name in names])


def _folders(path: str | None, parts: Mapping[str, str | None], whole: bool) -> dict[str, Path]:
    """Where each split is. {"path": P} when P holds class folders directly. Training comes first."""
    given = {part: Path(folder) for part, folder in parts.items() if folder is not None}
    if (path is None) == (not given):
        raise ConfigError("dataset: class folders need either `path` or `train` (with `val` and `test`)")
    if path is not None:
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"{clean(path)}: {'not a folder' if root.exists() else 'no such folder'}")
        present = {part: root / name for part, names in _FOLDERS.items() for name in names if (root / name).is_dir()}
        given = present if "train" in present or (whole and present) else {"path": root}
    elif "train" not in given and not whole:
        raise ConfigError("dataset: class folders need `train` beside `val` and `test`")
    for folder in given.values():
        if not folder.is_dir():
            raise DataError(f"{clean(folder)}: no such folder")
    return given


def _inspect(
    kind: type[FileSamples], suffixes: Collection[str], folder: Path, labels: list[str], notes: list[str]
) -> None:
    empty = sorted(
        {
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith((".", "__MACOSX"))
        }
        - set(labels)
    )
    if not labels:
        loose = any(entry.suffix.lower() in suffixes for entry in folder.iterdir() if entry.is_file())
        raise DataError(
            f"{clean(folder)}: {f'{kind.many}, but no class folders' if loose else f'no {kind.many}'}",
            f"put the {kind.many} of each class in a folder of its own, named after the class",
        )
    if empty:
        raise DataError(
            f"{clean(folder)}: no {kind.many} in the class folder {listing(empty)}",
            "fill or remove it, or choose classes with dataset.classes",
        )
    lower: dict[str, str] = {}
    for name in dict.fromkeys(labels):
        if (twin := lower.setdefault(name.lower(), name)) != name:
            notes.append(f"{folder}: the classes '{clean(twin)}' and '{clean(name)}' differ only in case")


# ---------------------------------------------------------------- tables


def in_table(
    kind: type[FileSamples],
    known: DataSpec | None,
    whole: bool,
    *,
    path: str,
    path_column: str,
    label_column: str | Sequence[str],
    split_column: str | None,
    root: str | None,
    task: str,
    separator: str,
    classes: list[str | int] | None,
    limit_per_class: int | None,
    limit_seed: int,
    val_fraction: float,
    test_fraction: float,
    fold: Mapping[str, int] | None,
    speaker: str | None = None,
    lowercase: bool = False,
) -> Labelled:
    """Files that a table names, and their labels. speaker: a column, or a regular expression that finds the speaker in a
    file's name; what was said by one stays in one split. task text: labels are transcripts, `lowercase` or as they are."""
    table = _tables.read_table(path)
    files = _tables.column(table, path_column, path)
    labels = _tables.target_columns(table, label_column, path)
    folder = Path(root or os.path.dirname(path) or ".")
    if blank := [i + 2 for i, file in enumerate(files) if not file]:
        raise DataError(f"{clean(path)}: no {kind.one} in line {listing(blank)}")
    check_once(files, path)
    found = [_status(kind, folder / file, path, line + 2) for line, file in enumerate(files)]

    old = known.targets if known is not None else {}
    text = task == "text"
    if text:
        if classes is not None:
            raise ConfigError("dataset.classes: choosing classes is not possible for transcripts")
        transcripts, every = _transcripts.transcripts(labels, path, lowercase), np.arange(len(files))
        targets = _tables.Targets({}, {}, np.zeros(len(files), np.int64), every, [])
    else:
        targets = _tables.read_targets(
            labels,
            old,
            classes,
            where=clean(path),
            names=[f"{clean(path)}:{line}" for line in range(2, len(files) + 2)],
            kind_of=lambda values: _kind(values, task),
            separator=separator,
        )
    kept, codes = targets.kept, targets.codes
    speakers: list[str] | None = None
    if speaker is not None:
        said = speaker in table or "(" not in speaker  # what has no group can only be meant as a column
        speakers = _tables.column(table, speaker, path) if said else _splits.speakers(files, speaker)
        if said and (blank := [i + 2 for i, name in enumerate(speakers) if not name]):
            raise DataError(f"{clean(path)}: no speaker in line {listing(blank)}")
        speakers = [speakers[i] for i in kept]
    files, found = [files[i] for i in kept], [found[i] for i in kept]
    if split_column is not None:
        parts = _tables.split_by_column(
            [_tables.column(table, split_column, path)[i] for i in kept], path, split_column
        )
    elif whole:
        parts = {"test": np.arange(len(files))}
    elif speakers is not None:
        parts = _splits.by_speaker(speakers, val_fraction, test_fraction, fold)
    else:
        parts = _splits.split(files, codes, val_fraction, test_fraction, fold)
    if speakers is not None:
        _splits.apart({part: [speakers[i] for i in at] for part, at in parts.items()})
    if "train" in parts:
        parts["train"] = _splits.limit(files, codes, parts["train"], limit_per_class, limit_seed)
    columns = _tables.grouping({name: values for name, values in table.items() if name != path_column})
    if speakers is not None:
        columns["speaker"] = [""] * len(table[path_column])
        for i, name in zip(kept.tolist(), speakers, strict=True):
            columns["speaker"][i] = name
    described, values = targets.targets, {part: dict[str, Any](targets.at(at)) for part, at in parts.items()}
    if text:
        described["label"], said_in = _transcripts.encode(transcripts, parts, old.get("label"), path)
        values = {part: {"label": texts} for part, texts in said_in.items()}
    listed = Files.of(folder, files, [size for size, _ in found], [time for _, time in found])
    return Labelled(
        {part: (listed.take(at), values[part]) for part, at in parts.items()},
        described,
        _splits.fingerprint(
            [
                (files[i], found[i][0], *(column[kept[i]] for column in labels.values()))
                for at in parts.values()
                for i in at
            ]
        ),
        targets.notes,
        {part: _tables.take(columns, kept[at]) for part, at in parts.items()},
    )


def check_once(files: Sequence[str], where: str) -> None:
    """Raises DataError for files that a list names twice."""
    if twice := sorted(file for file, count in Counter(files).items() if count > 1):
        raise DataError(f"{clean(where)}: listed more than once: {listing(twice)}")


def _kind(labels: Sequence[str], task: str) -> str:
    return task if task != "auto" else "number" if all(map(_tables.is_decimal, labels)) else "class"


def _status(kind: type[FileSamples], file: Path, table: str, line: int) -> tuple[int, int]:
    """Size in bytes and time of change in ns."""
    try:
        status = file.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:
        raise DataError(
            f"{clean(table)}:{line}: the {kind.one} {clean(file)} does not exist",
            "paths are relative to the CSV's folder, or to dataset.root",
        ) from None
