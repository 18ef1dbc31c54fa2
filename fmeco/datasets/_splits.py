"""Split samples by a hash of their names.

Splits do not depend on the order in which files are listed. The shares of each class are exact, so adding a file to a class
moves at most one other file of that class to another split, or at most three if there is a test split.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fmeco.core import ConfigError, DataError, Splitting, clean, listing

Indices = NDArray[np.int64]

# Names of splits, in lower case and without a separator. Each may be followed by one of _WORDS, as in train_set.
_SPELLINGS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_WORDS = ("set", "split", "data", "images", "audio")


def split_called(name: str) -> str | None:
    """Return the split (train, val or test) that a name such as Train, training_set or dev means; None if it means none."""
    plain = "".join(c for c in name.casefold() if c not in "_- .")
    return next((_SPELLINGS[word] for tail in ("", *_WORDS) if (word := plain.removesuffix(tail)) in _SPELLINGS), None)


def ranks(names: Sequence[str], salt: str) -> Indices:
    """Hash each name with `salt` to a 63-bit number, the same on every machine."""
    return np.array(
        [
            int.from_bytes(
                hashlib.blake2b(f"{salt}/{n}".encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big"
            )
            >> 1
            for n in names
        ],
        dtype=np.int64,
    )


def split(names: Sequence[str], codes: Indices, splitting: Splitting) -> dict[str, Indices]:
    """Split samples into train, val and test, stratified by code. Returns the positions of each split.

    Every class with two or more samples has at least one in train and one in val.
    Raises ConfigError for a fold that does not exist, and for fractions that leave nothing to train on.
    """
    val, test, fold = splitting.val_fraction, splitting.test_fraction, splitting.split
    if val + test >= 1:
        raise ConfigError(f"dataset: val_fraction {val} and test_fraction {test} leave nothing to train on")
    if fold is not None:
        n, of = fold.get("fold", 0), fold.get("of", 0)
        if set(fold) != {"fold", "of"} or not 1 <= n <= of or of < 2:
            raise ConfigError(
                f"dataset.split: expected {{fold: 1, of: 5}} with a fold from 1 to {max(of, 2)}; got {dict(fold)}"
            )
    order = np.argsort(ranks(names, "split"), kind="stable")
    parts: dict[str, list[Indices]] = {"train": [], "val": [], "test": []}
    for code in np.unique(codes):
        members = order[codes[order] == code]
        n_test = min(max(round(len(members) * test), 1), len(members) - 1) if test and len(members) > 2 else 0
        held, rest = members[:n_test], members[n_test:]
        if fold is not None:
            in_val = np.arange(len(rest)) % fold["of"] == fold["fold"] - 1
        else:
            n_val = min(max(round(len(members) * val), 1), len(rest) - 1) if len(rest) > 1 else 0
            in_val = np.arange(len(rest)) < n_val
        for part, chosen in (("test", held), ("val", rest[in_val]), ("train", rest[~in_val])):
            parts[part].append(chosen)
    return {part: np.sort(np.concatenate(chosen)) for part, chosen in parts.items() if sum(map(len, chosen))}


def by_group(groups: Sequence[str], splitting: Splitting) -> dict[str, Indices]:
    """Split samples by a hash of their group's name, so that each group is in one split. Returns the positions of each split.

    Shares are shares of groups, so new samples of known groups move no sample. Raises DataError for too few groups.
    """
    names = sorted(set(groups))
    parts = split(names, np.zeros(len(names), np.int64), splitting)
    wanted = ("train", "val", "test") if splitting.test_fraction else ("train", "val")
    if absent := [part for part in wanted if part not in parts]:
        raise DataError(
            f"dataset.group_split: {len(names)} groups ({listing(names)}) are too few: no group is left for {listing(absent)}"
        )
    numbers = {name: number for number, name in enumerate(names)}
    codes = np.fromiter(map(numbers.__getitem__, groups), np.int64, len(groups))
    return {part: np.flatnonzero(np.isin(codes, at)) for part, at in parts.items()}


def check_apart(parts: Mapping[str, Sequence[str]]) -> None:
    """Check that no group has samples in two splits. parts: split -> group of each sample. Raises DataError."""
    for (part_a, groups_a), (part_b, groups_b) in itertools.combinations(parts.items(), 2):
        if both := sorted(set(groups_a) & set(groups_b)):
            raise DataError(
                f"dataset.group_split: {listing(list(map(repr, both)))} in both the {part_a} and the {part_b} split",
                "move all samples of a group to one split, or let fmeco split them",
            )


def assign(
    names: Sequence[str],
    codes: Indices,
    splitting: Splitting,
    *,
    whole: bool = False,
    decided: Mapping[str, Indices] | None = None,
    groups: Sequence[str] | None = None,
) -> dict[str, Indices]:
    """Assign samples to train, val and test. Returns the positions of each split.

    decided: the splits, if files or a column decide them.
    whole: assign all samples to test.
    groups: group of each sample, to split by; without it, samples are split by a hash of their names.
    Training keeps at most `limit_per_class` samples per class. Raises ConfigError and DataError as the other functions do.
    """
    if decided is not None:
        parts = dict(decided)
    elif whole:
        parts = {"test": np.arange(len(names))}
    else:
        parts = split(names, codes, splitting) if groups is None else by_group(groups, splitting)
    if groups is not None:
        check_apart({part: [groups[i] for i in at.tolist()] for part, at in parts.items()})
    if "train" in parts:
        parts["train"] = limit(names, codes, parts["train"], splitting)
    return parts


def limit(names: Sequence[str], codes: Indices, positions: Indices, splitting: Splitting) -> Indices:
    """Keep at most `limit_per_class` of `positions` per class. A larger limit keeps all samples of a smaller one."""
    if splitting.limit_per_class is None:
        return positions
    draw = ranks([names[i] for i in positions], f"limit-{splitting.limit_seed}")
    kept: list[Indices] = []
    for code in np.unique(codes[positions]):
        members = np.flatnonzero(codes[positions] == code)
        kept.append(positions[members[np.argsort(draw[members], kind="stable")][: splitting.limit_per_class]])
    return np.sort(np.concatenate(kept))


def fingerprint(rows: Sequence[tuple[object, ...]]) -> str:
    """Compute the SHA-256 of the sorted rows, one per sample; for files (relative path, size, label)."""
    digest = hashlib.sha256()
    for row in sorted(map(str, rows)):
        digest.update(row.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def split_by_column(values: Sequence[str], path: str, name: str) -> dict[str, Indices]:
    """Split rows by a column of split names. Returns the positions of each split; raises DataError for other values."""
    part_of = {value: split_called(value) for value in set(values)}
    if strange := sorted(value for value, part in part_of.items() if part is None):
        raise DataError(f"{clean(path)}: column '{clean(name)}' holds {listing(strange)}; expected train, val or test")
    parts = np.array([part_of[value] for value in values])
    return {part: np.flatnonzero(parts == part) for part in ("train", "val", "test") if (parts == part).any()}
