"""Images with masks: formats, classes, sizes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fmeco.core import IGNORED, ConfigError, Data, DataError
from tests.conftest import write
from tests.data.test_data import build

VALUES = np.arange(24 * 16).reshape(16, 24) // 64 % 3  # three classes in bands, (16, 24)
NAMED = {"sky": 0, "road": 1, "tree": 2}
COLOURS = {"sky": [70, 130, 180], "road": "#804080", "tree": [107, 142, 35]}
RGB = np.array([[70, 130, 180], [128, 64, 128], [107, 142, 35]], dtype=np.uint8)


def image(path: Path, **options: Any) -> None:
    """A picture in which each class has a grey of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((VALUES * 100).astype(np.uint8)).convert("RGB").save(path, **options)


def palette(values: np.ndarray[Any, Any]) -> Image.Image:
    made = Image.fromarray(values.astype(np.uint8), mode="P")
    made.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    return made


DRAWN: dict[str, Callable[[np.ndarray[Any, Any]], Image.Image]] = {
    "palette": palette,
    "grey": lambda values: Image.fromarray(values.astype(np.uint8)),
    "16 bits": lambda values: Image.fromarray(values.astype(np.uint16)),
    "grey as colours": lambda values: Image.fromarray(values.astype(np.uint8)).convert("RGB"),
    "grey and alpha": lambda values: Image.fromarray(values.astype(np.uint8)).convert("LA"),
    "colours": lambda values: Image.fromarray(RGB[values]),
    "colours and alpha": lambda values: Image.fromarray(RGB[values]).convert("RGBA"),
}


def folder(draw: Callable[[np.ndarray[Any, Any]], Image.Image], values: Any = VALUES, root: str = "data") -> str:
    for i in range(10):
        image(Path(root, "images", f"{i}.png"))
        Path(root, "masks").mkdir(exist_ok=True)
        draw(np.asarray(values)).save(Path(root, "masks", f"{i}.png"))
    return root


def masks(**keys: Any) -> Data:
    return build(**{"name": "masks", "path": "data", "image_size": 24, **keys})


def one(data: Data) -> dict[str, Tensor]:
    return data.split("train")[0]


@pytest.mark.parametrize("form", DRAWN)
def test_each_form_of_mask_gives_the_same_classes(form: str) -> None:
    folder(DRAWN[form])
    data = masks(classes=COLOURS if form.startswith("colours") else NAMED, fit="squash")
    sample = one(data)
    assert data.spec.targets["mask"].classes == ("sky", "road", "tree")
    assert set(sample["mask"].unique().tolist()) == {0, 1, 2}
    grey = sample["image"][0].float() / 100
    assert (grey.round().to(torch.uint8) == sample["mask"]).float().mean() > 0.94  # borders of classes


def test_values_can_be_any_and_are_found_if_no_classes_are_named() -> None:
    folder(DRAWN["grey"], np.array([0, 17, 40])[VALUES])
    assert masks().spec.targets["mask"].classes == ("0", "17", "40")
    data = masks(classes={"tree": 40, "road": 17, "sky": 0}, ignore=[3])
    assert data.spec.targets["mask"].classes == ("tree", "road", "sky")
    assert data.spec.preprocessing["values"] == [40, 17, 0]
    folder(lambda values: Image.fromarray(values.astype(bool)), np.minimum(VALUES, 1))
    assert masks().spec.targets["mask"].classes == ("0", "1")


def test_the_rest_of_a_letterbox_and_ignored_values_have_no_class() -> None:
    folder(DRAWN["grey"], np.where(VALUES == 2, 255, VALUES))
    mask = one(masks(classes=["sky", "road"], ignore=[255]))["mask"]
    assert mask.shape == (24, 24)
    assert (mask[:4] == IGNORED).all()
    assert (mask[20:] == IGNORED).all()
    assert set(mask[4:20].unique().tolist()) == {0, 1, IGNORED}


def broken_value() -> None:
    values = VALUES.copy()
    values[3, 5] = 9
    folder(DRAWN["grey"], values)


