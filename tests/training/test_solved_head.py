"""Heads that are solved on frozen features, and `transfer: auto`, which trains on from them: what is solved, kept and said."""

from __future__ import annotations

import html
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fmeco as library
from fmeco.checkpoints.format import open_checkpoint
from fmeco.config.check import choose
from fmeco.config.load import read_config
from fmeco.config.parser import parse_yaml
from fmeco.core import Backbone, DataSpec, Features, Inputs, Target
from fmeco.errors import ConfigError
from fmeco.evaluation import compare
from fmeco.features import extractor, forward
from fmeco.nn import linear_head
from tests.conftest import process, texts, tiny, write

DATA = {"name": "digits", "classes": [0, 1, 2], "image_size": 8, "limit_per_class": 30}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny(dataset={"classes": [3, 4, 5, 6], "limit_per_class": 60})
    return library.pretrain(config, out=tmp_path_factory.mktemp("sources") / "run").run


def finetune(source: Path, out: Path, **sections: Any) -> library.Result:
    train = {"steps": 12, "batch_size": 12, **sections.pop("train", {})}
    return library.finetune({"dataset": DATA, **sections, "train": train}, ref=source, out=out)


def examples(loss: linear_head.LossName, weight: Tensor | None = None) -> linear_head.Examples:
    """Features of very different sizes, fewer samples than features, and answers that depend on some."""
    x = torch.randn(60, 90, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 90)
    if loss == "squares":
        return linear_head.examples(x, torch.stack([x[:, 50], x[:, 60] - x[:, 50]], 1), loss, weight)
    labels = (x[:, 50] > 0).long() + (x[:, 60] > 0).long()
    wanted = linear_head.one_hot(labels, 3) if loss == "softmax" else torch.stack([labels > 0, labels > 1], 1)
    return linear_head.examples(x, wanted, loss, weight)


def test_heads_are_those_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression, Ridge

    weight = torch.rand(60, generator=torch.Generator().manual_seed(1)) + 0.1
    for loss in ("softmax", "sigmoid", "squares"):
        data = examples(loss, weight)  # type: ignore[arg-type]
        head = linear_head.fit(data, 0.05)
        x = (data.x - data.x.mean(0)) / (data.x - data.x.mean(0)).square().mean().sqrt()
        got = head(data.x)
        if loss == "squares":
            ridge = Ridge(alpha=0.05 * float(weight.sum())).fit(x.numpy(), data.y.numpy(), weight.numpy())
            np.testing.assert_allclose(got, ridge.predict(x.numpy()), rtol=1e-3, atol=1e-3)
            continue
        strength = {"C": 1 / (0.05 * float(weight.sum())), "tol": 1e-8, "max_iter": 5000}
        if loss == "softmax":
            theirs = LogisticRegression(**strength).fit(x.numpy(), data.y.argmax(1).numpy(), weight.numpy())
            np.testing.assert_allclose(got.softmax(1), theirs.predict_proba(x.numpy()), atol=3e-3)
        else:
            strength["C"] /= data.y.shape[1]  # the mean is over labels, too
            for column in range(data.y.shape[1]):
                theirs = LogisticRegression(**strength).fit(x.numpy(), data.y[:, column].numpy(), weight.numpy())
                np.testing.assert_allclose(got[:, column].sigmoid(), theirs.predict_proba(x.numpy())[:, 1], atol=3e-3)


def test_the_penalty_is_stronger_where_features_say_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(200, 50, generator=generator), torch.randint(0, 2, (200,), generator=generator)
    noise = linear_head.choose_penalty(linear_head.examples(x, linear_head.one_hot(labels, 2), "softmax"))
    x[:, :10] += 3 * labels[:, None]
    signal_ = linear_head.choose_penalty(linear_head.examples(x, linear_head.one_hot(labels, 2), "softmax"))
    assert noise == linear_head.PENALTIES[0] > 10 * signal_


