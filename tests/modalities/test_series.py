"""Series: windows that never see the future, forecasts in the table's own units, and the plain forecasts beside them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmeco.cli.tables import comparison_table
from fmeco.core import Batch, Data, DataSpec, InputSpec, Target
from fmeco.datasets import _gaps, _latest, _series
from fmeco.datasets._numbers import Rules
from fmeco.errors import ConfigError, DataError
from fmeco.evaluation.measure import measure
from fmeco.evaluation.verdict import better, verdict
from fmeco.inference import model as use
from fmeco.nn.intervals import bootstrap
from fmeco.nn.layers import by_instance
from fmeco.objectives.forecast import pinball
from tests.conftest import Answer, write
from tests.data.test_data import build
from tests.objectives.test_losses import objective
from tests.plugins.test_contract import backbone

Fmeco = Callable[..., Answer]


def hours(path: str = "hours.csv", rows: int = 400, columns: str = "ab", noise: float = 0.1, first: int = 0) -> Path:
    """A day of 24 hours in each column, at another height; hours from 2024-01-01 on."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(first, first + rows):
        values = [
            10 * c + (c + 1) * math.sin(math.tau * (i + 5 * c) / 24) + noise * rng.normal() for c in range(len(columns))
        ]
        lines.append(
            f"2024-{1 + i // 720:02}-{1 + i // 24 % 30:02} {i % 24:02}:00:00," + ",".join(f"{v:.6f}" for v in values)
        )
    return write(path, ",".join(["time", *columns]) + "\n" + "\n".join(lines) + "\n")


def series(**keys: Any) -> Data:
    return build(**{"name": "series", "path": "hours.csv", "context": 48, "horizon": 12, "season": 24, **keys})


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "series", "path": "hours.csv", "context": 48, "horizon": 12, "season": 24},
        "backbone": {"name": "transformer", "width": 16, "depth": 1, "heads": 2, "dropout": 0.0, "patch": 12},
        "objective": "forecast",
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"steps": 40, "batch_size": 64, "tensorboard": False},
        "evaluate": {"every": 5},
        **changes,
    }


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_windows_are_those_of_the_table_and_no_target_is_before_its_cut() -> None:
    hours()
    data = series()
    raw = np.loadtxt("hours.csv", delimiter=",", skiprows=1, usecols=(1, 2))
    train = raw[:240]  # 60% of the time
    scaled = (raw - train.mean(0)) / train.std(0)
    for name, first, last in (("train", 0, 240), ("val", 240, 320), ("test", 320, 400)):
        part = data.split(name)
        begins = range(0 if name == "train" else first - 48, last - 48 - 12 + 1)
        assert len(part) == 2 * len(begins) == data.spec.sizes[name]
        for n, begin in enumerate(begins):  # in order of time, all series of a time side by side
            for c in range(2):
                known, future = scaled[begin : begin + 48, c], scaled[begin + 48 : begin + 60, c]
                assert np.allclose(part[2 * n + c]["series"], known, atol=1e-5)
                assert np.allclose(part.targets["future"][2 * n + c], future, atol=1e-5)
    own = data.split("train")
    assert own.tensors is not None
    assert own.tensors["series"].data_ptr() == own.panel.values.data_ptr(), "windows copy nothing"
    assert own.targets["future"].untyped_storage().nbytes() == 400 * 2 * 4
    naive = [np.abs(train[24:, c] - train[:-24, c]).mean() / train[:, c].std() for c in range(2)]
    assert np.allclose(own.targets["naive"][:2], naive, atol=1e-5)
    assert [own.name(i) for i in range(2)] == ["a after 2024-01-02 23:00:00", "b after 2024-01-02 23:00:00"]
    assert "val from 2024-01-11 00:00:00, test from 2024-01-14 08:00:00" in data.notes[0]
    # What is masked is both known and asked for: a window is then wholly in its split.
    masked = series(horizon=0)
    assert masked.spec.targets == {}
    assert masked.spec.sizes == {"train": 2 * 193, "val": 2 * 33, "test": 2 * 33}
    assert series(stride=5).spec.sizes["test"] == 2 * 14


