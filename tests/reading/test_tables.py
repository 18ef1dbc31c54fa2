"""Cells of real tables: numbers and how they are written, missing cells, codes, dates, labels, columns and weights."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

import fmeco as api
from fmeco.core import Data, DataSpec
from fmeco.data import parquet
from fmeco.datasets import csv_table
from fmeco.errors import ConfigError, DataError
from tests.conftest import Answer, photos, tiny, tones, write
from tests.data.test_data import build

Fmeco = Callable[..., Answer]


def table(path: str, delimiter: str = ",", /, **columns: Sequence[object]) -> str:
    """Write a table, with quotes where a cell needs them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
    return path


def labels(count: int) -> list[str]:
    return ["ab"[i * i % 7 % 2] for i in range(count)]


def read_back(data: Data, column: str = "x", part: str | None = None) -> list[float]:
    """The numbers of a column in order of the table's rows, as the inputs hold them."""
    numeric = data.spec.preprocessing["numeric"]
    at = next(j for j, one in enumerate(numeric) if one["name"] == column and one.get("part") == part)
    found: dict[int, float] = {}
    for samples in (data.train, data.val, data.test):
        for i in range(len(samples) if samples is not None else 0):
            assert samples is not None
            scaled = float(samples[i]["columns"][at])
            found[int(samples.name(i).rpartition(":")[2])] = scaled * numeric[at]["std"] + numeric[at]["mean"]
    return [found[row] for row in sorted(found)]


def near(values: Sequence[float]) -> Any:
    """Compare with inputs, which are standardised numbers in float32."""
    return pytest.approx(list(values), rel=1e-5, abs=1e-5 * (float(np.std(list(values))) + 1e-9))


def old(spec: DataSpec) -> DataSpec:
    """The spec of a checkpoint that was made before decode rules had numbers."""
    new = ("decode", "missing", "numbers")
    return dataclasses.replace(
        spec, preprocessing={key: value for key, value in spec.preprocessing.items() if key not in new}
    )


# ---------------------------------------------------------------- numbers

ODD = [
    "-",
    "#DIV/0!",
    "1,234",
    "<0.1",
    "inf",
    "-Infinity",
    "N.A.",
    "1e400",
    "1_20",
    "١٢",
    "0x10",
    "1.2.3",
    "TRUE",
    "5 6",
]


@pytest.mark.situation("one odd cell in a column of numbers", "refused by name")
@pytest.mark.parametrize("cell", ODD)
def test_an_odd_cell_among_numbers_is_refused_with_its_row(cell: str) -> None:
    x = [f"{i * 0.37:.2f}" for i in range(400)]
    x[7] = cell
    with pytest.raises(DataError) as caught:
        build(name="csv_table", path=table("t.csv", x=x, label=labels(400)))
    assert "column 'x'" in str(caught.value) and "row 9" in str(caught.value) and cell in str(caught.value)
    assert "dataset.missing" in str(caught.value) and "categorical" in str(caught.value)


@pytest.mark.situation("one odd cell in a column of numbers", "read rightly")
@pytest.mark.parametrize("cell", ODD)
def test_an_odd_cell_is_missing_if_the_config_says_so(cell: str) -> None:
    x = [f"{i * 0.37:.2f}" for i in range(400)]
    x[7] = cell
    data = build(name="csv_table", path=table("t.csv", x=x, label=labels(400)), missing=[cell])
    (stats,) = data.spec.preprocessing["numeric"]
    values = read_back(data)
    assert values[8] == pytest.approx(8 * 0.37) and values[7] == pytest.approx(stats["mean"])
    again = csv_table.read(data.spec, [table("new.csv", x=["1.5", cell.lower()])])
    assert float(again[1]["columns"][0]) == 0.0, "the checkpoint knows the word"


@pytest.mark.situation("one odd cell in a target of numbers", "refused by name")
@pytest.mark.parametrize("cell", ["-", "1,234", "inf", "1e400", "1_20"])
@pytest.mark.parametrize("kind", ["csv_table", "csv_images", "audio", "text"])
def test_an_odd_cell_of_a_target_is_refused_with_its_row(kind: str, cell: str) -> None:
    y = [f"{i * 0.37:.2f}" for i in range(60)]
    y[7] = cell
    with pytest.raises(DataError) as caught:
        labelled(kind, y, **({"task": "number"} if kind == "text" else {}))
    assert cell in str(caught.value) and "row 9" in str(caught.value)


def labelled(kind: str, values: Sequence[str], **keys: Any) -> Data:
    """Data of a kind, of which each sample has a label."""
    count = len(values)
    if kind == "csv_table":
        return build(name=kind, path=table("t.csv", x=[i % 13 for i in range(count)], label=values), **keys)
    if kind == "text":
        pytest.importorskip("tokenizers")
        texts = [f"a text of number {i}" for i in range(count)]
        return build(name=kind, path=table("t.csv", text=texts, label=values), vocabulary=300, **keys)
    if kind == "audio":
        pytest.importorskip("soundfile")
        files = sorted(
            tones(Path("tones"), {"high": 900.0}, each=count).rglob("*.wav"), key=lambda path: path.name[-6:]
        )
        return build(
            name=kind, path=table("t.csv", path=files, label=values), sample_rate=8000, seconds=0.1, mels=8, **keys
        )
    files = sorted(photos(Path("photos"), ("red",), each=count).rglob("*.png"))
    return build(name=kind, path=table("t.csv", path=files, label=values), image_size=8, **keys)


def all_targets(data: Data, name: str = "label") -> list[float]:
    """The values of a target, in order of the table's rows."""
    found: list[tuple[Any, float]] = []
    for samples in (data.train, data.val, data.test):
        if samples is not None:
            values = samples.targets[name]
            assert isinstance(values, torch.Tensor)
            names = [samples.name(i) for i in range(len(samples))]
            rows = [int(re.findall("[0-9]+", one)[-1]) for one in names]
            found += zip(rows, values.tolist(), strict=True)
    return [value for _, value in sorted(found)]


