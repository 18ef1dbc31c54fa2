"""The main job as a user does it."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import fmeco as api
from fmeco.checkpoints import format as checkpoint
from fmeco.cli import demo
from fmeco.core import Backbone, Data, DataSpec, Features, Inputs, InputSpec, Samples, Target
from fmeco.errors import CheckpointError, ConfigError
from tests.conftest import COLOURS, Answer, photos, picture, process, tiny, write

Fmeco = Callable[..., Answer]


def test_pretrain_finetune_evaluate_predict_embed(fmeco: Fmeco) -> None:
    """A folder of images, no YAML for finetuning, and every command after it."""
    photos(Path("first"), ("blue", "green", "red"))
    photos(Path("second"), ("red", "white"))
    config = {
        "dataset": {"name": "image_folder", "path": "first", "image_size": 16},
        "backbone": {"name": "mlp", "hidden": [32]},
        "train": {"epochs": 5, "batch_size": 8},
    }
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "one", "--json")
    assert answer.code == 0, answer.err
    assert set(answer.json) == {"run", "checkpoint", "metrics", "directions", "seconds"}
    assert answer.json["run"] == str(Path("one").resolve())
    assert answer.json["metrics"]["val_accuracy"] == 1.0
    for name in ("config.yaml", "metrics.jsonl", "run.log", "tensorboard", "report.html", "checkpoints/best/README.md"):
        assert Path("one", name).exists()

    answer = fmeco("finetune", "--from", "one", "--dataset", "second", "--out", "two")
    assert answer.code == 0, answer.err
    assert "100.0% of the backbone's parameters" in answer.err
    assert "head rows copied for the classes: red" in answer.err
    assert "val_accuracy" in answer.out
    source = checkpoint.open_checkpoint(Path("one/checkpoints/best").resolve())
    tuned = checkpoint.open_checkpoint(Path("two/checkpoints/best").resolve())
    assert tuned.manifest["parents"] == [source.id]
    assert tuned.spec.preprocessing == source.spec.preprocessing
    assert tuned.spec.targets["label"].classes == ("red", "white")

    # A folder with other class folders in another order: names decide, not positions.
    photos(Path("third"), ("white", "red"), 5)
    answer = fmeco("evaluate", "two", "--dataset", "third", "--json")
    assert answer.json["samples"] == 10
    assert answer.json["metrics"]["test_accuracy"] == 1.0
    one_class = photos(Path("fourth"), ("white",), 4)
    answer = fmeco("evaluate", "two", "--dataset", one_class)
    assert answer.code == 0, answer.err
    assert "no samples of red" in answer.err

    Path("third/broken.png").write_bytes(b"")
    answer = fmeco("predict", "two", "third", picture(Path("odd name.jpg"), COLOURS["red"]))
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    assert answer.code == 0
    assert list(rows[0]) == ["input", "prediction", "probability", "error"]
    assert "1 of 12 inputs could not be read" in answer.err
    for row in rows:
        if "broken" in row["input"]:
            assert "the file is empty" in row["error"]
        else:
            assert row["prediction"] == ("white" if "white" in row["input"] else "red")
            assert 0.5 < float(row["probability"]) <= 1
    fmeco("predict", "two", "third", "--output", "p.jsonl")
    assert fmeco("predict", "two", "third", "--output", "p.jsonl").code == 2, "never over a file that is there"
    assert fmeco("predict", "two", "third", "--output", "p.jsonl", "--force").code == 0
    assert len(Path("p.jsonl").read_text().splitlines()) == 11

    import polars

    listed = subprocess.run(
        [
            sys.executable,
            "-m",
            "fmeco",
            "predict",
            "two",
            "-",
            "--top",
            "3",
            "--probabilities",
            "--output",
            "p.parquet",
        ],
        input="third/white/00.png\nthird/red/00.png\n",
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 0, listed.stderr
    found = polars.read_parquet("p.parquet").to_dicts()
    assert [row["class_1"] for row in found] == ["white", "red"] and "class_3" not in found[0]
    for row in found:
        assert row["probability_1"] == row[f"probability/{row['class_1']}"] == row["probability"]
        assert row["probability/red"] + row["probability/white"] == pytest.approx(1, abs=1e-6)

    answer = fmeco("embed", "two", "--dataset", "first", "--output", "e.npz")
    assert answer.code == 0, answer.err
    with np.load("e.npz") as arrays:
        assert arrays["features"].shape == (36, 32)
        assert list(arrays["label_classes"]) == ["blue", "green", "red"]
        assert arrays["names"][0] == "blue/00.png"
    info = fmeco("info", "two", "--json").json
    assert info["parents"] == source.id
    assert info["verified"] >= 3


def test_training_and_prediction_see_the_same_pixels(fmeco: Fmeco) -> None:
    """One file, evaluated in training and predicted afterwards, gives one answer, to the bit."""
    photos(Path("p"), each=8)
    picture(Path("p/red/tall.jpg"), COLOURS["red"], size=(50, 90))
    config = tiny(augment="none")
    config["dataset"] = {"name": "image_folder", "path": "p", "image_size": 16, "val_fraction": 0.4}
    api.pretrain(config, out="run")
    model = api.load("run")
    from fmeco.data.loader import evaluation_batches
    from fmeco.data.reading import Reading
    from fmeco.features.forward import forward
    from fmeco.inference.data_for import data_for

    val = data_for(model, "run", None, ())[0].split("val")
    files = [f"p/{val.name(i)}" for i in range(len(val))]
    seen = [
        forward(model.objective, batch, "predict", torch.device("cpu"), "fp32")["probability"].max(1).values
        for batch in evaluation_batches(
            Data(model.spec, val=val), val, batch_size=4, reading=Reading(0, 2, None), device=torch.device("cpu")
        )
    ]
    predicted = model.predict(files, batch_size=4)
    assert torch.cat(seen).tolist() == [row["probability"] for row in predicted]
    one_by_one = [model.predict([file])[0]["probability"] for file in files]
    np.testing.assert_allclose(one_by_one, torch.cat(seen), rtol=1e-5)


def test_several_tasks_end_in_one_table(fmeco: Fmeco) -> None:
    api.pretrain(tiny(), out="source")
    for name, classes in (("easy", [0, 1]), ("hard", [3, 5, 8])):
        write(
            f"{name}.yaml",
            {"dataset": {"name": "digits", "classes": classes, "limit_per_class": 10}, "train": {"epochs": 1}},
        )
    answer = fmeco("finetune", "easy.yaml", "hard.yaml", "--from", "source", "--out", "many")
    assert answer.code == 0, answer.err
    header, *rows = answer.out.splitlines()
    assert header.split()[:2] == ["task", "val_accuracy"]
    assert [row.split()[0] for row in rows] == ["easy", "hard"]
    assert Path("many/easy/checkpoints/best").exists()
    answer = fmeco("finetune", "easy.yaml", "hard.yaml", "--from", "source", "--out", "more", "--json")
    assert [task["task"] for task in answer.json["tasks"]] == ["easy", "hard"]
    for wrong in (["--dataset", "digits"], ["--dataset", "digits", "--dataset", "wine"]):
        assert fmeco("finetune", "easy.yaml", "hard.yaml", "--from", "source", *wrong).code == 2
    answer = fmeco("evaluate", "many")
    assert answer.code == 4
    assert "many/easy" in answer.err
    write("typo.yaml", {"dataset": "digits", "train": {"epoch": 1}})
    answer = fmeco("finetune", "easy.yaml", "typo.yaml", "--from", "source", "--out", "none")
    assert answer.code == 2
    assert not Path("none").exists(), "every config is checked before the first task trains"


def test_tables_with_missing_values_and_unknown_categories(fmeco: Fmeco) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (round(x, 3), "xyz"[i % 3], "" if i % 9 == 0 else round(-x, 3), "yes" if x > 0 else "no")
        for i, x in enumerate(rng.standard_normal(150))
    ]
    table = write("t.csv", "a,b,c,answer\n" + "\n".join(",".join(map(str, row)) for row in rows))
    config = {
        "dataset": {"name": "csv_table", "path": str(table), "target": "answer"},
        "backbone": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": 20, "batch_size": 16},
    }
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "run", "--json")
    assert answer.json["metrics"]["val_accuracy"] > 0.9
    write("new.csv", "b,a,c\nx,2.0,\nunheard,-2.0,2\n")
    answer = fmeco("predict", "run", "new.csv", "--json")
    assert [row["prediction"] for row in answer.json["predictions"]] == ["yes", "no"]
    assert [row["input"] for row in answer.json["predictions"]] == ["new.csv:2", "new.csv:3"]
    answer = fmeco("predict", "run", write("less.csv", "a,b\n1,x\n"))
    assert answer.code == 3
    assert "needs the column c" in answer.err
    answer = fmeco("evaluate", "run", "--dataset", table, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["samples"] == 150, "a table given by name is used whole"
    # Another question about the same columns.
    write("t2.csv", "a,b,c,amount\n" + "\n".join(f"{a},{b},{c},{a * 3 + 1.5}" for a, b, c, _ in rows))
    answer = fmeco(
        "finetune",
        "--from",
        "run",
        "--dataset",
        "t2.csv",
        "--set",
        "dataset.target=amount",
        "--set",
        "train.epochs=40",
        "--set",
        "train.batch_size=8",
        "--json",
    )
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["val_r2"] > 0.8


def test_multilabel_and_numbers_from_a_csv_of_images(fmeco: Fmeco) -> None:
    photos(Path("p"), ("blue", "red", "white"), 10)
    many = [
        f"{c}/{i:02}.png,{labels}"
        for c, labels in (("blue", "cold"), ("red", "warm"), ("white", "warm|cold"))
        for i in range(10)
    ]
    write("p/many.csv", "path,label\n" + "\n".join(many))
    config = {
        "dataset": {"name": "csv_images", "path": "p/many.csv", "task": "multilabel", "image_size": 8},
        "backbone": {"name": "mlp", "hidden": [32]},
        "train": {"epochs": 20, "batch_size": 8},
    }
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "many", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["val_mean_ap"] > 0.9
    rows = fmeco("predict", "many", "p/white/00.png", "p/red/00.png", "--json").json["predictions"]
    assert [row["prediction"] for row in rows] == ["cold|warm", "warm"]
    number = [
        f"{c}/{i:02}.png,{value + 0.5}" for c, value in (("blue", 10), ("red", 20), ("white", 30)) for i in range(10)
    ]
    write("p/number.csv", "path,label\n" + "\n".join(number))
    answer = fmeco(
        "finetune",
        "--from",
        "many",
        "--dataset",
        "p/number.csv",
        "--set",
        "train.epochs=30",
        "--set",
        "optimizer.lr=5e-3",
        "--out",
        "number",
        "--json",
    )
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["val_r2"] > 0.8
    assert abs(fmeco("predict", "number", "p/white/00.png", "--json").json["predictions"][0]["prediction"] - 30.5) < 4


def test_several_targets_are_learned_at_once(fmeco: Fmeco) -> None:
    photos(Path("p"), ("blue", "red", "white"), 12)
    values = {"blue": ("cold", 10.5), "red": ("warm", 20.5), "white": ("warm", 30.5)}
    rows = [
        f"{c}/{i:02}.png,{'' if i % 4 == 3 else values[c][0]},{'' if i % 4 == 2 else values[c][1]}"
        for c in values
        for i in range(12)
    ]
    write("p/table.csv", "path,feel,size\n" + "\n".join(rows))
    columns = {"name": "csv_images", "path": "p/table.csv", "image_size": 8, "label_column": ["feel", "size"]}
    config = {
        "dataset": columns,
        "backbone": {"name": "mlp", "hidden": [32]},
        "objective": {
            "name": "multi_task",
            "tasks": {"feel": "classification", "size": {"name": "regression", "loss": "mae"}},
        },
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"epochs": 30, "batch_size": 8},
    }
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "both", "--json")
    assert answer.code == 0, answer.err
    metrics = answer.json["metrics"]
    assert metrics["val_feel_accuracy"] > 0.9
    assert metrics["val_size_r2"] > 0.8
    assert metrics["val_score"] == pytest.approx((metrics["val_feel_accuracy"] + metrics["val_size_r2"]) / 2)
    assert fmeco("evaluate", "both", "--split", "val", "--json").json["metrics"]["val_score"] == metrics["val_score"]
    row = fmeco("predict", "both", "p/red/00.png", "--json").json["predictions"][0]
    assert (row["feel"], row["prediction"].startswith("feel=warm, size=")) == ("warm", True)
    assert row["feel_probability"] > 0.5
    assert abs(row["size"] - 20.5) < 5
    shown = fmeco("predict", "both", "p/red/00.png")
    assert shown.out.splitlines()[0] == "input,prediction,probability,feel,feel_probability,size,error"
    # A new task from it, with no config: the default is a head for each target.
    again = {"dataset": columns, "train": {"steps": 8}, "transfer": "probe"}
    tuned = fmeco("finetune", write("f.yaml", again), "--from", "both", "--out", "tuned", "--json")
    assert tuned.code == 0, tuned.err
    alone = {**config, "objective": {"name": "classification", "target": "feel"}}
    refused = fmeco("pretrain", write("alone.yaml", alone), "--out", "alone")
    assert (refused.code, "the target 'feel' has no value in" in refused.err) == (3, True)
    typo = {
        **config,
        "objective": {"name": "multi_task", "tasks": {"feal": "classification", "size": {"name": "regresion"}}},
    }
    refused = fmeco("pretrain", write("typo.yaml", typo), "--out", "typo")
    assert refused.code == 2
    assert "objective.tasks.size.name: unknown name 'regresion' (did you mean 'regression'?)" in refused.err
    typo["objective"]["tasks"]["size"] = {"name": "regression", "los": "mae"}
    refused = fmeco("pretrain", write("typo.yaml", typo), "--out", "typo")
    assert "objective.tasks.size.los: unknown key" in refused.err
    typo["objective"]["tasks"]["size"] = "regression"
    refused = fmeco("pretrain", write("typo.yaml", typo), "--out", "typo")
    assert (refused.code, "no target 'feal'" in refused.err) == (2, True)


def test_gradient_descent_is_sgd_on_the_full_batch() -> None:
    """Loss by loss equal to gradient descent written out by hand."""
    api.pretrain(
        {
            "dataset": {"name": "sklearn/wine", "val_fraction": 0.2},
            "backbone": {"name": "mlp", "hidden": [4], "batch_norm": False},
            "optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.0},
            "schedule": "constant",
            "objective": {"name": "classification", "class_weights": {"class_0": 3.0}},
            "train": {
                "steps": 6,
                "batch_size": "full",
                "micro_batch": 7,
                "log_every": 1,
                "save_every": 1,
                "keep": 9,
                "tensorboard": False,
            },
        },
        out="run",
    )
    logged = [
        json.loads(line)["loss"] for line in Path("run/metrics.jsonl").read_text().splitlines() if '"train"' in line
    ]
    first = checkpoint.open_checkpoint(Path("run/checkpoints/step-00000001"))
    model = api.load("run/checkpoints/step-00000001")
    from fmeco.core import standardize
    from fmeco.inference.data_for import data_for

    train = data_for(model, "run", None, ())[0].split("train")
    x = standardize({"columns": torch.stack([train[i]["columns"] for i in range(len(train))])}, first.spec)["columns"]
    y = train.targets["label"]
    assert isinstance(y, torch.Tensor)
    parameters = list(model.objective.parameters())
    body, head = model.objective.backbone, model.objective.head
    got = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(
            head(body({"columns": x}).vector), y, weight=torch.tensor([3.0, 1.0, 1.0])
        )
        got.append(float(loss.detach()))
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.data -= 0.5 * g
    np.testing.assert_allclose(got, logged[1:], rtol=2e-4)


def test_a_time_budget_is_kept() -> None:
    result = api.pretrain(tiny(train={"budget": "3s", "epochs": None}, evaluate={"every": 50}), out="run")
    assert 2.0 < result.seconds < 4.5
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    assert rates[-1] < 0.2 * max(rates), "the schedule fits the time"


def test_python_api_with_own_objects(fmeco: Fmeco) -> None:
    class Points(Samples):
        in_memory = True

        def __init__(self, n: int, seed: int) -> None:
            self.x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
            self.targets = {"label": (self.x.prod(1) > 0).long()}

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, index: int) -> Inputs:
            return {"point": self.x[index]}

        def name(self, index: int) -> str:
            return str(index)

    class Body(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.width = 16
            self.net = torch.nn.Sequential(
                torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU()
            )

        def forward(self, inputs: Inputs) -> Features:
            return Features(pooled=self.net(inputs["point"]))

    spec = DataSpec("points", {"point": InputSpec((2,))}, {"label": Target("class", ("differ", "agree"))})
    data = Data(spec, Points(300, 0), Points(100, 1))
    run = api.pretrain(
        {"train": {"epochs": 30}, "optimizer": {"name": "adamw", "lr": 0.01}}, data=data, backbone=Body(), out="run"
    )
    assert run.metrics["val_accuracy"] > 0.9
    with pytest.raises(CheckpointError, match="a backbone given in Python"):
        api.load("run")
    model = api.load("run", backbone=Body())
    features, kept, _ = model.features(Points(5, 2))
    assert features.shape == (5, 16)
    assert kept == [0, 1, 2, 3, 4]
    again = api.finetune({"train": {"epochs": 2}}, ref="run", data=data, backbone=Body(), out="again")
    assert again.metrics["val_accuracy"] > 0.9
    with pytest.raises(ConfigError, match="dataset"):
        api.pretrain({"backbone": "mlp"}, out="none")


def test_check_shows_the_plan_and_writes_nothing(fmeco: Fmeco) -> None:
    before = sorted(Path().iterdir())
    path = write("c.yaml", tiny())
    answer = fmeco("check", path)
    assert answer.code == 0, answer.err
    for word in ("data", "target", "group", "steps", "time", "memory", "no problems found"):
        assert word in answer.out
    plan = fmeco("check", path, "--json").json
    assert plan["steps"] == 12
    assert sum(group["parameters"] for group in plan["groups"]) == plan["parameters"]["trained"]
    assert sorted(Path().iterdir()) == sorted([*before, path])


def test_probe_trains_the_head_alone(fmeco: Fmeco) -> None:
    source = api.pretrain(tiny(), out="source")
    tuned = api.finetune(
        {"dataset": {"name": "digits", "classes": [4, 5]}, "transfer": "probe", "train": {"epochs": 2}},
        ref="source",
        out="tuned",
    )
    a, b = (load_file(run.checkpoint / "backbone.safetensors") for run in (source, tuned))
    moved = {name for name in a if not torch.equal(a[name], b[name])}
    assert not moved
    assert tuned.metrics["val_accuracy"] > 0.6


def test_list_describe_and_version_of_help(fmeco: Fmeco) -> None:
    assert "resnet18" in fmeco("list", "backbone").out
    assert "label_smoothing: number >= 0 and < 1, default 0.0" in fmeco("describe", "objective", "classification").out
    assert fmeco("describe", "section", "train", "--json").json["keys"]["epochs"]["default"] is None
    for command in (
        "pretrain",
        "finetune",
        "resume",
        "evaluate",
        "predict",
        "embed",
        "check",
        "info",
        "list",
        "describe",
        "init",
        "schema",
        "demo",
    ):
        assert fmeco(command, "--help").code == 0


def test_the_console_script_and_module_are_one(fmeco: Fmeco) -> None:
    child = process("list", "schedules")
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert out == fmeco("list", "schedules").out
    script = str(Path(sys.executable).parent / "fmeco")
    assert subprocess.run([script, "--help"], capture_output=True).returncode == 0
    wrong = subprocess.run([script, "pretrain", "--json"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert json.loads(wrong.stdout)["error"]["code"] == "config"


def test_the_demo_in_small(fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of the demo: same code, and the same configs with fewer epochs."""
    for name, changes in {"pretrain": {"epochs: 30": "epochs: 10"}, "finetune": {}}.items():
        text = (demo.configs() / "digits" / f"{name}.yaml").read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        write(f"small/digits/{name}.yaml", text)
    monkeypatch.setattr(demo, "configs", lambda: Path("small"))
    answer = fmeco("demo", "--seeds", "2", "--out", "demo")
    assert answer.code == 0, answer.err
    assert "pretrained on 0-4" in answer.out
    gain = re.search(
        r"Transfer gains ([\d.]+) points on average, 95% t-interval of the paired gains (\S+) to (\S+) "
        r"\(each seed: (\S+), (\S+)\)\.",
        answer.out,
    )
    assert gain, answer.out
    mean, low, high, *each = map(float, gain.groups())
    assert mean == pytest.approx(sum(each) / 2, abs=0.11)
    assert (high - low) / 2 == pytest.approx(12.706 * abs(each[0] - each[1]) / 2, abs=1.4)
    assert mean > 0
    assert Image.open("demo/curves.png").size[0] > 500
    config = yaml.safe_load(Path("demo/transfer-0/config.yaml").read_text())
    control = yaml.safe_load(Path("demo/scratch-0/config.yaml").read_text())
    for key in ("backbone", "augment", "objective", "schedule", "train", "evaluate", "seed"):
        assert config[key] == control[key], f"the control differs in {key}"
    assert {**config["dataset"], "image_size": None} == {**control["dataset"], "image_size": None}
    assert {**config["optimizer"], "lr": demo.CONTROL_LR} == control["optimizer"]
    write("mine/notes.txt", "")
    for out in ("mine", "mine/notes.txt"):
        refused = fmeco("demo", "--out", out)
        assert refused.code == 2
        assert "holds files that are not from an earlier demo" in refused.err


