"""Split samples by a hash of their names.

Nothing here depends on the order in which files are listed. Shares are exact, so a file that is added to a class can
move at most one other of that class to another split; at most three where there is a test split.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fmeco.core import ConfigError, DataError, Splitting, clean, listing

Indices = NDArray[np.int64]


def ranks(names: Sequence[str], salt: str) -> Indices:
    """A pseudo-random 63-bit number per name, the same on every machine."""
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


def split(names: Sequence[str], codes: Indices, how: Splitting) -> dict[str, Indices]:
    """Positions of train, val and test, stratified by code. Every class with two samples or more has one in train
    and one in val. Raises ConfigError for a fold that does not exist or fractions that leave nothing to train on."""
    val, test, fold = how.val_fraction, how.test_fraction, how.split
    if val + test >= 1:
        raise ConfigError(f"dataset: val_fraction {val} and test_fraction {test} leave nothing to train on")
    if fold is not None:
        n, of = fold.get("fold", 0), fold.get("of", 0)
        if set(fold) != {"fold", "of"} or not 1 <= n <= of or of < 2:
            raise ConfigError(
                f"dataset.split: {{fold: 1, of: 5}} names one of `of` folds, 1 to {max(of, 2)}; got {dict(fold)}"
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


def by_group(groups: Sequence[str], how: Splitting) -> dict[str, Indices]:
    """Split samples by a hash of their group's name, so that a group is in one split.

    The shares are of groups: more samples of the same ones move nobody. Raises DataError for too few groups.
    """
    names = sorted(set(groups))
    parts = split(names, np.zeros(len(names), np.int64), how)
    wanted = ("train", "val", "test") if how.test_fraction else ("train", "val")
    if absent := [part for part in wanted if part not in parts]:
        raise DataError(
            f"dataset.group_split: {len(names)} groups ({listing(names)}) are too few: none is left for {listing(absent)}"
        )
    numbers = {name: number for number, name in enumerate(names)}
    each = np.fromiter(map(numbers.__getitem__, groups), np.int64, len(groups))
    return {part: np.flatnonzero(np.isin(each, at)) for part, at in parts.items()}


def check_apart(parts: Mapping[str, Sequence[str]]) -> None:
    """Check that no group has samples in two splits. Raises DataError that names those that have."""
    for (one, first), (other, second) in itertools.combinations(parts.items(), 2):
        if both := sorted(set(first) & set(second)):
            raise DataError(
                f"dataset.group_split: {listing(list(map(repr, both)))} in both the {one} and the {other} split",
                "move all samples of a group to one split, or have fmeco split them",
            )


def assign(
    names: Sequence[str],
    codes: Indices,
    how: Splitting,
    *,
    whole: bool = False,
    given: Mapping[str, Indices] | None = None,
    groups: Sequence[str] | None = None,
) -> dict[str, Indices]:
    """Assign positions to train, val and test: as `given`; of a `whole` all to test; else by a hash of names or groups.

    Training keeps at most `limit_per_class` of a class.
    """
    if given is not None:
        parts = dict(given)
    elif whole:
        parts = {"test": np.arange(len(names))}
    else:
        parts = split(names, codes, how) if groups is None else by_group(groups, how)
    if groups is not None:
        check_apart({part: [groups[i] for i in at.tolist()] for part, at in parts.items()})
    if "train" in parts:
        parts["train"] = limit(names, codes, parts["train"], how)
    return parts


def limit(names: Sequence[str], codes: Indices, positions: Indices, how: Splitting) -> Indices:
    """At most `limit_per_class` of `positions` per class. A larger limit keeps all that a smaller one keeps."""
    if how.limit_per_class is None:
        return positions
    draw = ranks([names[i] for i in positions], f"limit-{how.limit_seed}")
    kept: list[Indices] = []
    for code in np.unique(codes[positions]):
        members = np.flatnonzero(codes[positions] == code)
        kept.append(positions[members[np.argsort(draw[members], kind="stable")][: how.limit_per_class]])
    return np.sort(np.concatenate(kept))


def fingerprint(rows: Sequence[tuple[object, ...]]) -> str:
    """SHA-256 over sorted rows, one per sample: (relative path, size, label) for files."""
    digest = hashlib.sha256()
    for row in sorted(map(str, rows)):
        digest.update(row.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def split_by_column(values: Sequence[str], path: str, name: str) -> dict[str, Indices]:
    spoken = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
    if strange := sorted({value for value in values if value.lower() not in spoken}):
        raise DataError(f"{clean(path)}: column '{clean(name)}' says {listing(strange)}; it may say train, val or test")
    parts = np.array([spoken[value.lower()] for value in values])
    return {part: np.flatnonzero(parts == part) for part in ("train", "val", "test") if (parts == part).any()}
