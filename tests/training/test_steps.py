"""One step, and the score of an evaluation, against formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fmeco as api
from fmeco.checkpoints import format as checkpoint
from fmeco.objectives.classification import Classification
from fmeco.training.loop import _score
from fmeco.training.state import State
from tests.conftest import tiny

LR = 0.1


def head(out: str, weights: dict[str, float] | None = None, **train: Any) -> dict[str, torch.Tensor]:
    """The head after one step of plain gradient descent over all 60 samples, 20 of each of three classes."""
    config = tiny(
        objective={"name": "classification", "class_weights": weights},
        optimizer={"name": "sgd", "lr": LR, "momentum": 0.0, "weight_decay": 0.0},
        schedule={"name": "constant", "warmup": 0.0},
        train={"epochs": 1, "batch_size": 60, "precision": "fp32", **train},
    )
    done = api.pretrain(config, out=out)
    return checkpoint.open_checkpoint(done.checkpoint).tensors("objective")


@pytest.mark.parametrize("micro", [60, 7])
def test_a_step_follows_the_gradient_of_the_weighted_mean(micro: int) -> None:
    """From a head of zeros each class has a third: the gradient of a bias is 1/3 less the class's share of the weight."""
    found = head("run", {"0": 5.0}, micro_batch=micro)
    share = torch.tensor([5.0, 1.0, 1.0]) / 7
    assert torch.allclose(found["head.bias"], -LR * (1 / 3 - share), atol=1e-6)


@pytest.mark.parametrize("weights", [None, {"0": 5.0}])  # a number, and a tensor that is not waited for
def test_a_gradient_is_clipped_to_its_norm_and_never_stretched(weights: dict[str, float] | None) -> None:
    limits: dict[str, float | None] = {"free": None, "loose": 1e4, "tight": 0.01}
    free, loose, tight = (head(out, weights, clip_norm=limit) for out, limit in limits.items())
    for name, tensor in free.items():
        assert torch.equal(tensor, loose[name]), "a norm below the limit is left alone"
    # The backbone behind a head of zeros has no gradient yet.
    assert math.hypot(*(float(tensor.norm()) for tensor in tight.values())) == pytest.approx(LR * 0.01, rel=1e-4)
    assert math.hypot(*(float(tensor.norm()) for tensor in free.values())) > LR * 0.02


def test_layers_draw_anew_in_each_step_and_the_same_in_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = Classification.loss, list[float]()

    def drawing(self: Any, batch: Any) -> Any:
        drawn.append(float(torch.rand(())))
        return real(self, batch)

    monkeypatch.setattr(Classification, "loss", drawing)
    runs = []
    for seed in (0, 0, 1):
        drawn.clear()
        api.pretrain({**tiny(train={"epochs": 2, "precision": "fp32"}), "seed": seed}, out=f"run{len(runs)}")
        runs.append(drawn[-8:])
    assert runs[0] == runs[1] and not set(runs[0]) & set(runs[2])
    assert len(set(runs[0])) == len(runs[0]) == 8


def test_an_evaluation_within_a_standard_error_is_as_good_and_waiting_goes_on() -> None:
    measures = SimpleNamespace(best="accuracy", sign=1, directions={"accuracy": "max", "loss": "min"})
    s: Any = SimpleNamespace(
        state=State(total=100), training=SimpleNamespace(measures=measures), error=0.02, metrics={}
    )
    found = []
    for step, accuracy in enumerate((0.8, 0.79, 0.77, 0.81), 1):
        s.state.step, s.metrics = step, {"accuracy": accuracy}
        found.append((_score(s), s.state.best, s.state.best_step, s.state.waited))
    assert found == [(True, 0.8, 1, 0), (True, 0.8, 2, 1), (False, 0.8, 2, 2), (True, 0.81, 4, 0)]
    assert s.state.history == [0.8, 0.79, 0.77, 0.81]
    s.error, found = 0.05, []
    for accuracy, loss in ((0.80, 0.6), (0.79, 0.5), (0.79, 0.7), (0.78, 0.4)):
        s.metrics = {"accuracy": accuracy, "loss": loss}
        found.append(_score(s))
    assert found == [True, True, True, True], "none is worse than the kept one in accuracy and loss"
    s.metrics = {"accuracy": 0.77, "loss": 0.5}
    assert not _score(s), "worse than the kept one in both"
    s.state.source = 0.79
    s.metrics = {"accuracy": 0.785, "loss": 0.1}
    assert not _score(s), "below the solved head"


def test_the_best_loss_is_the_lowest() -> None:
    done = api.pretrain(tiny(train={"epochs": 4}, evaluate={"best": "loss", "every": 1}), out="run")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "val"]
    assert done.metrics["val_loss"] == min(losses) < max(losses)
