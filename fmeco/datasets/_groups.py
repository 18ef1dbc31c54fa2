"""Find the group of each sample, such as its speaker, its patient or its customer."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fmeco.core import ConfigError, DataError, clean, listing, nearest

CALLED = "group"  # what `evaluate --by` calls groups that a pattern finds


class Groups(NamedTuple):
    """Name the group of each sample. names: (N,). called: their column, to measure by (`evaluate --by`)."""

    names: list[str]
    called: str


def find(
    table: Mapping[str, list[str]], wanted: str, files: Sequence[str], path: str, rows: Sequence[object] | None = None
) -> Groups:
    """Find groups in a table's column `wanted`, or, where that is a pattern, in the paths of files (N,).

    rows: (N,), their numbers, for messages.
    """
    if wanted not in table and "(" in wanted:  # what has no group can only be meant as a column
        return Groups(in_paths(files, wanted), CALLED if CALLED not in table else "group_split")
    groups = in_column(table, wanted, path)
    check_named(groups, path, wanted, rows=rows)
    return Groups(groups, wanted)


def in_column(table: Mapping[str, list[str]], name: str, path: str) -> list[str]:
    """Read groups from a column. Raises ConfigError where there is no such column."""
    if name not in table:
        raise ConfigError(
            f"dataset.group_split: {clean(path)}: no column '{clean(name)}'{nearest(name, table)}; it has: {listing(table, 50)}",
            "of files it may also be a regular expression with one group, which is searched in their paths: '_([a-z]+)_'",
        )
    return table[name]


def check_named(
    groups: Sequence[str],
    path: str,
    name: str,
    missing: Callable[[str], bool] = operator.not_,
    rows: Sequence[object] | None = None,
) -> None:
    """Check that every row has a group. Raises DataError that names those whose cell is `missing`."""
    rows = range(2, len(groups) + 2) if rows is None else rows
    if blank := [row for row, value in zip(rows, groups, strict=True) if missing(value)]:
        raise DataError(f"{clean(path)}: no value of column '{clean(name)}' in row {listing(blank)}")


def in_paths(paths: Sequence[str], pattern: str) -> list[str]:
    """Find groups in paths by a regular expression, whose one group is the name.

    Raises ConfigError for a pattern that is no such expression, DataError for paths in which it finds nothing.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"dataset.group_split: '{clean(pattern)}' is not a regular expression: {error}") from None
    if expression.groups != 1:
        raise ConfigError(
            f"dataset.group_split: '{clean(pattern)}' has {expression.groups} groups and needs one, around the group's name",
            "for files such as 3_theo_7.wav: '_([a-z]+)_'",
        )
    found = [match[1] if (match := expression.search(path)) else None for path in paths]
    if strange := [path for path, one in zip(paths, found, strict=True) if not one]:
        raise DataError(f"dataset.group_split: '{clean(pattern)}' finds no group in the path of {listing(strange)}")
    return [one for one in found if one]
