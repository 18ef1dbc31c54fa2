"""Bad input ends in one clear message and the right exit code: never a traceback, never silence."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import fmeco as api
from fmeco.cli import app as cli
from fmeco.errors import Elsewhere, FmecoError
from tests.conftest import Answer, photos, picture, tiny, write

Fmeco = Callable[..., Answer]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on images and one on a table; never changed, only copied."""
    root = tmp_path_factory.mktemp("trained")
    api.pretrain(tiny(train={"epochs": 1}), out=root / "images")
    table = {
        "dataset": "wine",
        "backbone": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 1, "tensorboard": False},
    }
    api.pretrain(table, out=root / "table")
    return root


def damaged(trained: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(trained / "images", "copy", symlinks=True)
    folder = Path("copy/checkpoints/best").resolve()
    change(folder)
    return Path("copy")


def flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(bytes(body))


def config_with(**dataset: object) -> Path:
    return write(
        "c.yaml",
        tiny(dataset={"name": "digits", **dataset}) if "name" not in dataset else {**tiny(), "dataset": dataset},
    )


def folder_config(path: str | Path, **extra: object) -> Path:
    return write("c.yaml", {**tiny(), "dataset": {"name": "image_folder", "path": str(path), "image_size": 8, **extra}})


def table_config(text: str, **extra: object) -> Path:
    return write(
        "c.yaml",
        {**tiny(), "dataset": {"name": "csv_table", "path": str(write("t.csv", text)), "target": "y", **extra}},
    )


GOOD_ROWS = "\n".join(f"{i},{'ab'[i % 2]},{i % 2}" for i in range(20))


def corrupt_photos() -> Path:
    root = photos(Path("photos"))
    (root / "red" / "05.png").write_bytes((root / "red" / "05.png").read_bytes()[:60])
    return root


def one_class_in_val_only() -> Path:
    photos(Path("p/train"), ("blue", "green"))
    photos(Path("p/val"), ("blue", "green", "red"), 3)
    return Path("p")


# name -> (function (trained) -> arguments, exit code, what the message must hold)
CASES: dict[str, tuple[Callable[[Path], list[object]], int, list[str]]] = {
    "no config": (lambda t: ["pretrain", "nowhere.yaml"], 2, ["nowhere.yaml", "no such config"]),
    "typo in a key": (
        lambda t: ["pretrain", config_with(clases=[1, 2])],
        2,
        ["c.yaml:", "dataset.clases", "did you mean 'classes'"],
    ),
    "unknown option": (lambda t: ["pretrain", "--otu", "x"], 2, ["--otu"]),
    "unknown command": (lambda t: ["pretrian"], 2, ["pretrian"]),
    "unknown kind": (lambda t: ["list", "backbonez"], 2, ["backbonez", "did you mean 'backbone"]),
    "class that is not there": (lambda t: ["pretrain", config_with(classes=[0, 77])], 2, ["77", "classes in the data"]),
    "missing folder": (lambda t: ["pretrain", folder_config("nowhere")], 3, ["nowhere", "no such folder"]),
    "empty folder": (
        lambda t: [Path("empty").mkdir(), "pretrain", folder_config("empty")][1:],
        3,
        ["empty", "no images"],
    ),
    "images without class folders": (
        lambda t: [picture(Path("loose/1.png"), (1, 2, 3)), "pretrain", folder_config("loose")][1:],
        3,
        ["loose", "no class folders"],
    ),
    "one class": (lambda t: ["pretrain", folder_config(photos(Path("one"), ("red",)))], 3, ["only one class", "red"]),
    "empty class folder": (
        lambda t: [(photos(Path("p")) / "violet").mkdir(), "pretrain", folder_config("p")][1:],
        3,
        ["violet", "no images"],
    ),
    "class in val alone": (lambda t: ["pretrain", folder_config(one_class_in_val_only())], 3, ["red", "training"]),
    "corrupt image": (
        lambda t: ["pretrain", folder_config(corrupt_photos())],
        3,
        ["05.png", "cannot read", "on_bad_sample=skip"],
    ),
    "corrupt image, found by check": (
        lambda t: ["check", folder_config(corrupt_photos())],
        3,
        ["1 samples cannot be read", "05.png"],
    ),
    "NaN in a target": (
        lambda t: ["pretrain", table_config(f"x,c,y\n{GOOD_ROWS}\n5,a,nan")],
        3,
        ["no target value", "t.csv:22"],
    ),
    "text in a number target": (
        lambda t: ["pretrain", table_config(f"x,c,y\n{GOOD_ROWS}\n5,a,much", task="number")],
        3,
        ["row 22", "'much' is not a number"],
    ),
    "missing column": (lambda t: ["pretrain", table_config(f"x,c,z\n{GOOD_ROWS}")], 2, ["no column 'y'", "x, c, z"]),
    "ragged table": (lambda t: ["pretrain", table_config(f"x,c,y\n{GOOD_ROWS}\n1,2")], 3, ["row 22", "2 values", "3"]),
    "empty table": (lambda t: ["pretrain", table_config("")], 3, ["t.csv", "empty"]),
    "binary table": (
        lambda t: [Path("t.csv").write_bytes(b"\xff\xfe\x00"), "finetune", "--from", t / "table", "--dataset", "t.csv"][
            1:
        ],
        3,
        ["t.csv", "not UTF-8"],
    ),
    "images for a table backbone": (
        lambda t: ["pretrain", write("c.yaml", {**tiny(), "dataset": "wine", "backbone": "resnet18"})],
        2,
        ["resnet18", "takes images or spectrograms, one per sample"],
    ),
    "wrong objective": (
        lambda t: ["pretrain", write("c.yaml", {**tiny(), "objective": "regression"})],
        2,
        ["regression", "kind class"],
    ),
    "unknown metric": (
        lambda t: ["pretrain", write("c.yaml", {**tiny(), "evaluate": {"best": "acuracy"}})],
        2,
        ["acuracy", "did you mean 'accuracy'"],
    ),
    "no REF": (lambda t: ["finetune", "--dataset", "digits"], 2, ["--from REF"]),
    "REF that is not there": (
        lambda t: ["finetune", "--from", "runs/none", "--dataset", "digits"],
        2,
        ["runs/none", "no such run"],
    ),
    "dataset that is not there": (
        lambda t: ["finetune", "--from", t / "images", "--dataset", "digitz"],
        2,
        ["digitz", "did you mean 'digits'"],
    ),
    "not a checkpoint": (lambda t: [Path("d").mkdir(), "info", "d"][1:], 4, ["neither a run nor a checkpoint"]),
    "foreign file without backbone": (
        lambda t: [torch.save({}, "w.pth"), "finetune", "--from", "w.pth", "--dataset", "digits"][1:],
        2,
        ["backbone: NAME"],
    ),
    "one byte of the weights changed": (
        lambda t: ["info", damaged(t, lambda f: flip(f / "backbone.safetensors", -5))],
        4,
        ["backbone.safetensors", "manifest"],
    ),
    "one byte of meta.json changed": (
        lambda t: ["predict", damaged(t, lambda f: flip(f / "meta.json", 40)), picture(Path("x.png"), (1, 2, 3))],
        4,
        ["meta.json", "manifest"],
    ),
    "a file of the checkpoint missing": (
        lambda t: ["evaluate", damaged(t, lambda f: (f / "objective.safetensors").unlink())],
        4,
        ["objective.safetensors", "missing"],
    ),
    "newer format": (
        lambda t: [
            "info",
            damaged(
                t,
                lambda f: (f / "manifest.json").write_text(
                    (f / "manifest.json").read_text().replace('"format": 1', '"format": 99')
                ),
            ),
        ],
        4,
        ["format 99", "newer fmeco"],
    ),
    "checkpoint of another modality": (
        lambda t: ["finetune", "--from", t / "table", "--dataset", "digits"],
        4,
        ["table data", "image data"],
    ),
    "classes that the checkpoint does not know": (
        lambda t: ["evaluate", t / "images", "--dataset", "digits"],
        3,
        ["no class 3", "0, 1, 2"],
    ),
    "input that is not there": (lambda t: ["predict", t / "images", "no.png"], 3, ["no.png"]),
    "inputs of which none can be read": (
        lambda t: [Path("x.png").write_text("<html>"), "predict", t / "images", "x.png"][1:],
        3,
        ["x.png", "web page"],
    ),
    "output name": (
        lambda t: ["predict", t / "images", "c.yaml", "--output", "x.xls"],
        2,
        [".csv, .jsonl or .parquet"],
    ),
    "output not empty": (
        lambda t: [Path("full/x").mkdir(parents=True), "pretrain", config_with(), "--out", "full"][1:],
        2,
        ["not empty", "--force"],
    ),
    "output is a file": (
        lambda t: [Path("f").write_text(""), "pretrain", config_with(), "--out", "f"][1:],
        2,
        ["f is a file"],
    ),
    "resume what is no run": (lambda t: [Path("d").mkdir(), "resume", "d"][1:], 2, ["not a run"]),
    "resume with another learning rate": (
        lambda t: ["resume", t / "images", "--set", "optimizer.lr=1"],
        2,
        ["must keep this value", "optimizer.lr"],
    ),
    "epochs that are no number": (lambda t: ["resume", t / "images", "--epochs", "few"], 2, ["few"]),
    "fold": (lambda t: ["pretrain", config_with(split={"fold": 6, "of": 5})], 2, ["fold"]),
    "plug-in file": (lambda t: ["pretrain", config_with(), "--plugin", "no.py"], 2, ["no.py", "no such file"]),
    "diverged": (
        lambda t: ["pretrain", write("c.yaml", tiny(optimizer={"name": "sgd", "lr": 1e30}, schedule="constant"))],
        5,
        ["not taken", "optimizer.lr"],
    ),
    "a batch of one": (
        lambda t: ["pretrain", write("c.yaml", {**tiny(), "train": {"batch_size": 1, "epochs": 1}})],
        2,
        ["batch of one sample", "train.batch_size"],
    ),
    "a model beyond memory": (
        lambda t: ["pretrain", write("c.yaml", {**tiny(), "backbone": {"name": "mlp", "hidden": [1000000000]}})],
        6,
        ["out of memory"],
    ),
    "a metric that cannot be measured": (
        lambda t: ["pretrain", write("c.yaml", {**tiny(), "evaluate": {"best": "top5"}})],
        2,
        ["top5 cannot be measured", "accuracy"],
    ),
    "check finds an unknown metric": (
        lambda t: ["check", write("c.yaml", {**tiny(), "evaluate": {"best": "foo"}})],
        2,
        ["no metric foo"],
    ),
    "epochs without end": (lambda t: ["resume", t / "images", "--epochs", "inf"], 2, ["finite"]),
    "budget without end": (
        lambda t: ["pretrain", config_with(), "--set", "train.budget=0s", "--set", "train.epochs=null"],
        2,
        ["budget"],
    ),
    "early stop of nothing": (
        lambda t: ["pretrain", write("c.yaml", {**tiny(), "train": {"early_stop": 0}})],
        2,
        ["early_stop"],
    ),
    "unpublished weights": (
        lambda t: ["finetune", "--from", "torchvision/resnet18@NOPE", "--dataset", "digits"],
        2,
        ["NOPE", "IMAGENET1K_V1"],
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_bad_input(case: str, trained: Path, fmeco: Fmeco) -> None:
    make, code, parts = CASES[case]
    answer = fmeco(*make(trained))
    assert answer.code == code, answer.err
    assert "Traceback" not in answer.err
    assert re.search(r"(?i)error", answer.err)
    for part in parts:
        assert part in answer.err, answer.err


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 45


def test_with_json_a_failure_is_one_object(fmeco: Fmeco) -> None:
    answer = fmeco("pretrain", write("c.yaml", tiny(train={"epoch": 1})), "--json")
    assert answer.code == 2
    error = json.loads(answer.out)["error"]
    assert error["code"] == "config"
    assert "did you mean 'epochs'" in error["message"]


def test_a_bug_is_said_to_be_one(fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmeco.config.json_schema.json_schema", lambda: 1 / 0)
    answer = fmeco("schema")
    assert answer.code == 1
    assert "a bug in fmeco: ZeroDivisionError" in answer.err


def test_exit_codes_are_distinct_and_documented() -> None:
    codes = {kind.exit_code: kind.code for kind in FmecoError.__subclasses__() if kind is not Elsewhere}
    assert sorted(codes) == [2, 3, 4, 5, 6, 7, 75]
    root = Path(cli.__file__).parents[2]
    page = (root / "docs/commands.md").read_text()
    table = page.split("## Exit codes\n")[1].split("\n## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \| \S", table, flags=re.MULTILINE)] == [
        0,
        1,
        *sorted(codes),
        130,
    ]
    assert "(docs/commands.md#exit-codes)" in (root / "README.md").read_text()


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").exists(), reason="needs a folder that cannot be written")
def test_unwritable_output(fmeco: Fmeco) -> None:
    answer = fmeco("pretrain", config_with(), "--out", "/proc/fmeco-run")
    assert answer.code == 7, answer.err
    assert "cannot write" in answer.err


def test_names_from_files_cannot_command_the_terminal(fmeco: Fmeco) -> None:
    evil = "\x1b[31mred\x1b]0;owned\x07"
    for name in (evil, "calm"):
        for i in range(6):
            picture(Path("p") / name / f"{i}.png", (9, 9, 9), i)
    answer = fmeco("pretrain", folder_config("p"), "--out", "run")
    assert answer.code == 0, answer.err
    shown = answer.out + answer.err + fmeco("info", "run").out + Path("run/checkpoints/best/README.md").read_text()
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_skipped_samples_are_counted_and_listed(fmeco: Fmeco) -> None:
    root = corrupt_photos()
    answer = fmeco("pretrain", folder_config(root), "--out", "run", "--set", "train.on_bad_sample=skip")
    assert answer.code == 0, answer.err
    assert "skipped 1 samples" in answer.err
    listed = Path("run/bad_samples.txt").read_text()
    assert "05.png" in listed
    assert yaml.safe_load(Path("run/config.yaml").read_text())["train"]["on_bad_sample"] == "skip"
