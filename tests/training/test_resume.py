"""A run that was killed, and resumed, ends in the same bits as one that was not."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

import fmeco as api
from fmeco.assembly import optimizer
from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import pointers
from fmeco.checkpoints.schema import RunState
from fmeco.errors import ConfigError, DataError, Stopped
from fmeco.training.state import State
from tests.conftest import Answer, photos, process, tiny, write


def contents(run: Path) -> dict[str, Any]:
    """Everything that a run promises to reproduce: weights, optimizer, state and the log without its times."""
    got = checkpoint.open_checkpoint((run / "checkpoints" / "last").resolve())
    best = checkpoint.open_checkpoint((run / "checkpoints" / "best").resolve())
    state = {key: value for key, value in got.trainer()["state"].items() if key not in ("seconds", "spent")}
    lines = [
        {k: v for k, v in json.loads(line).items() if k != "samples_per_second" and not k.endswith("_share")}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    return {
        "tensors": {stem: got.tensors(stem) for stem in ("backbone", "objective", "trainer")},
        "best": {stem: best.tensors(stem) for stem in ("backbone", "objective")},
        "best step": best.meta["step"],
        "state": state,
        "lines": lines,
    }


def assert_same(a: Path, b: Path) -> None:
    one, two = contents(a), contents(b)
    for part in ("tensors", "best"):
        for stem, tensors in one[part].items():
            assert set(tensors) == set(two[part][stem])
            for name, tensor in tensors.items():
                assert torch.equal(tensor, two[part][stem][name]), f"{part} {stem} {name}"
    assert one["state"] == two["state"]
    assert one["best step"] == two["best step"]
    assert one["lines"] == two["lines"]


class After:
    """Asks a run to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"train": {"ema": 0.9, "clip_norm": 0.5}},
    "accumulation": {"train": {"micro_batch": 5}},
    "saving every 2 steps": {"train": {"save_every": 2, "keep": 1}},
    "balanced": {"train": {"sampler": "balanced"}},
    "early stop": {"train": {"early_stop": 2, "epochs": 6}, "evaluate": {"every": 0.5}},
    "plateau": {"schedule": {"name": "plateau", "patience": 1}},
    "one cycle, rmsprop": {"schedule": "one_cycle", "optimizer": {"name": "rmsprop", "lr": 1e-3, "momentum": 0.9}},
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.05, "nesterov": True}},
    "adafactor": {"optimizer": "adafactor"},
    "radam": {"optimizer": "radam"},
    "bf16": {"train": {"precision": "bf16"}},
    "dropout and mixup": {
        "backbone": {"name": "mlp", "hidden": [32], "dropout": 0.3},
        "objective": {"name": "classification", "mixup": 0.4, "cutmix": 1.0},
    },
    "table": {"dataset": {"name": "wine", "classes": None, "image_size": None, "limit_per_class": None}},
}


@pytest.mark.parametrize("case", list(SETTINGS))
def test_stopped_anywhere_it_ends_the_same(case: str) -> None:
    config = tiny(**SETTINGS[case])
    if case == "table":
        config["dataset"] = "wine"
    whole = api.pretrain(config, out="whole")
    steps = checkpoint.open_checkpoint((Path("whole") / "checkpoints/last").resolve()).meta["step"]
    assert steps >= 6
    rng = random.Random(case)
    out = Path("cut")
    with pytest.raises(Stopped):
        api.pretrain(config, out=out, stop=After(rng.randrange(1, steps - 2)))
    with pytest.raises(Stopped):
        api.resume(out, stop=After(1))
    done = api.resume(out)
    assert done.metrics == whole.metrics
    assert_same(Path("whole"), out)


def test_killed_at_random_moments_by_the_system_it_ends_the_same() -> None:
    """Real processes, SIGKILL, a convolutional network, augmented image files, two loader workers against none."""
    config = {
        "dataset": {"name": "image_folder", "path": str(photos(Path("p").resolve(), each=40)), "image_size": 16},
        "backbone": {"name": "cnn", "widths": [8, 16]},
        "augment": {"name": "standard", "erase": 0.3},
        "train": {
            "steps": 40,
            "batch_size": 8,
            "save_every": 3,
            "precision": "fp32",
            "tensorboard": False,
            "ema": 0.9,
            "workers": 0,
        },
        "evaluate": {"every": 1},
    }
    path = write("c.yaml", config)
    child = process("pretrain", path, "--out", "whole")
    _, err = child.communicate(timeout=280)
    assert child.returncode == 0, err

    rng = random.Random(3)
    child = process("pretrain", path, "--out", "cut", "--set", "train.workers=2")
    kills = 0
    for attempt in range(12):
        # Wait for it to get going, then strike at any moment: reading, stepping, evaluating, saving.
        start, deadline = steps_done(Path("cut")), time.monotonic() + 60
        while child.poll() is None and steps_done(Path("cut")) <= start and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.0))
        if child.poll() is not None:
            break
        if kills < 3:
            child.send_signal(signal.SIGKILL)
            child.communicate()
            kills += 1
            child = process("resume", "cut", *(["--set", f"train.workers={attempt % 3}"]))
        else:
            child.communicate(timeout=280)
    _, err = child.communicate(timeout=280)
    assert child.returncode == 0, err
    assert kills >= 2
    assert_same(Path("whole"), Path("cut"))