def test_auto_is_the_default_and_writes_down_what_it_chose(source: Path, fmeco: Any) -> None:
    answer = fmeco(
        "finetune", "--from", source, "--dataset", "digits", "--set", "dataset.classes=[0,1,2]", "--out", "run"
    )
    assert answer.code == 0, answer.err
    assert "the head is solved on the frozen features" in answer.err
    assert "epoch 0, step 0" in answer.err
    assert "accuracy: the source as it is" in answer.out
    config = parse_yaml(Path("run/config.yaml").read_text(), "")[0]
    assert config["transfer"]["strategy"] == "auto"
    assert config["optimizer"]["lr"] == 5e-4  # what fmeco/backbones/mlp.py says
    assert list(config["transfer"]["penalty"]) == ["label"]
    start = open_checkpoint(Path("run/checkpoints/step-00000000"))
    assert start.meta["metrics"]["val_accuracy"] > 0.8
    before, after = (open_checkpoint(run).tensors("backbone") for run in (source / "checkpoints/best", start.path))
    assert all(torch.equal(before[name], after[name]) for name in before)
    statistics = open_checkpoint(Path("run/checkpoints/last")).tensors("backbone")
    assert all(torch.equal(before[name], x) for name, x in statistics.items() if "running" in name)
    again = library.finetune("run/config.yaml", ref=source, out="again")
    assert (again.run / "metrics.jsonl").read_text().count('"val"') == Path("run/metrics.jsonl").read_text().count(
        '"val"'
    )
    same = open_checkpoint(Path("again/checkpoints/last")).tensors("backbone")
    assert all(torch.equal(x, same[name]) for name, x in statistics.items())


def test_probe_ends_at_the_solved_head(source: Path, tmp_path: Path) -> None:
    run = finetune(source, tmp_path / "run", transfer="probe").run
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-00000000"]
    assert open_checkpoint(run / "checkpoints/best").trainer()["state"]["finished"]
    judged = library.probe(source, dataset="digits", overrides=["dataset.classes=[0,1,2]", "dataset.image_size=8"])
    penalty = parse_yaml((run / "config.yaml").read_text(), "")[0]["transfer"]["penalty"]["label"]
    assert penalty > 0
    assert judged["penalty"] > 0


@pytest.mark.parametrize("moment", [0, 1, 5])
def test_stopped_and_resumed_it_ends_in_the_same_bits(source: Path, tmp_path: Path, moment: int) -> None:
    whole = finetune(source, tmp_path / "whole")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > moment

    config = {"dataset": DATA, "train": {"steps": 12, "batch_size": 12}}
    with pytest.raises(library.errors.Stopped):
        library.finetune(config, ref=source, out=tmp_path / "parts", stop=stop)
    parts = library.resume(tmp_path / "parts")
    for name in ("last", "best", "step-00000000"):
        for stem in ("backbone", "objective"):
            a, b = (open_checkpoint(run.run / "checkpoints" / name).tensors(stem) for run in (whole, parts))
            assert all(torch.equal(x, b[key]) for key, x in a.items())
    assert whole.metrics == parts.metrics


def test_killed_before_the_first_step_it_starts_anew(source: Path, tmp_path: Path) -> None:
    config = {"dataset": DATA, "train": {"steps": 12, "batch_size": 12}}
    write(tmp_path / "task.yaml", config)
    whole = library.finetune(tmp_path / "task.yaml", ref=source, out=tmp_path / "whole")
    child = process("finetune", tmp_path / "task.yaml", "--from", source, "--out", tmp_path / "killed")
    while not (tmp_path / "killed/checkpoints").is_dir() and child.poll() is None:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    library.resume(tmp_path / "killed")
    a, b = (open_checkpoint(tmp_path / run / "checkpoints/last").tensors("backbone") for run in ("whole", "killed"))
    assert all(torch.equal(x, b[name]) for name, x in a.items())
    assert whole.run.is_dir()


def test_a_diverged_run_ends_with_the_source(source: Path, fmeco: Any) -> None:
    sets = ("--set", "dataset.classes=[0,1,2]", "--set", "optimizer={name: sgd, lr: 1e30}", "--set", "train.steps=20")
    answer = fmeco("finetune", "--from", source, "--dataset", "digits", *sets, "--out", "run", "--json")
    assert answer.code == 0, answer.err
    assert "training diverged" in answer.err
    assert answer.json["checkpoint"].endswith("step-00000000")
    wrong = fmeco("finetune", "--from", source, "--dataset", "digits", *sets, "--set", "transfer=full", "--out", "full")
    assert wrong.code == 5


def test_a_budget_without_room_for_training_gives_the_source(source: Path, tmp_path: Path) -> None:
    result = finetune(source, tmp_path / "run", train={"steps": None, "budget": "0.01s"})
    assert result.checkpoint.name == "step-00000000"
    assert open_checkpoint(result.checkpoint).trainer()["state"]["step"] == 0


