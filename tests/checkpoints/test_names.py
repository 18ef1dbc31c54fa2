"""Weights under other names: rules of renaming, pairs by order, and what a refusal shows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fmeco as api
from fmeco.checkpoints.foreign import names
from fmeco.checkpoints.foreign.files import read_foreign
from fmeco.checkpoints.transplant import PAIRS, Naming, transplant
from fmeco.config.load import read_config
from fmeco.core import Backbone, Features, Inputs
from fmeco.errors import CheckpointError, ConfigError
from tests.checkpoints.test_checkpoint import build, state
from tests.conftest import Answer, photos, tiny, write

Fmeco = Callable[..., Answer]
RULES = {r"^block_(\d)_(\d)\.": r"layer\1.\2.", r"^stem\.": "", r"\.norm([12])\.": r".bn\1."}


def theirs() -> dict[str, Tensor]:
    """resnet18 under other names, in its own order: `RULES` undo the change."""
    renamed = {}
    for name, tensor in state().items():
        if name.startswith("layer"):
            stage, block, rest = name.removeprefix("layer").split(".", 2)
            name = f"block_{stage}_{block}.{rest.replace('bn', 'norm')}"
        renamed[f"stem.{name}" if name.startswith(("conv1", "bn1")) else name] = tensor
    return renamed


def same_weights(made: Any) -> bool:
    own = made.library.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in state().items() if name in own)


def test_rules_rename_in_order_and_say_how_often_they_fitted() -> None:
    made = build("resnet18")
    report = transplant(made, {f"module.{k}": v for k, v in theirs().items()}, source="x", naming=Naming(rename={
        "^module[.]": "", **RULES,
    }))  # fmt: skip
    assert report.share == 1.0
    assert same_weights(made)
    assert list(report.renamed.values()) == [122, 114, 6, 80]
    assert report.pairs["module.block_4_1.norm2.bias"] == "layer4.1.bn2.bias"
    assert any(r"'^stem\.' -> '': 6 names" in line for line in report.lines())
    # the prefix is found after renaming, too
    transplant(build("resnet18"), {f"module.{k}": v for k, v in theirs().items()}, source="x", naming=Naming(
        rename={"block_(.)_(.)": r"layer\1.\2", "stem[.]": "", "norm": "bn"}
    ))  # fmt: skip


def test_a_rule_that_fits_nothing_or_joins_two_names_is_an_error() -> None:
    made = build("resnet18")
    with pytest.raises(ConfigError, match=r"'\^blocks' fits no name of x, which has stem\.conv1\.weight"):
        transplant(made, theirs(), source="x", naming=Naming(rename={**RULES, "^blocks": "layer"}))
    with pytest.raises(ConfigError, match=r"stem\.bn1\.weight and stem\.bn1\.bias of x both become 'stem\.bn1\.w'"):
        transplant(made, theirs(), source="x", naming=Naming(rename={"(weight|bias)$": "w"}), allow_partial=True)
    with pytest.raises(ConfigError) as caught:
        read_config({"from": "x.pth", "transfer": {"rename": {"a(": "b"}}, "dataset": "digits"})
    assert "transfer.rename: 'a(' with the replacement 'b' is no valid rule: missing )" in caught.value.message
    for wrong in (r"\2", r"\g<x>"):
        with pytest.raises(ConfigError, match="is no valid rule"):
            read_config({"from": "x.pth", "transfer": {"rename": {"(a)": wrong}}, "dataset": "digits"})


def test_a_rule_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "PATIENCE", 2.0)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"'\(a\+\)\+b' has not finished after 2 seconds"):
        names.rename(["a" * 60, "c"], {"c": "d", "(a+)+b": ""}, "x")
    assert time.monotonic() - began < 20


def test_order_is_proposed_taken_when_asked_and_only_where_all_agrees() -> None:
    renamed = {f"op{number}.{name.rpartition('.')[2]}": t for number, (name, t) in enumerate(state().items())}
    made = build("resnet18")
    before = {name: tensor.clone() for name, tensor in made.library.state_dict().items()}
    with pytest.raises(CheckpointError, match="no parameter would be loaded") as caught:
        transplant(made, renamed, source="x", architecture="resnet18")
    lines = caught.value.message.splitlines()
    assert ["op0.weight", "(64,", "3,", "7,", "7)", "conv1.weight", "(64,", "3,", "7,", "7)"] in [
        x.split() for x in lines
    ]
    assert "--set transfer.match=order" in "\n".join(caught.value.hints)
    assert "another architecture than resnet18" in "\n".join(caught.value.hints)
    assert all(torch.equal(t, before[name]) for name, t in made.library.state_dict().items()), "never by itself"
    order = Naming(match="order")
    report = transplant(made, renamed, source="x", naming=order)
    assert same_weights(made)
    assert report.share == 1.0
    assert len(report.pairs) == len(before)
    assert report.left_out == ["op120.weight", "op121.bias"]
    shown = report.lines("FILE")
    pairs = [line.split() for line in shown if " -> " in line]
    assert len(pairs) == 2 * PAIRS
    assert pairs[0] == ["op0.weight", "->", "conv1.weight"]
    assert pairs[-1] == ["op119.num_batches_tracked", "->", "layer4.1.bn2.num_batches_tracked"]
    assert f"    ... and {len(before) - 2 * PAIRS} more" in shown
    assert f"  {len(before)} tensors paired by order: `fmeco check` shows how" in report.lines()
    assert not any(" -> " in line for line in report.lines()), "commands other than check and finetune say one line"
    without = {name: t for name, t in renamed.items() if "num_batches" not in name}
    assert transplant(build("resnet18"), without, source="x", naming=order).share == 1.0
    one = build("resnet18")
    items = list(renamed.items())
    for wrong, why in (
        ([items[0], items[2], items[1], *items[3:]], r"op2\.bias \(64,\) is beside bn1\.weight \(64,\)"),
        ([*items[6:], *items[:6]], "is beside|no class layer"),
        (items[:40], "the source has 40 tensors, the backbone 120"),
        ([*items, ("more.weight", torch.zeros(3, 3))], "no class layer"),
    ):
        with pytest.raises(CheckpointError, match=why) as caught:
            transplant(one, dict(wrong), source="x", naming=order, allow_partial=True)
        assert "match=order" not in "".join(caught.value.hints)
    with pytest.raises(
        CheckpointError, match=r"(?s)in the source +in the backbone\n *op0\.weight \(64, 3, 7, 7\) +conv1\.weight"
    ):
        transplant(one, dict([items[0], items[2], items[1], *items[3:]]), source="x", naming=order)


class Stack(Backbone):
    """Twelve layers of one shape, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.layers = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(12)))

    def forward(self, inputs: Inputs) -> Features:
        return Features(pooled=self.layers(inputs["x"]))