def steps_done(run: Path) -> int:
    found = checkpoint.steps(run / "checkpoints")
    return int(found[-1].name[5:]) if found else 0


def test_a_signal_saves_and_says_how_to_go_on() -> None:
    path = write("c.yaml", tiny(train={"epochs": 100000, "save_every": 10**6}, evaluate={"every": 10**6}))
    for number in (signal.SIGTERM, signal.SIGINT):
        run = Path(f"run-{number}")
        child = process("pretrain", path, "--out", run)
        deadline = time.monotonic() + 60
        while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").stat().st_size == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
        assert child.returncode == 75, err
        assert f"fmeco resume {run}" in err
        assert steps_done(run) > 0, "it was saved although no save was due"


def test_killed_before_its_first_checkpoint_it_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = api.pretrain(tiny(), out="whole")

    def killed(*_: Any, **__: Any) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("fmeco.training.loop.save", killed)
        with pytest.raises(SystemExit):
            api.pretrain(tiny(), out="cut")
    assert not checkpoint.steps(Path("cut") / "checkpoints")
    assert api.resume("cut").metrics == whole.metrics
    assert_same(Path("whole"), Path("cut"))


def test_a_damaged_newest_checkpoint_is_passed_over(fmeco: Callable[..., Answer]) -> None:
    config = tiny(train={"save_every": 2, "keep": 5})
    api.pretrain(config, out="whole")
    with pytest.raises(Stopped):
        api.pretrain(config, out="cut", stop=After(6))
    newest = checkpoint.steps(Path("cut/checkpoints"))[-1]
    with open(newest / "trainer.safetensors", "r+b") as file:
        file.truncate(1000)
    answer = fmeco("resume", "cut")
    assert answer.code == 0
    assert "damaged" in answer.err
    assert_same(Path("whole"), Path("cut"))


def test_longer_runs_and_what_may_not_change() -> None:
    api.pretrain(tiny(), out="run")
    before = contents(Path("run"))
    assert api.resume("run").metrics, "resuming a finished run changes nothing"
    assert contents(Path("run"))["lines"] == before["lines"]
    api.resume("run", epochs="+2")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["train"]["epochs"] == 5
    lines = contents(Path("run"))["lines"]
    assert max(line["epoch"] for line in lines) == 5
    assert [line["epoch"] for line in lines if line["kind"] == "val"] == [1, 2, 3, 4, 5], "no epoch twice, none missing"
    with pytest.raises(ConfigError, match="already has 5"):
        api.resume("run", epochs="4")

    root = photos(Path("p"))
    api.pretrain({**tiny(), "dataset": {"name": "image_folder", "path": "p", "image_size": 8}}, out="files")
    root.rename("moved")
    api.resume("files", epochs="+1", overrides=["dataset.path=moved"])
    (Path("moved") / "red" / "00.png").unlink()
    with pytest.raises(DataError, match="not what it was"):
        api.resume("files", epochs="+1")


def test_trainer_json_declares_the_fields_of_the_state() -> None:
    """`RunState` checks what `State` stores: the same names and defaults, and for every field a type that holds its values."""
    state = State()
    assert {name: field.default for name, field in RunState.model_fields.items() if name != "spent"} == {
        name: value for name, value in dataclasses.asdict(state).items() if name != "spent"
    }
    assert RunState().spent.model_dump() == state.spent
    changed = State(
        step=3,
        total=9,
        phase=1,
        phase_start=2.5,
        phase_history=4,
        seconds=7.25,
        spent={"data": 0.5, "evaluate": 1.5, "save": 2.5},
        samples=48,
        history=[0.5, -1.25],
        best=0.5,
        best_step=2,
        kept=[0.5, 1.25],
        source=0.25,
        source_step=1,
        waited=1,
        bad_samples=["a.png"],
        window=[(0.5, 1.5, 16)],
        finished=True,
    )
    assert all(getattr(changed, field.name) != getattr(state, field.name) for field in dataclasses.fields(State))
    written = json.loads(json.dumps(dataclasses.asdict(changed)))
    assert RunState.model_validate(written).model_dump() == written
    for name in written:
        with pytest.raises(ValidationError, match=name):
            RunState.model_validate({**written, name: "x"})


