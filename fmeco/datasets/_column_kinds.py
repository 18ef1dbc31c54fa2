"""Decide what the columns of a new table hold (numbers, dates or categories), and compute their statistics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fmeco.core import DataError, clean, listing
from fmeco.datasets import _date_parts, _ids
from fmeco.datasets._new_columns import Column, Numbers, looks_like_number, numbers, quoted, sentinels
from fmeco.datasets._numbers import (
    LARGEST,
    PLAIN,
    Cells,
    Notation,
    Rules,
    category_names,
    is_codes,
    is_missing,
    is_whole,
    mean_and_std,
)
from fmeco.datasets._splits import Indices


def fit_columns(
    columns: Sequence[Column], train: Indices, rules: Rules, categorical_too: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Compute column statistics from the training rows only: the `preprocessing` of a table. Returns it, and notes.

    numeric: mean and std; missing values become the mean, plus a 0/1 column if any training value is missing. A column of
        dates has one entry per part, with the order of its year, month and day.
    categorical: the categories seen, numbered from 1; 0 is missing or never seen.
    categorical_too: columns of numbers to treat as categorical.
    Raises DataError for columns whose cells can be read in several ways, and for numbers that are too large.
    """
    numeric: list[dict[str, Any]] = []
    categorical: list[dict[str, Any]] = []
    notations: dict[str, Notation] = {}
    notes: list[str] = []
    rows = train.tolist()
    for column in columns:
        named = column.name in categorical_too
        read = None if named else numbers(column, rules)
        codes = read is not None and _are_codes(column, read, rules)
        order = _date_parts.order_of(column, rules) if read is None and not named else None
        if all(is_missing(column.text[i], rules.missing) for i in rows):
            notes.append(f"{column}: left out, because it has no value in any training row")
        elif read is not None and not codes:
            numeric.append({"name": column.name, **_statistics(column, read.cells, train)})
            notes += sentinels(column, read.cells, rules)
            if read.notation != PLAIN:
                notations[column.name] = read.notation
                notes.append(f"{column}: numbers are read with {read.notation}")
        elif order is not None:
            parts = _part_statistics(column, order, train, rules)
            numeric += parts
            notes.append(f"{column}: dates, {order}: read as {listing([stats['part'] for stats in parts])}")
        else:
            categorical.append({"name": column.name, "categories": _categories(column, train, rules)})
            if codes:
                notes.append(
                    f"{column}: its whole numbers are read as codes, which are categories: some begin with 0 or look like "
                    f"1E5; dataset.decimal: {{{clean(column.name)}: '.'}} reads numbers"
                )
            elif not named and (note := _mixed(column, rules)):
                notes.append(note)
    if not numeric and not categorical:
        raise DataError(f"{columns[0].where}: no column has a value in any training row")
    _check_points(columns, numeric, notations, rules)
    return {"numeric": numeric, "categorical": categorical, **rules.stored(notations)}, notes


def _part_statistics(column: Column, order: str, train: Indices, rules: Rules) -> list[dict[str, Any]]:
    """Compute the statistics of each part of a column of dates. One part marks missing dates for all."""
    dates = _date_parts.read(column.text, order, rules)
    parts: list[dict[str, Any]] = []
    for part in _date_parts.parts_of(dates, order):
        statistics = _statistics(column, dates.part(part), train)
        marks = statistics["missing"] and part == _date_parts.FIRST_PART
        parts.append({"name": column.name, "part": part, "order": order, **statistics, "missing": marks})
    return parts


def _categories(column: Column, train: Indices, rules: Rules) -> list[str]:
    """List the categories of the training rows. Raises DataError for codes that lost their last digits as floats."""
    present = column.present(rules)
    if large := _ids.inexact(present):
        row = np.array([next(row for row, text in enumerate(column.text) if text in large)])
        raise _ids.inexact_error(f"{column}, row {column.rows_at(row)}", column.text[row[0]])
    seen = {column.text[i] for i in train.tolist()}
    categories = {text for text in seen if not is_missing(text, rules.missing)}
    return sorted(set(category_names(categories, whole=all(map(is_whole, present))).values()))


def _are_codes(column: Column, read: Numbers, rules: Rules) -> bool:
    """Tell whether a column of numbers holds codes. A column that `dataset.decimal` names holds numbers."""
    whole = bool((read.cells.values == np.floor(read.cells.values)).all())
    return whole and read.notation == PLAIN and column.name not in rules.decimal and is_codes(column.present(rules))


def _statistics(column: Column, found: Cells, train: Indices) -> dict[str, Any]:
    """Compute mean and std of the training rows. Raises DataError for a number that is too large to have them."""
    if (large := train[np.abs(found.values[train]) > LARGEST]).size:
        raise DataError(
            f"{column}, row {column.rows_at(large)}: '{clean(column.text[large[0]], 40)}' is too large to compute with",
            "correct the cell, or remove the row",
        )
    gone = found.missing[train]
    mean, std = mean_and_std(found.values[train][~gone])
    return {"mean": mean, "std": std, "missing": bool(gone.any())}


def _mixed(column: Column, rules: Rules) -> str | None:
    """Describe a column of categories of which half or more look like numbers; None for other columns."""
    present = column.present(rules)
    odd = [text for text in present if not looks_like_number(text)]
    count, strange = sum(present.values()), sum(present[text] for text in odd)
    if not present or 2 * strange > count:
        return None
    but = (
        f"; {quoted(odd)} {'does' if len(odd) == 1 else 'do'} not" if odd else f", such as {quoted(list(present)[:1])}"
    )
    return f"{column}: categories, although {count - strange:,} of {count:,} cells look like numbers{but}"


def _check_points(
    columns: Sequence[Column], numeric: Sequence[Mapping[str, Any]], notations: Mapping[str, Notation], rules: Rules
) -> None:
    """Refuse numbers such as 1.234 beside a column with a decimal comma: their point may separate thousands."""
    commas = [name for name, notation in notations.items() if notation.decimal == ","]
    plain = {stats["name"] for stats in numeric if "part" not in stats} - {*notations, *rules.decimal}
    for column in columns if commas else ():
        present = column.present(rules) if column.name in plain else {}
        points = [text for text in present if "." in text]
        if points and all(Notation(",", ".").plain(text) for text in present):
            name = clean(column.name)
            raise DataError(
                f"{column}: the point in '{clean(min(points), 40)}' may separate thousands, because column "
                f"'{clean(commas[0])}' has a decimal comma",
                f"set the decimal point: dataset.decimal: {{{name}: '.'}} or {{{name}: ','}}",
            )
