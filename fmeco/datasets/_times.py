"""Read a column of numbers or dates as times, and split by them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from fmeco.core import ConfigError, DataError, clean
from fmeco.datasets._columns import cells
from fmeco.datasets._splits import Indices


def moments(values: Sequence[str], path: str, name: str, first_row: int = 2) -> NDArray[np.float64]:
    """Numbers, or ISO dates and times (in seconds; UTC where none says its zone). Raises DataError that names the row."""
    column = cells(values)
    other = np.sort(np.concatenate([column.strange, np.flatnonzero(column.missing)])).tolist()
    if not other:
        return column.values
    dates: list[datetime] = []
    wrong = other[0] if len(other) < len(values) else None  # the first that is no number, among numbers
    for row, value in enumerate(values if wrong is None else ()):
        try:
            dates.append(datetime.fromisoformat(value if len(value) != 7 else f"{value}-01"))  # 2024-01 is a month
        except ValueError:
            wrong = row
            break
    if wrong is not None:
        raise DataError(
            f"{clean(path)}: column '{clean(name)}', row {wrong + first_row}: '{clean(values[wrong], 40)}' is no time",
            "all of the column must be numbers, or ISO dates such as 2024-01-31 or 2024-01-31T12:00:00",
        )
    if len({date.tzinfo is None for date in dates}) > 1:
        raise DataError(f"{clean(path)}: column '{clean(name)}': some times have a zone and others have none")
    return np.array([(date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() for date in dates])


def split_by_time(
    values: Sequence[str], path: str, name: str, val: float, test: float, first_row: int = 2
) -> tuple[dict[str, Indices], str]:
    """The newest rows for testing, those before them for validation, and a note that says where the cuts are. first_row:
    the number of the first value's row.

    Rows of one moment stay together: a cut is where the share is nearest to what was asked for. A model is used on what
    comes after its training data, so a random split would promise too much.
    """
    if val + test >= 1:
        raise ConfigError(f"dataset: val_fraction {val} and test_fraction {test} leave nothing to train on")
    distinct, first, code, counts = np.unique(
        moments(values, path, name, first_row), return_index=True, return_inverse=True, return_counts=True
    )
    older = np.concatenate([[0], counts.cumsum()])  # rows before each moment
    asked = {"test": test, "val": val} if test else {"val": val}
    if len(distinct) <= len(asked):
        raise DataError(f"{clean(path)}: column '{clean(name)}' has {len(distinct)} values: too few to split by")
    parts: dict[str, Indices] = {}
    said: list[str] = []
    end = len(distinct)
    for left, (part, share) in enumerate(asked.items()):
        wanted = older[end] - round(len(values) * share)
        lowest = len(asked) - left  # a moment for each split that is still to come
        cut = lowest + int(np.abs(older[lowest:end] - wanted).argmin())
        parts[part] = np.flatnonzero((code >= cut) & (code < end))
        said.append(f"{part} from {clean(values[first[cut]], 40)} ({len(parts[part]):,} rows)")
        end = cut
    parts["train"] = np.flatnonzero(code < end)
    said.append(f"train before {clean(values[first[end]], 40)} ({len(parts['train']):,} rows)")
    return dict(reversed(parts.items())), f"{clean(path)}: split by '{clean(name)}': {', '.join(reversed(said))}"
