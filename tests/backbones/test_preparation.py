"""Preprocessing of the libraries: the same picture gives the library's own pixels and features, and a checkpoint keeps them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import fmeco as api
from fmeco.checkpoints import refs, sources, transplant
from fmeco.config.check import choose
from fmeco.core import DataSpec, fit, standardize
from fmeco.datasets import _images
from tests.conftest import Answer, photos, tiny, write
from tests.data.test_data import build

Fmeco = Callable[..., Answer]
SHORT = ("--set", "train.epochs=1", "--set", "train.tensorboard=false", "--set", "train.batch_size=16")
SIZES = [(500, 375), (333, 500), (641, 427), (231, 231), (97, 130)]


def scene(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture with detail at all scales, as photographs have."""
    rng = np.random.default_rng(seed)
    made = np.zeros((size[1], size[0], 3))
    for cells in (3, 8, 20, 60):
        part = Image.fromarray(rng.integers(0, 256, (cells, cells, 3)).astype("uint8")).resize(size, 3)
        made += (np.asarray(part).astype(float) - 128) / cells**0.5
    return Image.fromarray((128 + made).clip(0, 255).astype("uint8"))


def album(folder: str = "album") -> Path:
    """Pictures of several shapes, and two large JPEGs, which a camera turned."""
    Path(folder).mkdir()
    for i, size in enumerate(SIZES):
        scene(size, i).save(f"{folder}/{i}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        scene((2000, 1500), 10 + i).save(f"{folder}/large{i}.jpg", quality=90, exif=exif)
    return Path(folder)


def stated(spec: DataSpec) -> DataSpec:
    """What weights with this preprocessing start from."""
    return sources.decoded_anew(spec)


def ours(spec: DataSpec, image: Image.Image, **keys: Any) -> Tensor:
    """A picture as the model sees it, (3, h, w)."""
    spec = build(known=spec, whole=True, name="images", path="album", **keys).spec
    return standardize(
        {"image": fit({"image": _images.canonical(image, spec.preprocessing)}, spec)["image"][None]}, spec
    )["image"][0]


def same_pixels(found: Tensor, wanted: Tensor, spec: DataSpec) -> None:
    """Equal but for rounding: Pillow's resampling differs by a level or two of 255 in places."""
    assert found.shape == wanted.shape
    levels = (found - wanted).abs() * min(spec.inputs["image"].std) / spec.inputs["image"].scale
    assert levels.max() <= 2.01 and levels.mean() < 0.25


# ---------------------------------------------------------------- features


def timm_net(size: int) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    timm = pytest.importorskip("timm")
    net = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    return net, timm.data.create_transform(**timm.data.resolve_data_config({"input_size": (3, size, size)}, model=net))


def torchvision_net(size: int) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    from torchvision import models

    net = models.resnet18()
    net.fc = nn.Identity()
    stated = models.ResNet18_Weights.DEFAULT.transforms
    return net, stated(crop_size=size, resize_size=math.floor(size / 0.875))


@pytest.mark.parametrize("size", [224, 96])
@pytest.mark.parametrize(
    ("name", "theirs"), [("timm/tf_efficientnet_lite0", timm_net), ("torchvision/resnet18", torchvision_net)]
)
@torch.no_grad()
def test_a_picture_gives_the_librarys_own_features(name: str, theirs: Any, size: int) -> None:
    torch.manual_seed(0)
    net, prepare = theirs(size)
    save_file(net.state_dict(), "weights.safetensors")
    folder, choice = album(), choose("backbone", {"name": name})
    source = refs.resolve("weights.safetensors", choice)
    data = build(known=source.spec.preprocessing_only(), whole=True, name="images", path=str(folder), image_size=size)
    made = choice.plugin.build({"spec": data.spec, "arch": choice.arch}, choice.options).eval()
    transplant.transplant(made, source.state, source=source.ref)
    samples = data.split("test")
    for i in range(len(samples)):
        wanted = net.eval()(prepare(ImageOps.exif_transpose(Image.open(folder / samples.name(i))).convert("RGB"))[None])
        found = made(standardize({"image": fit(samples[i], data.spec)["image"][None]}, data.spec)).vector
        assert cosine_similarity(wanted, found).item() >= 0.999, samples.name(i)


@pytest.mark.parametrize("size", [224, 96])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_timms_crop_modes_are_followed(mode: str, size: int) -> None:
    timm = pytest.importorskip("timm")
    from fmeco.backbones.timm import _spec

    album()
    cfg = dataclasses.replace(
        timm.models.get_pretrained_cfg("tf_efficientnet_lite0"),
        crop_mode=mode,
        crop_pct=1.0 if mode == "border" else 0.9,
    )
    spec = stated(_spec(cfg))
    keys = {"input_size": (3, size, size)}
    prepare = timm.data.create_transform(**timm.data.resolve_data_config(keys, pretrained_cfg=cfg.to_dict()))
    for i, shape in enumerate(SIZES):
        same_pixels(ours(spec, scene(shape, i), image_size=size), prepare(scene(shape, i)), spec)


# ---------------------------------------------------------------- processors of transformers

BGR = {"do_flip_channel_order": False, "size": {"shortest_edge": 288}}
PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("BeitImageProcessor", {}),
    ("BitImageProcessor", {}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 256}, "resample": 2}),
    ("ConvNextImageProcessor", {}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.9}),
    ("DeiTImageProcessor", {}),
    ("EfficientNetImageProcessor", {"resample": 0}),
    ("EfficientNetImageProcessor", {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False}),
    ("LevitImageProcessor", {}),
    ("MobileNetV2ImageProcessor", {"do_rescale": False, "do_normalize": False}),
    ("MobileViTImageProcessor", BGR),
    ("PoolFormerImageProcessor", {}),
    ("SiglipImageProcessor", {"image_mean": 0.4, "do_normalize": True}),
    ("ViTImageProcessor", {"do_normalize": False}),
]


