"""Checkpoints of older code predict the same, and its stopped runs end in the same bits. scripts/golden.py made the files."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fmeco as api
from tests.conftest import Answer, script

HERE = Path(__file__).parents[1] / "golden"
FORMATS = {
    "format1": {
        "finished": {"audio", "events", "image", "series", "table", "text"},
        "stopped": {"adamw", "ema", "folders", "l2sp", "lora", "lp_ft", "mask", "multi_task", "muon", "teacher"},
    }
}
EXTRAS = {"audio": "soundfile", "text": "tokenizers", "mask": "tokenizers"}


def entries(kind: str) -> list[Any]:
    found = sorted(HERE.glob(f"*/{kind}/*"))
    return [pytest.param(entry, id=f"{entry.parent.parent.name}-{entry.name}") for entry in found]


def copied(entry: Path) -> None:
    """Lay a copy of an entry into the current folder, which is the test's own."""
    pytest.importorskip(EXTRAS.get(entry.name, "torch"))
    shutil.copytree(entry, Path(), symlinks=True, dirs_exist_ok=True)


def alike(found: Any, wanted: Any) -> bool:
    """Compare two answers: numbers nearly, also those in a text such as 0.5|0.2, and all else exactly."""
    if isinstance(found, str) and isinstance(wanted, str):
        with contextlib.suppress(ValueError):
            found, wanted = ([float(part) for part in text.split("|")] for text in (found, wanted))
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(alike, found, wanted))
    return found == wanted or (isinstance(found, float) and isinstance(wanted, float) and abs(found - wanted) < 1e-5)


@pytest.fixture(scope="module")
def golden() -> Any:
    """The script that made the files: what it looked at then is looked at now."""
    return script("golden")


def test_no_golden_file_is_missing() -> None:
    found = {
        form.name: {kind.name: {entry.name for entry in kind.iterdir()} for kind in form.iterdir()}
        for form in HERE.iterdir()
    }
    assert found == FORMATS


@pytest.mark.parametrize("entry", entries("finished"))
def test_a_checkpoint_of_older_code_predicts_the_same(entry: Path, fmeco: Callable[..., Answer]) -> None:
    copied(entry)
    expected = json.loads(Path("predictions.json").read_text("utf-8"))
    rows = api.load("checkpoint").predict(expected["inputs"])
    assert len(rows) == len(expected["rows"]) > 0
    for row, wanted in zip(rows, expected["rows"], strict=True):
        assert all(alike(row[key], value) for key, value in wanted.items()), (row, wanted)
    answer = fmeco("info", "checkpoint", "--json")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize("entry", entries("stopped"))
def test_a_stopped_run_of_older_code_ends_in_the_same_bits(entry: Path, golden: Any) -> None:
    copied(entry)
    expected, wanted = json.loads(Path("expected.json").read_text("utf-8")), load_file("expected.safetensors")
    data = [path.rename(f"moved{path.suffix}") for path in Path().glob("data*")]
    done = api.resume("run", overrides=[f"dataset.path={path}" for path in data])
    tensors = golden.last_tensors(Path("run"))
    assert set(tensors) == set(wanted)
    assert set(expected["metrics"]) <= set(done.metrics)  # there may be more by now
    if golden.machine() == expected["machine"]:
        assert [name for name in wanted if not torch.equal(tensors[name], wanted[name])] == []
        assert expected["metrics"].items() <= done.metrics.items()
        for line, old in zip(golden.logged(Path("run")), expected["log"], strict=True):
            assert old.items() <= line.items()
    else:  # another processor adds in another order
        close = {name: torch.allclose(tensors[name], wanted[name], rtol=1e-3, atol=1e-4) for name in wanted}
        assert [name for name in wanted if not close[name]] == []