def test_a_resume_does_not_need_the_source() -> None:
    source = api.pretrain(tiny(), out="source")
    task = {"dataset": {"name": "digits", "classes": [1, 5, 7]}, "train": {"epochs": 3, "tensorboard": False}}
    whole = api.finetune(task, ref="source", out="whole")
    with pytest.raises(Stopped):
        api.finetune(task, ref="source", out="cut", stop=After(8))
    Path("source").rename("gone")
    assert api.resume("cut").metrics == whole.metrics
    assert_same(Path("whole"), Path("cut"))
    got = checkpoint.open_checkpoint((Path("cut") / "checkpoints/best").resolve())
    assert got.manifest["parents"] == [checkpoint.open_checkpoint(Path("gone/checkpoints") / source.checkpoint.name).id]
    assert got.meta["transplant"]["carried"] == ["1"]


def test_a_run_that_never_began_does_not_block_its_name(fmeco: Callable[..., Answer]) -> None:
    path = write("c.yaml", {**tiny(), "dataset": {"name": "image_folder", "path": "p", "image_size": 8}})
    assert fmeco("pretrain", path, "--out", "run").code == 3
    photos(Path("p"))
    assert fmeco("pretrain", path, "--out", "run").code == 0
    assert fmeco("pretrain", path, "--out", "run").code == 2


def test_one_process_per_run(fmeco: Callable[..., Answer]) -> None:
    from fmeco.training.run_directory import locked

    api.pretrain(tiny(), out="run")
    with locked(Path("run")):
        answer = fmeco("resume", "run", "--epochs", "+1")
    assert answer.code == 2
    assert "in use by another process" in answer.err


def test_the_written_config_repeats_the_run() -> None:
    first = api.pretrain(tiny(), out="first")
    again = api.pretrain("first/config.yaml", out="again")
    assert again.metrics == first.metrics
    assert_same(Path("first"), Path("again"))
    source = {file.name: file.read_bytes() for file in first.checkpoint.iterdir()}
    api.finetune(ref="first", dataset="digits", overrides=["train.epochs=1", "dataset.limit_per_class=5"], out="tuned")
    assert source == {file.name: file.read_bytes() for file in first.checkpoint.iterdir()}, (
        "the source is left as it was"
    )


def test_a_step_that_is_not_finite_never_reaches_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On skip, a poisoned step is left out; on stop, the newest checkpoint is from before it."""
    from fmeco.objectives.classification import Classification

    real = Classification.loss
    calls = {"n": 0}

    def poisoned(self: Any, batch: Any) -> Any:
        calls["n"] += 1
        loss = real(self, batch)
        return type(loss)(loss.sum * float("nan"), loss.count) if calls["n"] == 4 else loss

    monkeypatch.setattr(Classification, "loss", poisoned)
    run = api.pretrain(tiny(train={"on_nonfinite": "skip", "precision": "fp32"}), out="run")
    assert run.metrics["val_accuracy"] > 0.5
    assert "skipped step 3" in Path("run/run.log").read_text()


def test_dropout_files_and_workers_end_in_the_same_bits() -> None:
    """A loader that drew from torch's generator in the middle of a step would change the dropout of that step."""
    config = {
        "dataset": {"name": "image_folder", "path": str(photos(Path("p"))), "image_size": 8},
        "backbone": {"name": "mlp", "hidden": [16], "dropout": 0.5},
        "train": {"epochs": 3, "batch_size": 8, "tensorboard": False, "workers": 0},
    }
    api.pretrain(config, out="none")
    config["train"]["workers"] = 1  # type: ignore[index]
    api.pretrain(config, out="one")
    with pytest.raises(Stopped):
        api.pretrain(config, out="cut", stop=After(5))
    api.resume("cut")
    assert_same(Path("none"), Path("one"))
    assert_same(Path("none"), Path("cut"))


def test_a_scheduler_that_signals_the_whole_group_gets_its_checkpoint() -> None:
    config = {
        "dataset": {"name": "image_folder", "path": str(photos(Path("p"))), "image_size": 8},
        "backbone": {"name": "mlp", "hidden": [16]},
        "train": {"steps": 10**6, "batch_size": 8, "tensorboard": False, "workers": 2, "log_every": 1},
        "evaluate": {"every": 10**6},
    }
    child = process("pretrain", write("c.yaml", config), "--out", "run", start_new_session=True)
    deadline = time.monotonic() + 60
    while not Path("run/metrics.jsonl").exists() or Path("run/metrics.jsonl").stat().st_size == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 75, err
    assert steps_done(Path("run")) > 0