def test_the_alphabet_of_safetensors_is_no_order() -> None:
    """All shapes would agree, and layer 10 would become layer 2."""
    theirs = {f"op{number}.w": torch.randn(4, 4) for number in range(12)}
    made = Stack()
    report = transplant(made, theirs, source="x", naming=Naming(match="order"))
    assert report.pairs["op10.w"] == "layers.10.weight"
    assert torch.equal(made.layers[10].weight, theirs["op10.w"])
    save_file(theirs, "s.safetensors")
    with pytest.raises(CheckpointError, match="by the alphabet"):
        transplant(made, read_foreign(Path("s.safetensors")), source="x", naming=Naming(match="order"))


def test_hints_do_not_repeat_what_was_given() -> None:
    made = build("resnet18")
    half = {name: tensor for name, tensor in theirs().items() if "block_4" not in name}
    with pytest.raises(CheckpointError, match="without a place") as caught:
        transplant(made, {**state(), "extra.weight": torch.zeros(1)}, source="x")
    assert not any("transfer." in hint for hint in caught.value.hints)
    with pytest.raises(CheckpointError, match="without a place") as caught:
        transplant(made, half, source="x", naming=Naming(rename=RULES | {"bn1[.]weight": "bn1.w"}))
    hints = "\n".join(caught.value.hints)
    assert "transfer.rename" not in hints
    assert "--allow-partial" in hints


def test_weights_in_a_config_take_the_same_keys_as_from(fmeco: Fmeco) -> None:
    torch.save({"state_dict": theirs(), "epoch": 3}, "their.pth.tar")
    config = tiny(backbone={"name": "resnet18", "weights": "their.pth.tar"}, train={"steps": 1, "epochs": None})
    del config["backbone"]["hidden"]
    refused = fmeco("pretrain", write("a.yaml", config), "--out", "run")
    assert "--set transfer.match=order" in refused.err
    config["transfer"] = {"rename": RULES}
    answer = fmeco("pretrain", write("b.yaml", config), "--out", "run")
    assert answer.code == 0, answer.err
    report = json.loads(Path("run/transplant.json").read_text())
    assert (report["share"], report["pairs"]["block_4_1.norm2.bias"]) == (1.0, "layer4.1.bn2.bias")
    with pytest.raises(ConfigError, match=r"transfer: only for runs that start from weights"):
        read_config({**config, "backbone": "resnet18"}, stage="pretrain")


def mlp_file(path: str) -> dict[str, Tensor]:
    """The backbone of a run, under other names, as a file of torch."""
    photos(Path("p"))
    run = api.pretrain({**tiny(), "dataset": {"name": "image_folder", "path": "p", "image_size": 8}}, out="run")
    weights = load_file(run.checkpoint / "backbone.safetensors")
    model = api.load("run").objective.product.library
    ordered = {name: weights[name] for name in model.state_dict()}
    torch.save({f"their.{name}": tensor for name, tensor in ordered.items()}, path)
    return ordered


@pytest.mark.parametrize(
    ("key", "value"), [("rename", '{"^their[.](.*)[.]weight$": "\\\\1.weight", "^their[.]": ""}'), ("match", "order")]
)
def test_a_run_records_every_pair_and_goes_on(key: str, value: str, fmeco: Fmeco) -> None:
    weights = mlp_file("their.pth")
    command = ("finetune", "--from", "their.pth", "--dataset", "p", "--set", "backbone={name: mlp, hidden: [32]}")
    command = (*command, "--set", "dataset.image_size=8", "--set", "train.epochs=1")
    answer = fmeco(*command, "--set", "transfer.strategy=probe", "--set", f"transfer.{key}={value}", "--out", "tuned")
    assert answer.code == 0, answer.err
    report = json.loads(Path("tuned/transplant.json").read_text())
    assert report["pairs"] == {f"their.{name}": name for name in weights}
    meta = json.loads(Path("tuned/checkpoints/best/meta.json").read_text())
    assert meta["transplant"]["pairs"] == report["pairs"]
    tuned = load_file("tuned/checkpoints/best/backbone.safetensors")
    assert all(torch.equal(tuned[name], tensor) for name, tensor in weights.items())
    assert fmeco("resume", "tuned", "--epochs", "2").code == 0
    assert fmeco("evaluate", "tuned").code == 0
