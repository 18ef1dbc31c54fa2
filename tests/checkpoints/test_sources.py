"""What a REF may be, which keys of its backbone a run may change, and which commands take weights without a head."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import fmeco as api
from fmeco.checkpoints import format as checkpoint
from fmeco.errors import ConfigError, Stopped
from tests.checkpoints.test_checkpoint import state
from tests.conftest import Answer, photos, tiny, write

Fmeco = Callable[..., Answer]
NEW = {"name": "digits", "classes": [4, 5, 6], "image_size": 8, "limit_per_class": 20}
SHORT = {"steps": 4, "batch_size": 16, "tensorboard": False}


def section(run: Path | str) -> dict[str, object]:
    """The backbone's section in the config of a run, and of its checkpoint."""
    written: dict[str, object] = yaml.safe_load((Path(run) / "config.yaml").read_text())["backbone"]
    saved = checkpoint.open_checkpoint((Path(run) / "checkpoints/best").resolve())
    assert saved.meta["config"]["backbone"] == written
    return written


def test_keys_of_the_sources_backbone_change_and_the_others_stay(fmeco: Fmeco) -> None:
    api.pretrain(tiny(), out="source")  # hidden: [32], which is not the default
    config = write("c.yaml", {"dataset": NEW, "train": SHORT})
    command = ("finetune", config, "--from", "source", "--set", "backbone.dropout=0.5")
    answer = fmeco(*command, "--control", "scratch", "--out", "a")
    assert answer.code == 0, answer.err
    assert "backbone.dropout: 0.5 instead of 0.0 in source" in answer.err
    for run in ("a", "a/controls/scratch"):
        assert section(run) == {"name": "mlp", "hidden": [32], "batch_norm": True, "dropout": 0.5, "embedding": 8}
    assert "Dropout(p=0.5" in str(api.load("a").objective)
    assert fmeco("resume", "a", "--epochs", "3").code == 2  # its length is in steps: config.yaml was read
    named = api.finetune(
        {"dataset": NEW, "train": SHORT, "backbone": {"name": "mlp", "dropout": 0.5}}, ref="source", out="b"
    )
    assert section(named.run) == section("a")
    assert api.finetune("a/config.yaml", out="again").metrics == api.finetune("b/config.yaml", out="more").metrics
    assert fmeco("check", config, "--from", "source", "--set", "backbone.dropout=0.5").code == 0
    assert section(api.finetune({"dataset": NEW, "train": SHORT, "backbone": "mlp"}, ref="source", out="c").run)[
        "hidden"
    ] == [32]
    for setting, code, words in (
        ("backbone.dropuot=0.5", 2, "backbone.dropuot: unknown key (did you mean 'dropout'?)"),
        ("backbone.dropout=2", 2, "backbone.dropout: expected a number < 1.0, got 2"),
        ("backbone=cnn", 2, "(cnn) contradicts the checkpoint's (mlp)"),
        ("backbone.hidden=[16]", 4, "of another shape: layers.0.bias (32,) for (16,)"),
    ):
        answer = fmeco("finetune", config, "--from", "source", "--set", setting)
        assert answer.code == code, answer.err
        assert words in answer.err


def test_a_run_that_was_killed_before_its_first_checkpoint_keeps_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    api.pretrain(tiny(), out="source")
    from fmeco.training import api as training

    with monkeypatch.context() as patch:
        patch.setattr(training, "assemble", lambda *_, **__: (_ for _ in ()).throw(Stopped("killed")))
        with pytest.raises(Stopped):
            api.finetune({"dataset": NEW, "train": SHORT}, ref="source", overrides=["backbone.dropout=0.5"], out="a")
    assert yaml.safe_load(Path("a/config.yaml").read_text())["backbone"] == {"dropout": 0.5}
    assert section(api.resume("a").run)["hidden"] == [32]


def test_a_file_needs_its_architecture_whatever_keys_are_given(fmeco: Fmeco) -> None:
    torch.save(state(), "plain.pth")
    photos(Path("p"), each=3)
    answer = fmeco("finetune", "--from", "plain.pth", "--dataset", "p", "--set", "backbone.stem=small")
    assert answer.code == 2
    assert "plain.pth does not state its architecture" in answer.err
    assert "--set backbone=NAME" in answer.err


def test_embed_and_info_take_files_and_other_commands_say_who_does(fmeco: Fmeco) -> None:
    torch.save({f"net.{name}": tensor for name, tensor in state().items()}, "plain.pth")
    photos(Path("p"), each=4)
    given = ("--dataset", "p", "--set", "backbone=resnet18", "--set", "dataset.image_size=32")
    answer = fmeco("embed", "plain.pth", *given, "--output", "file.npz", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["width"] == 512
    assert "100.0% of the backbone's parameters" in answer.err
    tuned = ("--set", "transfer=probe", "--set", "train.steps=1", "--set", "train.precision=fp32", "--out", "run")
    assert fmeco("finetune", "--from", "plain.pth", *given, *tuned).code == 0
    assert fmeco("embed", "run", "--dataset", "p", "--output", "run.npz").code == 0
    one, two = np.load("file.npz"), np.load("run.npz")
    assert one["names"].tolist() == two["names"].tolist()
    assert len(one["names"]) == 12
    np.testing.assert_allclose(one["features"], two["features"], rtol=1e-4, atol=1e-5)
    for command, code, words in (
        (("embed", "plain.pth", "--output", "x.npz"), 2, "pass one: --dataset X"),
        (("embed", "plain.pth", "--dataset", "p", "--output", "x.npz"), 2, "does not state its architecture"),
        (("predict", "plain.pth", "p"), 4, "plain.pth is a file of weights: this command needs a run or a checkpoint"),
        (("evaluate", "plain.pth"), 4, "embed and info take such weights"),
        (("evaluate", "torchvision/resnet18@DEFAULT"), 2, "names published weights: this command needs a run"),
        (("info", "p/blue/00.png"), 4, "p/blue/00.png: it is a file, and not"),
    ):
        answer = fmeco(*command)
        assert answer.code == code, answer.err
        assert words in answer.err
    report = json.loads(Path("run/transplant.json").read_text())
    assert report["prefix"] == "net."
    with pytest.raises(ConfigError, match="does not know a dataset"):
        api.embed("plain.pth", dataset=None, output="x.npz")
