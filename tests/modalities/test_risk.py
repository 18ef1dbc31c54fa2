"""Tables of risk: splits by time and by customer, Parquet, thresholds by cost, groups, and the trees to be held against."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from sklearn.ensemble import HistGradientBoostingClassifier

from fmeco.core import Data, Target
from fmeco.datasets import _columns, _times
from fmeco.errors import ConfigError, DataError
from fmeco.nn.metrics import calibration_error, recall_at_precision
from tests.conftest import Answer, photos, tiny, write
from tests.data.test_data import build
from tests.objectives.test_losses import objective

Fmeco = Callable[..., Answer]


def loans(path: str = "loans.csv", rows: int = 300, defect: str = "") -> Path:
    """Rows in no order: an amount and a region that tell of default, a customer of about 5 rows, a day (3 rows each)."""
    draw = random.Random(0)
    lines = []
    for i in range(rows):
        amount, region = draw.gauss(0, 1), draw.choice(["north", "south", "south", "south"])
        bad = int(amount + (region == "north") + draw.gauss(0, 0.5) > 1)
        day = f"2024-{1 + i // 3 // 28:02}-{1 + i // 3 % 28:02}"
        gap = "" if i % 11 == 0 else str(round(amount, 3))
        lines.append(f"{gap},{region},{i % (rows // 5)},{day},{('no', 'yes')[bad]}")
    draw.shuffle(lines)
    return write(path, "amount,region,customer,day,label\n" + "\n".join(lines) + "\n" + defect)


def lines_of(data: Data, path: str = "loans.csv") -> dict[str, list[list[str]]]:
    """The cells of each split's rows."""
    text = Path(path).read_text().splitlines()
    splits = {part: getattr(data, part) for part in ("train", "val", "test")}
    return {
        part: [text[int(samples.name(i).rpartition(":")[2]) - 1].split(",") for i in range(len(samples))]
        for part, samples in splits.items()
        if samples is not None
    }


def test_the_newest_rows_are_tested_and_a_day_stays_together() -> None:
    loans()
    data = build(name="csv_table", path="loans.csv", time="day", group=["customer"], test_fraction=0.2)
    days = {part: [row[3] for row in rows] for part, rows in lines_of(data).items()}
    assert max(days["train"]) < min(days["val"]) <= max(days["val"]) < min(days["test"])
    assert {part: len(each) for part, each in days.items()} == {"train": 180, "val": 60, "test": 60}
    assert [one["name"] for one in data.spec.preprocessing["numeric"]] == ["amount"], (
        "neither day nor customer is learned"
    )
    note = next(note for note in data.notes if "split by 'day'" in note)
    assert all(min(days[part]) in note for part in ("val", "test"))
    # Of three moments, each a third, the cut goes where the share is nearest to what was asked for.
    write("three.csv", "x,t,label\n" + "\n".join(f"{i},{i % 3},{'ab'[i // 3 % 2]}" for i in range(60)))
    three = build(name="csv_table", path="three.csv", time="t", val_fraction=0.1)
    assert three.spec.sizes == {"train": 40, "val": 20}
    for rule, unit in ((1, 1), (2, 10**6)):
        zoned = ["2024-01-01T01:00:00+01:00", "2024-01-01T00:00:00Z"]
        assert set(_times.moments(zoned, "p", "t", rule=rule)[0].tolist()) == {1704067200 * unit}
    for values, reason in (
        (["1", "soon"], "row 3: 'soon' is not a time"),
        (["2024-01-01", "2024-01-01T00:00Z"], "have a time zone"),
    ):
        with pytest.raises(DataError, match=reason):
            _times.moments(values, "p", "t", rule=2)
    with pytest.raises(ConfigError, match="group_split"):
        build(name="csv_table", path="loans.csv", time="day", group_split="customer")


