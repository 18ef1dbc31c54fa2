"""Pictures: transparency, 16 bits, extreme shapes, damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import fmeco as api
from fmeco.core import Data, DataError, DataSpec, InputSpec, fit
from fmeco.datasets import _images, _pixels
from tests.conftest import Answer, photos, picture, tiny
from tests.data.test_data import build

Fmeco = Callable[..., Answer]
WHITE, SKY = [255, 255, 255], [10, 120, 240]


def how(**keys: Any) -> dict[str, Any]:
    """A preprocessing that changes no size."""
    return {
        "size": 16,
        "resize": 16,
        "interpolation": "bilinear",
        "color": "rgb",
        "decode": 2,
        "background": WHITE,
        **keys,
    }


def drawing(alpha: bool = True) -> Image.Image:
    """A black disc on a transparent ground, in which black is stored as well: without alpha, all of it is black."""
    rows, columns = np.mgrid[:16, :24]
    inside = (rows - 8) ** 2 + (columns - 12) ** 2 < 36
    pixels = np.zeros((16, 24, 4), "uint8")
    pixels[..., 3] = np.where(inside, 255, 0)
    return Image.fromarray(pixels) if alpha else Image.fromarray(np.where(inside, 0, 255).astype("uint8"))


def disc(background: list[int]) -> torch.Tensor:
    """What the drawing looks like, (3, 16, 24)."""
    inside = np.array(drawing(alpha=False)) == 0
    pixels = np.where(inside[..., None], 0, np.array(background)).astype("uint8")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def palette(image: Image.Image) -> Image.Image:
    """The drawing with a palette of two blacks, one of them transparent."""
    made = Image.fromarray((np.array(image)[..., 3] > 0).astype("uint8"), "L").convert("P")
    made.putpalette([0, 0, 0, 0, 0, 0])
    return made


def deep_gray(path: Path) -> None:
    alpha = np.array(drawing())[..., 3] > 0
    Image.fromarray(np.where(alpha, 0, 5).astype("uint16")).save(path, transparency=5)


TRANSPARENT: dict[str, Callable[[Path], None]] = {
    "rgba.png": lambda p: drawing().save(p),
    "gray.png": lambda p: drawing().convert("LA").save(p),
    "palette.png": lambda p: palette(drawing()).save(p, transparency=0),
    "colour-key.png": lambda p: Image.composite(
        Image.new("RGB", (24, 16)), Image.new("RGB", (24, 16), (1, 2, 3)), drawing(False).point(lambda v: 255 - v)
    ).save(p, transparency=(1, 2, 3)),
    "gray-key.png": lambda p: drawing(False).point(lambda v: v // 255).save(p, transparency=1),
    "palette.gif": lambda p: palette(drawing()).save(p, transparency=0),
    "lossless.webp": lambda p: drawing().save(p, lossless=True, exact=True),
    "rgba.tif": lambda p: drawing().save(p),
}


@pytest.mark.situation("transparent pictures", "read rightly")
@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize("background", [WHITE, SKY], ids=["white", "sky"])
def test_transparent_pixels_show_the_background(name: str, background: list[int]) -> None:
    TRANSPARENT[name](Path(name))
    decoded = _images.decode(name, how(background=background))
    assert torch.equal(decoded, disc(background))
    gray = _images.decode(name, how(background=background, color="gray"))
    expected = Image.fromarray(disc(background).permute(1, 2, 0).numpy()).convert("L")
    assert torch.equal(gray[0], torch.from_numpy(np.array(expected)))


@pytest.mark.situation("transparent pictures", "read rightly")
def test_half_transparent_pixels_are_mixed_as_pillow_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 4)).astype("uint8")
    Image.fromarray(pixels).save("half.png")
    behind = Image.new("RGBA", (24, 16), (*SKY, 255))
    expected = np.array(Image.alpha_composite(behind, Image.fromarray(pixels)).convert("RGB"))
    assert np.array_equal(_images.decode("half.png", how(background=SKY)).permute(1, 2, 0).numpy(), expected)


@pytest.mark.situation("transparent pictures", "read rightly")
@pytest.mark.parametrize("dataset", ["image_folder", "images", "csv_images"])
def test_the_background_is_stored_with_the_model_and_used_by_predict(dataset: str) -> None:
    for label in ("disc", "square"):
        for i in range(6):
            file = Path("drawings", label, f"{i}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            (drawing() if label == "disc" else Image.new("RGBA", (24, 16), (0, 0, 0, 255))).save(file)
    Path("drawings/t.csv").write_text(
        "path,label\n"
        + "".join(f"{p.relative_to('drawings')},{p.parent.name}\n" for p in sorted(Path("drawings").glob("*/*.png")))
    )
    path = "drawings/t.csv" if dataset == "csv_images" else "drawings"
    data = build(name=dataset, path=path, image_size=16, background=SKY)
    assert data.spec.preprocessing["background"] == SKY
    again = build(known=data.spec.preprocessing_only(), name=dataset, path=path)
    assert again.spec.preprocessing == data.spec.preprocessing
    from fmeco.datasets.image_folder import read

    assert torch.equal(read(data.spec, ["drawings/disc/0.png"])[0]["image"], disc(SKY))


@pytest.mark.situation("transparent pictures", "read rightly")
def test_a_model_of_black_drawings_learns(fmeco: Fmeco) -> None:
    for label in ("left", "right"):
        for i in range(12):
            pixels = np.zeros((16, 16, 4), "uint8")
            pixels[i % 8 : i % 8 + 8, (0 if label == "left" else 8) :, 3][:, :8] = 255
            Path("ink", label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(f"ink/{label}/{i:02}.png")
    done = api.pretrain(
        tiny(
            dataset={"name": "image_folder", "path": "ink", "image_size": 16, "classes": None, "limit_per_class": None},
            train={"epochs": 12},
        ),
        out="run",
    )
    assert done.metrics["val_accuracy"] == 1.0


def scans(folder: str, low: int, high: int, each: int = 6, suffix: str = "png") -> Path:
    """A folder of two classes of 16-bit scans; the highest value is in the last file of b, the lowest in the first of a."""
    for c, label in enumerate("ab"):
        for i in range(each):
            rng = np.random.default_rng(10 * c + i)
            values = rng.integers(low + 1, high, (20, 20)) // (1 + c)
            values = np.maximum(values, low + 1)
            values[0, 0] = low if (c, i) == (0, 0) else values[0, 0]
            values[5, 5] = high if (c, i) == (1, each - 1) else values[5, 5]
            Path(folder, label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype("uint16")).save(f"{folder}/{label}/{i}.{suffix}")
    return Path(folder)


def whole(path: Path) -> Data:
    """All files as training files but one of each class that holds no extreme value."""
    for label in "ab":
        Path("split/train", label).mkdir(parents=True)
        Path("split/val", label).mkdir(parents=True)
        for file in sorted((path / label).iterdir()):
            file.rename(Path("split", "val" if file.stem == "2" else "train", label, file.name))
    return build(name="image_folder", path="split", image_size=20)


@pytest.mark.situation("10- and 12-bit values in 16-bit files", "read rightly")
@pytest.mark.parametrize(("low", "high", "suffix"), [(0, 1023, "png"), (3, 4095, "tif"), (100, 1500, "tiff")])
def test_the_range_of_the_training_files_becomes_0_to_255(low: int, high: int, suffix: str) -> None:
    data = whole(scans("scans", low, high, suffix=suffix))
    assert data.spec.preprocessing["range"] == [low, high]
    assert data.train is not None
    for index in (0, 3, len(data.train) - 1):
        values = np.array(Image.open(Path("split/train", data.train.name(index)))).astype(float)
        expected = np.floor((values - low) * 255 / (high - low) + 0.5)
        assert np.abs(data.train[index]["image"][0].numpy() - expected).max() == 0
    note = next(note for note in data.notes if "16 bits" in note)
    assert f"from {low} to {high}" in note and "no pixel lies outside" in note


@pytest.mark.situation("10- and 12-bit values in 16-bit files", "said")
def test_the_share_of_clipped_pixels_is_said() -> None:
    scans("scans", 0, 4095)
    data = build(name="image_folder", path="scans", image_size=20, range=[0, 2047])
    assert data.train is not None and data.val is not None
    for name, samples in (("train", data.train), ("val", data.val)):
        values = np.stack([np.array(Image.open(Path("scans", samples.name(i)))) for i in range(len(samples))])
        assert f"{(values > 2047).mean():.2%} of the {name} pixels" in "\n".join(data.notes)
        assert samples[0]["image"].max() <= 255
    assert np.array_equal(
        data.train[0]["image"][0].numpy() == 255, np.array(Image.open(Path("scans", data.train.name(0)))) >= 2043
    )


@pytest.mark.situation("10- and 12-bit values in 16-bit files", "read rightly")
def test_all_16_bits_stay_as_they_are_and_signed_values_are_read() -> None:
    data = whole(scans("scans", 0, 65535))
    assert data.train is not None
    values = np.array(Image.open(Path("split/train", data.train.name(0)))).astype(int)
    assert np.array_equal(data.train[0]["image"][0].numpy(), values // 257)
    hounsfield = np.linspace(-1000, 400, 400).reshape(20, 20).astype("int32")
    Image.fromarray(hounsfield, "I").save("ct.tif")
    decoded = _images.decode("ct.tif", how(range=[-1000, 400], resize=20))[0].numpy()
    assert decoded[0, 0] == 0 and decoded[-1, -1] == 255


@pytest.mark.situation("10- and 12-bit values in 16-bit files", "read rightly")
def test_the_range_goes_with_the_checkpoint(fmeco: Fmeco) -> None:
    scans("scans", 0, 1500, each=8)
    config = tiny(
        dataset={"name": "image_folder", "path": "scans", "image_size": 16, "classes": None, "limit_per_class": None},
        train={"epochs": 8},
    )
    api.pretrain(config, out="run")
    low = sorted(Path("scans/a").iterdir())[:4]
    rows = api.load("run").predict([str(file) for file in low])
    for file in low:  # the same pictures, as a viewer shows them
        values = np.array(Image.open(file)).astype(int)
        Image.fromarray(((values * 255 + 750) // 1500).astype("uint8")).save(f"{file.stem}-8bit.png")
    shown = api.load("run").predict([f"{file.stem}-8bit.png" for file in low])
    assert [row["probability"] for row in shown] == pytest.approx([row["probability"] for row in rows], abs=0.02)
    assert "16-bit values" in fmeco("info", "run").out or api.load("run").spec.preprocessing["range"]


@pytest.mark.situation("10- and 12-bit values in 16-bit files", "refused by name")
@pytest.mark.parametrize("name", ["gray.png", "rgb.png", "rgb.tif"])
def test_few_bits_of_unknown_range_are_refused(name: str, fmeco: Fmeco) -> None:
    values = np.random.default_rng(0).integers(0, 1500, (20, 20)).astype("uint16")
    if name == "gray.png":
        Image.fromarray(values).save(name)
    else:
        save_16_bit_colour(Path(name), np.stack([values] * 3, -1))
    with pytest.raises(DataError, match=f"{name}.*16 bits.*(no value above|lost)"):
        _images.decode(name, how())


def save_16_bit_colour(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    """Write a PNG or TIFF of 48 bits per pixel, which Pillow cannot write."""
    import struct
    import zlib

    h, w, _ = pixels.shape
    if path.suffix == ".png":
        raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", w, h, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(raw)),
            (b"IEND", b""),
        ]
        body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
        return
    data = pixels.astype("<u2").tobytes()
    tags = [
        (256, 3, 1, w),
        (257, 3, 1, h),
        (258, 3, 3, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 14),
        (277, 3, 1, 3),
        (278, 3, 1, h),
        (279, 4, 1, len(data)),
    ]
    head = struct.pack("<2sHIHHH", b"II", 42, 14 + len(data), 16, 16, 16)
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 0)
    path.write_bytes(head + data + ifd)


@pytest.mark.situation("10- and 12-bit values in 16-bit files", "refused by name")
@pytest.mark.parametrize("range_", [[5], [9, 9], [0, 70000], [10, 2]])
def test_a_wrong_range_is_refused(range_: list[int], fmeco: Fmeco) -> None:
    photos(Path("photos"), each=2)
    answer = fmeco("check", write_config(range=range_))
    assert answer.code == 2 and "dataset.range" in answer.err


def write_config(**dataset: Any) -> Path:
    from tests.conftest import write

    return write(
        "c.yaml",
        tiny(
            dataset={
                "name": "image_folder",
                "path": "photos",
                "image_size": 8,
                "classes": None,
                "limit_per_class": None,
                **dataset,
            }
        ),
    )


@pytest.mark.situation("pictures of several frames", "said")
@pytest.mark.parametrize("suffix", ["gif", "tiff", "webp", "png"])
def test_the_first_of_several_frames_is_used_and_said(suffix: str) -> None:
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    for label, frames in (("a", [red, blue]), ("b", [blue, red])):
        Path("films", label).mkdir(parents=True)
        for i in range(3):
            how_to_save: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
            frames[0].save(f"films/{label}/{i}.{suffix}", save_all=True, append_images=frames[1:], **how_to_save)
    data = build(name="image_folder", path="films", image_size=16)
    assert "has several frames; of such files, only the first frame is used" in "\n".join(data.notes)
    assert data.train is not None
    assert data.train[0]["image"][:, 0, 0].tolist() == [250, 0, 0]


@pytest.mark.situation("old checkpoints", "read rightly")
@pytest.mark.parametrize("name", ["rgba.png", "palette.png", "deep.png"])
def test_a_checkpoint_without_a_rule_reads_pictures_as_it_did(name: str) -> None:
    old = {key: value for key, value in how().items() if key not in ("decode", "background")}
    if name == "deep.png":
        values = np.random.default_rng(0).integers(0, 1500, (20, 20)).astype("uint16")
        Image.fromarray(values).resize((16, 16)).save(name)
        assert torch.equal(
            _images.decode(name, old)[0], torch.from_numpy(np.array(Image.open(name)).astype(int) // 257).byte()
        )
    else:
        TRANSPARENT[name](Path(name))
        assert not _images.decode(name, old).any()  # all black, as it was trained


@pytest.mark.situation("extreme shapes", "refused by name")
@pytest.mark.parametrize("size", [(60000, 1), (1, 60000), (10000, 1), (30000, 2)])
def test_a_line_of_pixels_is_a_bad_sample_with_its_name(size: tuple[int, int]) -> None:
    Image.new("L", size).save("line.png")
    with pytest.raises(DataError, match=f"line.png: {size[0]}x{size[1]} pixels: enlarged"):
        _images.decode("line.png", how(resize=256, size=224))


@pytest.mark.situation("extreme shapes", "read rightly")
@pytest.mark.parametrize("size", [(6000, 200), (64, 1), (1, 1), (12000, 300)])
def test_long_pictures_are_read(size: tuple[int, int]) -> None:
    Image.new("RGB", size, (200, 100, 50)).save("long.png")
    pixels = _images.decode("long.png", how(resize=64, size=64))
    assert min(pixels.shape[1:]) == 64 and pixels.amin(dim=(1, 2)).tolist() == [200, 100, 50]


@pytest.mark.situation("extreme shapes", "refused by name")
def test_predict_goes_on_after_a_line_of_pixels(fmeco: Fmeco) -> None:
    photos(Path("photos"), each=6)
    api.pretrain(
        tiny(
            dataset={
                "name": "image_folder",
                "path": "photos",
                "image_size": 32,
                "classes": None,
                "limit_per_class": None,
            }
        ),
        out="run",
    )
    Image.new("L", (60000, 1)).save("line.png")
    picture(Path("good.png"), (200, 40, 40))
    answer = fmeco("predict", "run", "line.png", "good.png", "--json")
    assert answer.code == 0
    bad, good = answer.json["predictions"] if isinstance(answer.json, dict) else answer.json
    assert "60000x1" in bad["error"] and good["prediction"] == "red"


@pytest.mark.situation("damaged pictures", "refused by name")
@pytest.mark.parametrize("damage", ["half", "text", "empty", "zeros", "web page", "lfs"])
def test_a_damaged_picture_is_named(damage: str) -> None:
    picture(Path("x.png"), (1, 2, 3), size=(64, 64))
    body = Path("x.png").read_bytes()
    Path("x.png").write_bytes(
        {
            "half": body[: len(body) // 2],
            "text": b"hello, world, this is no picture",
            "empty": b"",
            "zeros": bytes(1000),
            "web page": b"<!DOCTYPE html><html>not found</html>",
            "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
        }[damage]
    )
    with pytest.raises(DataError, match=r"x\.png"):
        _images.decode("x.png", how())


@pytest.mark.situation("damaged pictures", "refused by name")
def test_an_error_that_no_decoder_should_raise_is_a_bad_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    picture(Path("x.png"), (1, 2, 3))
    monkeypatch.setattr(_pixels, "eight_bit", lambda *_, **__: {}["no such key"])
    with pytest.raises(DataError, match=r"x\.png"):
        _images.decode("x.png", how())


@pytest.mark.situation("sizes of pictures", "read rightly")
@pytest.mark.parametrize("size", [(500, 375), (333, 500), (640, 427), (231, 231), (1000, 401), (97, 130)])
@pytest.mark.parametrize("short", [64, 110])
def test_pictures_are_resized_and_cropped_as_torchvision_does(size: tuple[int, int], short: int) -> None:
    from torchvision.transforms import v2

    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype("uint8")
    Image.fromarray(coarse).resize(size).save("photo.png")
    prep = how(resize=short, size=short - 7)
    spec = DataSpec("image", {"image": InputSpec((3, short - 7, short - 7), "uint8")}, preprocessing=prep)
    ours = fit({"image": _images.decode("photo.png", prep)}, spec)["image"]
    theirs = v2.Compose([v2.Resize(short), v2.CenterCrop(short - 7)])(Image.open("photo.png"))
    assert np.abs(np.array(theirs).astype(int) - ours.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.situation("sizes of pictures", "read rightly")
def test_a_large_jpeg_differs_little_from_one_that_is_decoded_whole() -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype("uint8")
    Image.fromarray(coarse).resize((1600, 1200)).save("photo.jpg", quality=92)
    Image.open("photo.jpg").save("photo.png")
    reduced, whole = (_images.decode(f"photo.{suffix}", how(resize=128, size=128)) for suffix in ("jpg", "png"))
    assert (reduced.float() - whole.float()).abs().mean() < 1


@pytest.mark.situation("an image that the camera turned", "read rightly")
@pytest.mark.parametrize("rule", [1, 2])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_are_upright(orientation: int, suffix: str, rule: int) -> None:
    """Pillow turns a TIFF when it decodes it, and leaves images of other formats as they are."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(Path("plain.png"), (200, 60, 40), size=(16, 24))
    Image.open("plain.png").save(f"turned.{suffix}", exif=exif)
    with Image.open(f"turned.{suffix}") as image:
        upright = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    assert np.array_equal(_images.decode(f"turned.{suffix}", how(decode=rule)).numpy(), upright)