@pytest.mark.parametrize(
    ("name", "keys"), PROCESSORS, ids=lambda x: x if isinstance(x, str) else "-".join(x) or "plain"
)
def test_a_processors_steps_are_followed(name: str, keys: dict[str, Any]) -> None:
    hf = pytest.importorskip("transformers")
    from fmeco.backbones._hf_processor import read_processor

    album()
    processor = getattr(hf, name)(**keys)
    processor.save_pretrained("m")
    spec = read_processor("./m", "vit")
    assert spec is not None
    spec = stated(spec)
    for i, shape in enumerate(SIZES):
        wanted = processor(scene(shape, i), return_tensors="pt")["pixel_values"][0]
        same_pixels(ours(spec, scene(shape, i)), wanted, spec)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_processor_type": "ImageGPTImageProcessor"}, "ImageGPTImageProcessor: fmeco does not know"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "do_flip_channel_order: images are read as BGR"),
        ({"image_processor_type": "NoSuchImageProcessor"}, "no image processor NoSuchImageProcessor"),
        ({"image_processor_type": "BertModel"}, "no image processor BertModel"),
        ({"auto_map": {"AutoImageProcessor": "code.Own"}}, "auto_map: it names code of its own"),
        ({"size": {"height": 224, "width": 160}}, "is not square"),
        ({"size": "large"}, "not a valid image preprocessing"),
        ({"resample": 4}, "resample 4"),
        ({"resample": [1]}, "not a valid image preprocessing"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std"),
        ({"image_mean": ["x"]}, "not a valid image preprocessing"),
    ],
)
def test_a_processor_that_cannot_be_followed_is_refused(content: dict[str, Any], message: str, fmeco: Fmeco) -> None:
    from tests.backbones.test_hf import model

    model("m", "vit")
    Path("m/preprocessor_config.json").write_text(json.dumps({"size": 32, **content}))
    photos(Path("p"), each=4)
    answer = fmeco("check", "--from", "hf/./m@DEFAULT", "--dataset", "p")
    assert answer.code == 2 and "preprocessor_config.json" in answer.err and message in answer.err


