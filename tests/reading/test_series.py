"""Real tables of series: how their times are written, their steps, their gaps, and clocks that change."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from fmeco.core import Data, DataError, DataSpec
from fmeco.data.spec_reader import reader_module
from fmeco.datasets import _times
from tests.conftest import Answer, write
from tests.data.test_data import build

rrule: Any = pytest.importorskip("dateutil.rrule")  # what follows in a calendar is its answer
Fmeco = Callable[..., Answer]
KEYS = {"context": 8, "horizon": 2, "val_fraction": 0.25, "test_fraction": 0.0}


def table(times: Sequence[object], path: str = "t.csv", skip: Sequence[int] = (), name: str = "a") -> str:
    """Write a series whose values are 0, 1, 2, ..."""
    rows = [f"{time},{i}" for i, time in enumerate(times) if i not in skip]
    return str(write(path, "\n".join([f"time,{name}", *rows]) + "\n"))


def series(times: Sequence[object], **keys: Any) -> Data:
    return build(**{"name": "series", "path": table(times), **KEYS, **keys})


def ahead(spec: DataSpec, path: str, count: int) -> list[str]:
    """Return the times that a forecast of the first series of a table is for."""
    samples = reader_module(spec).read(spec, [path])
    samples[0]  # raises if the series cannot be forecast
    return [row["time"] for row in samples.answers(0, {"prediction": [0.0] * count})]


def every(unit: str, start: datetime, count: int, **how: Any) -> list[datetime]:
    """Continue a date by the rules of dateutil."""
    return list(rrule.rrule(getattr(rrule, unit), dtstart=start, count=count, **how))


def weekdays(start: datetime, count: int) -> list[datetime]:
    return every("DAILY", start, count, byweekday=range(5))


START = datetime(2023, 1, 2)  # a Monday


# ---------------------------------------------------------------- how times are written


@pytest.mark.situation("dates written as numbers", "read rightly")
@pytest.mark.parametrize(
    ("pattern", "unit", "interval"),
    [
        ("%Y%m%d", "DAILY", 1),
        ("%Y%m%d", "WEEKLY", 1),
        ("%Y%m", "MONTHLY", 1),
        ("%Y%m", "MONTHLY", 3),
        ("%Y%m%d%H", "HOURLY", 1),
        ("%Y%m%d%H%M", "MINUTELY", 15),
        ("%Y%m%d%H%M%S", "SECONDLY", 10),
    ],
)
def test_numbers_that_are_dates_are_dates(pattern: str, unit: str, interval: int) -> None:
    dates = [f"{date:{pattern}}" for date in every(unit, datetime(2023, 11, 1), 50, interval=interval)]
    data = series(dates[:40])
    assert ahead(data.spec, "t.csv", 10) == dates[40:]
    assert data.spec.preprocessing["times"]["pattern"] == pattern
    if pattern != "%Y%m":  # predict needs no more rows than the context to know what the numbers are
        assert ahead(data.spec, table(dates[2:10], "new.csv"), 3) == dates[10:13]


@pytest.mark.situation("seconds, milliseconds and so on since 1970", "read rightly")
@pytest.mark.parametrize("ticks", [1, 10**3, 10**6, 10**9])
@pytest.mark.parametrize("unit", ["HOURLY", "MONTHLY"])
def test_times_since_1970_follow_the_calendar(ticks: int, unit: str) -> None:
    seconds = [round(date.replace(tzinfo=UTC).timestamp()) for date in every(unit, START.replace(day=1), 50)]
    numbers = [str(second * ticks) for second in seconds]
    data = series(numbers[:40])
    assert ahead(data.spec, "t.csv", 10) == numbers[40:]
    assert "is read as time since 1970" in data.notes[0] and "2023-01-01" in data.notes[0]


@pytest.mark.situation("numbers that are no dates", "read rightly")
@pytest.mark.parametrize(
    ("first", "step", "decimals"),
    [(0, 1, 0), (1990, 1, 0), (20_240_100, 1, 0), (100_000, 1, 0), (0, 0.1, 1), (5, 0.25, 2)],
)
def test_plain_numbers_stay_numbers(first: int, step: float, decimals: int) -> None:
    numbers = [f"{first + step * i:.{decimals}f}" for i in range(50)]
    found = ahead(series(numbers[:40]).spec, "t.csv", 10)
    assert [float(time) for time in found] == [float(number) for number in numbers[40:]]


FORMATS = [
    ("%Y-%m-%d", "DAILY"),
    ("%Y/%m/%d", "DAILY"),
    ("%Y.%m.%d", "DAILY"),
    ("%d.%m.%Y", "DAILY"),
    ("%d/%m/%Y", "DAILY"),
    ("%m/%d/%Y", "DAILY"),
    ("%d-%m-%Y", "DAILY"),
    ("%-d.%-m.%Y", "DAILY"),
    ("%-m/%-d/%Y", "DAILY"),
    ("%Y-%m", "MONTHLY"),
    ("%Y/%m", "MONTHLY"),
    ("%m/%Y", "MONTHLY"),
    ("%m.%Y", "MONTHLY"),
    ("%-m.%Y", "MONTHLY"),
    ("%Y.%m", "MONTHLY"),
    ("%G-W%V", "WEEKLY"),
    ("%Y-%m-%d %H:%M", "HOURLY"),
    ("%Y-%m-%dT%H:%M:%S", "MINUTELY"),
    ("%Y-%m-%d %H:%M:%S.%f", "SECONDLY"),
    ("%Y-%m-%dT%H:%M:%SZ", "HOURLY"),
    ("%d.%m.%Y %H:%M", "HOURLY"),
    ("%d/%m/%Y %H:%M:%S", "HOURLY"),
    ("%m/%d/%Y %-H:%M", "HOURLY"),
    ("%Y/%m/%dT%H:%M:%S", "HOURLY"),
]


@pytest.mark.situation("dates in many formats", "read rightly")
@pytest.mark.parametrize(("pattern", "unit"), FORMATS)
def test_forecasts_are_dated_as_the_table_is(pattern: str, unit: str) -> None:
    count = 2000 if unit == "HOURLY" else 60
    dates = [date.strftime(pattern) for date in every(unit, datetime(2023, 12, 25), count)]
    data = series(dates[:-10])
    assert ahead(data.spec, "t.csv", 10) == dates[-10:]
    plain = pattern.startswith("%Y-%m")
    assert any("is read as dates" in note for note in data.notes) is not plain, "what is not plain is said"


@pytest.mark.situation("quarters such as 2024Q1", "read rightly")
@pytest.mark.parametrize("between", ["", "-"])
def test_quarters_are_followed_by_quarters(between: str) -> None:
    quarters = [f"{2000 + i // 4}{between}Q{i % 4 + 1}" for i in range(50)]
    assert ahead(series(quarters[:40]).spec, "t.csv", 10) == quarters[40:]


@pytest.mark.situation("dates that could be read in two ways, or in none", "refused by name")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {i: f"{i % 12 + 1:02}/{i // 12 + 1:02}/2024" for i in range(40)},
            "row 2: '01/01/2024' is either day and month",
        ),
        (
            {i: f"{i % 12 + 1:02}-{i // 12 + 1:02}-2024" for i in range(40)},
            "row 2: '01-01-2024' is either day and month",
        ),
        ({0: "13/01/2024", **{i: f"01/{i:02}/2024" for i in range(1, 29)}}, "row 15: .* in another order than row 2"),
        ({7: "2024-02-30"}, "row 9: '2024-02-30' is not a time"),
        ({7: "2024-01-08 25:00"}, "row 9: '2024-01-08 25:00' is not a time"),
        ({7: "8 Jan 2024"}, "row 9: '8 Jan 2024' is not a time"),
        ({7: ""}, "row 9: '' is not a time"),
        ({7: "now"}, "row 9: 'now' is not a time"),
        ({0: "today"}, "row 2: 'today' is not a time"),
        ({i: f"1/{i + 1}/24 1:00 PM" for i in range(29)}, "row 2: '1/1/24 1:00 PM' is not a time"),
        ({i: 20240101 + i for i in range(29)} | {7: 20240230}, "row 9: '20240230' is no date"),
        ({i: 200001 + i % 12 + 100 * (i // 12) for i in range(40)} | {7: 200013}, "row 9: '200013' is no date"),
        ({7: "2024-01-08T00:00Z"}, "some times have a time zone and others do not"),
        ({7: "1500-01-08T00:00:00.000000001"}, "row 9: .* is not within 1678 to 2261"),
    ],
)
def test_the_row_that_is_no_time_is_named(change: dict[int, object], message: str) -> None:
    times: list[object] = [f"2024-01-{i + 1:02}" for i in range(29)]
    if len(change) > 2:
        times = [change[i] for i in sorted(change)]
    for at, value in change.items():
        times[at] = value
    with pytest.raises(DataError, match=message):
        series(times)


@pytest.mark.situation("a new table whose dates alone could be read in two ways", "read rightly")
@pytest.mark.parametrize("pattern", ["%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%-m/%-d/%Y"])
@pytest.mark.parametrize("whole", [False, True])
def test_the_checkpoint_knows_which_number_is_the_day(pattern: str, whole: bool) -> None:
    spec = series([date.strftime(pattern) for date in every("DAILY", START, 40)]).spec
    days = [date.strftime(pattern) for date in every("DAILY", datetime(2024, 2, 1), 12)]
    new = table(days[:10], "new.csv")
    assert ahead(spec, new, 2) == days[10:]
    if whole:  # as `evaluate` reads it
        data = build(name="series", path=new, known=spec, whole=True)
        assert data.split("test").panel.series[0].format.pattern == pattern  # type: ignore[attr-defined]


@pytest.mark.situation("a new table whose numbers alone could be dates", "read rightly")
@pytest.mark.parametrize("first", [202_280, 20_240_080])
def test_the_checkpoint_knows_that_its_numbers_are_no_dates(first: int) -> None:
    spec = series(range(first, first + 60)).spec
    new = table(range(first + 21, first + 32), "new.csv")  # 202301 to 202311, or 20240101 to 20240111
    assert ahead(spec, new, 3) == [str(first + 32), str(first + 33), str(first + 34)]


# ---------------------------------------------------------------- regular steps


def month_ends(start: datetime, count: int, step: int = 1) -> list[datetime]:
    return every("MONTHLY", start, count, interval=step, bymonthday=-1)


STEPS: dict[str, list[datetime]] = {
    "10 seconds": every("SECONDLY", START, 60, interval=10),
    "15 minutes": every("MINUTELY", START, 60, interval=15),
    "1 hour": every("HOURLY", START, 60),
    "1 day": every("DAILY", START, 60),
    "2 days": every("DAILY", START, 60, interval=2),
    "1 week": every("WEEKLY", START, 60),
    "first of the month": every("MONTHLY", datetime(2020, 1, 1), 60),
    "middle of the month": every("MONTHLY", datetime(2020, 1, 15, 12), 60),
    "end of the month": month_ends(datetime(2020, 1, 31), 60),
    "last business day": every("MONTHLY", datetime(2020, 1, 31), 60, byweekday=range(5), bysetpos=-1),
    "first business day": every("MONTHLY", datetime(2020, 1, 1), 60, byweekday=range(5), bysetpos=1),
    "first of the quarter": every("MONTHLY", datetime(2005, 1, 1), 60, interval=3),
    "end of the quarter": month_ends(datetime(2005, 3, 31), 60, 3),
    "end of the year": month_ends(datetime(1940, 12, 31), 60, 12),
    "year": every("YEARLY", datetime(1940, 1, 1), 60),
    "business day": weekdays(START, 60),
}


@pytest.mark.situation("regular steps, from seconds to years", "read rightly")
@pytest.mark.parametrize("name", STEPS)
def test_a_forecast_continues_the_steps_of_its_table(name: str) -> None:
    pattern = "%Y-%m-%d %H:%M:%S" if "second" in name or "minute" in name or "hour" in name else "%Y-%m-%d"
    dates = [f"{date:{pattern}}" for date in STEPS[name]]
    data = series(dates[:45])
    assert ahead(data.spec, "t.csv", 15) == dates[45:]
    assert not any("gap" in note for note in data.notes)


@pytest.mark.situation("business days", "read rightly")
@pytest.mark.parametrize("weekday", range(5))
def test_business_days_are_never_forecast_on_a_weekend(weekday: int) -> None:
    """Not even if the table of `predict` is a single week, in which no weekend shows what its days are."""
    days = weekdays(START + timedelta(weekday), 200)
    data = series([f"{day:%Y-%m-%d}" for day in days[:100]], context=5)
    assert data.spec.preprocessing["times"]["unit"] == "business day"
    for begin in range(5):
        new = table([f"{day:%Y-%m-%d}" for day in days[100 + begin : 105 + begin]], "new.csv")
        assert ahead(data.spec, new, 8) == [f"{day:%Y-%m-%d}" for day in days[105 + begin : 113 + begin]]


@pytest.mark.situation("steps that are not those of the checkpoint", "said")
def test_other_steps_than_in_training_are_told() -> None:
    data = series(every("HOURLY", START, 40))
    new = table(every("DAILY", START, 20), "new.csv")
    samples = reader_module(data.spec).read(data.spec, [new])
    assert "the steps are 1 day, and those of the checkpoint's data 1 hour" in " ".join(samples.notes)
    assert ahead(data.spec, new, 1) == ["2023-01-22 00:00:00"]


@pytest.mark.situation("times that are nearly regular", "read rightly")
def test_times_that_are_off_by_less_than_a_tenth_of_a_step_are_regular() -> None:
    rng = np.random.default_rng(0)
    times = [START + timedelta(minutes=i, seconds=float(rng.uniform(-1, 1))) for i in range(40)]
    data = series([f"{time:%Y-%m-%d %H:%M:%S.%f}" for time in times])
    assert data.spec.preprocessing["times"]["step"] == pytest.approx(60, abs=1)
    (found,) = ahead(data.spec, "t.csv", 1)
    assert abs(datetime.fromisoformat(found) - times[-1] - timedelta(minutes=1)) < timedelta(seconds=1)


# ---------------------------------------------------------------- gaps


def without(skip: Sequence[int]) -> str:
    return table([f"{hour:%Y-%m-%d %H:%M}" for hour in every("HOURLY", START, 40)], skip=skip)


GAPS = [(7,), (7, 8, 9), (7, 20, 21)]


@pytest.mark.situation("absent rows in a series", "refused by name")
@pytest.mark.parametrize("skip", GAPS)
@pytest.mark.parametrize("long", [False, True])
def test_a_gap_is_refused_with_the_key_that_fills_it(skip: Sequence[int], long: bool) -> None:
    path, keys = without(skip), {}
    if long:
        lines = Path(path).read_text().splitlines()[1:]
        write(path, "\n".join(["id,time,value", *(f"x,{line}" for line in lines), *(f"y,{line}" for line in lines)]))
        keys = {"id": "id", "value": "value"}
    with pytest.raises(DataError) as caught:
        build(name="series", path=path, **KEYS, **keys)
    assert "between 2023-01-02 06:00 and" in caught.value.message and "(rows 8 and 9)" in caught.value.message
    assert ("of 'x'" in caught.value.message) is long
    assert "dataset.fill: forward" in caught.value.hints[0]


@pytest.mark.situation("absent rows in a series", "read rightly")
@pytest.mark.parametrize("skip", GAPS)
@pytest.mark.parametrize("fill", ["forward", "interpolate", "none"])
def test_gaps_are_filled_as_the_key_says(skip: Sequence[int], fill: str) -> None:
    data = build(name="series", path=without(skip), **KEYS, fill=fill)
    kept = [i for i in range(40) if i not in skip]
    wanted = {
        "forward": [max(i for i in kept if i <= step) for step in range(40)],
        "interpolate": np.interp(range(40), kept, kept),
        "none": kept,
    }[fill]
    panel = data.split("train").panel  # type: ignore[attr-defined]
    assert np.allclose(panel.series[0].values, wanted)
    assert panel.series[0].times[-1] == "2023-01-03 15:00"
    if fill != "none":
        assert panel.series[0].times == [f"{hour:%Y-%m-%d %H:%M}" for hour in every("HOURLY", START, 40)]
    note = next(note for note in data.notes if "gaps in time" in note)
    assert ("each row counts as one step" if fill == "none" else f"filled: {fill}") in note
    assert ahead(data.spec, "t.csv", 1) == ["2023-01-03 16:00"]


@pytest.mark.situation("a time of another century", "refused by name")
@pytest.mark.parametrize("fill", [None, "forward", "interpolate"])
def test_a_gap_of_decades_is_not_filled(fill: str | None) -> None:
    times = ["1970-01-01 00:00:00", *every("HOURLY", START, 40)]
    with pytest.raises(
        DataError, match=r"between 1970-01-01 00:00:00 and 2023-01-02 00:00:00 \(rows 2 and 3\)"
    ) as caught:
        series(times, fill=fill)
    assert ("dataset.fill" if fill is None else "correct the times") in caught.value.hints[0]


@pytest.mark.situation("holidays among business days", "refused by name")
def test_a_holiday_is_a_gap_and_a_weekend_is_none() -> None:
    days = weekdays(datetime(2023, 11, 1), 60)
    holidays = [days.index(datetime(2023, 12, 25)), days.index(datetime(2024, 1, 1))]
    path = table([f"{day:%Y-%m-%d}" for day in days], skip=holidays)
    with pytest.raises(DataError, match=r"gaps in time: 2 .+ between 2023-12-22 and 2023-12-26"):
        build(name="series", path=path, **KEYS)
    data = build(name="series", path=path, **KEYS, fill="forward")
    values = data.split("train").panel.series[0].values  # type: ignore[attr-defined]
    assert len(values) == 60 and values[holidays[0]] == holidays[0] - 1


@pytest.mark.situation("times without any step", "refused by name")
@pytest.mark.parametrize("numbers", [True, False])
def test_irregular_times_are_refused_unless_rows_are_steps(numbers: bool) -> None:
    rng = np.random.default_rng(0)
    seconds = np.cumsum(rng.uniform(1, 3, 40).round(3))
    times = [f"{x:.3f}" if numbers else f"{START + timedelta(seconds=float(x))}" for x in seconds]
    with pytest.raises(DataError, match="the times are not regular: most steps are about") as caught:
        series(times)
    assert "dataset.fill: none" in caught.value.hints[0]
    assert len(series(times, fill="none").split("train").panel.series[0].values) == 40  # type: ignore[attr-defined]


@pytest.mark.situation("a gap in what predict reads", "refused by name")
def test_a_gap_in_the_context_is_no_forecast_and_one_before_it_does_not_matter(fmeco: Fmeco) -> None:
    table(every("HOURLY", START, 60))
    config = {
        "dataset": {"name": "series", "path": "t.csv", **KEYS},
        "backbone": {"name": "mlp", "hidden": [4]},
        "objective": "forecast",
        "train": {"steps": 1, "batch_size": 8, "tensorboard": False},
    }
    assert fmeco("pretrain", write("c.yaml", config), "--out", "run").code == 0
    times = every("HOURLY", START, 20)
    assert fmeco("predict", "run", table(times, "old.csv", skip=[3])).code == 0
    answer = fmeco("predict", "run", table(times, "new.csv", skip=[15]), "--json")
    assert answer.code == 3
    error = answer.json["error"]
    assert "gaps in time: 1 (absent rows: 1; steps: 1 hour)" in error["message"], error
    assert "between 2023-01-02 14:00:00 and 2023-01-02 16:00:00 (rows 16 and 17)" in error["message"]
    assert "add the absent rows" in error["message"]
    # Beside a table that can be read, the other one is a row with its error.
    rows = fmeco("predict", "run", "old.csv", "new.csv", "--json").json["predictions"]
    assert [(row["input"], row["error"] is None) for row in rows] == [("old.csv", True)] * 2 + [("new.csv", False)]


@pytest.mark.situation("a gap in what predict reads", "read rightly")
@pytest.mark.parametrize(("fill", "value"), [("forward", 14.0), ("interpolate", 15.0)])
def test_a_gap_in_the_context_is_filled_as_in_training(fill: str, value: float) -> None:
    data = series(every("HOURLY", START, 40), fill=fill)
    stats = data.spec.preprocessing["series"][0]
    new = table(every("HOURLY", START, 20), "new.csv", skip=[15])
    found = reader_module(data.spec).read(data.spec, [new])[0]["series"].double().numpy() * stats["std"] + stats["mean"]
    assert np.allclose(found, [12, 13, 14, value, 16, 17, 18, 19], atol=1e-4)


# ---------------------------------------------------------------- clocks that change

ZONES = [
    "Europe/Berlin",
    "Europe/London",
    "Europe/Helsinki",
    "America/New_York",
    "America/Los_Angeles",
    "Australia/Sydney",
]


def local_times(zone: str, minutes: int) -> list[datetime]:
    """Return every moment of the days around the two clock changes of 2024, by the local clock."""
    start = datetime(2024, 3, 1, tzinfo=UTC)
    moments = [start + timedelta(minutes=minutes) * i for i in range(260 * 24 * 60 // minutes)]
    return [moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None) for moment in moments]


@pytest.mark.situation("local times whose clocks change", "read rightly")
@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("minutes", [60, 30])
def test_a_repeated_hour_and_a_left_out_hour_are_steps_like_others(zone: str, minutes: int) -> None:
    times = local_times(zone, minutes)
    assert len(set(times)) < len(times), "an hour is repeated"
    data = series([f"{time:%Y-%m-%d %H:%M}" for time in times])
    (only,) = data.split("train").panel.series  # type: ignore[attr-defined]
    assert (only.values == np.arange(len(times))).all(), "in order of the table, and nothing is filled"
    assert (np.diff(only.moments) == minutes * 60 * 10**6).all()
    note = next(note for note in data.notes if "clocks change" in note)
    assert note.count("(repeated)") == 1 and note.count("(left out)") == 1
    assert not any("sorted" in note or "gap" in note for note in data.notes)
    assert ahead(data.spec, "t.csv", 1) == [f"{times[-1] + timedelta(minutes=minutes):%Y-%m-%d %H:%M}"]


@pytest.mark.situation("local times whose clocks change", "read rightly")
def test_series_below_one_another_change_their_clocks_together() -> None:
    times = [f"{time:%Y-%m-%d %H:%M}" for time in local_times("Europe/Berlin", 60)]
    rows = [
        f"{name},{time},{i}" for name, first in (("x", 0), ("y", 3000)) for i, time in enumerate(times) if i >= first
    ]
    write("long.csv", "\n".join(["id,time,value", *rows]))
    data = build(name="series", path="long.csv", id="id", value="value", **KEYS)
    x, y = data.split("val").panel.series  # type: ignore[attr-defined]
    assert (x.moments[3000:] == y.moments).all(), "the same moment, though y begins in summer"


@pytest.mark.situation("a repeated hour whose rows are not in order", "refused by name")
def test_a_repeated_hour_out_of_order_is_refused_with_what_to_do() -> None:
    times = [f"{time:%Y-%m-%d %H:%M}" for time in local_times("Europe/Berlin", 60)]
    with pytest.raises(DataError, match="have the same time, 2024-10-27 02:00") as caught:
        series([*times[5:], *times[:5]])
    assert any("write the distance from UTC" in hint for hint in caught.value.hints)


@pytest.mark.situation("a repeated row that no clock explains", "refused by name")
@pytest.mark.parametrize("at", ["2024-10-26 02:00", "2024-10-27 12:00", "2024-06-02 02:00"])
def test_the_same_time_twice_at_another_hour_is_an_error(at: str) -> None:
    times = [f"{time:%Y-%m-%d %H:%M}" for time in every("HOURLY", datetime(2024, 5, 1), 5000)]
    times.insert(times.index(at), at)
    with pytest.raises(DataError, match=f"have the same time, {at}"):
        series(times)


@pytest.mark.situation("days and hours with their distance from UTC", "read rightly")
@pytest.mark.parametrize(("hours", "count"), [(1, 5800), (24, 300)])
def test_times_with_a_zone_are_regular_by_one_of_two_clocks(hours: int, count: int) -> None:
    """Days begin at local midnight, 23 or 25 hours apart where clocks change; hours are equal in UTC."""
    zone = ZoneInfo("Europe/Berlin")
    if hours == 24:
        times = [(datetime(2024, 2, 1) + timedelta(i)).replace(tzinfo=zone) for i in range(count)]
    else:
        times = [(datetime(2024, 2, 1, tzinfo=UTC) + timedelta(hours=i)).astimezone(zone) for i in range(count)]
    data = series([time.isoformat() for time in times])
    (only,) = data.split("train").panel.series  # type: ignore[attr-defined]
    assert (only.values == np.arange(count)).all()
    assert not any("gap" in note for note in data.notes)
    after = times[-1] + timedelta(hours=hours)  # of the same zone, so by the local clock; no clock changes here
    assert ahead(data.spec, "t.csv", 1) == [after.isoformat()]


@pytest.mark.situation("days and hours with their distance from UTC", "read rightly")
@pytest.mark.parametrize("zone", ["Z", "+00:00", "+0000", "+05:30", "-0800"])
@pytest.mark.parametrize("pattern", ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%d.%m.%Y %H:%M", "%Y%m%dT%H%M%S"])
def test_a_forecast_keeps_the_distance_from_utc(zone: str, pattern: str) -> None:
    times = [f"{date:{pattern}}{zone}" for date in every("HOURLY", datetime(2023, 12, 31), 50)]
    found = ahead(series(times[:40]).spec, "t.csv", 10)
    assert list(map(datetime.fromisoformat, map(_iso, found))) == list(
        map(datetime.fromisoformat, map(_iso, times[40:]))
    )
    assert pattern == "%Y%m%dT%H%M%S" or found == times[40:]


def _iso(time: str) -> str:
    """Turn a German date into one that `datetime.fromisoformat` knows."""
    return f"{time[6:10]}-{time[3:5]}-{time[:2]}{time[10:]}" if time[2] == "." else time


# ---------------------------------------------------------------- old checkpoints, and the other users of times


def first_rule(spec: DataSpec) -> DataSpec:
    """A spec as code before decode rule 2 wrote it."""
    old = {key: value for key, value in spec.preprocessing.items() if key not in ("decode", "times", "fill")}
    return DataSpec(spec.modality, spec.inputs, {}, old, spec.reader)


@pytest.mark.situation("series of an old checkpoint", "read rightly")
def test_each_row_of_an_old_checkpoints_data_stays_a_step() -> None:
    old = first_rule(series(every("HOURLY", START, 60)).spec)
    data = build(name="series", path=table(every("HOURLY", START, 40), skip=[7]), val_fraction=0.25, known=old)
    (only,) = data.split("train").panel.series  # type: ignore[attr-defined]
    assert only.values.tolist() == [i for i in range(40) if i != 7]
    assert not {"decode", "times", "fill"} & set(data.spec.preprocessing)
    samples = reader_module(old).read(old, [table(every("HOURLY", START, 20), "new.csv", skip=[15])])
    assert len(samples[0]["series"]) == 8


@pytest.mark.situation("times of an old checkpoint", "read rightly")
@pytest.mark.parametrize(
    "times",
    [
        ["3", "1.5", "-2"],
        ["20240131", "20240201"],
        ["1700000000123456789", "1700000000123456790"],
        ["1e3", "2e3"],
        ["2024-01-31", "1500-03-04", "9999-12-31"],
        ["2024-01-31T12:00:00.123456", "2024-01-31T12:00:00.123457"],
        ["2024-01-31T12:00:00.123456789", "2024-01-31T12:00:00.5"],
        ["2024-01-31 12:00+02:00", "2024-01-31 12:00Z"],
        ["20240131T120000", "20240131T130000"],
    ],
)
def test_decode_rule_1_has_times_as_float64(times: list[str]) -> None:
    found, _, notes = _times.moments(times, "t.csv", "time", rule=1)
    try:
        wanted = [float(time) for time in times]
    except ValueError:
        dates = [datetime.fromisoformat(time) for time in times]
        wanted = [(date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() for date in dates]
    assert found.dtype == np.float64 and found.tolist() == wanted and not notes


@pytest.mark.situation("the time of a table's rows in many formats", "read rightly")
@pytest.mark.parametrize(("pattern", "unit"), [*FORMATS, ("%Y%m%d", "DAILY"), ("%s", "HOURLY"), ("%Y%m%d%H", "HOURLY")])
def test_a_table_is_split_by_what_its_times_mean(pattern: str, unit: str) -> None:
    times = [date.strftime(pattern) for date in every(unit, datetime(2023, 6, 25), 40)]
    rows = [f"{i},{times[i]},{'ab'[i % 2]}" for i in np.random.default_rng(0).permutation(40)]
    write("t.csv", "\n".join(["n,day,label", *rows]))
    data = build(name="csv_table", path="t.csv", time="day", val_fraction=0.25)
    held = data.split("val")
    numbers = {int(rows[int(held.name(i).split(":")[1]) - 2].split(",")[0]) for i in range(len(held))}
    assert numbers == set(range(30, 40)), "the newest quarter"


@pytest.mark.situation("the time of a table's rows could be read in two ways", "refused by name")
@pytest.mark.parametrize("value", ["01/02/2024", "2-1-2024"])
def test_a_table_is_not_split_by_dates_of_two_meanings(value: str) -> None:
    write("t.csv", "\n".join(["n,day,label", *(f"{i},{value},{'ab'[i % 2]}" for i in range(20))]))
    with pytest.raises(DataError, match=f"column 'day', row 2: '{value}' is either day and month, or month and day"):
        build(name="csv_table", path="t.csv", time="day")


@pytest.mark.situation("a table written by polars", "read rightly")
def test_the_dates_of_parquet_are_dates() -> None:
    polars = pytest.importorskip("polars")
    days = polars.date_range(START, datetime(2023, 3, 31), "1d", eager=True)
    polars.DataFrame({"time": days, "a": range(len(days))}).write_parquet("t.parquet")
    data = build(name="series", path="t.parquet", **KEYS)
    assert ahead(data.spec, "t.parquet", 2) == ["2023-04-01", "2023-04-02"]
    with open(table(days.to_list())) as file:
        assert [row["time"] for row in csv.DictReader(file)] == [str(day) for day in days]


# ---------------------------------------------------------------- midnight, infinite and constant values, sentinels

MIDNIGHTS = {  # a day and an hour from 1 to 24 -> the time
    "ISO": "{:%Y-%m-%d} {:02}:00",
    "ISO with seconds": "{:%Y-%m-%dT}{:02}:00:00",
    "ISO with a zone": "{:%Y-%m-%dT}{:02}:00+01:00",
    "ISO in nanoseconds": "{:%Y-%m-%d} {:02}:00:00.000000000",
    "ISO, basic": "{:%Y%m%dT}{:02}0000",
    "ISO, basic, with a zone": "{:%Y%m%dT}{:02}00+0100",
    "year first": "{:%Y/%m/%d} {:02}:00",
    "day first": "{:%d.%m.%Y} {:02}:00",
    "month first": "{:%m/%d/%Y} {:02}:00:00",
    "digits": "{:%Y%m%d}{:02}",
    "digits with minutes": "{:%Y%m%d}{:02}00",
    "digits with seconds": "{:%Y%m%d}{:02}0000",
}


@pytest.mark.situation("midnight written as 24:00", "read rightly")
@pytest.mark.parametrize("how", MIDNIGHTS)
def test_midnight_written_as_24(how: str) -> None:
    """Power grids and archives of gauges write the end of a day so; it is 00:00 of the next day.

    https://github.com/gyanz/pydsstools/issues/7, https://github.com/springfall2008/batpred/pull/3652
    """
    days = every("DAILY", datetime(2023, 12, 28), 5)
    times = [MIDNIGHTS[how].format(days[i // 24], i % 24 + 1) for i in range(96)]  # 01:00 to 24:00
    read = _times.read_times(times, "t.csv", "time")
    assert [read.format.date(int(local)) for local in read.local] == every("HOURLY", datetime(2023, 12, 28, 1), 96)
    data = series(times)
    assert not any("gaps" in note for note in data.notes)
    (after,) = ahead(data.spec, "t.csv", 1)
    assert after.startswith("2024-01-01T01:00:00" if "basic" in how else MIDNIGHTS[how].format(days[4], 1))


@pytest.mark.situation("times of day that do not exist", "refused by name")
@pytest.mark.parametrize("time", ["2024-01-01 24:01", "2024-01-01 25:00", "2024-02-30 24:00", "01.01.2024 24:00:01"])
def test_other_times_after_24_are_refused(time: str) -> None:
    with pytest.raises(DataError, match=rf"column 'time', row 2: '{re.escape(time)}' is not a time"):
        series([time] * 40)


def wide(path: str = "t.csv", **columns: Sequence[object]) -> str:
    """Write series beside one another, with a time of 0, 1, 2, ...; Parquet keeps the types."""
    columns = {"time": list(range(len(next(iter(columns.values()))))), **columns}
    if path.endswith(".parquet"):
        pytest.importorskip("polars").DataFrame(columns).write_parquet(path)
        return path
    rows = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    return str(write(path, "\n".join([",".join(columns), *rows]) + "\n"))


def built(path: str, **keys: Any) -> Data:
    return build(**{"name": "series", "path": path, **KEYS, **keys})


WAVE = [round(5 + math.sin(i), 2) for i in range(120)]


@pytest.mark.situation("infinite values in a series", "refused by name")
@pytest.mark.parametrize("path", ["t.csv", "t.parquet"])
@pytest.mark.parametrize("rows", [[40], list(range(0, 120, 3)), list(range(120))], ids=["one", "a third", "all"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_values_in_a_series(path: str, rows: list[int], value: float) -> None:
    """A column with one infinite value is not left out like one of words.

    https://github.com/autogluon/autogluon/issues/5239, https://github.com/awslabs/gluonts/issues/2037
    """
    values = [value if i in rows else x for i, x in enumerate(WAVE)]
    with pytest.raises(DataError, match=rf"column 'a', row {rows[0] + 2}: '{value}' is not a number"):
        built(wide(path, a=values, b=WAVE))
    spec = built(wide(a=WAVE, b=WAVE)).spec
    with pytest.raises(DataError, match="column 'a', row"):
        reader_module(spec).read(spec, [wide(path, a=values, b=WAVE)])


@pytest.mark.situation("cells of a series that are no numbers", "refused by name")
@pytest.mark.parametrize("cell", ["-", "#DIV/0!", "<0.1", "1e400", "1e200", "1_20"])
@pytest.mark.parametrize("keys", [{}, {"columns": ["a"]}, {"id": "b", "value": "a"}], ids=["wide", "named", "long"])
def test_odd_cells_of_series_are_refused(cell: str, keys: dict[str, Any]) -> None:
    path = wide(a=[cell if i == 40 else x for i, x in enumerate(WAVE)], b=[1] * 120)
    with pytest.raises(DataError, match=rf"t.csv: column 'a', row 42: '{cell}' is (not a number|too large)"):
        built(path, **keys)
    if cell != "1e200":
        data = built(path, missing="previous", missing_words=[cell], **keys)
        assert data.spec.preprocessing["missing_words"] == [cell.lower()]


@pytest.mark.situation("a column of words beside the series", "said")
@pytest.mark.parametrize("word", ["ok", "-"])
def test_a_column_of_words_is_left_out(word: str) -> None:
    data = built(wide(a=WAVE, b=[word if i % 9 else i for i in range(120)]))
    assert any("columns that are not numeric are left out: b" in note for note in data.notes)


@pytest.mark.situation("values that are too large beside those of training", "refused by name")
@pytest.mark.parametrize("command", ["pretrain", "predict"])
def test_values_that_float32_cannot_hold_are_refused(command: str) -> None:
    path = wide(a=[1e60 if i == 118 else x for i, x in enumerate(WAVE)])
    with pytest.raises(DataError, match=r"series 'a', row 120: 1e\+60 is too large beside the numbers of training"):
        if command == "pretrain":
            built(path)
        else:
            spec = built(wide("good.csv", a=WAVE)).spec
            reader_module(spec).read(spec, [path])[0]


@pytest.mark.situation("a series that does not change in training", "read rightly")
@pytest.mark.parametrize("value", [0.0, 0.1, 14.62, 1e-9, 1e6 + 0.1])
def test_series_that_is_constant_in_training(value: float) -> None:
    """Rounding gives equal values a deviation of 1e-17, and dividing by it would turn a change of 1 into 1e17.

    https://github.com/awslabs/gluonts/issues/3034, https://github.com/scikit-learn/scikit-learn/issues/17794
    """
    path = wide(still=[value if i < 90 else value + 1 for i in range(120)], wave=WAVE)
    data = built(path)
    assert data.spec.preprocessing["series"][0] == {"name": "still", "mean": value, "std": 1.0, "naive": None}
    val = data.split("val")
    contexts = [val[i]["series"].tolist() for i in range(0, len(val), 2)]  # of the first series
    assert {round(x, 6) for context in contexts for x in context} == {0.0, 1.0}
    first = DataSpec("series", data.spec.inputs, {}, {"context": 8, "horizon": 2, "season": 1, "series": []}, "series")
    kept = build(name="series", path=path, val_fraction=0.25, test_fraction=0.0, known=first)
    assert kept.spec.preprocessing["series"][0]["std"] == (float(np.full(90, value).std()) or 1.0), (
        "rule 1 keeps its scale"
    )


@pytest.mark.situation("a number that stands for a missing value", "said")
@pytest.mark.parametrize(
    "word", ["-9999", "-9999.0", "999999", "-999", "999", "999.9", "1e30", "9.96921e36", "-2147483648"]
)
@pytest.mark.parametrize("layout", ["wide", "long"])
def test_a_number_that_stands_for_a_missing_value(word: str, layout: str) -> None:
    """A wind of 999 m/s is a wind that was not measured.

    https://github.com/open-ideas/IDEAS/issues/1303, https://github.com/EDmodel/ED2/issues/62
    """
    wind = [word if i in (20, 21, 50) else x for i, x in enumerate(WAVE)]
    if layout == "wide":
        keys, path = {}, wide(wind=wind, load=[1000 * x for x in WAVE])
    else:
        keys = {"id": "name", "value": "value"}
        rows = [f"wind,{i},{x}" for i, x in enumerate(wind)] + [f"load,{i},{1e6 * x}" for i, x in enumerate(WAVE)]
        path = str(write("t.csv", "\n".join(["name,time,value", *rows]) + "\n"))
    data = built(path, **keys)
    (note,) = (note for note in data.notes if "stands for a missing value" in note)
    assert f"t.csv: '{word}' is 3 times in series wind" in note and f'"{word.lower()}"]' in note
    spec = data.spec
    assert any("stands for a missing value" in note for note in reader_module(spec).read(spec, [path]).notes)
    words = json.loads(note.partition("dataset.missing_words: ")[2].partition(", and set")[0])
    filled = built(path, missing="previous", missing_words=words, **keys)
    assert not any("stands for" in note for note in filled.notes) and any("3 missing values" in n for n in filled.notes)
    assert 4 < filled.spec.preprocessing["series"][0]["mean"] < 6
    newest = reader_module(filled.spec).read(filled.spec, [path])  # the checkpoint keeps the words
    assert not any("stands for" in note for note in newest.notes)


@pytest.mark.situation("a number that stands for a missing value", "read rightly")
def test_a_listed_number_is_missing(fmeco: Fmeco) -> None:
    """A config may list it without quotes.

    https://github.com/open-ideas/IDEAS/issues/1303
    """
    config = {
        "dataset": {"name": "series", "path": wide(a=["-9999" if i in (20, 21) else x for i, x in enumerate(WAVE)])},
        "backbone": {"name": "transformer", "width": 16, "depth": 1, "heads": 2, "patch": 4},
    }
    config["dataset"] |= {**KEYS, "missing": "previous", "missing_words": [-9999]}
    answer = fmeco("check", write("c.yaml", config))
    assert answer.code == 0, answer.err
    assert "2 missing values are filled" in answer.err and "stands for" not in answer.err


def below(names: Sequence[object]) -> str:
    """Write series below one another."""
    lines = [f"{name},{i},{x}" for name in names for i, x in enumerate(WAVE)]
    return str(write("t.csv", "\n".join(["name,time,value", *lines]) + "\n"))


LONG = {"id": "name", "value": "value"}


@pytest.mark.situation("names of series that are whole numbers written as floats", "read rightly")
def test_names_of_series_written_as_floats() -> None:
    """In pandas, a column of ids with a missing cell becomes one of floats.

    https://github.com/pandas-dev/pandas/issues/20007
    """
    data = built(below(["101.0", "102.0"]), **LONG)
    assert [stats["name"] for stats in data.spec.preprocessing["series"]] == ["101", "102"]
    assert not reader_module(data.spec).read(data.spec, [below([101, 102])]).notes


@pytest.mark.situation("rows of a series without a name", "refused by name")
@pytest.mark.parametrize("word", ["", "NULL", "nan"])
def test_a_series_without_a_name_is_refused(word: str) -> None:
    with pytest.raises(DataError, match=rf"t.csv: column 'name': no value in row 122, .*{word}"):
        built(below(["101", word]), **LONG)
    if word:
        data = built(below(["101", word]), missing_words=[], **LONG)
        assert data.spec.preprocessing["series"][1]["name"] == word


@pytest.mark.situation("series of an old checkpoint", "read rightly")
def test_an_old_checkpoint_keeps_its_columns_and_names() -> None:
    """By decode rule 1, one odd cell makes a column one of words, 1_20 is 120, and names stay as they are written."""
    first = DataSpec("series", {}, {}, {"context": 8, "horizon": 2, "season": 1, "series": []}, "series")
    data = built(wide(a=["inf", *WAVE[1:]], b=["1_20", *WAVE[1:]]), known=first)
    assert [stats["name"] for stats in data.spec.preprocessing["series"]] == ["b"]
    assert any("columns that are not numeric are left out: a" in note for note in data.notes)
    assert data.split("train")[0]["series"][0] * data.spec.preprocessing["series"][0]["std"] > 100
    data = built(below(["NULL", "101.0"]), known=first, **LONG)
    assert [stats["name"] for stats in data.spec.preprocessing["series"]] == ["NULL", "101.0"]
    assert not {"missing_words", "decode"} & data.spec.preprocessing.keys()