def test_a_long_table_is_the_wide_one() -> None:
    hours()
    wide = table("hours.csv")
    lines = [f"{name},{row['time']},{row[name]}" for name in "ba" for row in reversed(wide)]
    lines += [f"late,{row['time']},1.5" for row in wide[-40:]] + [f"c,{row['time']},{row['a']}" for row in wide[:90]]
    write("long.csv", "id,time,value\n" + "\n".join(lines))
    long = series(path="long.csv", id="id", value="value")
    one, other = (
        {part.name(i): (part[i]["series"], part.targets["future"][i]) for i in range(len(part))}
        for part in (long.split("test"), series().split("test"))
    )
    assert one.keys() == other.keys()
    for name, parts in one.items():
        assert all(torch.equal(x, y) for x, y in zip(parts, other[name], strict=True))
    notes = " ".join(long.notes)
    assert "left out: late, with fewer than two values in the training period" in notes
    assert "test has no window of c: a window needs 48 steps of context and 12 to forecast" in notes
    assert series(path="long.csv", id="id", value="value", columns=["a"]).spec.sizes == {
        part: n // 2 for part, n in series().spec.sizes.items()
    }


def test_what_is_wrong_with_a_table_is_said_with_its_row() -> None:
    hours(rows=200)
    lines = Path("hours.csv").read_text().splitlines()
    cells = lines[50].split(",")

    def altered(line: str, **keys: Any) -> Data:
        write("bad.csv", "\n".join([*lines[:50], line, *lines[51:]]))
        return series(path="bad.csv", **keys)

    for line, message in (
        (f"{cells[0]},,{cells[2]}", "series 'a', row 51: no value"),
        (f"{cells[0]},{cells[1]},soon", "column 'b', row 51: 'soon' is not a number"),
        (lines[49], "rows 50 and 51 have the same time, 2024-01-03 00:00:00"),
    ):
        with pytest.raises(DataError, match=message):
            altered(line, columns=["a", "b"])
    filled = altered(f"{cells[0]},,{cells[2]}", missing="previous")
    assert filled.split("train").panel.series[0].values[49] == float(lines[49].split(",")[1])
    assert "series 'a': 1 missing values are filled with the ones before" in " ".join(filled.notes)
    gap = str(write("gap.csv", "\n".join(lines[:50] + lines[51:])))
    with pytest.raises(DataError, match=r"gaps in time: 1 .+ the first between 2024-01-03 00:00:00"):
        series(path=gap)
    assert "each row counts as one step" in " ".join(series(path=gap, fill="none").notes)
    write("mixed.csv", "\n".join([lines[0], *reversed(lines[1:])]))
    mixed = series(path="mixed.csv")
    assert "and are sorted" in mixed.notes[0]
    flat = "\n".join(f"{line},{'still' if i == 0 else 7}" for i, line in enumerate(lines))
    told = " ".join(series(path=str(write("flat.csv", flat))).notes)
    assert "no MASE for still: in training each value equals the one a season before" in told
    assert mixed.spec.fingerprint == series().spec.fingerprint, "the order of rows is no matter"
    with pytest.raises(
        DataError, match="no series is long enough for train: a window needs 400 steps of context and 12 to forecast"
    ):
        series(context=400, test_fraction=0.0, val_fraction=0.1)
    with pytest.raises(ConfigError, match="need each other"):
        series(id="a")


def test_losses_and_metrics_equal_their_formulas() -> None:
    spec = DataSpec("series", {"series": InputSpec((48,))}, {"future": Target("series", steps=3)})
    levels = [0.2, 0.5, 0.9]
    body = backbone("transformer", spec, width=16, depth=1, heads=2, patch=12)
    from fmeco.config.check import choose

    choice = choose("objective", {"name": "forecast", "loss": "quantile", "quantiles": levels})
    made = choice.plugin.build({"backbone": body, "spec": spec}, choice.options)
    rng = np.random.default_rng(0)
    forecast, future = np.sort(rng.normal(size=(5, 3, 3)), -1), rng.normal(size=(5, 3))
    naive = np.array([1.0, 2.0, 0.5, math.nan, 1.0])
    rows = made.errors(*map(torch.from_numpy, (forecast, future)), torch.from_numpy(naive))
    got = made.metrics(rows)
    lost = [
        max(level * (y - f), (level - 1) * (y - f))
        for sample, truth in zip(forecast, future, strict=True)
        for step, y in zip(sample, truth, strict=True)
        for f, level in zip(step, levels, strict=True)
    ]
    error = forecast[..., 1] - future
    assert got["pinball"] == pytest.approx(np.mean(lost))
    assert got["mse"] == pytest.approx((error**2).mean())
    assert got["mae"] == pytest.approx(np.abs(error).mean())
    assert got["mase"] == pytest.approx(np.nanmean(np.abs(error).mean(1) / naive)), "a constant series has none"
    assert got["coverage/0.2-0.9"] == pytest.approx(
        ((forecast[..., 0] <= future) & (future <= forecast[..., 2])).mean()
    )
    assert float(pinball(*map(torch.from_numpy, (forecast, future)), levels).mean()) == pytest.approx(np.mean(lost))
    # Each window's level and size are taken off and put back: forecasts move with them.
    torch.nn.init.normal_(made.head.weight)
    x = torch.randn(4, 48)
    one, other = (
        made.eval().forecast(Batch([{"series": y}], {}, torch.arange(4), torch.zeros(1, 4, dtype=torch.int64)))
        for y in (x, 3 * x + 100)
    )
    assert torch.allclose(3 * one + 100, other, atol=1e-2)
    normal, mean, std = by_instance(x)
    assert torch.allclose(normal * std + mean, x, atol=1e-5)
    with pytest.raises(ConfigError, match=r"include 0\.5"):
        objective("forecast", Target("series", steps=3), loss="quantile", quantiles=[0.1, 0.9])