# ---------------------------------------------------------------- the keys of image datasets

PLAIN = {"classes": None, "limit_per_class": None}
KEYS: dict[
    str, tuple[Any, Any, str]
] = {  # key -> values of the checkpoint and of the new config, and what a message says
    "mean": (
        [0.1, 0.2, 0.3],
        [0.4, 0.2, 0.3],
        "[0.4, 0.2, 0.3]: the checkpoint's images were prepared with [0.1, 0.2, 0.3]",
    ),
    "std": (
        [0.1, 0.2, 0.3],
        [0.1, 0.2, 0.4],
        "[0.1, 0.2, 0.4]: the checkpoint's images were prepared with [0.1, 0.2, 0.3]",
    ),
    "interpolation": ("bicubic", "nearest", "nearest: the checkpoint's images were prepared with bicubic"),
    "fit": ("letterbox", "squash", "squash: the checkpoint's images were prepared with letterbox"),
    "crop_share": (0.8, 0.5, "0.5: the checkpoint's images were prepared with 0.8"),
}


def test_a_checkpoints_preparation_cannot_change(fmeco: Fmeco) -> None:
    photos(Path("p"), each=4)
    keys = {key: own for key, (own, _, _) in KEYS.items()}
    options = [part for key, own in keys.items() for part in ("--set", f"dataset.{key}={json.dumps(own)}")]
    config = tiny(dataset={"name": "image_folder", "path": "p", "image_size": 16, **PLAIN, **keys})
    made = fmeco("pretrain", str(write("c.yaml", config)), "--out", "run")
    assert made.code == 0, made.err
    assert "inputs: 16 pixels from 20 letterboxed, bicubic, rgb, mean 0.1 0.2 0.3, std 0.1 0.2 0.3" in made.err
    meta = json.loads(Path("run/checkpoints/best/meta.json").read_text())["spec"]
    assert meta["inputs"]["image"]["mean"] == [0.1, 0.2, 0.3] and "published" not in meta
    assert meta["preprocessing"]["fit"] == "letterbox" and meta["preprocessing"]["crop_share"] == 0.8
    for key, (_, other, message) in KEYS.items():
        answer = fmeco("finetune", "--from", "run", "--dataset", "p", "--set", f"dataset.{key}={json.dumps(other)}")
        assert answer.code == 2 and f"dataset.{key}: {message}" in answer.err
    again = fmeco("finetune", "--from", "run", "--dataset", "p", *options, *SHORT, "--out", "next")
    assert again.code == 0, again.err
    assert (
        json.loads(Path("next/checkpoints/best/meta.json").read_text())["spec"]["preprocessing"]
        == meta["preprocessing"]
    )
    spec = api.load("run").spec
    resumed = build(known=spec, name="image_folder", path="p", image_size=16, **keys).spec
    assert (resumed.preprocessing, resumed.inputs) == (spec.preprocessing, spec.inputs)


