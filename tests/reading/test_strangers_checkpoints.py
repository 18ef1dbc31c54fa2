"""Checkpoints whose JSON files were written by a stranger, with valid hashes and fields of the wrong type."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pty
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fmeco as api
from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import refs, schema
from fmeco.errors import CheckpointError
from fmeco.training.state import State
from tests.conftest import Answer, tiny

Fmeco = Callable[..., Answer]
GOLDEN = Path(__file__).parents[1] / "golden" / "format1" / "finished"
NAMES = ["audio", "events", "image", "series", "table", "text"]
FILES = ("manifest.json", "meta.json", "trainer.json")
NESTED: Any = []
for _ in range(40):
    NESTED = [NESTED]
WRONG: dict[str, Any] = {
    "null": None,
    "true": True,
    "negative": -1,
    "fraction": 0.5,
    "huge": 10**30,
    "text": "\x1b[31mx",
    "long text": "x" * 5000,
    "list": [],
    "list of null": [None],
    "mapping": {},
    "nested": NESTED,
    "nested mapping": {"a": {"b": {"c": None}}},
    "nan": float("nan"),
}
GONE = object()  # in place of a value: the field is removed

Path_ = tuple[str | int, ...]


def places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every field of a JSON value: of lists, the first element alone."""
    if path:
        yield path
    for key, inner in (
        value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    ):
        yield from places(inner, (*path, key))


def changed(value: Any, path: Path_, wrong: Any) -> Any:
    """A copy of a JSON value with another value at a place."""
    copy = json.loads(json.dumps(value))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    if wrong is GONE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = wrong
    return copy


def rewrite(folder: Path, file: str, value: Any) -> None:
    """Write a JSON file of a checkpoint, and the hash of it into the manifest."""
    rewrite_text(folder, file, json.dumps(value))


def rewrite_text(folder: Path, file: str, text: str) -> None:
    body = text.encode()
    (folder / file).write_bytes(body)
    if file != "manifest.json":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][file] = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))


def read(folder: Path, file: str) -> Any:
    return json.loads((folder / file).read_text("utf-8"))


def open_all(folder: Path) -> None:
    saved = checkpoint.open_checkpoint(folder)
    refs.spec_of(saved)
    saved.trainer()


def test_the_schema_of_a_runs_state_has_the_fields_of_the_state() -> None:
    assert list(schema.RunState.model_fields) == [field.name for field in fields(State)]


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_of_fmeco_are_valid(name: str) -> None:
    open_all(GOLDEN / name / "checkpoint")


# Fields of the files that may hold anything, because nothing reads them or a plug-in checks them when it is built.
FREE = re.compile(
    r"config\.(?!(train|evaluate|seed|stage|objective|dataset|backbone)$)|git|threads|best|transplant\.|format$|scaler|vocabulary|mirror"
)


@pytest.mark.situation("a wrong type in a JSON file of a checkpoint", "refused by name")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", FILES)
def test_a_wrong_type_is_named_with_its_field(name: str, file: str) -> None:
    """Each field of each file is replaced by each kind of value: it is still valid, or the error names the field."""
    shutil.copytree(GOLDEN / name / "checkpoint", "copy")
    folder = Path("copy")
    right = read(folder, file)
    refused = tried = 0
    for path in places(right):
        key = ".".join(map(str, path))
        if FREE.search(key) and file == "meta.json":
            continue
        for wrong in (None, 10**30, {"a": [NESTED]}, "\x1b[31mx"):
            tried += 1
            rewrite(folder, file, changed(right, path, wrong))
            try:
                open_all(folder)
            except CheckpointError as error:
                refused += 1
                assert "\x1b" not in error.message
                assert "copy" in error.message, "the file is named"
        rewrite(folder, file, right)
    assert refused > tried * 0.5
    open_all(folder)


