"""Read a column of numbers or dates as times, and split rows by time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from fmeco.core import ConfigError, DataError, clean
from fmeco.datasets._columns import cells
from fmeco.datasets._splits import Indices


def moments(values: Sequence[str], path: str, name: str, first_row: int = 2) -> NDArray[np.float64]:
    """Parse times: numbers, or ISO dates and times, as seconds since 1970 (UTC for times without a zone).

    first_row: row number of the first value, for messages.
    Raises DataError that names the row.
    """
    column = cells(values)
    other = np.sort(np.concatenate([column.strange, np.flatnonzero(column.missing)])).tolist()
    if not other:
        return column.values
    dates: list[datetime] = []
    wrong = other[0] if len(other) < len(values) else None  # the first value that is not a number, if some are
    for row, value in enumerate(values if wrong is None else ()):
        try:
            dates.append(
                datetime.fromisoformat(value if len(value) != 7 else f"{value}-01")
            )  # a month such as 2024-01 is its first day
        except ValueError:
            wrong = row
            break
    if wrong is not None:
        raise DataError(
            f"{clean(path)}: column '{clean(name)}', row {wrong + first_row}: '{clean(values[wrong], 40)}' is not a time",
            "all values of the column must be numbers, or ISO dates such as 2024-01-31 or 2024-01-31T12:00:00",
        )
    if len({date.tzinfo is None for date in dates}) > 1:
        raise DataError(f"{clean(path)}: column '{clean(name)}': some times have a time zone and others do not")
    return np.array([(date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() for date in dates])


def split_by_time(
    values: Sequence[str], path: str, name: str, val: float, test: float, first_row: int = 2
) -> tuple[dict[str, Indices], str]:
    """Split rows by time: the oldest for training, then validation, and the newest for testing.

    A deployed model is used on data that is newer than its training data, so a random split would overstate its quality.
    Rows of the same time stay together: each cut is where the share is closest to the requested one.
    val, test: shares of the rows.
    first_row: row number of the first value, for messages.
    Returns (split -> positions, a note on the cuts). Raises ConfigError for shares of 1 or more, DataError for too few
    distinct times.
    """
    if val + test >= 1:
        raise ConfigError(f"dataset: val_fraction {val} and test_fraction {test} leave nothing to train on")
    distinct, first, code, counts = np.unique(
        moments(values, path, name, first_row), return_index=True, return_inverse=True, return_counts=True
    )
    older = np.concatenate([[0], counts.cumsum()])  # rows before each moment
    shares = {"test": test, "val": val} if test else {"val": val}
    if len(distinct) <= len(shares):
        raise DataError(
            f"{clean(path)}: column '{clean(name)}' has {len(distinct)} distinct times, too few to split by"
        )
    parts: dict[str, Indices] = {}
    ranges: list[str] = []
    end = len(distinct)
    for left, (part, share) in enumerate(shares.items()):
        wanted = older[end] - round(len(values) * share)
        lowest = len(shares) - left  # leave at least one moment for each remaining split
        cut = lowest + int(np.abs(older[lowest:end] - wanted).argmin())
        parts[part] = np.flatnonzero((code >= cut) & (code < end))
        ranges.append(f"{part} from {clean(values[first[cut]], 40)} ({len(parts[part]):,} rows)")
        end = cut
    parts["train"] = np.flatnonzero(code < end)
    ranges.append(f"train before {clean(values[first[end]], 40)} ({len(parts['train']):,} rows)")
    return dict(reversed(parts.items())), f"{clean(path)}: split by '{clean(name)}': {', '.join(reversed(ranges))}"