def test_a_key_beside_published_weights_is_taken_and_said(fmeco: Fmeco) -> None:
    timm = pytest.importorskip("timm")
    save_file(timm.create_model("test_vit2", num_classes=0).state_dict(), "w.safetensors")
    photos(Path("p"), each=4)
    answer = fmeco(
        *("finetune", "--from", "w.safetensors", "--set", "backbone=timm/test_vit2", "--dataset", "p", "--out", "run"),
        *(
            "--set",
            "dataset.fit=squash",
            "--set",
            "dataset.std=[0.2,0.2,0.2]",
            "--set",
            "dataset.mean=[0.5,0.5,0.5]",
            *SHORT,
        ),
    )
    assert answer.code == 0, answer.err
    assert "dataset.std is [0.2, 0.2, 0.2], in place of [0.5, 0.5, 0.5] for these weights" in answer.err
    assert "dataset.fit is squash, in place of crop for these weights" in answer.err
    assert "dataset.mean is" not in answer.err, "it is the library's own"
    meta = json.loads(Path("run/checkpoints/best/meta.json").read_text())["spec"]
    assert meta["preprocessing"]["fit"] == "squash" and meta["inputs"]["image"]["std"] == [0.2] * 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mean", [123.7, 116.3, 103.5], "divide values for pixels of 0 to 255 by 255"),
        ("mean", [0.5], "expected 3 for dataset.color rgb"),
        ("std", [0.0, 0.2, 0.2], "expected values from 0.0001"),
        ("fit", "stretch", "crop, squash or letterbox"),
        ("crop_share", 1.5, "crop_share"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(key: str, value: Any, message: str, fmeco: Fmeco) -> None:
    photos(Path("p"), each=4)
    config = tiny(dataset={"name": "image_folder", "path": "p", **PLAIN, key: value})
    answer = fmeco("check", str(write("c.yaml", config)))
    assert answer.code == 2 and message in answer.err


@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_a_letterbox_shows_the_whole_picture(color: str) -> None:
    wide = np.zeros((30, 90, 3), "uint8")
    wide[:, :, 0] = np.linspace(0, 255, 90)
    Path("album").mkdir()
    Image.fromarray(wide).save("album/wide.png")
    keys: dict[str, Any] = {"name": "images", "path": "album", "image_size": 30, "color": color}
    data = build(whole=True, **keys, fit="letterbox", background=[0, 0, 255])
    assert (data.spec.preprocessing["resize"], data.spec.preprocessing["crop_share"]) == (30, 1.0)
    seen = fit(data.split("test")[0], data.spec)["image"]
    rest = torch.tensor([0, 0, 255] if color == "rgb" else [29]).byte()[:, None, None]  # 0.114 * 255
    assert (seen[:, :10] == rest).all() and (seen[:, 20:] == rest).all()
    red = seen[0, 15].int()
    assert red[0] < 4 and red[-1] > (250 if color == "rgb" else 74), "both ends of the picture"
    squashed = build(whole=True, **keys, fit="squash")
    seen = fit(squashed.split("test")[0], squashed.spec)["image"]
    assert (seen[0, 0] == seen[0, 15]).all() and seen[0, 0, 0] < 4 and seen[0, 0, -1] > (245 if color == "rgb" else 73)


@pytest.mark.parametrize("dataset", ["digits", "fake_images", "image_folder", "images", "csv_images"])
def test_every_image_dataset_has_the_keys(dataset: str) -> None:
    photos(Path("p"), each=4)
    Path("t.csv").write_text("path,label\n" + "".join(f"p/red/{i:02}.png,a{i % 2}\n" for i in range(4)))
    where = {"csv_images": {"path": "t.csv"}, "digits": {"color": "rgb"}, "fake_images": {}}.get(dataset, {"path": "p"})
    keys = {key: own for key, (own, _, _) in KEYS.items()}
    spec = build(name=dataset, image_size=16, **where, **keys).spec
    assert spec.inputs["image"].mean == (0.1, 0.2, 0.3) == spec.inputs["image"].std
    assert {key: spec.preprocessing[key] for key in ("interpolation", "fit", "crop_share")} == {
        "interpolation": "bicubic",
        "fit": "letterbox",
        "crop_share": 0.8,
    }


def test_a_checkpoint_without_these_keys_stays_as_it_is() -> None:
    """What was stored before they came is what a resumed run stores again."""
    photos(Path("p"), each=4)
    new = build(name="image_folder", path="p", image_size=128).spec
    assert new.preprocessing["fit"] == "crop" and new.preprocessing["resize"] == 146
    old = dataclasses.replace(new, preprocessing={k: v for k, v in new.preprocessing.items() if k != "fit"})
    assert build(known=old, name="image_folder", path="p", fit="crop", crop_share=0.875).spec == old