NOTATIONS = [
    (["1,5", "2,25", "-3", "1000"], [1.5, 2.25, -3, 1000]),
    (["1.234,5", "12,25", "-1.000.000", "7"], [1234.5, 12.25, -1e6, 7]),
    (["1,234.5", "12.25", "-1,000,000", "7"], [1234.5, 12.25, -1e6, 7]),
    (["1,234,567", "1,000", "20"], [1234567, 1000, 20]),
    (["1 234,5", "1 000 000", "7"], [1234.5, 1e6, 7]),
    (["1\u00a0234", "1\u202f000".replace("\u202f", "\u00a0"), "7"], [1234, 1000, 7]),
    (["1'234.50", "7.25", "1'000'000"], [1234.5, 7.25, 1e6]),
    (["$1,234.50", "-$7", "$-2.5"], [1234.5, -7, -2.5]),
    (["1.234,50 €", "7 €", "-2,5€"], [1234.5, 7, -2.5]),
    (["EUR 7", "EUR 8.5", "EUR 1000"], [7, 8.5, 1000]),
    (["5%", "6.5 %", "-100%"], [5, 6.5, -100]),
    (["\u22125", "6", "7.5"], [-5, 6, 7.5]),
    ([".5", "5.", "+1e3", "1E-2"], [0.5, 5, 1000, 0.01]),
]


@pytest.mark.situation("decimal commas, thousands separators, currencies and percent signs", "read rightly")
@pytest.mark.parametrize(("cells", "values"), NOTATIONS, ids=lambda x: str(x[0]))
def test_a_column_is_read_in_its_own_notation(cells: list[str], values: list[float]) -> None:
    count = 20 * len(cells)
    data = build(name="csv_table", path=table("t.csv", x=cells * 20, label=labels(count)))
    assert read_back(data) == near(values * 20)
    plain = all(cell.strip("+-.").replace(".", "").replace("e", "").replace("E-", "").isalnum() for cell in cells)
    said = any("column 'x'" in note and "decimal point" in note for note in data.notes)
    assert said == ("x" in data.spec.preprocessing["numbers"]) and (said or plain or cells[0][0] == "\u2212")
    spec = DataSpec.from_json(json.loads(json.dumps(data.spec.to_json())))
    new = csv_table.read(spec, [table("new.csv", x=cells)])
    (stats,) = spec.preprocessing["numeric"]
    found = [float(new[i]["columns"][0]) * stats["std"] + stats["mean"] for i in range(len(cells))]
    assert found == near(values), "and so does `predict`"


@pytest.mark.situation("decimal commas and thousands separators in targets", "read rightly")
@pytest.mark.parametrize("kind", ["csv_table", "csv_images", "text"])
@pytest.mark.parametrize(
    ("cell", "value"), [("{},5", 0.5), ("{},230.5", 230.5), ("{}.230,5", 230.5), ("${}.25", 0.25), ("{}.5 %", 0.5)]
)
def test_a_target_is_read_in_its_own_notation(kind: str, cell: str, value: float) -> None:
    whole = 1000 if value > 1 else 1
    data = labelled(kind, [cell.format(i + 1) for i in range(40)], **({"task": "number"} if kind == "text" else {}))
    assert data.spec.targets["label"].kind == "number"
    assert all_targets(data) == pytest.approx([(i + 1) * whole + value for i in range(40)])
    assert any("decimal point" in note for note in data.notes)


@pytest.mark.situation("decimal commas in a file with semicolons", "read rightly")
@pytest.mark.parametrize("cells", [["1,234", "5,678"], ["3", "1,5"], ["1", "2", "3", "4"] * 9 + ["1,234"]])
def test_semicolons_decide_for_the_decimal_comma(cells: list[str]) -> None:
    data = build(name="csv_table", path=table("t.csv", ";", x=cells * 20, label=labels(20 * len(cells))))
    assert read_back(data) == near([float(cell.replace(",", ".")) for cell in cells] * 20)


@pytest.mark.situation("numbers that can be read in two ways", "refused by name")
@pytest.mark.parametrize("cells", [["1,234", "5,678"], ["1,234", "12", "999"]])
@pytest.mark.parametrize("target", [False, True])
def test_what_may_be_thousands_or_decimals_needs_a_key(cells: list[str], target: bool) -> None:
    many = [cell for cell in cells for _ in range(40)]
    other = [str(i % 17 + 0.5) for i in range(len(many))]
    columns = {"x": other, "label": many} if target else {"x": many, "label": labels(len(many))}
    path, name = table("t.csv", **columns), "label" if target else "x"
    with pytest.raises(DataError, match=rf"column '{name}': '1,234' may be (1.234|1234) or (1.234|1234)") as caught:
        build(name="csv_table", path=path)
    assert f"dataset.decimal: {{{name}: '.'}}" in str(caught.value)
    for point in ".,":
        data = build(name="csv_table", path=path, decimal={name: point})
        wanted = [float(cell.replace(",", "" if point == "." else ".")) for cell in many]
        assert (all_targets(data) if target else read_back(data)) == near(wanted)


@pytest.mark.situation("numbers with different units, or a point beside decimal commas", "refused by name")
@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"x": ["5%", "0.05"]}, "different units: '%', ''"),
        ({"x": ["$5", "€5"]}, "different units"),
        ({"x": ["1.234", "5.678"], "y": ["1,5", "2,5"]}, "'1.234' may separate thousands"),
    ],
)
def test_what_no_cell_decides_is_refused(columns: dict[str, list[str]], reason: str) -> None:
    repeated = {name: cells * 20 for name, cells in columns.items()}
    with pytest.raises(DataError, match=reason.replace("$", r"\$")):
        build(name="csv_table", path=table("t.csv", **repeated, label=labels(40)))


@pytest.mark.situation("whole numbers with leading zeros or exponents", "said")
@pytest.mark.parametrize(
    "cells", [["01234", "90210", "10115"], ["007", "012", "100"], ["12E3", "1200", "77"], ["0930", "1200", "1545"]]
)
def test_codes_are_categories_and_said_to_be(cells: list[str]) -> None:
    path = table("t.csv", x=cells * 20, label=labels(60))
    data = build(name="csv_table", path=path)
    assert data.spec.preprocessing["categorical"] == [{"name": "x", "categories": sorted(cells)}]
    assert any("column 'x'" in note and "codes" in note for note in data.notes)
    assert read_back(build(name="csv_table", path=path, decimal={"x": "."})) == near(list(map(float, cells)) * 20)
    label = build(name="csv_table", path=table("u.csv", x=range(60), label=cells * 20)).spec.targets["label"]
    assert label.kind == "class" and set(label.classes) == set(cells)