def test_intervals_of_windows_that_overlap_are_wider() -> None:
    alike = torch.randn(20, generator=torch.Generator().manual_seed(0)).repeat_interleave(50)
    spans = [bootstrap(1000, 200, 1, lambda at: float(alike[at].mean()), block) for block in (1, 50, 5000)]
    alone, blocks, all_ = (high - low for low, high in spans)
    assert 4 < blocks / alone < 10, "the square root of the 50 that are alike"
    assert all_ == pytest.approx(0, abs=1e-6)


def test_a_season_is_learned_and_told_in_the_tables_units(fmeco: Fmeco) -> None:
    pytest.importorskip("matplotlib")
    hours()
    quantile = {"name": "forecast", "loss": "quantile"}
    answer = fmeco("pretrain", write("c.yaml", settings(objective=quantile)), "--out", "run", "--json")
    assert answer.code == 0, answer.err
    hours("new.csv", rows=48, noise=0.0, first=480)
    answer = fmeco("predict", "run", "new.csv", "--output", "f.csv", "--plot", "f.png")
    assert answer.code == 0, answer.err
    rows = table("f.csv")
    assert list(rows[0]) == ["input", "series", "time", "prediction", "low", "high", "error"]
    assert [row["series"] for row in rows] == ["a"] * 12 + ["b"] * 12
    assert [rows[0]["time"], rows[11]["time"]] == ["2024-01-23 00:00:00", "2024-01-23 11:00:00"]
    hours("truth.csv", rows=12, noise=0.0, first=528)
    truth = [float(row[name]) for name in "ab" for row in table("truth.csv")]
    off = [
        abs(float(row["prediction"]) - value) / (1 if row["series"] == "a" else 2)
        for row, value in zip(rows, truth, strict=True)
    ]
    assert np.mean(off) < 0.2
    assert all(float(row["low"]) <= float(row["prediction"]) <= float(row["high"]) for row in rows)
    assert Path("f.png").read_bytes().startswith(b"\x89PNG")
    # A series that is too short is an error of its own; unseen ones are forecast where nothing else is there.
    assert fmeco("predict", "run", hours("short.csv", rows=20)).code == 3
    answer = fmeco("predict", "run", hours("other.csv", rows=60, columns="z"))
    assert "the model was not trained on z" in answer.err
    assert answer.out.count("other.csv,z,") == 12
    rest = Path("other.csv").read_text().splitlines()
    write("gap.csv", "\n".join([rest[0], rest[1].split(",")[0] + ",", *rest[2:]]))
    assert fmeco("predict", "run", "gap.csv").code == 0, "what is missing before the newest 48 rows is not needed"
    write("gap.csv", "\n".join([*rest[:-1], rest[-1].split(",")[0] + ","]))
    answer = fmeco("predict", "run", "gap.csv")
    assert answer.code == 3
    assert "series 'z', row 61: no value" in answer.err
    by = fmeco("evaluate", "run", "--by", "series", "--json").json
    assert {row["group"]: row["samples"] for row in by["groups"]} == {"a": 69, "b": 69}
    assert fmeco("evaluate", "run", "--dataset", hours("all.csv", rows=120), "--json").json["samples"] == 2 * 61
    assert fmeco("embed", "run", "--output", "e.npz").code == 0
    assert np.load("e.npz")["features"].shape == (138, 16)
    assert "series (48,)" in fmeco("check", "c.yaml").out
    assert "future: series" in fmeco("info", "run").out


