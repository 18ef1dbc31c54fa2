"""Backbones of timm keep timm's names and values, and its published weights are found, checked and described."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import fmeco as api
from fmeco.checkpoints import transplant
from fmeco.checkpoints.foreign.files import read_foreign
from fmeco.config.check import choose
from fmeco.core import ConfigError, DataSpec, InputSpec
from tests.conftest import Answer, photos, tiny

timm = pytest.importorskip("timm")
Fmeco = Callable[..., Answer]
SHORT = ("--set", "dataset.image_size=32", "--set", "train.epochs=1", "--set", "train.tensorboard=false")


def build(arch: str, size: int = 32, channels: int = 3, **options: Any) -> Any:
    image = InputSpec((channels, size, size), "uint8", 1 / 255, (0.5,) * channels, (0.25,) * channels)
    choice = choose("backbone", {"name": f"timm/{arch}", **options})
    return choice.plugin.build({"spec": DataSpec("image", {"image": image}), "arch": choice.arch}, choice.options)


def state(arch: str, **how: Any) -> dict[str, Tensor]:
    torch.manual_seed(5)
    found: dict[str, Tensor] = timm.create_model(arch, **how).state_dict()
    return found


def test_the_saved_backbone_is_timms(fmeco: Fmeco) -> None:
    photos(Path("p"), each=6)
    data = {"name": "image_folder", "path": "p", "image_size": 32}
    settings = {**tiny(backbone="timm/resnet18"), "dataset": data, "train": {"epochs": 1, "batch_size": 8}}
    run = api.pretrain(settings, out="run")
    plain = timm.create_model("resnet18", num_classes=10)
    left = plain.load_state_dict(load_file(run.checkpoint / "backbone.safetensors"), strict=False)
    assert sorted(left.missing_keys) == ["fc.bias", "fc.weight"]
    assert left.unexpected_keys == []

    # And back: a plain state dict of timm is a REF, but not for another architecture.
    torch.save(plain.state_dict(), "plain.pth")
    save_file(plain.state_dict(), "plain.safetensors")
    for file in ("plain.pth", "plain.safetensors"):
        report = transplant.transplant(build("resnet18"), read_foreign(Path(file)), source=file)
        assert report.share == 1.0
        assert sorted(report.left_out) == ["fc.bias", "fc.weight"]
        assert not report.reshaped
    command = ("finetune", "--from", "plain.pth", "--dataset", "p", *SHORT)
    answer = fmeco(*command, "--set", "backbone=timm/resnet18")
    assert answer.code == 0, answer.err
    assert "100.0% of the backbone" in answer.err
    answer = fmeco(*command, "--set", "backbone=timm/resnet50")
    assert answer.code == 4
    assert "does not fit" in answer.err


@pytest.mark.parametrize("arch", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_another_size_and_channel_count_load_as_timm_loads_them(arch: str) -> None:
    theirs = state(arch, img_size=160)
    save_file(theirs, "theirs.safetensors")
    made = build(arch, 64, channels=1)
    report = transplant.transplant(made, theirs, source="x")
    how = {"num_classes": 0, "in_chans": 1, "img_size": 64, "pretrained_cfg_overlay": {"file": "theirs.safetensors"}}
    wanted = timm.create_model(arch, pretrained=True, **how).state_dict()
    assert report.share == 1.0
    assert sorted(report.reshaped) == [name for name in sorted(wanted) if theirs[name].shape != wanted[name].shape]
    assert "patch_embed.proj.weight" in report.reshaped
    assert arch != "test_vit" or "pos_embed" in report.reshaped
    for name, tensor in made.library.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name])


def test_what_timm_leaves_out_with_the_class_layer_is_excused() -> None:
    theirs = state("caformer_s18")  # its classifier is an MLP with a norm, of which timm names the last layer
    report = transplant.transplant(build("caformer_s18"), theirs, source="x")
    assert report.share == 1.0
    assert set(report.left_out) == {name for name in theirs if name.startswith("head.fc.")}


@pytest.mark.parametrize(
    ("arch", "size", "options", "message"),
    [
        ("test_vit", 8, {}, "image_size 8"),
        ("resnet18", 32, {"drop_rat": 0.1}, "drop_rat"),
        ("resnet18", 32, {"pretrained": True}, "'pretrained'"),
        ("resnet18", 32, {"features_only": True}, "one vector"),
        ("resnet18", 32, {"global_pool": ""}, "one vector"),
    ],
)
def test_what_timm_refuses_is_a_config_error(arch: str, size: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(arch, size, options=options)
    assert message in caught.value.message
    assert f"timm/{arch}" in caught.value.message


def test_without_timm_one_line_says_what_to_install(fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str) -> Any:
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'")
        return real(name)

    monkeypatch.setattr("fmeco.backbones.timm.importlib.import_module", without)
    photos(Path("p"), each=5)
    answer = fmeco("check", "--from", "timm/resnet18@a1_in1k", "--dataset", "p")
    assert answer.code == 2
    assert "pip install 'fmeco[timm]'" in answer.err


def test_published_weights_come_from_the_hub_with_their_preprocessing_and_licence(
    server: str, fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server on this machine stands in for the hub."""
    from fmeco.backbones import timm as plugin

    monkeypatch.setattr(plugin, "HUB", server + "hub/{}/resolve/main/{}")
    served = {}
    for arch in ("test_resnet", "test_vit"):
        served[arch] = Path(f"hub/timm/{arch}.r160_in1k/resolve/main/model.safetensors")
        served[arch].parent.mkdir(parents=True)
        save_file(state(arch), served[arch])
    photos(Path("p"), each=5)
    command = ("finetune", "--dataset", "p", *SHORT, "--from")
    answer = fmeco(*command, "timm/test_resnet@r160_in1k", "--out", "run")
    assert answer.code == 0, answer.err
    assert "100.0% of the backbone" in answer.err
    assert "160 pixels from 168, bilinear, rgb, mean 0.5, std 0.5; licence: apache-2.0" in answer.err
    digest = hashlib.sha256(served["test_resnet"].read_bytes()).hexdigest()
    assert f"no hash to compare with; SHA-256 {digest}" in answer.err
    assert fmeco(*command, "run", "--out", "next").code == 0
    assert fmeco("info", "next", "--json").json["licence"] == "apache-2.0", "what is made of it keeps it"

    # Files of one name do not meet in the cache, and what is there is not downloaded again.
    assert fmeco(*command, "timm/test_vit@DEFAULT").code == 0
    for file in served.values():
        file.unlink()
    assert fmeco(*command, "timm/test_resnet@r160_in1k").code == 0
    next(Path("torch-home").rglob("*test_resnet*")).unlink()
    answer = fmeco(*command, "timm/test_resnet@r160_in1k")
    assert answer.code == 6
    assert "could not download" in answer.err
    answer = fmeco(*command, "timm/test_resnet@r160_in2k")
    assert answer.code == 2
    assert "did you mean 'r160_in1k'" in answer.err