@pytest.mark.situation("whole numbers with leading zeros or exponents", "read rightly")
@pytest.mark.parametrize("cells", [["1e+05", "3", "20"], ["0", "1", "10"], ["1e3", "2e4"], ["0.5", "00.5", "1"]])
def test_numbers_that_only_look_like_codes_are_numbers(cells: list[str]) -> None:
    data = build(name="csv_table", path=table("t.csv", x=cells * 20, label=labels(20 * len(cells))))
    assert read_back(data) == near(list(map(float, cells)) * 20)


@pytest.mark.situation("a column of categories, half of which are numbers", "said")
def test_a_mixed_column_is_said_to_be_categories() -> None:
    x = [str(i) if i % 10 else "unknown" for i in range(100)]
    data = build(name="csv_table", path=table("t.csv", x=x, label=labels(100)))
    assert any(
        "categories, although 90 of 100 cells look like numbers; 'unknown' does not" in note for note in data.notes
    )


@pytest.mark.situation("numbers too large to compute with", "refused by name")
@pytest.mark.parametrize("where", ["feature", "target", "new row"])
def test_a_number_that_has_no_square_is_refused_with_its_row(where: str, fmeco: Fmeco) -> None:
    x = [f"{i * 0.37:.2f}" for i in range(60)]
    wrong = [*x[:7], "1e308", *x[8:]]
    config = tiny(dataset={}, backbone={"name": "mlp", "hidden": [8]}, train={"epochs": 1})
    config["dataset"] = {"name": "csv_table", "path": "t.csv"}
    table("t.csv", x=wrong if where == "feature" else x, label=wrong if where == "target" else x)
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "run")
    if where != "new row":
        assert answer.code == 3 and "row 9: '1e308' is too large" in answer.err, answer.err
        return
    assert answer.code == 0, answer.err
    rows = fmeco("predict", "run", table("new.csv", x=["1", "1e308"]), "--json").json["predictions"]
    assert rows[0]["error"] is None and "new.csv:3: column 'x': '1e308' is too large" in rows[1]["error"]


@pytest.mark.situation("a constant column", "read rightly")
def test_a_constant_column_stays_one() -> None:
    data = build(name="csv_table", path=table("t.csv", x=["0.1"] * 60, y=range(60), label=labels(60)))
    new = csv_table.read(data.spec, [table("new.csv", x=["0.1", "0.2"], y=[1, 2])])
    assert [float(new[i]["columns"][0]) for i in range(2)] == pytest.approx([0.0, 0.1])


# ---------------------------------------------------------------- labels, missing cells, dates


@pytest.mark.situation("class labels written as 1.0 and 0.0", "said")
@pytest.mark.parametrize("kind", ["csv_table", "csv_images", "audio", "text"])
@pytest.mark.parametrize("written", [["0.0", "1.0"], ["0.0", "1.0", "2."], ["-1.0", "1.0"], ["0", "1.0"]])
def test_whole_numbers_written_as_floats_are_classes(kind: str, written: list[str]) -> None:
    values = (written * 30)[:30]
    data = labelled(kind, values)
    target = data.spec.targets["label"]
    assert target.kind == "class"
    assert target.classes == tuple(sorted({str(int(float(one))) for one in written}, key=int))
    found = [target.classes[int(code)] for code in all_targets(data)]
    assert found == [str(int(float(value))) for value in values]
    assert any("written as" in note and "task: number" in note for note in data.notes)


@pytest.mark.situation("class labels written as 1.0 and 0.0", "read rightly")
def test_many_whole_numbers_written_as_floats_are_numbers() -> None:
    assert labelled("csv_table", [f"{i}.0" for i in range(40)]).spec.targets["label"].kind == "number"
    assert labelled("csv_table", ["0.0", "1.0"] * 20, task="number").spec.targets["label"].kind == "number"
    named = labelled("csv_table", ["0.0", "1.0"] * 20, classes=["1.0", "0.0"])
    assert named.spec.targets["label"].classes == ("1.0", "0.0"), "the config names them as they are written"
    first = labelled("csv_table", ["0", "1"] * 20)
    path = table("new.csv", x=range(4), label=["1.0", "0.0", "1.0", "1.0"])
    assert all_targets(build(known=first.spec, whole=True, name="csv_table", path=path)) == [1, 0, 1, 1]
    path = table("two.csv", x=range(40), a=["0.0", "1.0", "", "1.0"] * 10, b=[i / 7 for i in range(40)])
    both = build(name="csv_table", path=path, target=["a", "b"])
    assert both.spec.targets["a"].classes == ("0", "1") and all_targets(both, "a")[:4] == [0, 1, -1, 1]


@pytest.mark.situation("a class or a category that is called NA", "read rightly")
@pytest.mark.parametrize("kind", ["csv_table", "csv_images", "audio", "text"])
@pytest.mark.parametrize("word", ["NA", "None", "null"])
def test_a_class_may_be_called_na(kind: str, word: str) -> None:
    values = [word, "EU"] * 15
    with pytest.raises(DataError, match="no target value"):
        labelled(kind, values)
    data = labelled(kind, values, missing=[])
    assert set(data.spec.targets["label"].classes) == {word, "EU"}
    assert [data.spec.targets["label"].classes[int(code)] for code in all_targets(data)] == values


@pytest.mark.situation("a class or a category that is called NA", "read rightly")
def test_a_category_and_a_group_may_be_called_na() -> None:
    path = table("t.csv", x=["NA", "EU", ""] * 20, who=["NA", *(f"g{i}" for i in range(19))] * 3, label=labels(60))
    data = build(name="csv_table", path=path, missing=[], group_split="who")
    assert data.spec.preprocessing["categorical"] == [{"name": "x", "categories": ["", "EU", "NA"][1:]}]
    new = csv_table.read(data.spec, [table("new.csv", x=["EU", "NA", ""])])
    assert [int(new[i]["categories"][0]) for i in range(3)] == [1, 2, 0]


DATES = [
    (["2024-01-31", "2023-02-28", "2024-02-29"], "year first"),
    (["2024-01-31T06:30", "2023-02-28T00:00", "2024-02-29T18:45"], "year first"),
    (["2024-01-31 06:30:15", "2023-02-28 00:00:00.5", "2024-02-29 18:45:00"], "year first"),
    (["2024-01-31T06:30:00+02:00", "2023-02-28T00:00:00Z", "2024-02-29T18:45:00-0500"], "year first"),
    (["2024/01/31", "2023/02/28", "2024/02/29"], "year first"),
    (["2024-01", "2023-02", "2024-12"], "year first"),
    (["31.01.2024", "28.02.2023", "03.04.2024"], "day first"),
    (["31/01/2024", "28/02/2023", "03/04/2024"], "day first"),
    (["01/31/2024", "02/28/2023", "03/04/2024"], "month first"),
]