def test_baselines_equal_their_definitions(fmeco: Fmeco) -> None:
    hours(noise=0.5)
    raw = settings(train={"steps": 2, "batch_size": 64, "tensorboard": False}, evaluate={})
    assert fmeco("pretrain", write("c.yaml", raw), "--out", "run").code == 0
    found = measure("run", None, "test", ())
    x, y = found.samples.tensors["series"].double(), found.samples.targets["future"].double()
    told = fmeco("evaluate", "run", "--baseline", "seasonal_naive", "--json").json["baseline"]
    assert told["metrics"]["test_mse"] == pytest.approx(float((x[:, 24:36] - y).square().mean()), rel=1e-5)
    linear = fmeco("evaluate", "run", "--baseline", "dlinear", "--json").json["baseline"]
    data = series()
    own, val = (
        (p.tensors["series"].double(), p.targets["future"].double()) for p in (data.split("train"), data.split("val"))
    )
    scores = []
    for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        m = own[0].mean(1, keepdim=True)
        a = (own[0] - m).T @ (own[0] - m) / len(m) + strength * torch.eye(48, dtype=torch.float64)
        w = torch.linalg.solve(a, (own[0] - m).T @ (own[1] - m) / len(m))
        error = [
            float(((b - b.mean(1, keepdim=True)) @ w + b.mean(1, keepdim=True) - z).square().mean())
            for b, z in (val, (x, y))
        ]
        scores.append(error)
    assert linear["metrics"]["test_mse"] == pytest.approx(min(scores)[1], rel=1e-4)
    assert linear["metrics"]["test_mse"] < told["metrics"]["test_mse"]
    answer = fmeco("evaluate", "run", "--baseline", "gbdt")
    assert answer.code == 2
    assert "objective forecast has seasonal_naive, dlinear" in answer.err
    Path("hours.csv").rename("moved.csv")
    elsewhere = ("evaluate", "run", "--dataset", "moved.csv", "--json", "--baseline")
    assert "baseline" in fmeco(*elsewhere, "seasonal_naive").json, (
        "what learns from nothing does not need the run's data"
    )
    assert "hours.csv" in fmeco(*elsewhere, "dlinear").json["error"]["message"]


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        (["3", "5", "7"], ["9", "11"]),
        (["0.5", "0.75"], ["1", "1.25"]),
        (["2023-11", "2023-12"], ["2024-01", "2024-02"]),
        (["2023-10-01", "2023-11-01", "2023-12-01"], ["2024-01-01", "2024-02-01"]),
        (["2024-02-27", "2024-02-28"], ["2024-02-29", "2024-03-01"]),
        (["2024-01-01T22:00:00", "2024-01-01T23:00:00"], ["2024-01-02T00:00:00", "2024-01-02T01:00:00"]),
    ],
)
def test_the_times_that_follow_are_written_like_those_before(times: list[str], wanted: list[str]) -> None:
    write("t.csv", "time,a\n" + "\n".join(f"{time},{i}" for i, time in enumerate(times)))
    found, _ = _series.read_series("t.csv", _series.Layout("time", None, None, None, "error", None), Rules())
    (regular,), _ = _gaps.regular(found, None, None, "t.csv", named=False)
    assert _latest.following(regular, 2) == wanted


def test_positions_are_counted_from_the_newest_patch() -> None:
    theirs = torch.arange(4.0)[:, None].expand(4, 16)
    for patches, wanted in ((2, [2, 3]), (4, [0, 1, 2, 3]), (6, [0, 0, 0, 1, 2, 3])):
        spec = DataSpec("series", {"series": InputSpec((12 * patches,))})
        made = backbone("transformer", spec, width=16, depth=1, heads=2, patch=12)
        assert made.adapt({"positions": theirs})[0]["positions"][:, 0].tolist() == wanted