def test_weights_of_classes_and_sampling_are_folded_in(source: Path, tmp_path: Path) -> None:
    def head(**sections: Any) -> Tensor:
        run = finetune(source, tmp_path / str(len(list(tmp_path.iterdir()))), transfer="probe", **sections).run
        return open_checkpoint(run / "checkpoints/best").tensors("objective")["head.bias"]

    plain = head()
    without = head(objective={"name": "classification", "class_weights": {"2": 0}})
    assert without[2] < plain[2] - 0.5
    few = head(dataset={**DATA, "classes": [0, 1, 2], "limit_per_class": 30}, train={"sampler": "balanced"})
    torch.testing.assert_close(few, plain, atol=0.05, rtol=0.05)  # the classes are equally frequent


@pytest.mark.parametrize("kind", ["number", "several", "series"])
def test_every_objective_with_a_linear_head_solves_it(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 4))
    table = tmp_path / "t.csv"
    if kind == "series":
        wave = np.sin(np.arange(600) / 4) + 0.05 * rng.normal(size=600)
        table.write_text("time,v\n" + "\n".join(f"{i},{v:.4f}" for i, v in enumerate(wave)) + "\n")
        dataset: dict[str, Any] = {"name": "series", "path": str(table), "horizon": 4, "context": 16}
        objective: Any = {"name": "forecast", "loss": "quantile"}
    else:
        labels = {
            "number": [f"{a - b:.3f}" for a, b, *_ in x],
            "several": ["yes" if a > b else "no" for a, b, *_ in x],
        }
        rows = [
            f"{','.join(f'{v:.3f}' for v in row)},{labels[kind][i]},{row[2]:.3f}" for i, row in enumerate(x.tolist())
        ]
        table.write_text("a,b,c,d,label,other\n" + "\n".join(rows) + "\n")
        target: Any = ["label", "other"] if kind == "several" else "label"
        dataset = {"name": "csv_table", "path": str(table), "target": target, "features": ["a", "b", "c", "d"]}
        objective = None
    train = {"steps": 2, "batch_size": 16}
    backbone = "mlp" if kind != "series" else {"name": "transformer", "width": 16, "depth": 1, "heads": 2}
    base = {"dataset": dataset, "train": train, **({"objective": objective} if objective else {})}
    pretrained = library.pretrain({**base, "backbone": backbone}, out=tmp_path / "source").run
    solved = library.finetune({**base, "transfer": "probe"}, ref=pretrained, out=tmp_path / "solved")
    metric = {"number": "val_r2", "several": "val_score", "series": "val_pinball"}[kind]
    before = open_checkpoint(pretrained / "checkpoints/best").meta["metrics"][metric]
    after = solved.metrics[metric]
    assert after < 0.5 * before if kind == "series" else after > max(0.7, before)
    if kind == "series":
        coverage = next(value for name, value in solved.metrics.items() if "coverage" in name)
        assert 0.6 < coverage < 0.95


def test_labels_of_several_are_solved_with_their_weight() -> None:
    spec = DataSpec("table", {}, targets={"label": Target("multilabel", ("p", "q"), (30, 30))})
    data = examples("sigmoid")
    heads = []
    for pos_weight in (None, 8.0):
        objective = choose("objective", {"name": "multilabel", "pos_weight": pos_weight})
        built = objective.build(backbone=Wide(), spec=spec)
        rows = {"vector": data.x, "target/label": data.y, "weight": torch.ones(60)}
        assert built.solve(rows, {"label": 0.1}) == {"label": 0.1}
        heads.append(built.head(data.x).sigmoid().mean(0))
    assert (heads[0] - data.y.mean(0)).abs().max() < 0.02  # an unpenalised bias fits the mean
    assert (heads[1] > heads[0] + 0.1).all()


class Wide(Backbone):
    width = 90

    def forward(self, inputs: Inputs) -> Features:
        raise NotImplementedError


def test_a_head_that_cannot_be_solved_is_trained_alone_first(tmp_path: Path) -> None:
    texts(tmp_path / "t.jsonl")
    train = {"steps": 40, "batch_size": 8, "keep": 1}
    base = {"dataset": {"name": "text", "path": str(tmp_path / "t.jsonl")}, "train": train, "evaluate": {"every": 4}}
    body = {"backbone": {"name": "transformer", "width": 16, "depth": 1, "heads": 2}}
    pretrained = library.pretrain({**base, **body, "objective": "mask"}, out=tmp_path / "source").run
    run = library.finetune({**base, "objective": "mask"}, ref=pretrained, out=tmp_path / "run").run
    assert "has no direct solution: the first part of the run trains the head alone" in (run / "run.log").read_text()
    assert open_checkpoint(run / "checkpoints/last").trainer()["state"]["phase"] == 1
    state = open_checkpoint(run / "checkpoints/last").trainer()["state"]
    source = open_checkpoint(run / f"checkpoints/step-{state['source_step']:08d}")
    assert source.meta["step"] == 4 < state["best_step"], "evaluated at the end of the tenth of 40 steps that trains it"
    gain = compare.gain(run, "loss")
    assert gain is not None
    assert gain["source"] == pytest.approx(source.meta["metrics"]["val_loss"], abs=1e-6)
    assert gain["finetuned"] < gain["source"], "the checkpoint of the head alone is kept, and compared"
    control = compare.controls(run, ["source"])["runs"][1]
    assert (control["name"], Path(control["run"]).name) == ("source", f"step-{state['source_step']:08d}")
    short = library.finetune(
        {**base, "objective": "mask", "train": {"steps": 3}}, ref=pretrained, out=tmp_path / "short"
    )
    assert open_checkpoint(short.run / "checkpoints/last").trainer()["state"]["source_step"] == 1, "a step at least"


