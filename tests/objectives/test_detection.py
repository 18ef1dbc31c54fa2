"""Detection: what a loss of no objects is, that metrics follow the boxes, and a run from pictures to boxes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import fmeco as api
from fmeco.config.check import choose
from fmeco.core import Backbone, Batch, DataError, DataSpec, Features, Inputs, InputSpec, Objective, Samples, Target
from fmeco.datasets import _pictures
from tests.conftest import Answer
from tests.data.test_data import build

Fmeco = Callable[..., Answer]
CLASSES = ("round", "square")
SPEC = DataSpec(
    "image",
    {
        "image": InputSpec((3, 64, 64), "uint8"),
        "boxes": InputSpec((3, 5), "float32", ragged=True, rides="image", form="boxes"),
    },
    {"boxes": Target("boxes", CLASSES, input="boxes")},
    {"size": 64, "decode": 2},
)


class Shades(Backbone):
    """A backbone whose maps are the picture itself, smaller and smaller."""

    width, map_widths, map_strides = 3, (3, 3, 3), (8, 16, 32)

    def forward(self, inputs: Inputs) -> Features:
        return Features(pooled=inputs["image"].mean((2, 3)))

    def maps(self, inputs: Inputs) -> list[Tensor]:
        return [F.avg_pool2d(inputs["image"], stride) for stride in self.map_strides]


def objective(**keys: object) -> Objective:
    torch.manual_seed(0)
    made = choose("objective", {"name": "detection", "width": 16, **keys}).build(backbone=Shades(), spec=SPEC)
    assert isinstance(made, Objective)
    return made


def batch(boxes: Tensor, known: Tensor | None = None) -> Batch:
    image = torch.rand(len(boxes), 3, 64, 64, generator=torch.Generator().manual_seed(0))
    keys = torch.zeros(1, len(boxes), dtype=torch.int64)
    target = {"boxes": torch.zeros(len(boxes), dtype=torch.int64) if known is None else known}
    return Batch([{"image": image, "boxes": boxes}], target, torch.arange(len(boxes)), keys)


BOXES = torch.tensor([[[8, 8, 40, 40, 1.0], [30, 20, 60, 50, 2]], [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]])


def test_images_without_objects_only_lower_the_scores() -> None:
    model = objective()
    loss = model.loss(batch(BOXES[1:]))
    assert torch.isfinite(loss.sum)
    assert float(loss.count) == 0  # the step divides by the places in objects of all its images
    loss.sum.backward()
    with_objects = model.loss(batch(BOXES))
    assert float(with_objects.count) > 1
    empty = model.loss(batch(BOXES[1:, :0]))  # no image of the batch has an object
    assert float(empty.sum) == pytest.approx(float(loss.sum), rel=1e-6)


def test_the_loss_is_that_of_its_parts_and_leaves_out_images_that_nobody_looked_at() -> None:
    model = objective()
    whole = model.loss(batch(BOXES))
    parts = [model.loss(part) for part in batch(BOXES).split([1, 1])]
    assert float(whole.sum) == pytest.approx(sum(float(part.sum) for part in parts), rel=1e-5)
    assert float(whole.count) == sum(float(part.count) for part in parts)
    unknown = batch(BOXES, torch.tensor([0, -1]))
    assert float(model.loss(unknown).sum) == pytest.approx(float(parts[0].sum), rel=1e-5)
    model.eval()
    with torch.no_grad():
        rows, first = model.rows(unknown), next(iter(batch(BOXES).split([1, 1])))
        alone = model.rows(first)
    assert model.metrics(rows) == pytest.approx(model.metrics(alone))


def test_rows_of_single_images_give_the_metrics_of_the_batch() -> None:
    model = objective().eval()
    with torch.no_grad():
        whole = model.rows(batch(BOXES))
    found = model.metrics(whole)
    assert set(found) >= {"map", "map50", "loss", "ap/round"}
    assert model.metrics({name: rows[1:] for name, rows in whole.items()}).keys() == {"loss"}  # nothing to find there


def test_only_keys_that_say_how_to_answer_can_be_changed_later(fmeco: Fmeco) -> None:
    assert objective(score=0.5).score == 0.5
    with pytest.raises(Exception, match="needs a target of boxes 'other': no such target"):
        objective(target="other")


def shapes(root: Path, count: int) -> list[str]:
    """Draw pictures of a disc and a square each, of which every fifth has neither. Returns lines of a table of boxes."""
    root.mkdir(parents=True)
    draw, lines = np.random.default_rng(0), ["path,xmin,ymin,xmax,ymax,label"]
    rows, columns = np.mgrid[:72, :96]
    for i in range(count):
        pixels = draw.integers(0, 60, (72, 96, 3))
        if i % 5 == 0:
            lines.append(f"{i}.png,,,,,")
        else:
            size = int(draw.integers(20, 34))
            left, top = int(draw.integers(0, 94 - size)), int(draw.integers(0, 70 - size))
            middle = ((rows - top - size / 2) ** 2 + (columns - left - size / 2) ** 2) < (size / 2) ** 2
            square = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
            name = CLASSES[i % 2]
            pixels[middle if name == "round" else square] = [250, 200, 40] if name == "round" else [60, 120, 250]
            lines.append(f"{i}.png,{left},{top},{left + size},{top + size},{name}")
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.png")
    return lines


def coco_of_objects(fmeco: Fmeco) -> None:
    """A JSON file holds the images that could be read, and the model's classes, though only one was found."""
    Path("new").mkdir()
    Path("new/broken.png").write_bytes(b"no image")
    exif = Image.Exif()
    exif[274] = 6
    Image.open("data/1.png").transpose(Image.Transpose.ROTATE_90).save("new/turned.png", exif=exif)
    answer = fmeco("predict", "run", "new", "data/1.png", "--output", "found.json", "--set", "objective.score=0.4")
    assert answer.code == 0
    assert "1 of " in answer.err
    assert (
        "could not be read; they are not in found.json; the first: cannot read the image new/broken.png" in answer.err
    )
    coco = json.loads(Path("found.json").read_text())
    images = [(one["file_name"], one["width"], one["height"]) for one in coco["images"]]
    assert images == [("new/turned.png", 96, 72), ("data/1.png", 96, 72)]
    assert coco["categories"] == [{"id": 1, "name": "round"}, {"id": 2, "name": "square"}]
    assert {one["category_id"] for one in coco["annotations"]} == {2}
    assert all(one["score"] >= 0.4 for one in coco["annotations"])
    again = build(known=api.load("run").spec, whole=True, name="boxes", path="found.json")
    assert again.test is not None
    assert len(again.test) == 2


def drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images passed in Python are drawn on as those of files are; one that cannot be drawn does not take the others along."""
    image = Image.open("data/1.png")
    rows = api.predict("run", [image, np.asarray(image), "data/1.png"], output="python")
    assert {row["picture"] for row in rows} == {"inputs[0].png", "inputs[1].png", "1.png"}
    assert len({Path("python", row["picture"]).read_bytes() for row in rows}) == 1
    assert [row["image"] for row in rows][-1] == "../data/1.png"
    drawn = _pictures.picture

    def failing(samples: Samples, index: int, prep: Mapping[str, Any]) -> Image.Image:
        if samples.name(index) == "data/2.png":
            raise DataError("it is gone")
        return drawn(samples, index, prep)

    monkeypatch.setattr(_pictures, "picture", failing)
    api.predict("run", ["data/1.png", "data/2.png", "data/3.png"], output="partly")
    with open("partly/index.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert {row["input"]: row["error"] for row in found} == {
        "data/1.png": "",
        "data/2.png": "it is gone",
        "data/3.png": "",
    }
    assert sorted(file.name for file in Path("partly").iterdir()) == ["1.png", "3.png", "index.csv"]


def test_from_pictures_to_boxes_in_the_files_own_pixels(fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shapes(Path("data"), 60)
    Path("data/boxes.csv").write_text("\n".join(lines))
    config = {
        "dataset": {"name": "boxes", "path": "data/boxes.csv", "image_size": 64},
        "backbone": "cnn",
        "objective": {"name": "detection", "width": 32, "depth": 1},
        "optimizer": {"name": "adamw", "lr": 0.005},
        "train": {"epochs": 25, "batch_size": 8},
    }
    Path("c.yaml").write_text(json.dumps(config))
    assert fmeco("pretrain", "c.yaml", "--out", "run").code == 0
    measured = fmeco("evaluate", "run", "--json").json["metrics"]
    assert measured["val_map50"] > 0.7
    truth = {line.split(",")[0]: line.split(",")[1:] for line in lines[1:]}
    assert fmeco("predict", "run", "data", "--output", "found.csv").code == 0
    with open("found.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["input"]).name for row in rows} == truth.keys()  # a picture without objects has a row, too
    apart = []
    for name, (*sides, label) in truth.items():
        best = next(row for row in rows if Path(row["input"]).name == name)
        if label and best["prediction"] == label:
            wanted = [float(side) for side in sides]
            apart.append(
                max(
                    abs(float(best[side]) - w)
                    for side, w in zip(("left", "top", "right", "bottom"), wanted, strict=True)
                )
            )
    assert len(apart) > 35
    assert np.median(apart) < 3  # pixels of the file
    coco_of_objects(fmeco)
    drawings(monkeypatch)
    refused = fmeco("predict", "run", "data", "--set", "objective.width=64")
    assert refused.code != 0
    assert "objective.score, objective.nms, objective.most" in refused.err
    assert fmeco("predict", "run", "data", "--output", "drawn").code == 0
    assert Image.open("drawn/1.png").size == (96, 72)
    assert fmeco("check", "c.yaml", "--pictures", "look.png").code == 0
    assert Image.open("look.png").width > 6 * 64