def parsed(text: str, order: str) -> datetime:
    """A date as Python's own parser reads it."""
    day, _, rest = text.partition("T" if "T" in text else " ")
    fields = day.replace("/", "-").replace(".", "-").split("-")
    year, month, date = {
        "year first": [*fields, "01"][:3],
        "day first": fields[::-1],
        "month first": [fields[-1], *fields[:-1]],
    }[order]
    return datetime.fromisoformat(f"{year}-{month}-{date}" + (f"T{rest}" if rest else ""))


@pytest.mark.situation("a column of dates", "read rightly")
@pytest.mark.parametrize(("cells", "order"), DATES, ids=lambda x: str(x[0]))
def test_dates_become_their_parts(cells: list[str], order: str) -> None:
    data = build(name="csv_table", path=table("t.csv", x=[*cells * 20, ""], label=labels(61)))
    assert data.spec.preprocessing["categorical"] == []
    dates = [parsed(cell, order) for cell in cells]
    parts: dict[str, list[float]] = {
        "moment": [(one if one.tzinfo else one.replace(tzinfo=UTC)).timestamp() for one in dates],
        "year": [one.year for one in dates],
        "month": [one.month for one in dates],
        "day": [one.day for one in dates],
        "weekday": [one.weekday() for one in dates],
        "hour": [one.hour + one.minute / 60 + one.second / 3600 + one.microsecond / 3.6e9 for one in dates],
    }
    for part, values in parts.items():
        if part != "hour" or any(values):
            assert read_back(data, "x", part)[:60] == near(values * 20), part
    assert any("column 'x': dates" in note for note in data.notes)
    new = csv_table.read(data.spec, [table("new.csv", x=[cells[0], "", "soon"])])
    assert torch.equal(new[0]["columns"], _row(data, 2)) and float(new[1]["columns"][0]) == 0.0
    with pytest.raises(DataError, match=r"new.csv:4: column 'x': 'soon' is not a date"):
        new[2]


@pytest.mark.situation("a column of times of day", "read rightly")
@pytest.mark.parametrize("form", ["{:02}:{:02}", "{:02}:{:02}:30"])
def test_times_of_day_become_seconds(form: str) -> None:
    cells = [form.format(i % 24, i * 7 % 60) for i in range(60)]
    data = build(name="csv_table", path=table("t.csv", x=[*cells, ""], label=labels(61)))
    seconds = [3600 * (i % 24) + 60 * (i * 7 % 60) + (30 if "30" in form else 0) for i in range(60)]
    assert read_back(data, "x", "moment")[:60] == near(seconds)
    with pytest.raises(DataError, match="'25:00' is not a date"):
        build(name="csv_table", path=table("t.csv", x=[*cells, "25:00"], label=labels(61)))


def _row(data: Data, row: int) -> torch.Tensor:
    for samples in (data.train, data.val):
        assert samples is not None
        for i in range(len(samples)):
            if samples.name(i).endswith(f":{row}"):
                return samples[i]["columns"]
    raise AssertionError(row)


@pytest.mark.situation("a column of what only looks like dates", "read rightly")
@pytest.mark.parametrize(
    "cells", [["1.2.3", "1.10.12"], ["123-45-6789", "987-65-4321"], ["10.0.0.1", "10.0.0.2"], ["2024-W05", "2024-W06"]]
)
def test_versions_and_numbers_of_persons_are_categories(cells: list[str]) -> None:
    data = build(name="csv_table", path=table("t.csv", x=cells * 30, label=labels(60)))
    assert data.spec.preprocessing["categorical"] == [{"name": "x", "categories": sorted(cells)}]


@pytest.mark.situation("a column of dates", "refused by name")
@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (["03/04/2024", "05/06/2024"], "may have its day or its month first"),
        (["31/12/24", "30/11/24"], "no year of four digits"),
        (["2024-01-31", "31.01.2024"], "in different orders"),
        (["31/01/2024", "01/31/2024"], "in different orders"),
        (["2024-01-01T00:00Z", "2024-01-01T00:00"], "some times have a time zone"),
        (["2024-01-01"] * 30 + ["2024-02-30"], "row 32, 63 '2024-02-30' is not a date"),
    ],
)
def test_dates_that_nobody_can_tell_are_refused(cells: list[str], reason: str) -> None:
    cells = cells * (2 if len(cells) > 9 else 30)
    with pytest.raises(DataError, match=reason) as caught:
        build(name="csv_table", path=table("t.csv", x=cells, y=range(len(cells)), label=labels(len(cells))))
    assert "column 'x'" in str(caught.value)
    data = build(name="csv_table", path="t.csv", categorical=["x"])
    assert data.spec.preprocessing["categorical"][0]["name"] == "x", "unless the config wants categories"


@pytest.mark.situation("names with composed and decomposed characters", "read rightly")
def test_categories_and_columns_are_compared_in_composed_form() -> None:
    town, column = "K\u00f6ln", "Gr\u00f6\u00dfe"
    apart = {name: unicodedata.normalize("NFD", name) for name in (town, column)}
    data = build(
        name="csv_table",
        path=table("t.csv", **{"x": [town, "Ulm", apart[town]] * 20, column: range(60), "label": labels(60)}),
    )
    assert data.spec.preprocessing["categorical"] == [{"name": "x", "categories": [town, "Ulm"]}]
    new = csv_table.read(data.spec, [table("new.csv", **{"x": [town, apart[town]], apart[column]: [1, 1]})])
    assert [int(new[i]["categories"][0]) for i in range(2)] == [1, 1]


@pytest.mark.situation("a column without any value", "said")
@pytest.mark.parametrize("word", ["", "NA"])
def test_a_column_without_values_is_left_out(word: str) -> None:
    data = build(name="csv_table", path=table("t.csv", x=range(60), y=[word] * 60, label=labels(60)))
    assert [one["name"] for one in data.spec.preprocessing["numeric"]] == ["x"]
    assert any("column 'y': left out" in note for note in data.notes)
    parts, days = ["train"] * 40 + ["val"] * 20, [word] * 40 + ["2024-01-31"] * 20
    given = build(
        name="csv_table", path=table("t.csv", x=range(60), y=days, p=parts, label=labels(60)), split_column="p"
    )
    assert [one["name"] for one in given.spec.preprocessing["numeric"]] == ["x"]
    with pytest.raises(DataError, match="no column has a value"):
        build(name="csv_table", path=table("t.csv", y=[word] * 60, label=labels(60)))


