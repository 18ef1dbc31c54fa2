"""Segmentation: losses and metrics against plain references, windows, and a run from pictures to masks."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import fmeco as api
from fmeco.config.check import choose
from fmeco.core import IGNORED, Backbone, Batch, DataSpec, Features, Inputs, InputSpec, Objective, Target
from fmeco.objectives import segmentation
from tests.conftest import Answer

Fmeco = Callable[..., Answer]
CLASSES = ("sky", "road", "tree")
SPEC = DataSpec(
    "image",
    {
        "image": InputSpec((3, 32, 32), "uint8"),
        "mask": InputSpec((32, 32), "uint8", rides="image", form="mask"),
    },
    {"mask": Target("mask", CLASSES, input="mask")},
    {"size": 32, "decode": 2},
)


class Shades(Backbone):
    """A backbone whose only map is the picture itself, at half its size."""

    width, map_widths, map_strides = 3, (3,), (2,)

    def forward(self, inputs: Inputs) -> Features:
        return Features(pooled=inputs["image"].mean((2, 3)))

    def maps(self, inputs: Inputs) -> list[Tensor]:
        return [F.avg_pool2d(inputs["image"], 2)]


def objective(**keys: object) -> Objective:
    torch.manual_seed(0)
    made = choose("objective", {"name": "segmentation", "width": 16, "dropout": 0.0, **keys}).build(
        backbone=Shades(), spec=SPEC
    )
    assert isinstance(made, Objective)
    return made


def batch(count: int = 4, seed: int = 0) -> Batch:
    at = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 3, 32, 32, generator=at)
    mask = torch.randint(0, 3, (count, 32, 32), generator=at, dtype=torch.uint8)
    mask[:, :5] = IGNORED
    mask[-1] = IGNORED  # an image without any class
    return Batch([{"image": image, "mask": mask}], {}, torch.arange(count), torch.zeros(1, count, dtype=torch.int64))


def test_metrics_equal_those_of_all_pixels_counted_one_by_one() -> None:
    model = objective().eval()
    with torch.no_grad():
        rows = [model.rows(batch(seed=seed)) for seed in range(3)]
    found = model.metrics({name: torch.cat([part[name] for part in rows]) for name in rows[0]})
    pairs = []
    for seed in range(3):
        data = batch(seed=seed)
        answer = model.predict(data)["mask"]
        pairs += [
            (int(t), int(p))
            for t, p in zip(data.views[0]["mask"].flatten(), answer.flatten(), strict=True)
            if t != IGNORED
        ]
    for code, name in enumerate(CLASSES):
        both = sum(t == p == code for t, p in pairs)
        either = sum(code in (t, p) for t, p in pairs)
        assert found[f"iou/{name}"] == pytest.approx(both / either, abs=1e-9)
    assert found["pixel_accuracy"] == pytest.approx(sum(t == p for t, p in pairs) / len(pairs), abs=1e-9)
    assert found["miou"] == pytest.approx(np.mean([found[f"iou/{name}"] for name in CLASSES]), abs=1e-9)
    assert found["dice"] == pytest.approx(
        np.mean([2 * found[f"iou/{name}"] / (1 + found[f"iou/{name}"]) for name in CLASSES]), abs=1e-9
    )


@pytest.mark.parametrize(
    "keys", [{"dice": 0.0}, {"class_weights": {"road": 3.0}, "dice": 0.0}, {"focal": 2.0, "dice": 0.0}, {"dice": 1.0}]
)
def test_the_loss_of_each_image_equals_a_plain_reference_and_ignored_pixels_have_none(keys: dict[str, object]) -> None:
    model, data = objective(**keys).eval(), batch()
    logits, mask = model.logits(data.views[0]).detach(), data.views[0]["mask"]
    wanted = 0.0
    weights = [1.0, 3.0, 1.0] if "class_weights" in keys else [1.0] * 3
    for i in range(3):
        labels = [
            (int(mask[i, y, x]), logits[i, :, y, x].softmax(0))
            for y in range(32)
            for x in range(32)
            if mask[i, y, x] != IGNORED
        ]
        sums = [weights[c] * (1 - float(p[c])) ** float(keys.get("focal", 0)) * -float(p[c].log()) for c, p in labels]
        wanted += sum(sums) / sum(weights[c] for c, _ in labels)
        if keys["dice"]:
            each = []
            for c in range(3):
                both = sum(float(p[c]) for t, p in labels if t == c)
                sizes = sum(float(p[c]) for _, p in labels) + sum(t == c for t, _ in labels)
                each.append(1 - (2 * both + 1) / (sizes + 1))
            wanted += sum(each) / 3
    loss = model.loss(data)
    assert float(loss.count) == 3
    assert float(loss.sum) == pytest.approx(wanted, rel=1e-4)
    only = dataclasses.replace(data, views=[{name: x[-1:] for name, x in data.views[0].items()}])
    assert [float(part) for part in (model.loss(only).sum, model.loss(only).count)] == [0.0, 0.0]


@pytest.mark.parametrize("size", [(33, 90), (200, 32), (70, 71)])
def test_windows_cover_every_pixel_once_in_all(size: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *size)
    found = segmentation.over_windows(image, 32, 0.25, 3, lambda part: part)
    assert torch.allclose(found, image, atol=1e-6)
    for length in size:
        starts = segmentation.starts(length, 32, 0.25)
        assert starts[0] == 0
        assert starts[-1] == max(0, length - 32)
        assert all(0 < b - a <= 24 for a, b in zip(starts, starts[1:], strict=False))


def street(root: Path, count: int, sizes: tuple[tuple[int, int], ...]) -> None:
    """Pictures of a sky, a road and a tree, whose brightness says which is which."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        mask = np.zeros((height, width), np.uint8)
        mask[int(height * draw.uniform(0.3, 0.7)) :] = 7
        left = int(width * draw.uniform(0, 0.6))
        mask[:, left : left + width // 4] = 40
        shade = np.array([220, *[0] * 6, 120, *[0] * 32, 20], np.uint8)[mask]
        picture = (shade[..., None].astype(int) + draw.integers(-15, 15, (height, width, 3))).clip(0, 255)
        Image.fromarray(picture.astype(np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")


@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_from_pictures_to_masks_in_the_files_own_size(fmeco: Fmeco, fit: str) -> None:
    street(Path("train"), 20, ((40, 60), (64, 48)))
    street(Path("new"), 5, ((40, 60), (64, 48), (100, 130)))
    Path("c.yaml").write_text(
        json.dumps(
            {
                "dataset": {
                    "name": "masks",
                    "path": "train",
                    "image_size": 32,
                    "fit": fit,
                    "classes": {"sky": 0, "road": 7, "tree": 40},
                },
                "backbone": "cnn",
                "objective": {"name": "segmentation", "width": 32},
                "optimizer": {"name": "adamw", "lr": 0.005},
                "train": {"epochs": 12, "batch_size": 8},
            }
        )
    )
    assert fmeco("pretrain", "c.yaml", "--out", "run").code == 0
    measured = fmeco("evaluate", "run", "--dataset", "new", "--json").json
    assert measured["metrics"]["test_miou"] > 0.6
    assert fmeco("predict", "run", "new/images", "--output", "out").code == 0
    with open("out/index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    agreed = []
    for row in rows:
        made = Image.open(Path("out", row["mask"]))
        truth = Image.open(row["input"].replace("images", "masks"))
        assert made.size == truth.size
        agreed.append((np.asarray(made) == np.asarray(truth)).mean())
        assert float(row["area/tree"]) == pytest.approx((np.asarray(made) == 40).mean(), abs=1e-6)
    assert np.mean(agreed) > 0.8
    again = fmeco("predict", "run", "new/images", "--output", "out")
    assert again.code != 0
    assert "out already holds files" in again.err
    same = fmeco("evaluate", "run", "--dataset", "out/index.csv", "--json").json
    assert same["metrics"]["test_miou"] > 0.95  # what it predicted are masks of the dataset again
    if fit == "letterbox":
        outputs_of_masks(fmeco)


def outputs_of_masks(fmeco: Fmeco) -> None:
    """Folders whose names have a dot, inputs that cannot be read, and images passed in Python."""
    Path("broken.png").write_bytes(b"no image")
    answer = fmeco("predict", "run", "new/images/0.png", "broken.png", "new/images/1.png", "--output", "deep/out.v1/")
    assert answer.code == 0
    assert "1 of 3 inputs could not be read; see the column `error`" in answer.err
    with open("deep/out.v1/index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["../../new/images/0.png", "", "../../new/images/1.png"]
    assert [row["mask"] for row in rows] == ["0.png", "", "1.png"]
    assert "broken.png" in rows[1]["error"]
    assert fmeco("predict", "run", "new/images/0.png", "--output", "deep/out.v1", "--force").code == 0
    nothing = fmeco("predict", "run", "broken.png", "absent.png", "--output", "none", "--json")
    assert nothing.code == 3
    assert "none of the 2 inputs could be read" in nothing.json["error"]["message"]
    refused = fmeco("predict", "run", "new/images/0.png", "--output", "x.json")
    assert refused.code == 2
    assert "expected a name that ends in .csv, .jsonl or .parquet, or of a folder" in refused.err
    refused = fmeco("predict", "run", "new/images/0.png", "--output", "broken.png/")
    assert "broken.png: this is a file, and not a folder" in refused.err
    image = Image.open("new/images/0.png")
    found = api.predict("run", [image, np.asarray(image), "new/images/0.png"], output="python")
    assert [row["mask"] for row in found] == ["inputs[0].png", "inputs[1].png", "0.png"]
    assert len({Path("python", row["mask"]).read_bytes() for row in found}) == 1
    kept = api.predict("run", "new/images/0.png")[0]["mask"]
    assert isinstance(kept, Tensor)
    assert "mask" not in api.predict("run", "new/images/0.png", output="rows.csv")[0]


def test_a_test_split_without_any_label_ends_without_a_figure(fmeco: Fmeco) -> None:
    street(Path("data/train"), 10, ((32, 32),))
    street(Path("data/test"), 2, ((32, 32),))
    for file in Path("data/test/masks").iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(file)
    data = {
        "name": "masks",
        "path": "data",
        "image_size": 32,
        "classes": {"sky": 0, "road": 7, "tree": 40},
        "ignore": [255],
    }
    base = {"dataset": data, "train": {"steps": 4}, "objective": {"name": "segmentation", "width": 16}}
    Path("c.yaml").write_text(json.dumps({**base, "backbone": "cnn"}))
    assert fmeco("pretrain", "c.yaml", "--out", "source").code == 0
    Path("d.yaml").write_text(json.dumps(base))
    answer = fmeco("finetune", "d.yaml", "--from", "source", "--out", "run")
    assert answer.code == 0, answer.err
    assert "miou is not defined on the test samples" in answer.err
    compared = fmeco("compare", "run", "source", "--split", "test")
    assert compared.code == 3 and "miou is not defined on the 2 test samples" in compared.err
    assert fmeco("embed", "run", "--output", "e.npz").code == 0
    with np.load("e.npz") as arrays:
        assert set(arrays) == {"features", "names"}, "a mask is no label of its picture"