def test_a_customer_is_in_one_split() -> None:
    loans()
    data = build(name="csv_table", path="loans.csv", group_split="customer", test_fraction=0.2, drop=["day"])
    homes = {part: {row[2] for row in rows} for part, rows in lines_of(data).items()}
    assert len(set.union(*homes.values())) == sum(map(len, homes.values())) == 60
    assert [len(homes[part]) for part in ("train", "val", "test")] == [36, 12, 12]
    loans("more.csv", defect="0.1,north,new,2025-01-01,no\n")
    more = build(name="csv_table", path="more.csv", group_split="customer", test_fraction=0.2, drop=["day"])
    moved = [({row[2] for row in rows} - {"new"}) ^ homes[part] for part, rows in lines_of(more, "more.csv").items()]
    assert sum(map(len, moved)) <= 5, "a new customer moves at most one other at each border"
    write("given.csv", "x,who,part,label\n1,ann,train,a\n2,bob,train,b\n3,eve,val,a\n4,bob,test,b\n")
    with pytest.raises(DataError, match="group_split: 'bob' in both the train and the test split"):
        build(name="csv_table", path="given.csv", group_split="who", split_column="part")


def test_whole_columns_read_as_cell_by_cell() -> None:
    column = ["1", " 2.5 ", "", "NA", "nan", "inf", "x", "1e400", "-3", "1_0"]
    found = _columns.cells(column)
    for i, cell in enumerate(column):
        assert found.missing[i] == _columns.is_missing(cell)
        assert (i in found.strange) == (not _columns.is_missing(cell) and not _columns.is_number(cell))
        assert found.values[i] == (float(cell) if _columns.is_number(cell) else 0.0)


def test_parquet_is_the_csv_of_the_same_table(fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    polars = pytest.importorskip("polars")
    loans()
    polars.read_csv("loans.csv", try_parse_dates=True).write_parquet("loans.parquet")
    table = _columns.read_table("loans.parquet")
    assert table == _columns.read_table("loans.csv")
    polars.DataFrame({"x": [1.5, None, 2.0]}).write_parquet("one.parquet")
    assert _columns.read_table("one.parquet") == {"x": ["1.5", "", "2.0"]}, "a row without any value is a row"
    config_ = tiny(dataset={}, backbone={"name": "mlp", "hidden": [8]}, train={"epochs": 1})
    config_["dataset"] = {"name": "csv_table", "path": "loans.parquet", "drop": ["customer", "day"]}
    assert fmeco("pretrain", write("c.yaml", config_), "--out", "run").code == 0
    answers = [fmeco("predict", "run", f"loans.{kind}", "--json").json["predictions"] for kind in ("parquet", "csv")]
    assert [{**row, "input": ""} for row in answers[0]] == [{**row, "input": ""} for row in answers[1]]
    assert fmeco("evaluate", "run", "--dataset", "loans.parquet", "--json").json["samples"] == 300
    polars.DataFrame({"x": [[1, 2]], "label": ["a"]}).write_parquet("nested.parquet")
    assert fmeco("check", "--dataset", "nested.parquet", "--from", "run").code == 3
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    answer = fmeco("evaluate", "run", "--dataset", "loans.parquet")
    assert answer.code == 2
    assert "pip install 'fmeco[tables]'" in answer.err


def test_metrics_of_two_classes_equal_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    label = (rng.random(400) < 0.7).astype(int)  # the rarer class is the first one
    logits = (2 * rng.standard_normal((400, 2)) + np.eye(2)[label]).round(0) / 2  # with ties
    cost = {"false_negative": 5.0, "false_positive": 1.0}
    target = Target("class", ("bad", "good"), (30, 70))
    made = objective("classification", target, recall_at_precision=0.6, cost=cost)
    rows = {"logits": torch.from_numpy(logits), "label": torch.from_numpy(label)}
    got = made.metrics(rows)
    bad, p = label == 0, rows["logits"].softmax(1)[:, 0].numpy()
    assert made.about == {"positive class": "bad", "threshold": "0.1667"}
    assert got["average_precision"] == pytest.approx(sk.average_precision_score(bad, p.round(12)))
    assert got["brier"] == pytest.approx(sk.brier_score_loss(bad, p))
    precision, recall, _ = sk.precision_recall_curve(bad, p.round(12))
    assert got["recall_at_p60"] == pytest.approx(recall[precision >= 0.6].max())
    said = p >= 1 / 6
    assert got["cost"] == pytest.approx((5 * (bad & ~said).sum() + (said & ~bad).sum()) / 400)
    assert got["accuracy"] == pytest.approx((said == bad).mean()), "one decision: what is measured is what predict says"
    decoded = made.decode({"probability": rows["logits"].softmax(1)})
    assert [row["prediction"] == "bad" for row in decoded] == said.tolist()
    assert [row["probability"] for row in decoded] == pytest.approx(np.where(said, p, 1 - p).tolist())
    assert torch.equal(made.correct(rows), torch.from_numpy(said == bad))
    # Equal costs are the usual decision, and the class to find can be named.
    even = objective("classification", target, positive="good", cost={"false_negative": 2.0, "false_positive": 2.0})
    assert even.metrics(rows)["average_precision"] == pytest.approx(sk.average_precision_score(~bad, (1 - p).round(12)))
    assert set(made.directions) >= {name for name in got if "/" not in name}
    assert recall_at_precision(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), 0.9) == 0.0
    for wrong in ({"positive": "ugly"}, {"cost": {"false_negative": 1.0}}):
        with pytest.raises(ConfigError):
            objective("classification", target, **wrong)
    with pytest.raises(ConfigError, match="for two classes"):
        objective("classification", Target("class", ("a", "b", "c")), recall_at_precision=0.9)