@pytest.mark.situation("categories written as 1.0 in one table and as 1 in another", "read rightly")
@pytest.mark.parametrize("first", ["{}", "{}.0"])
@pytest.mark.parametrize("second", ["{}", "{}.0", "{}."])
def test_categories_that_are_whole_numbers_keep_their_names(first: str, second: str) -> None:
    x = [first.format(i % 3) for i in range(60)]
    data = build(name="csv_table", path=table("t.csv", x=x, label=labels(60)), categorical=["x"])
    assert data.spec.preprocessing["categorical"] == [{"name": "x", "categories": ["0", "1", "2"]}]
    new = csv_table.read(data.spec, [table("new.csv", x=[*(second.format(i) for i in range(4)), ""])])
    assert [int(new[i]["categories"][0]) for i in range(5)] == [1, 2, 3, 0, 0]


@pytest.mark.situation("a number that stands for a missing value", "read rightly")
@pytest.mark.parametrize("word", ["-999", "9999", "-1.0", "0", -999, -1.0])
def test_a_number_may_stand_for_a_missing_value(word: str | float) -> None:
    """Once it is listed, it changes neither mean nor deviation.

    https://github.com/open-ideas/IDEAS/issues/1303
    """
    path = table("t.csv", x=[word, "5", "7.5"] * 20, y=range(100, 160), label=labels(60))
    data = build(name="csv_table", path=path, missing=[word])
    assert data.spec.preprocessing["numeric"][0]["mean"] == pytest.approx(6.25, abs=0.2)
    assert data.spec.preprocessing["numeric"][0]["missing"]
    new = csv_table.read(data.spec, [table("new.csv", x=[word, "5"], y=[101, 102])])
    assert [float(new[i]["columns"][-1]) for i in range(2)] == [1.0, 0.0]
    labels_ = labelled("text", ["a", "b", "unknown"] * 10, missing=["UNKNOWN"], label=None)
    assert not labels_.spec.targets


@pytest.mark.situation("missing numbers in a column that had none", "said")
def test_new_gaps_are_said_and_counted() -> None:
    data = build(name="csv_table", path=table("t.csv", x=range(60), day=["2024-01-05"] * 60, label=labels(60)))
    new = csv_table.read(data.spec, [table("new.csv", x=["1", "", "NA"], day=["2024-01-05", "2024-01-06", ""])])
    assert any("column 'x' has no value in 2 of 3 rows" in note for note in new.notes)
    assert sum("column 'day' has no value in 1 of 3 rows" in note for note in new.notes) == 1


TABLES: dict[str, dict[str, Sequence[object]]] = {
    "row numbers": {"": range(60), "x": [i * 7 % 11 for i in range(60)], "label": labels(60)},
    "dates": {"x": [f"2024-{1 + i % 12:02}-{1 + i % 28:02}" for i in range(60)], "label": labels(60)},
    "decimal commas": {"x": [f"{i},5" for i in range(60)], "label": [f"{i * i},25" for i in range(60)]},
    "codes": {"x": [f"{i:03}" for i in range(60)], "label": ["01", "02", "10"] * 20},
    "float classes": {"x": range(60), "label": ["0.0", "1.0", "1.0"] * 20},
    "currencies": {"x": [f"${i + 1},000" for i in range(60)], "label": [f"{i}.5%" for i in range(60)]},
}


@pytest.mark.situation("a table that a stopped run reads again", "read rightly")
@pytest.mark.parametrize("kind", list(TABLES))
def test_a_stopped_run_reads_its_table_as_before(kind: str) -> None:
    options = {"name": "csv_table", "path": table("t.csv", **TABLES[kind]), "test_fraction": 0.2}
    options |= {"decimal": {"x": "."}} if kind == "currencies" else {}
    first = build(**options)
    again = build(known=first.spec, **options)
    assert again.spec == first.spec
    for part in ("train", "val", "test"):
        one, other = first.split(part), again.split(part)
        assert [one.name(i) for i in range(len(one))] == [other.name(i) for i in range(len(other))]
        assert one.tensors is not None and other.tensors is not None
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
        assert all(
            torch.equal(torch.as_tensor(one.targets[name]), torch.as_tensor(other.targets[name]))
            for name in one.targets
        )


@pytest.mark.situation("keys of the config that name a column which is not read", "refused by name")
@pytest.mark.parametrize("kind", ["csv_table", "csv_images", "text"])
def test_a_decimal_point_of_no_column_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"dataset.decimal: lable: no column that is read \(did you mean 'label'"):
        labelled(kind, ["a", "b"] * 15, decimal={"lable": ","})


# ---------------------------------------------------------------- columns


@pytest.mark.situation("an unnamed first column of row numbers", "said")
@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
@pytest.mark.parametrize("first", [0, 1])
def test_row_numbers_are_left_out(name: str, first: int) -> None:
    columns = {name: range(first, 60 + first), "x": [i * 7 % 11 for i in range(60)], "label": labels(60)}
    data = build(name="csv_table", path=table("t.csv", **columns))
    assert [one["name"] for one in data.spec.preprocessing["numeric"]] == ["x"]
    assert any("first column" in note and "left out" in note for note in data.notes)
    shuffled = {**columns, name: [i * 17 % 61 for i in range(1, 61)]}
    assert len(build(name="csv_table", path=table("t.csv", **shuffled)).spec.preprocessing["numeric"]) == 1


@pytest.fixture
def run(fmeco: Fmeco) -> dict[str, Any]:
    """A run on a table with a number and a category."""
    table("t.csv", Age=[i * 7 % 50 for i in range(90)], Town=["ulm", "bonn", "kiel"] * 30, label=labels(90))
    config = tiny(dataset={}, backbone={"name": "mlp", "hidden": [8]}, train={"epochs": 1})
    config["dataset"] = {"name": "csv_table", "path": "t.csv"}
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "run")
    assert answer.code == 0, answer.err
    return config


