"""Which samples go where: classes by name, splits by a hash of the sample's name.

Nothing here depends on the order in which files are listed. Shares are exact, so a file that is added to a class can
move at most one other of that class to another split.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fmeco.core import ConfigError, DataError, Target, clean, listing, nearest

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


def natural(labels: Sequence[str]) -> list[str]:
    """Distinct labels in order: by value when all are whole numbers, else by name."""
    distinct = set(labels)
    if all(label.lstrip("-").isdigit() for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def encode(
    labels: Sequence[str],
    classes: Sequence[str | int] | None,
    known: Target | None,
    where: str,
    whose: str = "the checkpoint",
) -> tuple[Indices, Indices, tuple[str, ...], list[str]]:
    """Class names -> codes. The order comes from the checkpoint (`known`), else from `classes`, else from the names.

    Returns (positions kept, their codes, class names, notes). Raises DataError for labels that a checkpoint does not
    know, ConfigError for `classes` that the data does not have, DataError for fewer than two classes.
    """
    notes: list[str] = []
    present = natural(labels)
    chosen = [str(name) for name in classes] if classes is not None else None
    if chosen is not None:
        if absent := [name for name in chosen if name not in present]:
            raise ConfigError(
                f"{where}: dataset.classes names {listing(absent)}, which the data does not have{nearest(absent[0], present)}",
                f"classes in the data: {listing(present, 20)}",
            )
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"{where}: dataset.classes names a class twice")
    if known is not None:
        order = known.classes
        if strange := [name for name in (chosen or present) if name not in order]:
            raise DataError(
                f"{where}: {whose} has no class {listing(strange)}; it knows: {listing(order, 20)}",
                "choose among the data's classes with --set dataset.classes=[...], or finetune for the new ones",
            )
        if absent := [name for name in order if name not in (chosen or present)]:
            notes.append(f"{where}: no samples of {listing(absent)}")
    else:
        order = tuple(chosen or present)
        if len(order) < 2:
            raise DataError(
                f"{where}: {'only one class (' + order[0] + ')' if order else 'no classes'}: a classifier needs two",
                "class folders (one folder of images per class) or a label column give the classes",
            )
    table = {name: code for code, name in enumerate(order)}
    wanted = set(chosen or order)
    kept = np.array([i for i, label in enumerate(labels) if label in wanted], dtype=np.int64)
    codes = np.array([table[labels[i]] for i in kept], dtype=np.int64)
    return kept, codes, order, notes


def split(
    names: Sequence[str], codes: Indices, val: float, test: float = 0.0, fold: Mapping[str, int] | None = None
) -> dict[str, Indices]:
    """Positions of train, val and test, stratified by code. Every class with two samples or more has one in train
    and one in val. Raises ConfigError for a fold that does not exist or fractions that leave nothing to train on."""
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


def speakers(names: Sequence[str], pattern: str) -> list[str]:
    """Who speaks in each file: what the group of a regular expression finds in its name. Raises ConfigError for what is
    none with one group, DataError for names in which it finds nobody."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"dataset.speaker: '{clean(pattern)}' is not a regular expression: {error}") from None
    if expression.groups != 1:
        raise ConfigError(
            f"dataset.speaker: '{clean(pattern)}' has {expression.groups} groups and needs one, around the speaker's name",
            "for files such as 3_theo_7.wav: '_([a-z]+)_'",
        )
    found = [match[1] if (match := expression.search(name)) else None for name in names]
    if strange := [name for name, one in zip(names, found, strict=True) if not one]:
        raise DataError(f"dataset.speaker: '{clean(pattern)}' finds no speaker in the name of {listing(strange)}")
    return [one for one in found if one]


def by_speaker(
    who: Sequence[str], val: float, test: float = 0.0, fold: Mapping[str, int] | None = None
) -> dict[str, Indices]:
    """Positions of train, val and test by a hash of the speaker's name: all that one says is in one of them. The shares
    are of speakers, so that more files of the same ones move nobody. Raises DataError for too few speakers."""
    names = sorted(set(who))
    parts = split(names, np.zeros(len(names), np.int64), val, test, fold)
    wanted = ("train", "val", "test") if test else ("train", "val")
    if absent := [part for part in wanted if part not in parts]:
        raise DataError(
            f"dataset.speaker: {len(names)} speakers ({listing(names)}) are too few: none is left for {listing(absent)}"
        )
    each = np.array(who)
    return {part: np.flatnonzero(np.isin(each, [names[i] for i in at])) for part, at in parts.items()}


def apart(parts: Mapping[str, Sequence[str]]) -> None:
    """Raises DataError where a speaker is in more than one split: what is heard in training is no test."""
    for (one, first), (other, second) in itertools.combinations(parts.items(), 2):
        if both := sorted(set(first) & set(second)):
            raise DataError(
                f"dataset.speaker: {listing(both)} can be heard in the {one} and in the {other} split",
                "move all recordings of a speaker to one split, or have fmeco split them",
            )


def limit(names: Sequence[str], codes: Indices, positions: Indices, per_class: int | None, seed: int) -> Indices:
    """At most `per_class` of `positions` per class. A larger limit keeps all that a smaller one keeps."""
    if per_class is None:
        return positions
    draw = ranks([names[i] for i in positions], f"limit-{seed}")
    kept: list[Indices] = []
    for code in np.unique(codes[positions]):
        members = np.flatnonzero(codes[positions] == code)
        kept.append(positions[members[np.argsort(draw[members], kind="stable")][:per_class]])
    return np.sort(np.concatenate(kept))


def fingerprint(rows: Sequence[tuple[object, ...]]) -> str:
    """SHA-256 over sorted rows, one per sample: (relative path, size, label) for files."""
    digest = hashlib.sha256()
    for row in sorted(map(str, rows)):
        digest.update(row.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()