def test_calibration_error_is_the_formula() -> None:
    rng = np.random.default_rng(2)
    p = np.concatenate([rng.random(200), [0.0, 1.0], np.repeat([0.19, 0.2, 0.21], 40)])  # 0.2 is the end of its bin
    right = np.concatenate([rng.random(202) < 0.5, np.repeat([False, True, False], 40)])
    want = 0.0
    for m in range(15):
        inside = [i for i, one in enumerate(p) if m / 15 < one <= (m + 1) / 15 or (m == 0 and one == 0)]
        want += abs(right[inside].sum() - p[inside].sum()) / len(p)
    assert calibration_error(torch.from_numpy(p), torch.from_numpy(right)) == pytest.approx(want)


@pytest.fixture
def run(fmeco: Fmeco) -> dict[str, Any]:
    """A run on loans, with a rare region."""
    loans(defect="".join(f"0.{i},east,1,2024-01-01,{('no', 'yes')[i % 2]}\n" for i in range(10, 27)))
    config_ = {
        "dataset": {"name": "csv_table", "path": "loans.csv", "test_fraction": 0.4, "drop": ["customer", "day"]},
        "backbone": {"name": "mlp", "hidden": [16]},
        "evaluate": {"best": "average_precision"},
        "train": {"epochs": 4, "batch_size": 32, "tensorboard": False},
    }
    answer = fmeco("pretrain", write("c.yaml", config_), "--out", "run")
    assert answer.code == 0, answer.err
    assert "positive class: yes" in answer.err
    return config_


def test_groups_are_measured_apart(run: dict[str, Any], fmeco: Fmeco) -> None:
    found = fmeco("evaluate", "run", "--by", "region", "--json").json
    rows = {row["group"]: row for row in found["groups"]}
    assert set(rows) == {"north", "south", "east"}
    assert sum(row["samples"] for row in rows.values()) == found["samples"]
    whole = sum(row["samples"] * row["metrics"]["test_accuracy"] for row in rows.values()) / found["samples"]
    assert whole == pytest.approx(found["metrics"]["test_accuracy"])
    low, high = rows["south"]["interval"]
    assert low <= rows["south"]["metrics"]["test_average_precision"] <= high, "the interval is of the run's own metric"
    assert rows["east"]["few"] and rows["east"]["interval"] is None and not rows["south"]["few"]
    text = fmeco("evaluate", "run", "--by", "region").out
    gaps = {gap["name"]: gap for gap in found["gaps"]}
    names = {"demographic parity": "test_answered/yes", "equal opportunity": "test_recall/yes"}
    for name, metric in names.items():
        north, south = (rows[group]["metrics"][metric] for group in ("north", "south"))
        assert gaps[name]["difference"] == pytest.approx(abs(north - south)), "east has too few samples"
        assert gaps[name]["metric"] == metric
    low, high = gaps["average_precision"]["interval"]
    assert low <= gaps["average_precision"]["difference"] <= high
    assert f"gap in demographic parity (test_answered/yes): {gaps['demographic parity']['difference']:.4f}" in text
    assert "few samples" in next(line for line in text.splitlines() if line.startswith("east"))
    recalls = {
        row["group"]: row["metrics"]["test_accuracy"]
        for row in fmeco("evaluate", "run", "--by", "label", "--json").json["groups"]
    }
    assert recalls == pytest.approx({name: found["metrics"][f"test_recall/{name}"] for name in ("yes", "no")})
    answer = fmeco("evaluate", "run", "--by", "regoin")
    assert answer.code == 2
    assert "did you mean 'region'" in answer.err


