"""Real tables of events: the order of their times, to the last digit and in every format; their users and items."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch

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


# ---------------------------------------------------------------- users and items


def bought(items: Sequence[object], path: str = "bought.csv", users: Sequence[object] | None = None) -> str:
    """Write events of eight users in order of time: CSV, or Parquet with the types of the values."""
    columns = {
        "user": [f"u{i % 8}" for i in range(len(items))] if users is None else list(users),
        "item": list(items),
        "time": list(range(len(items))),
    }
    if path.endswith(".parquet"):
        pytest.importorskip("polars").DataFrame(columns).write_parquet(path)
        return path
    rows = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    return str(write(path, "\n".join([",".join(columns), *rows]) + "\n"))


def shopped(path: str, **keys: Any) -> Data:
    return build(**{"name": "events", "path": path, "split": "leave_one_out", "length": 10, **keys})


def plain(count: int = 240) -> list[object]:
    return [f"p{i % 11}" for i in range(count)]


def old(spec: DataSpec) -> DataSpec:
    """The spec of a checkpoint that was made before decode rules had numbers, as finetuning passes it on."""
    prep = {key: value for key, value in spec.preprocessing.items() if key not in ("decode", "missing", "times")}
    return DataSpec("events", spec.inputs, {}, prep, "events")


@pytest.mark.situation("events without an item or a user", "refused by name")
@pytest.mark.parametrize("word", ["", "NULL", "nan", "None", "N/A", "?"])
@pytest.mark.parametrize("column", ["item", "user"])
@pytest.mark.parametrize("command", ["pretrain", "predict"])
def test_event_without_an_item(word: str, column: str, command: str) -> None:
    """NULL is not an item that everybody takes, nor one user with a long history.

    https://github.com/lyst/lightfm/issues/561, https://github.com/RUCAIBox/RecBole/pull/204
    """
    cells = {"item": plain(), "user": [f"u{i % 8}" for i in range(240)]}
    good = shopped(bought(cells["item"]))
    cells[column][4] = cells[column][24] = word
    path = bought(cells["item"], "bad.csv", cells["user"])
    said = re.escape(f": '{word}'" if word else "")
    with pytest.raises(DataError, match=rf"bad.csv: column '{column}': no value in row 6, 26{said}\n"):
        shopped(path) if command == "pretrain" else reader_module(good.spec).read(good.spec, [path])


@pytest.mark.situation("an item or a user that is called NA", "read rightly")
@pytest.mark.parametrize("word", ["NULL", "NA", "None"])
def test_an_item_may_be_called_na(word: str) -> None:
    items = plain()
    items[4::11] = [word] * len(items[4::11])
    data = shopped(bought(items), missing=[])
    assert word in data.spec.preprocessing["items"] and data.spec.preprocessing["missing"] == []
    new = reader_module(data.spec).read(data.spec, [bought(items[:60], "new.csv"), word])
    assert len(new) == 9 and new[8]["tokens"].tolist() == [data.spec.preprocessing["items"].index(word) + 2]
    with pytest.raises(DataError, match=r"no value in row 3: 'gone'"):
        shopped(bought([items[0], "gone", *items[2:]]), missing=["gone"])


@pytest.mark.situation("events of an old checkpoint", "read rightly")
def test_an_old_checkpoint_keeps_its_words_and_ids() -> None:
    """By decode rule 1, NULL is an item, and 101.0 is another one than 101."""
    items = [["NULL", "101.0", "102.0", "p"][i % 4] for i in range(240)]
    first = old(shopped(bought(plain())).spec)
    data = shopped(bought(items), known=first)
    assert set(items) <= set(data.spec.preprocessing["items"])
    assert not {"decode", "missing"} & data.spec.preprocessing.keys()
    floats = shopped(bought([float(i % 5) for i in range(240)]), known=old(data.spec))
    assert {"0.0", "4.0"} <= set(floats.spec.preprocessing["items"]) and not any("floats" in n for n in floats.notes)


@pytest.mark.situation("whole ids that were written as floats", "read rightly")
@pytest.mark.parametrize("path", ["bought.csv", "bought.parquet"])
@pytest.mark.parametrize("column", ["item", "user"])
def test_ids_written_as_floats(path: str, column: str) -> None:
    """In pandas, a column of ids with a missing cell becomes one of floats.

    https://github.com/pandas-dev/pandas/issues/20007
    """
    whole = [100_000 + i % 11 for i in range(240)]
    floats = list(map(float, whole))
    data = shopped(bought(floats, path) if column == "item" else bought(plain(), path, floats))
    same = shopped(bought(whole, "whole.csv") if column == "item" else bought(plain(), "whole.csv", whole))
    assert data.spec.preprocessing["items"] == same.spec.preprocessing["items"]
    assert data.spec.fingerprint == same.spec.fingerprint
    assert any(f"'{column}': whole numbers written as floats: 100000.0 is read as 100000" in n for n in data.notes)
    if column == "item":
        new = reader_module(data.spec).read(data.spec, [bought(whole, "new.csv"), "100003,100003.0", f"{path}:u3"])
        assert new[8]["tokens"].tolist() == [5, 5]
        assert torch.equal(new[9]["tokens"], new[3]["tokens"])
    else:
        one, other = reader_module(data.spec).read(data.spec, [f"{path}:100003", f"{path}:100003.0"])
        assert torch.equal(one["tokens"], other["tokens"])


@pytest.mark.situation("ids that are no whole numbers", "read rightly")
@pytest.mark.parametrize("ids", [["1.0", "1.5", "2.0"], ["12E3", "12E4", "7"], ["007", "08", "1"], ["1.0", "x", "2.0"]])
def test_other_ids_stay_as_they_are_written(ids: list[str]) -> None:
    data = shopped(bought([ids[i % 3] for i in range(240)]))
    assert set(data.spec.preprocessing["items"]) == set(ids)


@pytest.mark.situation("ids that lost their last digits", "refused by name")
@pytest.mark.parametrize("path", ["bought.csv", "bought.parquet"])
@pytest.mark.parametrize("column", ["item", "user"])
@pytest.mark.parametrize("start", [9_007_199_254_740_993, 123_456_789_012_345_678])
def test_large_ids_written_as_floats(path: str, column: str, start: int) -> None:
    """Of eleven ids, six are left once they were floats.

    https://github.com/pandas-dev/pandas/issues/20007, https://github.com/PorkShoulderHolder/python-libmf/issues/13
    """
    whole = [start + i % 11 for i in range(240)]
    floats = list(map(float, whole))
    with pytest.raises(DataError, match=rf"{path}: column '{column}', row 2: .* was written as a float"):
        shopped(bought(floats, path) if column == "item" else bought(plain(), path, floats))
    data = shopped(bought(whole, path) if column == "item" else bought(plain(), path, whole))
    assert len(data.spec.preprocessing["items"]) == 11
