"""Strategies: what each trains, how it goes on after a stop, and that what is frozen is computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fmeco
from fmeco.core import Backbone, Features, Inputs
from fmeco.errors import Stopped
from fmeco.plugins import plugins

DATA = {"name": "digits", "classes": [0, 1, 2], "image_size": 16, "limit_per_class": 24}
STRATEGIES = list(plugins("strategies"))


class Vision(Backbone):
    """A transformer of two blocks over 4x4 patches, with torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16
        self.patches = nn.Conv2d(1, 16, 4, 4)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False)

    def forward(self, inputs: Inputs) -> Features:
        tokens = self.patches(inputs["image"]).flatten(2).transpose(1, 2)  # (B, T, D)
        return Features(pooled=self.blocks(tokens).mean(1))


def body(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the config's backbone section, keywords for Python)."""
    if kind == "vit":
        return {}, {"backbone": Vision()}
    named = {"cnn": {"name": "cnn", "widths": [8, 8]}, "mlp": {"name": "mlp", "hidden": [24, 16]}}
    return {"backbone": named[kind]}, {}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pretrained run of each kind of network."""
    made = {}
    for kind in ("cnn", "mlp", "vit"):
        section, python = body(kind)
        out = tmp_path_factory.mktemp("sources") / kind
        config = {"dataset": {**DATA, "classes": [3, 4, 5, 6]}, "train": {"steps": 8}, **section}
        made[kind] = fmeco.pretrain(config, out=out, **python).run
    return made


def finetune(source: Path, out: Path, transfer: Any, kind: str, **how: Any) -> fmeco.Result:
    train = {"steps": 20, "batch_size": 12, **how.pop("train", {})}
    config = {"dataset": DATA, "transfer": transfer, "train": train, **how.pop("sections", {})}
    return fmeco.finetune(config, ref=source, out=out, **body(kind)[1], **how)


def tensors(path: Path, file: str = "backbone") -> dict[str, torch.Tensor]:
    return load_file((path / f"{file}.safetensors").resolve())


def trained_by(strategy: str, names: list[str], norms: set[str]) -> set[str]:
    """The backbone's parameters that a strategy says it trains."""
    return {
        "probe": set[str](),
        "bn": norms,
        "bias": {name for name in names if name.endswith("bias") and name not in norms},
        "lora": {name for name in names if not name.endswith("bias") and name not in norms},
    }.get(strategy, set(names))


@pytest.mark.parametrize("kind", ["cnn", "mlp", "vit"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_trains_what_it_says_and_resumes_bit_for_bit(
    strategy: str, kind: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    whole = finetune(sources[kind], tmp_path / "whole", strategy, kind)
    before, after = tensors(sources[kind] / "checkpoints/best"), tensors(whole.checkpoint)
    model = fmeco.load(whole.checkpoint, **body(kind)[1]).objective.product.library
    names = [name for name, _ in model.named_parameters()]
    modules = dict(model.named_modules())
    norms = {
        n for n in names if isinstance(modules[n.rpartition(".")[0]], nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm)
    }
    last = tensors(whole.run / "checkpoints/last")
    changed = {name for name in names if not torch.equal(before[name], last[name])}
    assert changed == trained_by(strategy, names, norms)
    if strategy in ("probe", "lora", "bias"):
        assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    if strategy == "lora":
        factors = tensors(whole.run / "checkpoints/last", "adapter")
        for name in changed:
            a, b = (next(x for n, x in factors.items() if n.endswith(f"{name}.lora_{which}")) for which in "AB")
            torch.testing.assert_close(last[name], before[name] + 2.0 * (b @ a).view(last[name].shape))

    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 11

    with pytest.raises(Stopped):
        finetune(sources[kind], tmp_path / "parts", strategy, kind, stop=stop)
    fmeco.resume(tmp_path / "parts", **body(kind)[1])
    for file in ("backbone", "objective"):
        one, two = (tensors(tmp_path / run / "checkpoints/last", file) for run in ("whole", "parts"))
        assert all(torch.equal(one[name], two[name]) for name in one), file
