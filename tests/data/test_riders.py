"""What lies on an image is moved as the image is, by every augmentation that says so, and refused by the others."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from fmeco.config.check import choose
from fmeco.core import IGNORED, Augment, ConfigError, DataError, DataSpec, InputSpec, fit, geometry, mix
from fmeco.core.augment import check_riders

SIDE = 64
SPEC = DataSpec(
    "image",
    {
        "image": InputSpec((3, SIDE, SIDE), "uint8"),
        "mask": InputSpec((SIDE, SIDE), "uint8", rides="image", form="mask"),
        "boxes": InputSpec((4, 5), "float32", ragged=True, rides="image", form="boxes"),
        "points": InputSpec((4, 3), "float32", ragged=True, rides="image", form="points"),
    },
    preprocessing={"size": SIDE, "decode": 2},
)
COUNT = 24


def drawn(seed: int, height: int = 80, width: int = 100) -> dict[str, Tensor]:
    """A picture with a white rectangle, the mask of its pixels, its box and its centre."""
    at = torch.Generator().manual_seed(seed)
    top, left = (int(torch.randint(0, size - 32, (), generator=at)) for size in (height, width))
    h, w = (int(torch.randint(16, 32, (), generator=at)) for _ in range(2))
    image, mask = torch.zeros(3, height, width, dtype=torch.uint8), torch.zeros(height, width, dtype=torch.uint8)
    image[:, top : top + h, left : left + w], mask[top : top + h, left : left + w] = 255, 1
    box = torch.tensor([[left, top, left + w, top + h, 1.0], [0, 0, 0, 0, 0]])
    point = torch.tensor([[left + w / 2, top + h / 2, 1.0], [0, 0, 0]])
    return {"image": image, "mask": mask, "boxes": box, "points": point}


def varied(arch: str, **keys: Any) -> dict[str, Tensor]:
    augment = choose("augment", {"name": arch, "color": 0.0, **keys}).build(spec=SPEC, train=None)
    keys_of = mix(5, torch.arange(COUNT))
    rows = [fit(augment.sample(drawn(i), int(key)), SPEC) for i, key in enumerate(keys_of)]
    return augment.batch({name: torch.stack([row[name] for row in rows]) for name in SPEC.inputs}, keys_of)


@pytest.mark.parametrize(
    ("arch", "keys"),
    [
        ("light", {}),
        ("light", {"flip": 1.0, "shift": 0.0}),
        ("light", {"shift": 0.5, "flip": 0.0}),
        ("standard", {}),
        ("standard", {"crop_scale": 0.1, "flip": 1.0}),
        ("views", {}),
    ],
)
def test_mask_boxes_and_points_stay_on_what_they_name(arch: str, keys: dict[str, Any]) -> None:
    out = varied(arch, **keys)
    moved = False
    for i in range(COUNT):
        white = (out["image"][i].float().mean(0) > 191).int()  # grey fills what is outside
        inside = out["mask"][i] != IGNORED
        # the border of a resized rectangle is grey
        assert (white == out["mask"][i])[inside].float().mean() > 0.96
        (box, none), (point, _) = out["boxes"][i], out["points"][i]
        assert not none.any()
        rows, columns = (out["mask"][i] == 1).nonzero(as_tuple=True)
        if box[4] == 0:
            assert len(rows) < 2 * SIDE  # less than a pixel of its width or height is left
            continue
        seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        if white.sum() > 4 and arch != "light":
            assert (box[:4] - seen).abs().max() <= 1.5
        if point[2]:
            assert box[0] - 1 <= point[0] <= box[2] + 1
            assert box[1] - 1 <= point[1] <= box[3] + 1
        moved |= bool((seen != torch.tensor([0, 0, SIDE, SIDE])).any())
    assert moved


def test_shifted_pictures_are_not_reflected_where_objects_are_known_by_boxes() -> None:
    out = varied("light", shift=0.5, flip=0.0)
    white = (out["image"].float().mean(1) > 191).flatten(1).sum(1)
    boxes = out["boxes"][:, 0]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert torch.equal(white.float(), area)


def test_fit_cuts_riders_as_their_image_and_refuses_masks_of_another_size() -> None:
    out = fit(drawn(3), SPEC)
    assert torch.equal((out["image"][0] > 0).to(torch.uint8), out["mask"])
    with pytest.raises(DataError, match=r"the mask 'mask' has 80x90 pixels, and its image has 80x100"):
        fit({**drawn(3), "mask": torch.zeros(80, 90, dtype=torch.uint8)}, SPEC)
    assert set(fit({"image": drawn(3)["image"]}, SPEC)) == {"image"}  # predictions have no answers to move


@pytest.mark.parametrize("form", ["mask", "boxes", "points"])
def test_mirroring_twice_and_cutting_back_change_nothing(form: Any) -> None:
    x = drawn(1)[{"mask": "mask"}.get(form, form)]
    assert torch.equal(geometry.mirrored(geometry.mirrored(x, form, 100), form, 100), x)
    wider = geometry.cropped(x, form, -5, -7, 90, 120)
    assert torch.equal(geometry.cropped(wider, form, 5, 7, 80, 100), x)


class Turned(Augment):
    """An augmentation of somebody who knows nothing of riders."""

    def sample(self, inputs: dict[str, Tensor], key: int) -> dict[str, Tensor]:
        return {**inputs, "image": inputs["image"].flip(-2)}


@pytest.mark.parametrize("name", ["trivial", "rand"])
def test_an_augmentation_that_leaves_riders_behind_is_refused(name: str) -> None:
    for augment in (Turned(), choose("augment", name).build(spec=SPEC, train=None)):
        with pytest.raises(ConfigError, match=f"'{name}' moves images, but not the boxes, mask, points"):
            check_riders(augment, SPEC, name)
        check_riders(augment, dataclasses.replace(SPEC, inputs=SPEC.seen), name)
    check_riders(Augment(), SPEC, "none")


def test_a_new_task_gets_no_riders() -> None:
    assert set(SPEC.preprocessing_only().inputs) == {"image"}
    assert set(DataSpec.from_json(SPEC.to_json()).riders) == {"mask", "boxes", "points"}


def test_crops_of_images_of_any_size_show_things_as_large_as_windows_do() -> None:
    windowed = dataclasses.replace(SPEC, inputs={**SPEC.seen, "mask": SPEC.inputs["mask"]})
    image = dataclasses.replace(windowed.inputs["image"], windows=True)
    windowed = dataclasses.replace(windowed, inputs={**windowed.inputs, "image": image})
    augment = choose("augment", {"name": "standard", "color": 0.0}).build(spec=windowed, train=None)
    stripes = (torch.arange(600)[:, None] // 8 % 2).expand(600, 800).to(torch.uint8)  # 8 pixels wide
    sample = {"image": (255 * stripes).expand(3, -1, -1), "mask": stripes}
    widths = []
    for key in range(40):
        mask = augment.sample(sample, key)["mask"]
        assert mask.shape == (SIDE, SIDE)
        widths.append(SIDE / (1 + int((mask[1:, 0] != mask[:-1, 0]).sum())))
    assert 7 < sum(widths) / len(widths) < 10
