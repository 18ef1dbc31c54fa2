"""Keep groups, such as the recordings of a speaker, together in one split."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from fmeco.core import ConfigError, DataError, Splitting, clean, listing
from fmeco.datasets import _splits
from fmeco.datasets._columns import is_missing
from fmeco.datasets._splits import Indices, split


def check_apart(parts: Mapping[str, Indices], values: Sequence[str], path: str, name: str) -> None:
    """Raises DataError that names a group (a customer) of which two given splits hold rows."""
    homes: dict[str, str] = {}
    for part, at in parts.items():
        for value in {values[i] for i in at.tolist()}:
            if (other := homes.setdefault(value, part)) != part:
                raise DataError(
                    f"{clean(path)}: '{clean(value, 40)}' of column '{clean(name)}' is in both {other} and {part}",
                    "dataset.group_split keeps the rows of one value in one split; correct the split column",
                )


def split_by_group(values: Sequence[str], path: str, name: str, how: Splitting) -> dict[str, Indices]:
    """All rows of one value in one split, chosen by a hash of the value: shares are of values, not of rows."""
    if blank := [row + 2 for row, value in enumerate(values) if is_missing(value)]:
        raise DataError(f"{clean(path)}: no value of column '{clean(name)}' in row {listing(blank)}")
    distinct = sorted(set(values))
    if len(distinct) < (3 if how.test_fraction else 2):
        raise DataError(f"{clean(path)}: column '{clean(name)}' has {len(distinct)} values: too few to split by")
    chosen = _splits.split(distinct, np.zeros(len(distinct), np.int64), how)
    codes = {value: code for code, value in enumerate(distinct)}
    code = np.fromiter(map(codes.__getitem__, values), np.int64, len(values))
    return {part: np.flatnonzero(np.isin(code, at)) for part, at in chosen.items()}


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


def by_speaker(who: Sequence[str], how: Splitting) -> dict[str, Indices]:
    """Positions of train, val and test by a hash of the speaker's name: all that one says is in one of them. The shares
    are of speakers, so that more files of the same ones move nobody. Raises DataError for too few speakers."""
    names = sorted(set(who))
    parts = split(names, np.zeros(len(names), np.int64), how)
    wanted = ("train", "val", "test") if how.test_fraction else ("train", "val")
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