def test_a_source_that_is_not_beaten_is_the_result_with_both_figures(source: Path, fmeco: Callable[..., Any]) -> None:
    sets = ("--set", "dataset.classes=[0,1,2]", "--set", "train.epochs=2", "--set", "train.batch_size=16")

    def gain(*keys: str) -> dict[str, Any]:
        answer = fmeco("finetune", "--from", source, "--dataset", "digits", *sets, *keys, "--out", "run", "--force")
        assert answer.code == 0, answer.err
        found: dict[str, Any] = json.loads(Path("run/gain.json").read_text())
        for text in (answer.out, Path("run/run.log").read_text(), html.unescape(Path("run/report.html").read_text())):
            assert found["sentence"] in text
        return found

    worse = gain("--set", "optimizer.lr=0.5", "--set", "evaluate.best=macro_f1")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    scores = [line["macro_f1"] for line in lines if line["kind"] == "val"]
    assert (worse["metric"], worse["source"], worse["finetuned"]) == ("macro_f1", scores[0], max(scores[1:]))
    before, after = f"{scores[0]:.4f}", f"{max(scores[1:]):.4f}"
    assert f"the source as it is {before} was not beaten: finetuned at best {after}" in worse["sentence"]
    loss = gain("--set", "optimizer.lr=0.5", "--set", "evaluate.best=loss")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert loss["finetuned"] == min(line["loss"] for line in lines if line["kind"] == "val" and line["step"] > 0)
    assert "training ended before it was evaluated" in gain("--set", "optimizer.lr=1e30")["sentence"]
    assert "no training step was taken" in gain("--set", "transfer=probe")["sentence"]


