"""report.html: its figures are the libraries', it shows what is wrong, needs no network, and obeys no file's name."""

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

import fmeco as fmeco_library
from fmeco.core import DataError, Part
from fmeco.nn.class_report import class_report
from fmeco.nn.intervals import holm, wilson
from fmeco.objectives.classification import Classification
from fmeco.reports import svg
from tests.conftest import picture, tiny, write


def test_the_report_of_a_finetune_and_its_test_figure(fmeco: Callable[..., Any]) -> None:
    for seed, (part, name) in enumerate(itertools.product(("train", "test"), ("<b>blue", "green"))):
        for at in range(12 if part == "train" else 8):
            picture(
                Path("photos", part, name, f"{at}.png"), (60, 200 if name == "green" else 60, 120), seed=100 * seed + at
            )
    write("first.yaml", tiny(dataset={"name": "image_folder", "path": "photos", "image_size": 16, "classes": None}))
    assert fmeco("pretrain", "first.yaml", "--out", "first").code == 0
    answer = fmeco("finetune", "--from", "first", "--dataset", "photos", "--set", "train.epochs=1", "--out", "run")
    assert answer.code == 0, answer.err
    said = re.search(r"test: accuracy (\d\.\d{4}) \(95% interval .*\) on 16 test samples", answer.out)
    assert said is not None
    page = Path("run/report.html").read_text()
    assert f"<b>{said[1]}</b> <span>test accuracy</span>" in page
    evaluated = json.loads(fmeco("evaluate", "run", "--json").out)
    assert f"{evaluated['metrics']['test_accuracy']:.4f}" == said[1]
    assert "&lt;b&gt;blue" in page and "<b>blue" not in page
    assert page.count("data:image/jpeg;base64,") > 3, "samples of both splits, and the augmented ones"
    assert "http" not in page and "<script" not in page
    before = Path("run/findings/test.json").read_bytes()
    for file in Path("run/findings").iterdir():
        file.unlink()
    again = fmeco("report", "run")
    assert again.code == 0, again.err
    assert Path("run/findings/test.json").read_bytes() == before
    assert fmeco("report", "photos").code == 2
    listed = json.loads(fmeco("runs", ".", "--sort", "loss", "--json").out)["runs"]
    assert [row["run"] for row in listed] == sorted(
        ("first", "run"), key=lambda name: {row["run"]: row["value"] for row in listed}[name]
    )
    assert {row["run"]: row["test"] is not None for row in listed} == {"first": False, "run": True}
    assert fmeco("runs", ".", "--sort", "acuracy").err.count("did you mean 'accuracy'") == 1
    assert "no runs in this folder" in fmeco("runs", "photos").err


def test_figures_per_class_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(200, 4, generator=generator).softmax(1)
    predicted, label = probability.argmax(1), torch.randint(0, 3, (200,), generator=generator)
    table, matrix, _, *_ = class_report(probability, predicted, label, ("a", "b", "c", "d"))
    theirs = precision_recall_fscore_support(label, predicted, labels=range(4), zero_division=np.nan)
    assert matrix.counts == tuple(map(tuple, confusion_matrix(label, predicted, labels=range(4)).tolist()))  # type: ignore[union-attr]
    rows = {row[0]: row for row in table.rows}  # type: ignore[union-attr]
    for at, name in enumerate("abc"):
        precision, recall, f1, support = (values[at] for values in theirs)
        assert rows[name][1] == support
        assert [rows[name][k] for k in (2, 4, 6)] == pytest.approx([precision, recall, f1])
    assert table.rows[-1][0] == "d", "no sample has this class"  # type: ignore[union-attr]
    for right, total in ((0, 5), (3, 7), (9, 9)):
        exact = binomtest(right, total).proportion_ci(method="wilson")
        assert wilson(right, total) == pytest.approx((exact.low, exact.high), abs=1e-9)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.0123, 0.0128), (-3e7, 5e8), (7, 7)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = svg.ticks(low, high)
    assert 1 <= len(found) <= 8
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert len({svg.number(value) for value in found}) == len(found)
    assert html.escape("<") in svg.text("a<b\u202e") and "\u202e" not in svg.text("a<b\u202e")


def test_p_values_of_several_comparisons_are_corrected() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Wikipedia's example
    assert holm([0.2]) == [0.2] and holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


class Odd(Classification):
    def page(self, rows: dict[str, Tensor]) -> list[Part]:
        raise ZeroDivisionError("an odd plug-in")


def test_a_page_that_fails_loses_nothing_but_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmeco.objectives.classification.Classification", Odd)
    run = fmeco_library.pretrain(tiny(), out=tmp_path / "run").run
    assert "report.html lacks the samples: ZeroDivisionError: an odd plug-in" in (run / "run.log").read_text()
    assert "val_accuracy" in (run / "report.html").read_text() and not (run / "findings/val.json").exists()
    monkeypatch.undo()
    again = fmeco_library.pretrain(tiny(), out=tmp_path / "run", force=True).run
    assert (again / "findings/val.json").exists()


def test_what_fails_after_training_costs_no_result(fmeco: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"name": "digits", "classes": [0, 1, 2], "image_size": 8, "limit_per_class": 20, "test_fraction": 0.3}
    write("c.yaml", tiny(dataset=data))
    assert fmeco("pretrain", "c.yaml", "--out", "first").code == 0
    write("d.yaml", {"dataset": data, "train": {"epochs": 1}})

    def gone(*arguments: Any, **keywords: Any) -> Any:
        raise DataError("test/7.png: the file is gone")

    with monkeypatch.context() as patch:
        patch.setattr("fmeco.evaluation.compare.measure", gone)
        answer = fmeco("finetune", "d.yaml", "--from", "first", "--out", "run")
    assert answer.code == 0 and "val_accuracy" in answer.out
    assert "could not be measured: test/7.png: the file is gone; `fmeco report run` tries again" in answer.err
    assert fmeco("report", "run").code == 0
    resumed = fmeco("resume", "first", "--epochs", "+1")
    assert resumed.code == 0 and "findings" not in resumed.err
