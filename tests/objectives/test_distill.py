"""Distillation: a student learns from a checkpoint, which nothing needs afterwards."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fmeco as api
from fmeco.checkpoints import format as checkpoint
from fmeco.config.parser import peek
from fmeco.objectives.distill import distance, divergence
from tests.conftest import Answer, photos, write

Fmeco = Callable[..., Answer]


def config(objective: Any, **changes: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "digits", "image_size": 16, "limit_per_class": 30},
        "backbone": {"name": "mlp", "hidden": [32]},
        "objective": objective,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": "constant",
        "train": {"epochs": 8, "batch_size": 50, "tensorboard": False},
        **changes,
    }


@pytest.fixture
def teacher() -> str:
    api.pretrain(config("classification", backbone={"name": "cnn", "widths": [8, 16]}), out="teacher")
    return "teacher"


def test_losses_are_their_formulas() -> None:
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    for got, a, b in zip(divergence(student, teacher, 3.0).tolist(), student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(x / 3) / sum(math.exp(y / 3) for y in z) for x in z] for z in (b, a))
        assert got == pytest.approx(9 * sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
    for got, a, b in zip(distance(student, teacher).tolist(), student.tolist(), teacher.tolist(), strict=True):
        unit = [[x / math.hypot(*z) for x in z] for z in (a, b)]
        assert got == pytest.approx(math.dist(*unit) ** 2 / 2)


def test_a_student_without_labels_tells_its_teachers_classes(teacher: str, fmeco: Fmeco) -> None:
    raw = config({"name": "distill", "teacher": teacher})
    answer = fmeco("pretrain", write("s.yaml", raw), "--out", "student", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["val_agreement"] > 0.5 and answer.json["metrics"]["val_accuracy"] > 0.5
    saved, taught = (
        checkpoint.open_checkpoint(Path(run, "checkpoints/best").resolve()) for run in ("student", teacher)
    )
    assert taught.id in saved.manifest["parents"], "what it learned from is on record"
    assert set(saved.tensors("objective")) == {"head.weight", "head.bias"}, "the teacher is not in it"

    # On pictures of anything, without a label.
    photos(Path("p"))
    bare = config({"name": "distill", "teacher": teacher}, dataset={"name": "images", "path": "p"})
    bare["train"]["batch_size"], bare["train"]["epochs"] = 8, 1
    answer = fmeco("pretrain", write("b.yaml", bare), "--out", "bare", "--json")
    assert answer.code == 0, answer.err
    assert set(answer.json["metrics"]) == {"val_agreement", "val_divergence"}

    shutil.rmtree(teacher)
    answer = fmeco("evaluate", "student", "--split", "val", "--json")
    assert answer.code == 0, answer.err
    assert "val_agreement" not in answer.json["metrics"]
    answer = fmeco("predict", "bare", "p", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["predictions"][0]["prediction"] in {str(digit) for digit in range(10)}
    assert fmeco("finetune", "--from", "student", "--dataset", "digits", "--set", "train.epochs=1").code == 0
    answer = fmeco("resume", "student", "--epochs", "+1")
    assert answer.code == 2 and "teacher: no such run" in answer.err


@pytest.mark.parametrize("how", [{"on": "features"}, {"on": "logits", "labels": 0.5}])
def test_it_resumes_exactly_and_with_its_own_teacher_alone(how: dict[str, Any], teacher: str, fmeco: Fmeco) -> None:
    raw = config({"name": "distill", "teacher": teacher, **how})
    raw["train"]["epochs"] = 2
    api.pretrain(raw, out="whole")
    raw["train"]["epochs"] = 1
    api.pretrain(raw, out="half")
    assert fmeco("resume", "half", "--epochs", "2").code == 0
    whole, half = (checkpoint.open_checkpoint(Path(run, "checkpoints/last").resolve()) for run in ("whole", "half"))
    for part in ("backbone", "objective"):
        other = half.tensors(part)
        assert all(torch.equal(value, other[name]) for name, value in whole.tensors(part).items())
    api.pretrain(config("classification", seed=1), out=teacher, force=True)
    answer = fmeco("resume", "half", "--epochs", "3")
    assert answer.code == 4 and "not the teacher that this run started with" in answer.err


def test_what_cannot_be_learned_from_is_refused(teacher: str, fmeco: Fmeco) -> None:
    c = write("s.yaml", config({"name": "distill", "teacher": teacher}))
    answer = fmeco("pretrain", c, "--set", "dataset.image_size=24")
    assert answer.code == 2 and "trained with other preprocessing: size" in answer.err
    answer = fmeco("pretrain", c, "--set", "dataset.classes=[1, 2]")
    assert answer.code == 2 and "on: features" in answer.err
    answer = fmeco("pretrain", c, "--set", "objective.teacher=nowhere")
    assert answer.code == 2 and "nowhere: no such run" in answer.err
    api.pretrain(config("simclr", backbone={"name": "cnn", "widths": [8]}, train={"epochs": 1}), out="blind")
    answer = fmeco("pretrain", c, "--set", "objective.teacher=blind", "--out", "f", "--json")
    assert answer.code == 0 and "val_distance" in answer.json["metrics"], answer.err
    assert json.dumps("features") in json.dumps(peek(Path("f/config.yaml"))["objective"]["on"])
    answer = fmeco("evaluate", "f", "--split", "val")
    assert answer.code == 2 and "the teacher is loaded only in training" in answer.err