@pytest.mark.situation("a number that is not finite in a JSON file of a checkpoint", "refused by name")
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("command", ["info", "predict"])
def test_a_number_that_is_not_finite_is_refused(number: str, command: str, runs: Path, fmeco: Fmeco) -> None:
    Image.new("L", (8, 8), 99).save("a.png")
    run = Path(shutil.copytree(runs / "run", "run", symlinks=True))
    folder = (run / "checkpoints/best").resolve()
    meta = (
        (folder / "meta.json").read_text("utf-8").replace('"interpolation": "bilinear"', f'"interpolation": {number}')
    )
    rewrite_text(folder, "meta.json", meta)
    answer = fmeco(*arguments(command, folder))
    assert answer.code == 4
    assert f"{number} is not a finite number" in answer.err + answer.out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits."""
    root = tmp_path_factory.mktemp("strangers")
    api.pretrain(tiny(train={"epochs": 1}), out=root / "run")
    return root


def arguments(command: str, folder: Path) -> list[object]:
    quick = ["--set", "train.steps=1", "--set", "train.tensorboard=false", "--out", "out", "--force"]
    return {
        "info": ["info", folder, "--json"],
        "predict": ["predict", folder, "a.png"],
        "evaluate": ["evaluate", folder],
        "finetune": ["finetune", "--from", folder, "--dataset", "digits", *quick],
        "resume": ["resume", folder.parent.parent],
    }[command]


@pytest.mark.situation("a hostile JSON file of a checkpoint in a command", "refused by name")
@pytest.mark.parametrize("command", ["info", "predict", "evaluate", "finetune", "resume"])
def test_no_field_of_a_stranger_ends_a_command_in_a_traceback(command: str, runs: Path, fmeco: Fmeco) -> None:
    """A sample of all fields and values, drawn by a fixed seed."""
    Image.new("L", (8, 8), 99).save("a.png")
    original = (runs / "run/checkpoints/best").resolve()
    rng = random.Random(f"strangers {command}")
    cases = [(file, path) for file in FILES for path in places(read(original, file))]
    for number, (file, path) in enumerate(rng.sample(cases, 12)):
        kind = rng.choice([*WRONG, "gone"])
        run = Path(shutil.copytree(runs / "run", f"run-{number}", symlinks=True))
        folder = run / "checkpoints" / original.name
        rewrite(folder, file, changed(read(folder, file), path, GONE if kind == "gone" else WRONG[kind]))
        answer = fmeco(*arguments(command, folder))
        assert answer.code in (0, 2, 3, 4), (file, path, kind, answer.err)
        assert "Traceback" not in answer.err
        assert "\x1b" not in answer.err + answer.out


@pytest.mark.situation("a damaged line in metrics.jsonl", "read rightly")
@pytest.mark.parametrize("line", ['{"kind": "val", "st{"kind": "val"}', "{}", "{[}", "[1]", "\ufffd", "{" * 2000 + "}"])
def test_a_damaged_line_of_the_log_does_not_end_a_run(line: str, runs: Path) -> None:
    shutil.copytree(runs / "run", "run", symlinks=True)
    with open("run/metrics.jsonl", "a") as file:
        file.write(line + "\n")
    trainer = read(Path("run/checkpoints/last"), "trainer.json")
    folder = Path("run/checkpoints/last").resolve()
    rewrite(folder, "trainer.json", {**trainer, "metrics_size": Path("run/metrics.jsonl").stat().st_size})
    assert api.resume("run").metrics


# ---------------------------------------------------------------- texts of strangers on a terminal

ESCAPES = {
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "C1": "\x9b31mred",
    "overwrite": "good\r\x08bad",
    "BiDi": "a\u202egnp.exe",
}
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmeco.cli.options.on_terminal", lambda: True)


def infected(runs: Path, text: str) -> Path:
    """A copy of the run whose classes, licence, needs and versions hold a text."""
    run = Path(shutil.copytree(runs / "run", "run", symlinks=True))
    folder = (run / "checkpoints/best").resolve()
    body = (folder / "meta.json").read_text("utf-8")
    meta = json.loads(body)
    for target in meta["spec"]["targets"].values():
        target["classes"] = [f"{text}{name}" for name in target["classes"]]
    meta["class_rows"] = {name: [f"{text}{c}" for c in rows] for name, rows in meta["class_rows"].items()}
    meta |= {"licence": text, "versions": {text: text}, "metrics": {f"val_{text}": 0.5}, "name": text}
    rewrite(folder, "meta.json", meta)
    return run


@pytest.mark.situation("escape sequences in a checkpoint, on a terminal", "read rightly")
@pytest.mark.parametrize("command", ["info", "predict", "evaluate", "finetune"])
@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
@pytest.mark.usefixtures("terminal")
def test_texts_of_a_checkpoint_do_not_reach_the_terminal(text: str, command: str, runs: Path, fmeco: Fmeco) -> None:
    Image.new("L", (8, 8), 99).save("a.png")
    folder = infected(runs, text) / "checkpoints/best"
    for mode in ([], ["--json"]):
        answer = fmeco(*arguments(command, folder.resolve()), *mode)
        assert not RAW.search(answer.out + answer.err), repr(answer.out + answer.err)
    if command == "predict":
        assert answer.json["predictions"][0]["prediction"].startswith(text), "JSON keeps the text, in its own escapes"


@pytest.mark.situation("escape sequences in file names and texts, on a terminal", "read rightly")
@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
@pytest.mark.usefixtures("terminal")
def test_names_of_files_do_not_reach_the_terminal(text: str, runs: Path, fmeco: Fmeco) -> None:
    name = f"{text}.png".replace("/", "")
    Image.new("L", (8, 8), 99).save(name)
    answer = fmeco("predict", runs / "run", name, f"missing {name}")
    assert answer.code == 0
    assert not RAW.search(answer.out.replace("\r\n", "\n") + answer.err), repr(answer.out)
    assert answer.out.count("\n") == 3
    for arguments in (
        ["info", f"no {name}"],
        ["evaluate", runs / "run", "--dataset", f"no {name}"],
        ["predict", runs / "run", f"missing {name}"],
        ["check", f"no {name}"],
        ["resume", f"no {name}"],
        ["list", "datasets", name],
        ["describe", name],
    ):
        answer = fmeco(*arguments)
        assert not RAW.search(answer.out + answer.err), repr(answer.out + answer.err)


@pytest.mark.situation("escape sequences in predictions, in a file or pipe", "read rightly")
def test_files_and_pipes_get_the_exact_text(runs: Path, fmeco: Fmeco) -> None:
    text = ESCAPES["colour"]
    Image.new("L", (8, 8), 99).save("a.png")
    run = infected(runs, text)
    for suffix in ("csv", "jsonl"):
        assert fmeco("predict", run, "a.png", "--output", f"out.{suffix}").code == 0
    piped = fmeco("predict", run, "a.png").out
    rows = [
        json.loads(Path("out.jsonl").read_text()),
        *(next(csv.DictReader(io.StringIO(x, newline=""))) for x in (Path("out.csv").read_text(), piped)),
    ]
    assert all(row["prediction"].startswith(text) for row in rows)


@pytest.mark.situation("escape sequences in a message of info", "refused by name")
def test_a_file_name_in_the_manifest_is_escaped(runs: Path, fmeco: Fmeco) -> None:
    run = Path(shutil.copytree(runs / "run", "run", symlinks=True))
    folder = (run / "checkpoints/best").resolve()
    manifest = read(folder, "manifest.json")
    manifest["files"]["\x1b[31mx"] = manifest["files"]["meta.json"]
    rewrite(folder, "manifest.json", manifest)
    answer = fmeco("info", run)
    assert answer.code == 4
    assert "\\x1b[31mx is missing" in answer.err
    assert not RAW.search(answer.err)


@pytest.mark.situation("half a surrogate pair in a class name", "read rightly")
@pytest.mark.parametrize("command", ["info", "predict", "evaluate"])
def test_half_a_surrogate_pair_can_be_printed(command: str, runs: Path, fmeco: Fmeco) -> None:
    Image.new("L", (8, 8), 99).save("a.png")
    run = infected(runs, "\ud800")
    for more in ([], ["--json"], ["--output", "out.csv"], ["--output", "out.jsonl"]):
        if command == "predict" or "--output" not in more:
            answer = fmeco(*arguments(command, (run / "checkpoints/best").resolve()), *more)
            assert answer.code == (3 if command == "evaluate" else 0), answer.err  # digits has no such class
    if command == "predict":
        assert json.loads(Path("out.jsonl").read_text("utf-8"))["prediction"].startswith("\ud800")


@pytest.mark.situation("escape sequences on a real terminal", "read rightly")
def test_a_real_terminal_gets_no_escape_sequence(runs: Path) -> None:
    run = infected(runs, ESCAPES["colour"])
    Image.new("L", (8, 8), 99).save("a.png")
    controller, terminal = pty.openpty()
    code = subprocess.run(
        [sys.executable, "-m", "fmeco", "predict", run, "a.png"], stdout=terminal, check=False
    ).returncode
    os.close(terminal)
    shown = os.read(controller, 10_000).decode()
    os.close(controller)
    assert code == 0
    assert "\\x1b[31mred" in shown
    assert "\x1b" not in shown


@pytest.mark.situation("escape sequences in logs, cards and reports", "read rightly")
def test_logs_and_cards_are_escaped(runs: Path) -> None:
    infected(runs, ESCAPES["colour"])
    task = {"dataset": tiny()["dataset"], "train": {**tiny()["train"], "epochs": 1}}
    done = api.finetune(task, ref="run", out="tuned")
    for file in ("run.log", "report.html", "transplant.json", "metrics.jsonl"):
        assert not RAW.search((done.run / file).read_text("utf-8")), file
    assert not RAW.search((done.checkpoint / "README.md").read_text("utf-8"))
