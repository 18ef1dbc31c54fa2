"""Checkpoints whose JSON files were written by a stranger, with valid hashes and fields of the wrong type."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
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
    body = json.dumps(value).encode()
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits."""
    root = tmp_path_factory.mktemp("strangers")
    api.pretrain(tiny(train={"epochs": 1}), out=root / "run")
    return root


def arguments(command: str, folder: Path) -> list[object]:
    quick = ["--set", "train.steps=1", "--set", "train.tensorboard=false", "--out", "out", "--force"]
    return {
        "info": ["info", folder],
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
    for number, (file, path) in enumerate(rng.sample(cases, 30)):
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