def test_weights_at_an_address_with_a_hash_are_verified() -> None:
    from fmeco.backbones.timm import pretrained

    found = pretrained("legacy_seresnet18", "in1k")
    assert found.url.endswith("/seresnet18-4bb0ce65.pth")
    assert found.digits == "4bb0ce65"


def test_a_file_of_weights_is_prepared_as_its_architecture_is(fmeco: Fmeco) -> None:
    """Not as ImageNet's, which a linear head on tf_efficientnet_lite0's features pays for with six points."""
    choice = choose("backbone", {"name": "timm/tf_efficientnet_lite0"})
    describe = choice.plugin.load().preprocessing
    spec = describe("tf_efficientnet_lite0")
    stated = timm.models.get_pretrained_cfg("tf_efficientnet_lite0")
    assert spec.inputs["image"].mean == stated.mean == (0.5, 0.5, 0.5)
    assert spec.preprocessing["interpolation"] == stated.interpolation == "bicubic"
    photos(Path("photos"), each=4)
    network = timm.create_model("test_vit2", num_classes=0)
    save_file(network.state_dict(), "weights.safetensors")
    answer = fmeco(
        *("finetune", "--from", "weights.safetensors", "--dataset", "photos", "--out", "run"),
        *("--set", "backbone=timm/test_vit2", "--set", "dataset.image_size=64", "--set", "train.epochs=1"),
    )
    assert answer.code == 0, answer.err
    assert "assuming that of timm/test_vit2" in answer.err
    saved = api.load("run").spec
    assert saved.inputs["image"].mean == describe("test_vit2").inputs["image"].mean


def test_the_rules_in_the_docs_load_another_librarys_names() -> None:
    """As efficientnet_pytorch names its tensors; docs/transfer.md has the rules."""
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    layers = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    layers |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    starts = (0, 1, 3, 5, 8, 11, 15)  # of the stages
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    theirs = {}
    for name, tensor in state("tf_efficientnet_lite0").items():
        word, _, rest = name.partition(".")
        if word == "blocks":
            stage, block, layer, what = rest.split(".")
            number = starts[int(stage)] + int(block)
            theirs[f"_blocks.{number}.{(first if number == 0 else layers)[layer]}.{what}"] = tensor
        else:
            theirs[f"{outer[word]}.{rest}"] = tensor
    docs = (Path(__file__).parents[2] / "docs" / "transfer.md").read_text("utf-8")
    config = yaml.safe_load(next(part for part in re.findall(r"```yaml\n(.*?)```", docs, re.S) if "_blocks" in part))
    made = build(config["backbone"].removeprefix("timm/"), 32)
    rules = config["transfer"]["rename"]
    report = transplant.transplant(made, theirs, source="x", naming=transplant.Naming(rename=rules))
    assert report.share == 1.0
    own = made.library.state_dict()
    assert len(report.pairs) == len(own)
    assert all(torch.equal(own[mine], theirs[name]) for name, mine in report.pairs.items())
    ordered = build("tf_efficientnet_lite0", 32)
    paired = transplant.transplant(ordered, theirs, source="x", naming=transplant.Naming(match="order"))
    assert paired.pairs == report.pairs
