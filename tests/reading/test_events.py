"""Real tables of events: the order of their times, to the last digit and in every format."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from fmeco.core import Data, DataError, DataSpec
from fmeco.data.spec_reader import reader_module
from tests.conftest import write
from tests.data.test_data import build

ITEMS = 12


def shop(times: Sequence[object], path: str = "shop.csv", users: int = 8, seed: int | None = 0) -> str:
    """Write events: each user takes the items one after another. The rows are in random order, unless `seed` is None."""
    rows = [f"u{user},i{(i + user) % ITEMS:02},{time}" for i, time in enumerate(times) for user in range(users)]
    if seed is not None:
        rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    return str(write(path, "\n".join(["user,item,time", *rows]) + "\n"))


def events(times: Sequence[object], seed: int | None = 0, **keys: Any) -> Data:
    return build(**{"name": "events", "path": shop(times, seed=seed), "split": "leave_one_out", "length": 20, **keys})


def told(data: Data) -> list[list[str]]:
    """Return the items of each test sample, in the order in which the model gets them."""
    items, test = data.spec.preprocessing["items"], data.split("test")
    return [[items[n - 2] if n > 1 else "new" for n in test[i]["tokens"].tolist()] for i in range(len(test))]


IN_ORDER = [[f"i{(i + user) % ITEMS:02}" for i in range(ITEMS)] for user in range(8)]
CLOSE: dict[str, list[object]] = {
    "nanoseconds since 1970": [1_700_000_000_123_456_000 + i for i in range(ITEMS)],
    "seconds with nine decimals": [f"1700000000.1234560{i:02}" for i in range(ITEMS)],
    "nine digits of a second": [f"2024-01-01T00:00:00.1234560{i:02}" for i in range(ITEMS)],
    "nine digits of a second, with zones": [f"2024-01-01T00:00:00.1234560{i:02}+01:00" for i in range(ITEMS)],
    "nine digits of a second, German": [f"31.12.2024 00:00:00.1234560{i:02}" for i in range(ITEMS)],
    "large whole numbers": [9_007_199_254_740_992 + i for i in range(ITEMS)],
    "negative whole numbers": [-9_007_199_254_740_992 - ITEMS + i for i in range(ITEMS)],
    "microseconds since 1970": [1_700_000_000_000_000 + i for i in range(ITEMS)],
    "numbers with many decimals": [f"0.1234567890123456{i:02}" for i in range(ITEMS)],
}


@pytest.mark.situation("events a nanosecond apart", "read rightly")
@pytest.mark.parametrize("how", CLOSE)
def test_close_events_keep_their_order(how: str) -> None:
    """In float64, seconds since 1970 are equal if they are closer than 256 ns, and the order of the table decides."""
    data = events(CLOSE[how])
    assert told(data) == IN_ORDER
    assert data.spec.decode == 2


@pytest.mark.situation("events a nanosecond apart", "read rightly")
def test_close_events_are_cut_where_they_should_be() -> None:
    data = events(CLOSE["nanoseconds since 1970"], split="time", val_fraction=1 / 6, test_fraction=1 / 6)
    assert data.spec.sizes["val"] == data.spec.sizes["test"] == 2 * 8
    new = events(CLOSE["nanoseconds since 1970"])
    samples = reader_module(new.spec).read(new.spec, [shop(CLOSE["nanoseconds since 1970"][:-1], "new.csv")])
    items = new.spec.preprocessing["items"]
    found = [[items[n - 2] for n in samples[i]["tokens"].tolist()] for i in range(len(samples))]
    assert found == [history[:-1] for history in IN_ORDER]


@pytest.mark.situation("numbers that are equal as float64", "refused by name")
def test_numbers_that_64_bits_cannot_tell_apart_are_refused() -> None:
    times = [f"{1_700_000_000 + i}.5e0" for i in range(ITEMS)]
    assert told(events(times)) == IN_ORDER
    times[7] = "1700000003.50000001e0"
    with pytest.raises(DataError, match=r"column 'time', row \d+: .*1700000003.5.* are the same number as float64"):
        events(times)


@pytest.mark.situation("events of the same time", "read rightly")
@pytest.mark.parametrize("same", ["5", "2024-01-01", "1700000000", "1.0"])
def test_equal_times_keep_the_order_of_the_table(same: str) -> None:
    assert told(events([same] * ITEMS, seed=None)) == IN_ORDER


START = datetime(2023, 12, 25)
FORMATS = [
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%-d.%-m.%Y",
    "%Y%m%d",
    "%Y%m%d%H%M%S",
    "%d.%m.%Y %H:%M",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%s",
]


@pytest.mark.situation("events dated in many formats", "read rightly")
@pytest.mark.parametrize("pattern", FORMATS)
def test_dates_of_events_are_in_the_order_of_the_calendar(pattern: str) -> None:
    data = events([(START + timedelta(days=i)).strftime(pattern) for i in range(ITEMS)])
    assert told(data) == IN_ORDER


@pytest.mark.situation("dates of events that could be read in two ways", "refused by name")
@pytest.mark.parametrize("split", ["time", "leave_one_out"])
@pytest.mark.parametrize("value", ["01/02/2024", "1-2-2024", "01/02/2024 10:00"])
def test_dates_of_two_meanings_are_refused(value: str, split: str) -> None:
    with pytest.raises(DataError, match=f"column 'time', row 2: '{value}' is either day and month, or month and day"):
        events([value] * ITEMS, split=split)


@pytest.mark.situation("a new table whose dates alone could be read in two ways", "read rightly")
@pytest.mark.parametrize("pattern", ["%d/%m/%Y", "%m/%d/%Y"])
def test_the_checkpoint_knows_which_number_is_the_day(pattern: str) -> None:
    spec = events([(START + timedelta(days=i)).strftime(pattern) for i in range(ITEMS)]).spec
    new = [datetime(2024, 1, 2), datetime(2024, 1, 12), datetime(2024, 2, 1), datetime(2024, 12, 1)]
    samples = reader_module(spec).read(spec, [shop([date.strftime(pattern) for date in new], "new.csv")])
    assert [spec.preprocessing["items"][n - 2] for n in samples[0]["tokens"].tolist()] == IN_ORDER[0][:4]


@pytest.mark.situation("events while clocks are set back", "read rightly")
@pytest.mark.parametrize("zone", ["Europe/Berlin", "Europe/London", "America/New_York"])
def test_events_in_order_stay_in_order_when_clocks_are_set_back(zone: str) -> None:
    start = (
        datetime(2024, 11, 3, 3, tzinfo=UTC) if zone.startswith("America") else datetime(2024, 10, 26, 22, tzinfo=UTC)
    )
    moments = [start + timedelta(minutes=25 * i) for i in range(ITEMS)]
    times = [moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None) for moment in moments]
    assert times != sorted(times)
    data = events([f"{time:%Y-%m-%d %H:%M}" for time in times], seed=None)
    assert told(data) == IN_ORDER
    assert any("clocks are set back" in note for note in data.notes)


@pytest.mark.situation("events of an old checkpoint", "read rightly")
def test_an_old_checkpoint_keeps_the_order_in_which_it_was_trained() -> None:
    """Decode rule 1 has times as float64: events closer than 256 ns are in the order of the table."""
    new = events([10 * i for i in range(ITEMS)])
    prep = {key: value for key, value in new.spec.preprocessing.items() if key != "decode"}
    old = DataSpec("events", new.spec.inputs, {}, prep, "events")
    backwards = CLOSE["nanoseconds since 1970"][::-1]
    data = events(backwards, seed=None, known=old)
    assert told(data) == IN_ORDER, "as the rows are"
    assert "decode" not in data.spec.preprocessing
    samples = reader_module(old).read(old, [shop(backwards, "new.csv", seed=None)])
    items = prep["items"]
    assert [items[n - 2] for n in samples[0]["tokens"].tolist()] == IN_ORDER[0]