def test_killed_between_the_save_and_its_links(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(train={"epochs": 4, "save_every": 4})
    the_best = api.pretrain(config, out="whole").checkpoint.name
    real, links = pointers.point, []

    def point(folder: Path, name: str, target: Path) -> None:
        links.append(name)
        if name == "best" and target.name == the_best:
            raise SystemExit(9)
        real(folder, name, target)

    with monkeypatch.context() as patch:
        patch.setattr(pointers, "point", point)
        with pytest.raises(SystemExit):
            api.pretrain(config, out="cut")
    assert "last" in links
    api.resume("cut")
    assert Path("cut/checkpoints/best").resolve().name == the_best


def test_a_longer_run_that_is_killed_at_once_stays_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    api.pretrain(tiny(), out="run")
    with monkeypatch.context() as patch:
        patch.setattr("fmeco.training.loop.train", lambda session: (_ for _ in ()).throw(SystemExit(9)))
        with pytest.raises(SystemExit):
            api.resume("run", epochs="+2")
    api.resume("run")
    assert max(line["epoch"] for line in contents(Path("run"))["lines"]) == 5


def test_a_lost_log_does_not_lose_the_run() -> None:
    with pytest.raises(Stopped):
        api.pretrain(tiny(), out="run", stop=After(6))
    Path("run/metrics.jsonl").unlink()
    assert api.resume("run").metrics["val_accuracy"] > 0.5
    assert b"\0" not in Path("run/metrics.jsonl").read_bytes()


def test_force_replaces_only_when_the_new_run_is_ready(fmeco: Callable[..., Answer]) -> None:
    api.pretrain(tiny(), out="run")
    kept = contents(Path("run"))["lines"]
    broken = write("broken.yaml", {**tiny(), "dataset": {"name": "image_folder", "path": "nowhere"}})
    assert fmeco("pretrain", broken, "--out", "run", "--force").code == 3
    assert contents(Path("run"))["lines"] == kept, "the earlier run is back"
    answer = fmeco("finetune", "--from", "run", "--dataset", "digits", "--out", "run", "--force")
    assert answer.code == 2
    assert "which holds the weights of --from" in answer.err
    assert contents(Path("run"))["lines"] == kept
    assert fmeco("pretrain", write("c.yaml", tiny(train={"epochs": 1})), "--out", "run", "--force").code == 0
    assert max(line["epoch"] for line in contents(Path("run"))["lines"]) == 1
    assert not Path("run/.replaced").exists()


def test_saving_right_after_a_skipped_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from fmeco.objectives.classification import Classification

    real, calls = Classification.loss, {"n": 0}

    def poisoned(self: Any, batch: Any) -> Any:
        calls["n"] += 1
        loss = real(self, batch)
        return type(loss)(loss.sum * float("inf"), loss.count) if calls["n"] % 3 == 0 else loss

    monkeypatch.setattr(Classification, "loss", poisoned)
    train = {"on_nonfinite": "skip", "save_every": 1, "precision": "fp32", "epochs": 2, "keep": 100}
    api.pretrain(tiny(train={**train, "log_every": 1}), out="run")
    last = steps_done(Path("run"))
    taken = [step for step in range(1, last + 1) if step % 3]
    assert last > 4
    lines = [line for line in contents(Path("run"))["lines"] if line["kind"] == "train"]
    assert [line["step"] for line in lines] == taken, "a step that was left out has no numbers"
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines)
    calls["n"] = 0
    api.pretrain(tiny(train={**train, "log_every": 100}), out="between")
    for found in checkpoint.steps(Path("between/checkpoints"))[:-1]:
        window = checkpoint.open_checkpoint(found).trainer()["state"]["window"]
        assert len(window) == len([step for step in taken if step <= int(found.name[5:])])
        assert all(math.isfinite(number) for row in window for number in row)


def test_an_optimizers_state_is_found_by_the_names_of_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    api.pretrain(tiny(), out="whole")
    with pytest.raises(Stopped):
        api.pretrain(tiny(), out="half", stop=After(4))
    real = optimizer.parameter_groups
    with monkeypatch.context() as patch:
        patch.setattr(optimizer, "parameter_groups", lambda *given: real(*given)[::-1])
        api.resume("half")
    one, two = (checkpoint.open_checkpoint(Path(run, "checkpoints/last").resolve()) for run in ("whole", "half"))
    for stem in ("backbone", "objective"):
        for name, tensor in one.tensors(stem).items():
            assert torch.equal(tensor, two.tensors(stem)[name]), name