@pytest.mark.situation("new tables with other columns and categories than training", "said")
@pytest.mark.parametrize(
    ("columns", "note"),
    [
        (
            {"Age": [1, 2, 3, 4], "Town": ["ulm", "rom", "Bonn", "rom"]},
            "'Town' has categories not seen in training, in 3 of 4 rows: Bonn, rom",
        ),
        ({"AGE": [1, 2, 3, 4], "Town": ["ulm"] * 4}, "another case than in training: 'AGE' as 'Age'"),
        ({"Age": [1, 2, 3, 4], "Town": ["ulm"] * 4, "extra": [0] * 4}, "columns that the model does not use: extra"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate", "embed"])
def test_what_differs_from_training_is_said_and_counted(
    columns: dict[str, Any], note: str, command: str, run: dict[str, Any], fmeco: Fmeco
) -> None:
    path = table("new.csv", **columns, **({} if command == "predict" else {"label": ["a", "b"] * 2}))
    inputs = {
        "predict": ["predict", "run", path],
        "evaluate": ["evaluate", "run", "--dataset", path],
        "embed": ["embed", "run", "--dataset", path, "--output", "vectors.npz"],
    }
    answer = fmeco(*inputs[command])
    assert answer.code == 0, answer.err
    assert note in answer.err


@pytest.mark.situation("new tables with other columns and categories than training", "read rightly")
def test_columns_are_found_by_name(run: dict[str, Any], fmeco: Fmeco) -> None:
    given = {"Age": [5, 30, 41], "Town": ["ulm", "kiel", "bonn"]}
    plain = api.load("run").predict([table("a.csv", **given)])
    turned = api.load("run").predict([table("b.csv", town=given["Town"], AGE=given["Age"])])
    assert [row["probability"] for row in plain] == [row["probability"] for row in turned]
    answer = fmeco("predict", "run", table("c.csv", age=[1], AGE=[2], Town=["ulm"]))
    assert answer.code == 3 and "the model needs the column Age; it has age, AGE" in answer.err


@pytest.mark.situation("new tables with columns in another order", "said")
def test_another_order_of_columns_is_said() -> None:
    data = build(name="csv_table", path=table("t.csv", x=range(60), y=range(60), label=labels(60)))
    new = csv_table.read(data.spec, [table("new.csv", y=[50, 50], x=[1, 1])])
    assert any("another order than in training" in note for note in new.notes)
    ordered = csv_table.read(data.spec, [table("old.csv", x=[1, 1], y=[50, 50])])
    assert torch.equal(new[0]["columns"], ordered[0]["columns"]) and not ordered.notes


@pytest.mark.situation("codes that lost their last digits", "refused by name")
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_large_codes_written_as_floats(suffix: str) -> None:
    """Of eleven codes, six are left once they were floats.

    https://github.com/pandas-dev/pandas/issues/20007
    """
    floats = [float(9_007_199_254_740_993 + i % 11) for i in range(60)]
    path = table("t.csv", code=floats, label=labels(60))
    if suffix == "parquet":
        path = "t.parquet"
        pytest.importorskip("polars").DataFrame({"code": floats, "label": labels(60)}).write_parquet(path)
    with pytest.raises(DataError, match=r"column 'code', row 2: '9007199254740992.0' was written as a float"):
        build(name="csv_table", path=path, categorical=["code"])
    assert build(name="csv_table", path=path).spec.preprocessing["numeric"][0]["name"] == "code"


# ---------------------------------------------------------------- numbers that stand for missing values

SENTINELS = [
    "-9999",
    "-9999.0",
    "999999",
    "-999",
    "-99.99",
    "9999.9",
    "-888",
    "1e30",
    "-1e30",
    "9.96921e36",
    "-2147483648",
]
WIND = [round(5 + math.sin(i), 2) for i in range(120)]


def gusts(word: str, at: Sequence[int] = (20, 21, 50)) -> list[object]:
    return [word if i in at else x for i, x in enumerate(WIND)]


@pytest.mark.situation("a number that stands for a missing value", "said")
@pytest.mark.parametrize("word", SENTINELS)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_number_that_stands_for_a_missing_value_is_said(word: str, suffix: str) -> None:
    """A wind of 999 m/s is a wind that was not measured.

    https://github.com/open-ideas/IDEAS/issues/1303, https://github.com/EDmodel/ED2/issues/62
    """
    path = table("t.csv", wind=gusts(word), x=range(120), label=labels(120))
    if suffix == "parquet":
        polars = pytest.importorskip("polars")
        frame = {"wind": list(map(float, map(str, gusts(word)))), "x": range(120), "label": labels(120)}
        path = "t.parquet"
        polars.DataFrame(frame).write_parquet(path)
    data = build(name="csv_table", path=path)
    (note,) = (note for note in data.notes if "stands for a missing value" in note)
    assert "column 'wind': '" in note and "is in 3 of 120 rows" in note
    words = json.loads(note.partition("dataset.missing: ")[2])
    assert float(words[-1]) == float(word) and {"na", "null"} < set(words), "the default words stay"
    (stats, _) = build(name="csv_table", path=path, missing=words).spec.preprocessing["numeric"]
    assert 4 < stats["mean"] < 6 and stats["missing"]


@pytest.mark.situation("a number that stands for a missing value", "said")
def test_each_of_several_numbers_that_stand_for_missing_values_is_said() -> None:
    wind = [{20: -9999, 21: -9999, 50: 9999, 60: 9999, 70: -8888, 80: -8888}.get(i, x) for i, x in enumerate(WIND)]
    notes = build(name="csv_table", path=table("t.csv", wind=wind, label=labels(120))).notes
    assert sum("is in 2 of 120 rows" in note for note in notes) == 3


@pytest.mark.situation("a number that stands for a missing value", "said")
def test_a_target_that_stands_for_a_missing_value_is_said() -> None:
    data = build(name="csv_table", path=table("t.csv", x=range(120), label=gusts("-9999")))
    assert any("column 'label': '-9999' is in 3 of 120 rows" in n and "remove these rows" in n for n in data.notes)
    several = table("u.csv", x=range(120), a=gusts("-9999"), b=labels(120))
    data = build(name="csv_table", path=several, target=["a", "b"])
    assert any("column 'a': '-9999' is in 3 of 120 rows" in n and "dataset.missing: [" in n for n in data.notes)


@pytest.mark.situation("a number that stands for a missing value", "said")
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_number_that_stands_for_a_missing_value_in_a_new_table_is_said(command: str) -> None:
    spec = build(name="csv_table", path=table("t.csv", wind=WIND, label=labels(120))).spec
    path = table("new.csv", wind=gusts("-9999"), label=labels(120))
    notes: Sequence[str] = csv_table.read(spec, [path]).notes
    if command == "evaluate":
        notes = build(known=spec, whole=True, name="csv_table", path=path).notes
    assert any("column 'wind': -9999 is in 3 of 120 rows" in note for note in notes)


RNG = np.random.default_rng(0)
ORDINARY: dict[str, Sequence[object]] = {
    "0 and 1": [0, 1] * 60,
    "one-hot": [int(i in (3, 40)) for i in range(120)],
    "two values": [5, 999] * 60,
    "grades": [1, 2, 3, 4, 5, 6] * 20,
    "ages": [20 + i % 79 + i % 2 for i in range(119)] + [99],
    "percent": [i % 101 for i in range(100)] + [99] * 20,
    "prices": np.round(np.exp(RNG.normal(3, 1.5, 118)), 2).tolist() + [999.99, 999.99],
    "prices that end in 9": [9, 19, 49, 99, 199, 499, 999, 1999, 4999, 9999] * 12,
    "populations": [1200, 2300, 4100, 5200, 37_435_191, 37_435_191] * 20,
    "incomes, cut off": np.minimum(np.exp(RNG.normal(9, 1.2, 120)), 99_999).round().tolist(),
    "heavy tails": RNG.standard_cauchy(120).round(2).tolist(),
    "counts with heavy tails": RNG.zipf(1.5, 120).tolist(),
    "mostly zero": [0] * 116 + [500, 500, 8000, 8000],
    "postal codes": [10_115, 20_095, 50_667, 80_331, 99_999, 99_999] * 20,
    "temperatures": RNG.normal(10, 12, 118).round().tolist() + [-9, -9],
    "accounts": [*range(-1000, 1000, 17), -999, -999][:120],
    "one number far outside": [-9999, *WIND[1:]],
    "memory": [4096, 8192, 16_384, 32_768, 65_536, 131_072] * 20,
    "a constant": [9999] * 120,
}


@pytest.mark.situation("columns of numbers that are far apart", "read rightly")
@pytest.mark.parametrize("kind", ORDINARY)
def test_no_ordinary_number_is_taken_for_a_missing_value(kind: str) -> None:
    x = list(ORDINARY[kind])
    data = build(name="csv_table", path=table("t.csv", x=x, label=labels(len(x))))
    assert not any("stands for a missing value" in note for note in data.notes), data.notes


@pytest.mark.situation("midnight written as 24:00", "read rightly")
@pytest.mark.parametrize("form", ["{:%Y-%m-%d} {:02}:00", "{:%d.%m.%Y} {:02}:00:00", "{:%m/%d/%Y} {:02}:00"])
def test_midnight_as_24_in_a_column_of_dates(form: str) -> None:
    """The parts of the date are those of the next day.

    https://github.com/gyanz/pydsstools/issues/7
    """
    first = datetime(2023, 12, 20)
    when = [form.format(first + timedelta(days=i // 24), i % 24 + 1) for i in range(24 * 20)]
    data = build(name="csv_table", path=table("t.csv", x=when, label=labels(len(when))))
    wanted = [first + timedelta(hours=i + 1) for i in range(len(when))]
    assert read_back(data, "x", "day") == near([one.day for one in wanted])
    assert read_back(data, "x", "hour") == near([one.hour for one in wanted])
    assert read_back(data, "x", "year") == near([one.year for one in wanted])


@pytest.mark.situation("midnight written as 24:00", "read rightly")
def test_midnight_as_24_in_a_column_of_times_of_day() -> None:
    data = build(
        name="csv_table", path=table("t.csv", x=[f"{i % 24 + 1:02}:00" for i in range(120)], label=labels(120))
    )
    assert read_back(data, "x", "moment") == near([3600 * (i % 24 + 1) for i in range(120)])


# ---------------------------------------------------------------- targets in training


@pytest.mark.situation("regression targets far from 0", "read rightly")
@pytest.mark.parametrize(("mean", "spread"), [(1.7e9, 20.0), (20240131.0, 5.0), (-1e12, 1000.0), (0.0, 1.0)])
def test_the_error_of_large_numbers_is_right(mean: float, spread: float, fmeco: Fmeco) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = [repr(float(value)) for value in mean + spread * (x + 0.3 * rng.normal(size=200))]
    config = tiny(dataset={}, backbone={"name": "mlp", "hidden": [16]}, train={"epochs": 8})
    config["dataset"] = {"name": "csv_table", "path": table("t.csv", x=x.tolist(), label=y)}
    assert fmeco("pretrain", write("c.yaml", config), "--out", "run").code == 0
    found = fmeco("evaluate", "run", "--dataset", "t.csv", "--baseline", "gbdt", "--json").json
    predicted = [float(row["prediction"]) for row in api.load("run").predict(["t.csv"])]
    wanted = list(map(float, y))
    assert found["metrics"]["test_mae"] == pytest.approx(sk.mean_absolute_error(wanted, predicted), rel=1e-4)
    assert found["metrics"]["test_rmse"] == pytest.approx(sk.root_mean_squared_error(wanted, predicted), rel=1e-4)
    assert found["metrics"]["test_r2"] == pytest.approx(sk.r2_score(wanted, predicted), rel=1e-3)
    assert 0.2 < found["metrics"]["test_rmse"] / spread < 1.5
    assert 0.05 < found["baseline"]["metrics"]["test_rmse"] / spread < 1.5


@pytest.mark.situation("class weights of 0", "read rightly")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_of_weight_0_is_left_out_of_the_loss(smoothing: float, fmeco: Fmeco) -> None:
    path = table("t.csv", x=[i % 7 for i in range(60)], label=["abc"[i % 3] for i in range(60)])
    config = tiny(dataset={}, backbone={"name": "mlp", "hidden": [8]}, train={"epochs": 2, "batch_size": 2})
    config["dataset"] = {"name": "csv_table", "path": path}
    config["objective"] = {"name": "classification", "class_weights": {"b": 0.0}, "label_smoothing": smoothing}
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "run", "--json")
    assert answer.code == 0, answer.err
    assert all(math.isfinite(value) for value in answer.json["metrics"].values())


@pytest.mark.situation("class weights of 0", "read rightly")
def test_a_weight_of_0_changes_no_other_sample() -> None:
    from fmeco.objectives.classification import cross_entropy

    logits, label = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1, 0, 2])
    weights = torch.tensor([2.0, 0.0, 1.0])
    total, count = cross_entropy(logits, label, 0.1, weights)
    others = label != 1
    wanted, expected = cross_entropy(logits[others], label[others], 0.1, weights)
    assert float(total) == pytest.approx(float(wanted)) and float(count) == float(expected) == 6.0
    none, zero = cross_entropy(logits[label == 1], label[label == 1], 0.1, weights)
    assert float(none) == 0.0 == float(zero)


@pytest.mark.situation("negative weights of classes and tasks", "refused by name")
@pytest.mark.parametrize(
    ("objective", "key"),
    [
        ({"name": "classification", "class_weights": {"a": -1.0}}, "objective.class_weights"),
        ({"name": "multilabel", "pos_weight": -1.0}, "objective.pos_weight"),
        ({"name": "multi_task", "tasks": {"label": "classification"}, "weights": {"label": -1.0}}, "objective.weights"),
    ],
)
def test_a_negative_weight_is_refused_with_the_config(objective: dict[str, Any], key: str, fmeco: Fmeco) -> None:
    config = {**tiny(), "dataset": {"name": "csv_table", "path": "absent.csv"}, "objective": objective}
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "run")
    assert answer.code == 2 and key in answer.err, answer.err
    assert "absent.csv" not in answer.err, "before any data is read"


@pytest.mark.situation("a table without labels", "read rightly")
def test_a_table_without_labels_is_pretrained_with_mask(fmeco: Fmeco) -> None:
    x = [i * 7 % 50 for i in range(90)]
    table("plain.csv", x=x, town=["ulm", "bonn", "kiel"] * 30)
    config: dict[str, Any] = {
        "dataset": {"name": "csv_table", "path": "plain.csv", "target": None},
        "backbone": {"name": "transformer", "width": 16, "depth": 1, "heads": 2},
        "objective": "mask",
        "train": {"epochs": 1, "batch_size": 16, "tensorboard": False},
    }
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "run", "--json")
    assert answer.code == 0, answer.err
    assert "val_loss" in answer.json["metrics"]
    table("more.csv", x=x, town=["ulm", "bonn", "kiel"] * 30, kind=labels(90))
    answer = fmeco(
        "finetune", "--from", "run", "--dataset", "more.csv", "--set", "dataset.target=kind", "--out", "tuned"
    )
    assert answer.code == 0, answer.err
    assert fmeco("evaluate", "run", "--dataset", "plain.csv").code == 0
    table("none.csv", x=x, y=x)
    answer = fmeco(
        "pretrain", "c.yaml", "--set", "dataset.path=none.csv", "--set", "dataset.target=label", "--out", "no"
    )
    assert answer.code == 2 and "dataset.target: null" in answer.err


# ---------------------------------------------------------------- old checkpoints, Parquet


@pytest.mark.situation("tables of a checkpoint that was made by older code", "read rightly")
def test_an_old_checkpoint_reads_its_table_as_before() -> None:
    data = build(name="csv_table", path=table("t.csv", x=range(60), label=labels(60)))
    spec = old(data.spec)
    assert spec.decode == 1
    new = csv_table.read(spec, [table("new.csv", x=["1_20", "١٢", "3"])])
    (stats,) = spec.preprocessing["numeric"]
    found = [float(new[i]["columns"][0]) * stats["std"] + stats["mean"] for i in range(3)]
    assert found == pytest.approx([120, 12, 3])
    tuned = build(
        known=spec.preprocessing_only(), name="csv_table", path=table("u.csv", x=range(60), label=["0.0", "1.0"] * 30)
    )
    assert tuned.spec.targets["label"].kind == "number", "floats were numbers, however few"
    assert tuned.spec.decode == 1 and tuned.split("train").targets["label"].dtype == torch.float32  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"dataset.decimal"):
        build(known=spec.preprocessing_only(), name="csv_table", path="u.csv", decimal={"label": "."})
    path = table("v.csv", x=["-", *range(59)], label=labels(60))
    words = build(known=spec.preprocessing_only(), name="csv_table", path=path, missing=["-"]).spec
    assert words.decode == 1 and float(csv_table.read(words, [path])[0]["columns"][0]) == 0.0, "its own words are kept"