def test_masked_pretraining_serves_other_series_and_another_context(fmeco: Fmeco) -> None:
    hours(columns="abc")
    source = settings(objective="mask")
    source["dataset"] |= {"columns": ["a", "b"], "horizon": 0, "season": None}
    answer = fmeco("pretrain", write("mask.yaml", source), "--out", "source", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["val_loss"] < 0.8, "a hidden patch of a season can be told from the others"
    for context in (48, 96, 24):
        raw = settings(train={"steps": 3, "batch_size": 64, "tensorboard": False}, evaluate={})
        del raw["backbone"]
        raw["dataset"] |= {"columns": ["c", "b"], "context": context}
        out = f"moved-{context}"
        answer = fmeco("finetune", write("ft.yaml", raw), "--from", "source", "--out", out, "--json")
        assert answer.code == 0, answer.err
        spec = use.load(out).spec
        c, b = spec.preprocessing["series"]
        assert b["mean"] == use.load("source").spec.preprocessing["series"][1]["mean"]
        assert c["name"] == "c" and 15 < c["mean"] < 25
        assert all(one["naive"] < 0.2 for one in (c, b)), "the season of the new task"
        assert fmeco("evaluate", out, "--json").json["samples"] == 138


def test_a_baseline_forecasts_quantiles_of_its_validation_errors(fmeco: Fmeco) -> None:
    """One number for all quantiles would lose against any interval. The number itself is judged as before."""
    hours(noise=0.5)
    levels = [0.1, 0.5, 0.9]
    raw = settings(train={"steps": 2, "batch_size": 64, "tensorboard": False}, evaluate={})
    raw["objective"] = {"name": "forecast", "loss": "quantile", "quantiles": levels}
    assert fmeco("pretrain", write("c.yaml", raw), "--out", "run").code == 0
    data = series()
    (x, y), (val_x, val_y) = (
        (part.tensors["series"].double().numpy(), part.targets["future"].double().numpy())
        for part in (data.split("test"), data.split("val"))
    )
    spread = np.quantile(val_y - val_x[:, 24:36], levels, axis=0)  # (Q, H)
    quantiles = x[:, 24:36] + spread[:, None]
    losses = [np.maximum(q * (y - z), (q - 1) * (y - z)) for q, z in zip(levels, quantiles, strict=True)]
    told = fmeco("evaluate", "run", "--baseline", "seasonal_naive", "--json").json["baseline"]
    metrics = told["metrics"]
    assert metrics["test_pinball"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics["test_coverage/0.1-0.9"] == pytest.approx(
        ((quantiles[0] <= y) & (y <= quantiles[2])).mean(), rel=1e-5
    )
    assert 0.7 < metrics["test_coverage/0.1-0.9"] < 0.9
    assert metrics["test_mse"] == pytest.approx(((x[:, 24:36] - y) ** 2).mean(), rel=1e-5)
    assert metrics["test_mae"] == pytest.approx(np.abs(x[:, 24:36] - y).mean(), rel=1e-5)
    linear = fmeco("evaluate", "run", "--baseline", "dlinear", "--json").json["baseline"]["metrics"]
    assert linear["test_pinball"] < metrics["test_pinball"] < np.abs(x[:, 24:36] - y).mean() / 2
    assert 0.7 < linear["test_coverage/0.1-0.9"] < 0.9
    # A network of two steps is worse than both, and no sentence says that it is better by less than nothing.
    answer = fmeco("evaluate", "run", "--baseline", "dlinear")
    assert "on test_pinball the model is worse by 0." in answer.out
    assert "better by -" not in answer.out


@pytest.mark.parametrize(
    ("difference", "words", "sentence"),
    [
        (
            [0.1, 0.05, 0.15],
            ("better by 0.1000", "0.0500 to 0.1500"),
            "x helped: mse better by 0.100, 95% interval 0.050 to 0.150",
        ),
        (
            [-0.1, -0.15, -0.05],
            ("worse by 0.1000", "0.0500 to 0.1500"),
            "x hurt: mse worse by 0.100, 95% interval 0.050 to 0.150",
        ),
        (
            [-0.1, -0.2, 0.05],
            ("worse by 0.1000", "-0.0500 to 0.2000"),
            "x: no significant difference on these samples: mse worse by",
        ),
        ([0.0, -0.1, 0.1], ("better by 0.0000", "-0.1000 to 0.1000"), "x: no significant difference on these samples"),
        (
            [-0.0, -0.00001, 0.0],
            ("better by 0.0000", "0.0000 to 0.0000"),
            "x: no significant difference on these samples",
        ),
    ],
)
def test_worse_is_called_worse(difference: list[float], words: tuple[str, str], sentence: str) -> None:
    assert better(difference) == words
    assert verdict({"difference": difference}, "x", "mse").startswith(sentence)
    runs = [{"run": "a", "metrics": {"mse": 1.0}}, {"run": "b", "metrics": {"mse": 2.0}, "difference": difference}]
    shown = comparison_table({"split": "test", "samples": 9, "metric": "mse", "runs": runs})
    assert words[0] in shown and words[1] in shown and "the first is" in shown