def test_features_that_do_not_fit_into_memory_are_not_stored(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to solve a head nor to train one."""
    monkeypatch.setattr(extractor, "MEMORY", 0.0)
    log = (finetune(source, tmp_path / "run", transfer="probe").run / "run.log").read_text()
    assert "its features of the training samples could not be collected" in log
    assert "precomputed features would need 0 GB of memory" in log
    assert " 12 steps, " in log


def test_a_run_announces_the_steps_that_it_takes(source: Path, fmeco: Callable[..., Any]) -> None:
    data = ("--from", source, "--dataset", "digits", "--set", "dataset.classes=[0,1,2]")
    probe = fmeco("finetune", *data, "--set", "transfer=probe", "--out", "run")
    assert probe.code == 0, probe.err
    assert "samples; no training steps: the solved head is the result; " in probe.err
    assert "steps per epoch" not in probe.err
    assert "samples/s" not in probe.err
    assert "steps      none: the head is solved" in fmeco("check", *data, "--set", "transfer=probe").out
    trained = fmeco("finetune", *data, "--set", "transfer=full", "--set", "train.epochs=2", "--out", "full")
    assert " steps (2 epochs), " in trained.err


def test_keys_of_a_strategy_without_its_name_are_refused(source: Path) -> None:
    with pytest.raises(ConfigError, match=r"transfer: names no strategy.*backbone_lr.*write `strategy"):
        read_config({"dataset": DATA, "transfer": {"backbone_lr": 0.1}}, stage="finetune", ref=source)
    with pytest.raises(ConfigError, match="write `strategy: lora`"):
        read_config({"dataset": DATA, "transfer": {"rank": 4}}, stage="finetune", ref=source)
    chosen = read_config({"dataset": DATA, "transfer": {"freeze": ["layers.0"]}}, stage="finetune", ref=source)
    assert chosen.transfer is not None
    assert chosen.transfer.name == "auto"


def test_the_source_is_a_control_without_a_run(source: Path, fmeco: Callable[..., Any]) -> None:
    sets = ("--set", "dataset.classes=[0,1,2]", "--set", "train.steps=10")
    answer = fmeco(
        "finetune", "--from", source, "--dataset", "digits", *sets, "--out", "run", "--control", "source,scratch"
    )
    assert answer.code == 0, answer.err
    assert "auto instead of source" in answer.out
    assert not Path("run/controls/source").exists()
    rate = parse_yaml(Path("run/controls/scratch/config.yaml").read_text(), "")[0]["optimizer"]["lr"]
    assert rate == 5e-4
    log, page = Path("run/run.log").read_text(), Path("run/report.html").read_text()
    gain = json.loads(Path("run/gain.json").read_text())["sentence"]
    assert gain in log
    assert "auto instead of source" in log
    assert html.escape(gain) in page
    assert "<td>source</td>" in page
    assert json.loads(Path("run/controls/comparison.json").read_text())["runs"][1]["run"].endswith("step-00000000")


def test_what_a_finetune_forgot_is_measured(source: Path, fmeco: Callable[..., Any]) -> None:
    sets = ("--set", "dataset.classes=[0,1,2]", "--set", "train.steps=40", "--set", "optimizer.lr=0.05")
    base = ("finetune", "--from", source, "--dataset", "digits", *sets, "--remember", "digits")
    answer = fmeco(*base, "--set", "transfer=full", "--out", "run", "--json")
    assert answer.code == 0, answer.err
    found, own = answer.json["remembered"], fmeco("evaluate", source, "--json").json
    assert found["before"] == own["metrics"][f"{found['split']}_accuracy"]
    assert found["difference"][0] == pytest.approx(found["after"] - found["before"])
    assert found["after"] < found["before"] - 0.1
    kept = fmeco(*base, "--set", "transfer=probe", "--out", "kept")
    assert "the source's own task, accuracy" in kept.out
    assert "better by 0.0000, 0.0000 to 0.0000" in kept.out
    wrong = fmeco("finetune", "--from", "torchvision/resnet18@DEFAULT", "--dataset", "digits", "--remember", "digits")
    assert wrong.code == 2
    assert "with the source's head" in wrong.err


def test_the_sources_own_head_is_kept_where_it_is_better(source: Path, fmeco: Callable[..., Any]) -> None:
    sets = ("--set", "dataset.classes=[3,4,5,6]", "--set", "dataset.limit_per_class=2", "--set", "transfer=probe")
    answer = fmeco("finetune", "--from", source, "--dataset", "digits", *sets, "--out", "run")
    assert answer.code == 0, answer.err
    assert "the source's own head for these classes is as good" in answer.err
    a, b = (open_checkpoint(run / "checkpoints/best").tensors("objective") for run in (source, Path("run")))
    assert all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.mark.parametrize("ema", [None, 0.9])
def test_each_head_is_evaluated_once_and_the_kept_one_is_saved(
    source: Path, tmp_path: Path, ema: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with averaged weights, which began with the solved head."""
    evaluated = []
    evaluate = forward.evaluate

    def counted(*args: Any, **options: Any) -> Any:
        evaluated.append(args)
        return evaluate(*args, **options)

    monkeypatch.setattr(forward, "evaluate", counted)
    data = {**DATA, "classes": [3, 4, 5, 6], "limit_per_class": 2}
    run = finetune(source, tmp_path / "run", dataset=data, transfer="probe", train={"ema": ema}).run
    assert len(evaluated) == 2
    assert "the source's own head for these classes is as good" in (run / "run.log").read_text()
    a, b = (open_checkpoint(run / "checkpoints/best").tensors("objective") for run in (source, run))
    assert all(torch.equal(x, b[name]) for name, x in a.items())


def test_two_ranks_begin_with_the_head_of_one(source: Path, tmp_path: Path) -> None:
    sets = ("--set", "dataset.classes=[0,1,2]", "--set", "train.steps=6")
    child = process(
        "finetune", "--from", source, "--dataset", "digits", *sets, "--out", tmp_path / "two", "--nproc", "2"
    )
    _, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert err.count("the head is solved") == 1
    assert "UserWarning" not in err
    config = {"dataset": {"name": "digits", "classes": [0, 1, 2]}, "train": {"steps": 6}}
    one = library.finetune(config, ref=source, out=tmp_path / "one").run
    a, b = (open_checkpoint(run / "checkpoints/step-00000000").tensors("objective") for run in (one, tmp_path / "two"))
    assert all(torch.allclose(x, b[name], atol=1e-4) for name, x in a.items())
    log = (tmp_path / "two/run.log").read_text()
    assert log.count("source as it is") == 1