@pytest.mark.situation("a Parquet file on which its library panics", "refused by name")
def test_a_panic_of_a_library_is_one_sentence(fmeco: Fmeco, run: dict[str, Any]) -> None:
    polars = pytest.importorskip("polars")
    days = polars.Series("Age", [1, 2_000_000_000], dtype=polars.Int32).cast(polars.Date)
    polars.DataFrame({"Age": days, "Town": ["ulm", "bonn"], "label": ["a", "b"]}).write_parquet("t.parquet")
    for arguments in (("predict", "run", "t.parquet"), ("evaluate", "run", "--dataset", "t.parquet")):
        answer = fmeco(*arguments)
        assert answer.code == 3, answer.err
        assert "t.parquet: a column cannot be written as text" in answer.err


class Panic(BaseException):
    """What a library of Rust raises, which is no Exception."""


@pytest.mark.situation("a Parquet file on which its library panics", "refused by name")
@pytest.mark.parametrize("function", ["read_parquet", "read_parquet_schema"])
@pytest.mark.parametrize("raised", [Panic("index out of bounds"), KeyboardInterrupt(), SystemExit(3)])
def test_only_panics_are_translated(function: str, raised: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    polars = pytest.importorskip("polars")

    def fail(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(polars, function, fail)
    expected = DataError if isinstance(raised, Panic) else type(raised)
    with pytest.raises(expected, match="index out of bounds" if isinstance(raised, Panic) else None):
        parquet.columns("t.parquet") if function == "read_parquet_schema" else parquet.as_csv("t.parquet")


@pytest.mark.situation("cells of Parquet columns with types", "read rightly")
def test_typed_columns_are_read_as_what_they_are() -> None:
    polars = pytest.importorskip("polars")
    days = [datetime(2024, 1 + i % 12, 1 + i % 28) for i in range(60)]
    frame = {"day": days, "x": [i / 7 for i in range(60)], "flag": [i % 2 == 0 for i in range(60)]}
    polars.DataFrame({**frame, "label": [float(i % 2) for i in range(60)]}).write_parquet("t.parquet")
    data = build(name="csv_table", path="t.parquet")
    assert read_back(data, "day", "month") == pytest.approx([one.month for one in days])
    assert read_back(data) == near(frame["x"])
    assert data.spec.preprocessing["categorical"] == [{"name": "flag", "categories": ["false", "true"]}]
    assert data.spec.targets["label"].classes == ("0", "1")