def test_boosted_trees_learn_from_the_same_rows(run: dict[str, Any], fmeco: Fmeco) -> None:
    found = fmeco("evaluate", "run", "--baseline", "gbdt", "--json").json
    other = found["baseline"]
    data = build(**run["dataset"])
    train, test = data.split("train"), data.split("test")
    assert other["trained_on"] == len(train)

    def matrix(samples: Any) -> Any:
        return np.concatenate([samples.columns.numpy().astype(float), samples.categories.numpy()], axis=1)

    trees = HistGradientBoostingClassifier(categorical_features=[False, False, True], random_state=0)
    p = trees.fit(matrix(train), train.targets["label"].numpy()).predict_proba(matrix(test))[:, 1]
    want = sk.average_precision_score(test.targets["label"].numpy(), p)
    assert other["metrics"]["test_average_precision"] == pytest.approx(want, abs=1e-6)
    value, low, high = other["difference"]
    assert value == pytest.approx(found["metrics"]["test_average_precision"] - want, abs=1e-6)
    assert low <= value <= high
    answer = fmeco("evaluate", "run", "--baseline", "gdbt")
    assert answer.code == 2 and "objective classification has gbdt (did you mean 'gbdt'?)" in answer.err
    number = {**run, "dataset": {**run["dataset"], "target": "amount", "features": ["region"], "drop": ["label"]}}
    number["dataset"]["path"] = str(
        write("n.csv", "amount,region,label\n" + "\n".join(f"{i}.5,{'ab'[i % 2]},x" for i in range(60)))
    )
    del number["evaluate"]
    assert fmeco("pretrain", write("n.yaml", number), "--out", "number").code == 0
    assert "test_rmse" in fmeco("evaluate", "number", "--baseline", "gbdt", "--json").json["baseline"]["metrics"]
    photos(Path("p"), each=6)
    image = {
        "dataset": {"name": "image_folder", "path": "p", "image_size": 8},
        "backbone": "mlp",
        "train": {"epochs": 1},
    }
    assert fmeco("pretrain", write("i.yaml", image), "--out", "image").code == 0
    answer = fmeco("evaluate", "image", "--baseline", "gbdt")
    assert answer.code == 2
    assert "is for tables" in answer.err
    groups = fmeco("evaluate", "image", "--by", "label", "--json").json["groups"]
    assert {row["group"] for row in groups} == {"blue", "green", "red"}


def test_numbers_that_are_codes_are_categories(fmeco: Fmeco) -> None:
    rows = [f"{i % 3},{i * 0.37 % 1:.2f},{'yn'[i % 3 == 1]}" for i in range(90)]
    write("codes.csv", "code,x,label\n" + "\n".join(rows))
    told = {"name": "csv_table", "path": "codes.csv", "categorical": ["code"]}
    data = build(**told)
    assert [one["name"] for one in data.spec.preprocessing["numeric"]] == ["x"]
    assert data.spec.preprocessing["categorical"] == [{"name": "code", "categories": ["0", "1", "2"]}]
    with pytest.raises(ConfigError, match="categorical: label: not among the features"):
        build(**{**told, "categorical": ["label"]})
    with pytest.raises(ConfigError, match="trained with this column as a number"):
        build(build(name="csv_table", path="codes.csv").spec, **told)