@pytest.mark.parametrize(
    ("damage", "keys", "said"),
    [
        (
            broken_value,
            {"classes": NAMED},
            r"masks/\d.png: the pixel in column 5, row 3 has the value 9, which is no class",
        ),
        (
            lambda: folder(DRAWN["colours"], VALUES),
            {"classes": {"sky": [70, 130, 180], "road": "#804080"}},
            r"has the value \[107, 142, 35\], which is no class \(\d+ such",
        ),
        (lambda: folder(DRAWN["colours"]), {}, "its pixels have colours; say which is which class"),
        (lambda: folder(DRAWN["grey"], np.array([0, 1, 255])[VALUES]), {}, "255 is a value of the masks"),
        (lambda: folder(DRAWN["grey"], np.arange(384).reshape(16, 24) % 200), {}, "have 200 different values"),
        (
            lambda: folder(DRAWN["grey"], VALUES[:, :12]),
            {"classes": NAMED},
            "has 12x16 pixels, and its image .* has 24x16",
        ),
        (lambda: folder(DRAWN["grey"]), {"classes": ["a", "b", "a"]}, "dataset.classes: named twice: a"),
        (lambda: folder(DRAWN["grey"]), {"classes": ["caf\u00e9", "cafe\u0301", "b"]}, "named twice"),
        (lambda: folder(DRAWN["grey"]), {"classes": {"a": 0, "b": 0, "c": 2}}, "the value 0 stands for two things"),
        (
            lambda: folder(DRAWN["grey"]),
            {"classes": {"a": 0, "b": [1, 2, 3]}},
            "all values are numbers, or all are colours",
        ),
        (
            lambda: folder(DRAWN["grey"]),
            {"classes": NAMED, "ignore": [-1]},
            "dataset.ignore: -1: expected a number of 0 to 65535",
        ),
        (lambda: folder(DRAWN["grey"]), {"classes": {"a": 0, "b": "#12"}}, "b: #12: expected a number"),
        (
            lambda: Path(folder(DRAWN["grey"]), "masks", "3.png").unlink(),
            {},
            "1 of 10 images have no mask of the same name.* images/3.png",
        ),
        (lambda: Path(folder(DRAWN["grey"]), "masks").rename("data/labels"), {}, "masks: no such folder of masks"),
        (lambda: Path(folder(DRAWN["grey"]), "images").rename("data/pictures"), {}, "no folder called images"),
        (
            lambda: Image.new("L", (24, 16)).save(Path(folder(DRAWN["grey"]), "masks", "3.bmp")),
            {},
            "3.bmp and 3.png are masks of the same image",
        ),
    ],
)
def test_masks_that_cannot_be_meant_are_refused_by_name(
    damage: Callable[[], Any], keys: dict[str, Any], said: str
) -> None:
    damage()
    with pytest.raises((DataError, ConfigError), match=said):
        samples = masks(**keys).split("train")
        for i in range(len(samples)):
            samples[i]


def test_masks_of_a_photograph_that_the_camera_turned() -> None:
    folder(DRAWN["grey"])
    upright = np.rot90(VALUES, -1)  # as viewers show it
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(10):
        image(Path("data/images", f"{i}.png"), exif=exif)
        drawn = upright if i % 2 else VALUES  # on the picture, or on the stored pixels
        Image.fromarray(drawn.astype(np.uint8)).save(f"data/masks/{i}.png")
    samples = masks(classes=NAMED).split("train")
    for i in range(len(samples)):
        sample = samples[i]
        inside = sample["mask"] != IGNORED
        assert inside.float().mean() == pytest.approx(16 / 24)
        assert ((sample["image"][0].float() / 100).round().to(torch.uint8) == sample["mask"])[
            inside
        ].float().mean() > 0.95


def test_masks_of_half_the_size_lie_where_those_of_the_full_size_do() -> None:
    folder(DRAWN["grey"], np.kron(VALUES[::2, ::2], np.ones((2, 2), int)))
    whole = one(masks(classes=NAMED))["mask"]
    folder(DRAWN["grey"], VALUES[::2, ::2])
    assert torch.equal(one(masks(classes=NAMED))["mask"], whole)


def test_tables_folders_for_splits_and_images_without_a_mask() -> None:
    folder(DRAWN["grey"])
    rows = [f"images/{i}.png,{'' if i == 1 else f'masks/{i}.png'},{'train' if i < 7 else 'val'}" for i in range(10)]
    Path("data/list.csv").write_text("\n".join(["image,mask,part", *rows]))
    data = masks(path="data/list.csv", split_column="part", classes=NAMED)
    assert (len(data.split("train")), len(data.split("val"))) == (7, 3)
    assert data.split("train").targets["mask"].tolist() == [0, -1, 0, 0, 0, 0, 0]
    assert (data.split("train")[1]["mask"] == IGNORED).all()
    Path("data/list.csv").write_text("image,mask\nimages/0.png,masks/none.png\n")
    with pytest.raises(DataError, match=r"list.csv:2: the mask data/masks/none.png does not exist"):
        masks(path="data/list.csv", classes=NAMED)
    for place in ("outer/{}/images", "inner/images/{}"):
        for part in ("train", "test"):
            root = place.format(part)
            folder(DRAWN["grey"], root="made")
            Path(root).parent.mkdir(parents=True, exist_ok=True)
            Path("made/images").rename(root)
            Path(root.replace("images", "masks")).parent.mkdir(parents=True, exist_ok=True)
            Path("made/masks").rename(root.replace("images", "masks"))
    for path in ("outer", "inner"):
        found = masks(path=path, classes=NAMED)
        assert len(found.split("test")) == 10
        assert len(found.split("train")) == 8
    Path("outer/images").mkdir()
    with pytest.raises(DataError, match="outer: holds both images/ and train, test"):
        masks(path="outer", classes=NAMED)
    assert len(masks(path="outer/train", classes=NAMED, limit=3).split("train")) == 3


