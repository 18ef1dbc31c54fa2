"""Find files in class folders, directly or inside a folder for each split."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from fmeco.core import ConfigError, DataError, DataSpec, Splitting, Target, clean, decode_rule, listing, nfc
from fmeco.datasets import _classes, _columns, _groups, _splits
from fmeco.datasets._files import Files, FileSamples, Labelled, is_skipped, scan

_FOLDERS_OF_RULE_1 = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def in_folders(
    kind: type[FileSamples],
    suffixes: Collection[str],
    known: DataSpec | None,
    whole: bool,
    *,
    path: str | None,
    split_folders: Mapping[str, str | None],
    splitting: Splitting,
) -> Labelled:
    """Find files in class folders, and split them unless folders do.

    whole: assign all files to the test split, unless there are folders for splits.
    path: folder of class folders, or of train/, val/ and test/.
    split_folders: split -> folder of class folders, instead of `path`.
    Raises DataError and ConfigError that name the folder or the key.
    """
    notes: list[str] = []
    rule = decode_rule(known)
    folders = _folders(path, split_folders, whole, rule, notes)
    scanned = {part: _scan(kind, suffixes, folder, notes, rule) for part, folder in folders.items()}
    for part, folder in folders.items():
        _inspect(kind, suffixes, folder, scanned[part], rule)
        if splitting.classes is None and (known is None or "label" not in known.targets):
            _check_classes(folder, scanned[part])

    # The training folder defines the classes; the class folders of other splits must be among them.
    first = next(iter(scanned))
    old = known.targets.get("label") if known is not None else None
    _, _, names, more = _classes.encode(scanned[first].labels, splitting.classes, old, str(folders[first]))
    notes += more
    target = Target("class", names)

    parts: dict[str, tuple[Files, _splits.Indices]] = {}
    for part, inside in scanned.items():
        present = set(nfc(inside.labels))
        chosen = (
            None if splitting.classes is None else [c for c in nfc(list(map(str, splitting.classes))) if c in present]
        )
        kept, codes, _, more = _classes.encode(inside.labels, chosen, target, str(folders[part]), "the training folder")
        notes += more if part != first else []
        parts[part] = (inside.files if len(kept) == len(inside.files) else inside.files.take(kept), codes)
    parts = divide(parts, splitting, whole, path or split_folders["train"])
    pattern = splitting.group_split
    columns: dict[str, _columns.Table] = {part: {} for part in parts}
    if pattern is not None:
        group_names = {part: _groups.in_paths(files.names(), pattern) for part, (files, _) in parts.items()}
        _splits.check_apart(group_names)
        columns = {part: {_groups.CALLED: names} for part, names in group_names.items()}
    return Labelled(
        {part: (files, {"label": torch.from_numpy(codes)}) for part, (files, codes) in parts.items()},
        {"label": target},
        _splits.fingerprint(
            [row for files, _ in parts.values() for row in zip(files.names(), files.sizes.tolist(), strict=True)]
        ),
        notes,
        columns,
        _groups.CALLED if pattern is not None else None,
    )


F = TypeVar("F", bound=Files)


def divide(
    parts: dict[str, tuple[F, _splits.Indices]], splitting: Splitting, whole: bool, folder: str | None
) -> dict[str, tuple[F, _splits.Indices]]:
    """Assign files to splits as far as folders do not.

    parts: split -> files and their class numbers (int64[files]); {"path": ...} if no folders for splits exist.
    folder: what an error names. Raises ConfigError if `split` is set and a validation folder exists.
    """
    pattern = splitting.group_split
    if whole and "path" in parts:
        return {"test": parts["path"]}
    if "path" in parts or ("train" in parts and "val" not in parts):
        files, codes = parts.pop("path" if "path" in parts else "train")
        without_test = dataclasses.replace(splitting, test_fraction=0.0) if "test" in parts else splitting
        groups = _groups.in_paths(files.names(), pattern) if pattern is not None else None
        cut = _splits.assign(files.names(), codes, without_test, groups=groups)
        return {**{part: (files.take(at), codes[at]) for part, at in cut.items()}, **parts}
    if splitting.split is not None:
        raise ConfigError(
            f"dataset.split: {clean(folder)} already has a validation folder",
            "leave dataset.split out",
        )
    if "train" in parts and splitting.limit_per_class is not None:
        files, codes = parts["train"]
        at = _splits.limit(files.names(), codes, np.arange(len(files)), splitting)
        parts["train"] = (files.take(at), codes[at])
    return parts


SHALLOW = 10  # one file in so many may lie beside the inner folders of a class folder
# Names of folders that hold pictures, and what belongs to them, of one dataset.
_PARTS_OF_A_DATASET = {
    "images",
    "masks",
    "labels",
    "annotations",
    "segmentation",
    "segmentations",
    "gt",
    "ground_truth",
}


class _Scanned(NamedTuple):
    files: Files
    labels: list[str]  # class of each file: the first folder of its path


def _scan(kind: type[FileSamples], suffixes: Collection[str], folder: Path, notes: list[str], rule: int) -> _Scanned:
    """List the files in the class folders of a folder, with their classes."""
    files = scan(kind, suffixes, folder, notes, rule=rule)
    names = files.names()
    inside = np.array(
        [i for i, name in enumerate(names) if "/" in name], dtype=np.int64
    )  # files beside the class folders have no class
    if len(inside) < len(files):
        files, names = files.take(inside), [names[i] for i in inside]
    return _Scanned(files, [name.partition("/")[0] for name in names])


def _folders(
    path: str | None, parts: Mapping[str, str | None], whole: bool, rule: int, notes: list[str]
) -> dict[str, Path]:
    """Find the folder of each split, training first; {"path": P} if P holds class folders directly.

    Raises ConfigError for keys that do not go together, DataError for absent folders.
    """
    folders = {part: Path(folder) for part, folder in parts.items() if folder is not None}
    if (path is None) == (not folders):
        raise ConfigError("dataset: class folders need either `path` or `train` (with `val` and `test`)")
    if path is not None:
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"{clean(path)}: {'not a folder' if root.exists() else 'no such folder'}")
        present = split_folders(root, rule)
        if set(present) == {"val", "test"} and not whole:
            raise DataError(
                f"{clean(path)}: holds {listing([folder.name for folder in present.values()])}, but no folder called train",
                "name the folders one by one: dataset.train=FOLDER, dataset.val=FOLDER, dataset.test=FOLDER",
            )
        folders = present if "train" in present or (whole and present) else {"path": root}
        if folders is present:
            notes += _unused(root, present, rule)
    elif "train" not in folders and not whole:
        raise ConfigError("dataset.train: missing: `val` and `test` need it, too")
    for folder in folders.values():
        if not folder.is_dir():
            raise DataError(f"{clean(folder)}: no such folder")
    return folders


def split_folders(root: Path, rule: int) -> dict[str, Path]:
    """Find folders that are named after splits, training first. Raises DataError for two folders of one split."""
    if rule == 1:
        return {
            part: root / name for part, names in _FOLDERS_OF_RULE_1.items() for name in names if (root / name).is_dir()
        }
    present: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    for folder in sorted(root.iterdir()):
        part = _splits.split_called(folder.name)
        if part is not None and folder.is_dir():
            present[part].append(folder)
    if several := next((part for part, folders in present.items() if len(folders) > 1), None):
        raise DataError(
            f"{clean(root)}: {listing([folder.name for folder in present[several]])} can each be the {several} split",
            "name the folders one by one: dataset.train=FOLDER, dataset.val=FOLDER, dataset.test=FOLDER",
        )
    return {part: folders[0] for part, folders in present.items() if folders}


def _unused(root: Path, present: Mapping[str, Path], rule: int) -> list[str]:
    """Return a note on the folders that lie beside those of the splits."""
    used = {folder.name for folder in present.values()}
    others = [entry.name for entry in sorted(root.iterdir()) if entry.is_dir() and entry.name not in used]
    others = [name for name in others if not is_skipped(name, rule)]
    return [f"{clean(root)}: not used, beside {listing(sorted(used))}: {listing(others)}"] if others else []


def _inspect(kind: type[FileSamples], suffixes: Collection[str], folder: Path, scanned: _Scanned, rule: int) -> None:
    """Check a folder's class folders.

    Raises DataError for empty class folders, for names that are not UTF-8, or if there are no files.
    """
    labels = scanned.labels
    empty = sorted(
        {
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.is_symlink() and not is_skipped(entry.name, rule)
        }
        - set(labels)
    )
    if not labels:
        loose = any(entry.suffix.lower() in suffixes for entry in folder.iterdir() if entry.is_file())
        raise DataError(
            f"{clean(folder)}: {f'{kind.many}, but no class folders' if loose else f'no {kind.many}'}",
            f"put the {kind.many} of each class into a folder named after the class",
            f"without labels: dataset.name: {kind.unlabelled}" if loose and kind.unlabelled else "",
        )
    if empty:
        raise DataError(
            f"{clean(folder)}: no {kind.many} in the class folder {listing(empty)}",
            "fill or remove the folder, or choose classes with dataset.classes",
        )
    for name in dict.fromkeys(labels):
        if not _is_utf8(name):
            raise DataError(
                f"{clean(folder)}: the name of the class folder {clean(ascii(name))} is not UTF-8",
                "rename it; `convmv` converts the names of whole folders",
            )


def _is_utf8(name: str) -> bool:
    """Tell whether a file name is valid UTF-8. Python keeps other bytes of a name as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_classes(folder: Path, scanned: _Scanned) -> None:
    """Check that class folders are classes, and not images beside masks, or images/cat, images/dog, backup/cat, backup/dog.

    Raises DataError if their names are those of parts of a dataset, or if all files lie in subfolders, and every name of a
    subfolder occurs in several class folders.
    """
    files, tops = scanned.files, set(scanned.labels)
    if len(tops) > 1 and {name.lower() for name in tops} <= _PARTS_OF_A_DATASET:
        raise DataError(
            f"{clean(folder)}: the folders {listing(sorted(tops))} look like pictures and their masks or labels, and not like classes",
            f"if they are the classes, say so: dataset.classes=[{', '.join(map(clean, sorted(tops)))}]",
        )
    named = {
        part for name in tops for word in re.split("[^a-z]+", name.lower()) if (part := _splits.split_called(word))
    }
    if len(named) > 1 and "train" in named:
        raise DataError(
            f"{clean(folder)}: the folders {listing(sorted(tops))} look like splits, and not like classes",
            "name the folders of the splits: dataset.train=FOLDER, dataset.val=FOLDER, dataset.test=FOLDER",
            f"if they are the classes, say so: dataset.classes=[{', '.join(map(clean, sorted(tops)))}]",
        )
    inside: dict[str, set[str]] = {}  # name of a subfolder -> class folders that hold it
    outer = set()
    shallow = 0
    for index in range(len(files)):
        parts = files.name(index).split("/", 2)
        if len(parts) < 3:
            shallow += 1
            if SHALLOW * shallow > len(files):
                return
            continue
        outer.add(parts[0])
        inside.setdefault(parts[1], set()).add(parts[0])
    if len(outer) > 1 and len(inside) > 1 and all(len(holders) > 1 for holders in inside.values()):
        raise DataError(
            f"{clean(folder)}: the folders {listing(sorted(outer))} all hold the same folders, {listing(sorted(inside))}, "
            "which look like the classes",
            f"name the folder of class folders, such as dataset.path={clean(folder / min(outer))}",
            f"if the outer folders are the classes, say so: dataset.classes=[{', '.join(map(clean, sorted(outer)))}]",
        )
