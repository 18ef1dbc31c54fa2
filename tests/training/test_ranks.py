"""Several processes that train one model: real ones, over gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fmeco as api
from fmeco.checkpoints import format as checkpoint
from tests.conftest import Answer, photos, process, tiny, write

DOUBLE = '''
"""Cross-entropy in float64, for sums that can be compared."""
KIND = "objective"
import torch
from fmeco.core import Backbone, Batch, DataSpec, Loss, Objective

def build(backbone: Backbone, spec: DataSpec) -> Objective:
    return Double(backbone, len(spec.targets["label"].classes))

class Double(Objective):
    directions = {"loss": "min"}
    def __init__(self, backbone, classes):
        super().__init__()
        self.backbone = backbone
        self.head = torch.nn.Linear(backbone.width, classes)
        self.double()
    def logits(self, batch): return self.head(self.backbone({k: x.double() for k, x in batch.views[0].items()}).vector)
    def loss(self, batch):
        return Loss(torch.nn.functional.cross_entropy(self.logits(batch), batch.target["label"], reduction="sum"), float(len(batch)))
    def rows(self, batch): return {"logits": self.logits(batch), "label": batch.target["label"]}
    def metrics(self, rows): return {"loss": float(torch.nn.functional.cross_entropy(rows["logits"], rows["label"]))}
'''


def weights(run: str) -> dict[str, torch.Tensor]:
    saved = checkpoint.open_checkpoint(Path(run, "checkpoints/last").resolve())
    return {**saved.tensors("backbone"), **saved.tensors("objective")}


def numbers(run: str) -> list[dict[str, float]]:
    """What a run logged, but for its times."""
    found = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    left_out = ("kind", "samples_per_second", "data_share")
    return [{k: v for k, v in line.items() if k not in left_out} for line in found if line["kind"] != "time"]


def test_two_ranks_do_what_one_does(fmeco: Callable[..., Answer]) -> None:
    """Uneven steps, accumulation, and clipping: in float64 the weights are those of one process."""
    Path("double.py").write_text(DOUBLE)
    config = tiny(
        objective="double",
        backbone={"name": "mlp", "hidden": [8], "batch_norm": False},
        optimizer={"name": "sgd", "lr": 0.1},
        train={"batch_size": 13, "micro_batch": 3, "clip_norm": 0.5, "epochs": 3, "log_every": 2},
    )
    path = write("c.yaml", config)
    command = ("pretrain", path, "--plugin", "double.py", "--json", "--out")
    alone = fmeco(*command, "one")
    child = process(*command, "two", "--nproc", "2")
    out, err = child.communicate(timeout=120)
    for code, answer, said in ((alone.code, alone.out, alone.err), (child.returncode, out, err)):
        assert code == 0, said
        assert set(json.loads(answer)) == {"run", "checkpoint", "metrics", "directions", "seconds"}, "one rank speaks"
        assert said.count("epoch 1,") == 1
    one, two = weights("one"), weights("two")
    assert all(tensor.dtype == torch.float64 for tensor in one.values())
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=0, atol=1e-12), name
    for a, b in zip(numbers("one"), numbers("two"), strict=True):
        assert a == pytest.approx(b, rel=1e-6), "rows and sums are gathered"


def test_a_rank_that_is_killed_ends_the_job_and_another_number_of_ranks_goes_on() -> None:
    bad = photos(Path("p"), each=12)
    (bad / "red" / "broken.jpg").write_bytes(b"no image")
    config = {
        "dataset": {"name": "image_folder", "path": str(bad), "image_size": 8},
        "backbone": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": 4000, "batch_size": 8, "save_every": 20, "on_bad_sample": "skip", "tensorboard": False},
        "evaluate": {"every": 500},
    }
    path = write("c.yaml", config)
    child = process("pretrain", path, "--out", "run", "--nproc", "2")
    deadline = time.monotonic() + 90
    while len(checkpoint.steps(Path("run/checkpoints"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    ranks = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True).stdout.split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 6, err
    assert "rank was killed by SIGKILL" in err
    assert "fmeco resume" in err
    done = checkpoint.newest(Path("run/checkpoints"), print)
    assert done is not None

    child = process("resume", "run", "--nproc", "2")
    trained = Path("run/metrics.jsonl")
    deadline = time.monotonic() + 90
    while "resuming run at" not in Path("run/run.log").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    size = trained.stat().st_size  # as the checkpoint left it
    while trained.stat().st_size <= size and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 75, err
    assert f"resuming run at step {done.meta['step']}" in err
    calls = iter(range(10))
    with pytest.raises(api.FmecoError, match="everything is saved"):
        api.resume("run", stop=lambda: next(calls) > 5)
    assert "ranks: this run had 2 and now has 1" in Path("run/run.log").read_text()
    assert "broken.jpg" in Path("run/bad_samples.txt").read_text()


STUBBORN = '''
"""Regression whose head has no direct solution."""
KIND = "objective"
from fmeco.core import Backbone, DataSpec, Objective
from fmeco.objectives.regression import Regression

def build(backbone: Backbone, spec: DataSpec) -> Objective:
    return Stubborn(backbone, spec.targets["label"], "label", "mse", 1.0, 0.0)

class Stubborn(Regression):
    def solve(self, rows, penalties): return {}
'''


def test_two_ranks_share_a_solved_head_beside_one_that_cannot_be_solved(fmeco: Callable[..., Answer]) -> None:
    """Averaged weights keep what each rank began with, so that heads of its own would show in its half of the metrics."""
    Path("stubborn.py").write_text(STUBBORN)
    rows = [f"{i % 7},{i % 5},{'yes' if i % 7 > 3 else 'no'},{i % 5 - i % 7 + i / 100:.2f}" for i in range(80)]
    Path("t.csv").write_text("a,b,kind,size\n" + "\n".join(rows) + "\n")
    config = tiny(backbone={"name": "mlp", "hidden": [8]}, train={"steps": 2})
    config = {**config, "dataset": {"name": "csv_table", "path": "t.csv", "target": ["kind", "size"]}}
    del config["train"]["epochs"]
    assert fmeco("pretrain", write("c.yaml", config), "--out", "source").code == 0
    tasks = {"name": "multi_task", "tasks": {"kind": "classification", "size": "stubborn"}}
    train = {"steps": 1, "batch_size": 16, "ema": 0.9, "tensorboard": False}
    task = {"dataset": config["dataset"], "objective": tasks, "train": train, "transfer": "probe"}
    sets = ("--plugin", "stubborn.py", "--json")
    child = process("finetune", write("f.yaml", task), "--from", "source", *sets, "--out", "two", "--nproc", "2")
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert err.count("this objective's head has no direct solution") == 1
    measured = fmeco("evaluate", "two", "--split", "val", *sets)
    assert measured.code == 0, measured.err
    assert json.loads(out)["metrics"] == pytest.approx(measured.json["metrics"], rel=1e-5)


def test_two_ranks_train_on_feature_maps_that_leave_a_part_of_the_backbone_unused() -> None:
    """mobilenet_v3_small has a layer behind its maps: DDP fails in its second step if it waits for that layer's gradient."""
    for i in range(16):
        for part in ("images", "masks"):
            Path("data", part).mkdir(parents=True, exist_ok=True)
        half = np.zeros((64, 64), np.uint8)
        half[:, : 16 + i] = 1
        Image.fromarray(half * 200).convert("RGB").save(f"data/images/{i}.png")
        Image.fromarray(half).save(f"data/masks/{i}.png")
    config = {
        "dataset": {"name": "masks", "path": "data", "image_size": 64},
        "backbone": "mobilenet_v3_small",
        "objective": {"name": "segmentation", "width": 16},
        "train": {"epochs": 2, "batch_size": 4, "workers": 0},
    }
    child = process("pretrain", write("c.yaml", json.dumps(config)), "--out", "run", "--nproc", "2")
    out, err = child.communicate(timeout=240)
    assert child.returncode == 0, (out, err)
    assert np.isfinite(numbers("run")[-1]["miou"])