def test_a_checkpoints_classes_keep_their_order_and_a_changed_mask_is_read_again() -> None:
    folder(DRAWN["grey"])
    known = masks(classes=NAMED).spec
    again = masks(known=known, classes={"tree": 2, "sky": 0, "road": 1})
    assert again.spec.targets["mask"].classes == ("sky", "road", "tree")
    assert again.spec.inputs == known.inputs
    with pytest.raises(DataError, match="car: not classes of the checkpoint"):
        masks(known=known, classes={"car": 2, "sky": 0, "road": 1})
    before = masks(classes=NAMED).split("train")
    stamp, digest = before.stamps, before.digest(0)
    folder(DRAWN["palette"], 2 - VALUES)
    after = masks(classes=NAMED).split("train")
    assert stamp is not None
    assert after.stamps is not None
    assert not torch.equal(stamp, after.stamps)
    assert digest != after.digest(0)


@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_masks_of_large_jpegs_have_the_size_of_what_is_decoded(fit: str) -> None:
    """JPEG is decoded at a fraction of its size, which rounds the sides."""
    draw = np.random.default_rng(0)
    for i in range(12):
        height, width = draw.integers(300, 700, 2).tolist()
        band = np.zeros((height, width), np.uint8)
        band[height // 3 : height // 2] = 1
        for part in ("images", "masks"):
            Path("data", part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(band * 200).convert("RGB").save(f"data/images/{i}.jpg", quality=95)
        Image.fromarray(band).save(f"data/masks/{i}.png")
    samples = masks(classes=["none", "band"], image_size=64, fit=fit).split("train")
    for i in range(len(samples)):
        sample = samples[i]
        assert sample["image"].shape[1:] == sample["mask"].shape
        inside = sample["mask"] != IGNORED
        agreed = ((sample["image"][0] > 100).to(torch.uint8) == sample["mask"])[inside]
        assert agreed.float().mean() > 0.97


def test_the_pets_of_torchvision_with_their_masks(fmeco: Callable[..., Any]) -> None:
    trimap = np.where(VALUES == 0, 3, VALUES)  # 1 pet, 2 background, 3 not classified
    home = Path("data/oxford-iiit-pet")
    names = [f"{breed}_{i}" for breed in ("Abyssinian", "beagle") for i in range(6)]
    for name in names:
        image(home / "images" / f"{name}.jpg")
        (home / "annotations/trimaps").mkdir(parents=True, exist_ok=True)
        DRAWN["grey"](trimap).save(home / "annotations/trimaps" / f"{name}.png")
    for part, listed in {"trainval": names[:5] + names[6:11], "test": [names[5], names[11]]}.items():
        lines = [f"{name} {1 + (name[0] == 'b')} {1 + (name[0] == 'b')} 1\n" for name in listed]
        (home / "annotations" / f"{part}.txt").write_text("".join(lines))
    pets = {"name": "torchvision/oxford_iiit_pet", "download": False, "image_size": 24}
    data = build(**pets, target="mask", val_fraction=0.2, fit="squash")
    assert data.spec.targets["mask"].classes == ("pet", "background") and data.spec.reader == "masks"
    assert data.spec.sizes == {"train": 8, "val": 2, "test": 2}
    assert set(one(data)["mask"].unique().tolist()) == {0, 1, IGNORED}
    assert build(**pets).spec.targets["label"].classes == ("Abyssinian", "Beagle")
    with pytest.raises(ConfigError, match="torchvision/cifar10 has no masks"):
        build(name="torchvision/cifar10", download=False, target="mask")
    (home / "annotations/trimaps/beagle_3.png").unlink()
    with pytest.raises(DataError, match=r"incomplete under data: .*beagle_3\.png"):
        build(**pets, target="mask")


def test_an_image_without_a_mask_teaches_nothing_and_trains(fmeco: Callable[..., Any]) -> None:
    folder(DRAWN["grey"])
    rows = [f"images/{i}.png,{'' if i in (2, 5) else f'masks/{i}.png'}" for i in range(10)]
    Path("data/table.csv").write_text("\n".join(["image,mask", *rows]) + "\n")
    config = {
        "dataset": {"name": "masks", "path": "data/table.csv", "image_size": 32, "val_fraction": 0.2},
        "backbone": "cnn",
        "objective": "segmentation",
        "train": {"epochs": 1},
    }
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "run")
    assert answer.code == 0, answer.err
    for at in range(10):
        rows[at] = f"images/{at}.png,"
    Path("data/table.csv").write_text("\n".join(["image,mask", *rows]) + "\n")
    answer = fmeco("pretrain", "c.yaml", "--out", "none")
    assert answer.code == 3, "nothing to learn from"
