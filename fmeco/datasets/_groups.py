"""Find the group of each sample, such as its speaker, its patient or its customer."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fmeco.core import ConfigError, DataError, clean, listing, nearest

CALLED = "group"  # the column's name, for `evaluate --by`, if a pattern finds the groups


class Groups(NamedTuple):
    """Hold the group of each sample.

    names: name of each sample's group (N,).
    called: name of the column of groups, for `evaluate --by`.
    """

    names: list[str]
    called: str


def find(
    table: Mapping[str, list[str]], wanted: str, files: Sequence[str], path: str, rows: Sequence[object] | None = None
) -> Groups:
    """Find the groups of samples: in the column `wanted` of a table, or with the pattern `wanted` in the paths of files.

    files: path of each sample's file (N,).
    rows: row numbers (N,), for messages.
    Raises ConfigError and DataError as `in_column`, `check_named` and `in_paths` do.
    """
    if (
        wanted not in table and "(" in wanted
    ):  # a pattern needs a group in parentheses; anything else is a column's name
        return Groups(in_paths(files, wanted), CALLED if CALLED not in table else "group_split")
    groups = in_column(table, wanted, path)
    check_named(groups, path, wanted, rows=rows)
    return Groups(groups, wanted)


def in_column(table: Mapping[str, list[str]], name: str, path: str) -> list[str]:
    """Read groups from a column. Raises ConfigError if there is no such column."""
    if name not in table:
        raise ConfigError(
            f"dataset.group_split: {clean(path)}: no column '{clean(name)}'{nearest(name, table)}; it has: {listing(table, 50)}",
            "for files it may also be a regular expression with one group, to search for in their paths: '_([a-z]+)_'",
        )
    return table[name]


def check_named(
    groups: Sequence[str],
    path: str,
    name: str,
    missing: Callable[[str], bool] = operator.not_,
    rows: Sequence[object] | None = None,
) -> None:
    """Check that every row has a group. Raises DataError that names the rows whose cell is `missing`."""
    rows = range(2, len(groups) + 2) if rows is None else rows
    if blank := [row for row, value in zip(rows, groups, strict=True) if missing(value)]:
        raise DataError(f"{clean(path)}: no value of column '{clean(name)}' in row {listing(blank)}")


def in_paths(paths: Sequence[str], pattern: str) -> list[str]:
    """Find groups in paths by a regular expression, whose only capturing group is the name.

    Raises ConfigError for a pattern that is no such expression, DataError for paths without a match.
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
    groups = [match[1] if (match := expression.search(path)) else None for path in paths]
    if strange := [path for path, group in zip(paths, groups, strict=True) if not group]:
        raise DataError(f"dataset.group_split: '{clean(pattern)}' finds no group in the path of {listing(strange)}")
    return [group for group in groups if group]