def test_tensorboard_reads_the_lines_of_the_log(fmeco: Fmeco) -> None:
    """Also of a resumed run, whose earlier events from that step on are hidden."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = write("c.yaml", tiny(train={"epochs": 2, "log_every": 1, "tensorboard": True}))
    assert fmeco("pretrain", path, "--out", "run").code == 0
    assert fmeco("resume", "run", "--epochs", "+1").code == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    found = event_accumulator.EventAccumulator("run/tensorboard").Reload()
    for kind, name in (("train", "loss"), ("val", "accuracy")):
        wanted = {line["step"]: line[name] for line in lines if line["kind"] == kind}
        read = {event.step: event.value for event in found.Scalars(f"{kind}/{name}")}
        assert read == pytest.approx(wanted)
        assert len(wanted) >= 3


def test_without_a_terminal_a_line_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmeco.training.loop.QUIET_SECONDS", 0.0)
    run = api.pretrain(tiny(train={"epochs": 12, "log_every": 5}), out=tmp_path / "run").run
    told = re.findall(
        r"epoch [\d.]+, step (\d+), (\d+)%: loss \d\.\d+, \d+ samples/s, about \d+ seconds left",
        (run / "run.log").read_text(),
    )
    assert [int(step) for step, _ in told] == sorted(int(step) for step, _ in told) and len(told) > 2
    assert int(told[-1][1]) == 100
