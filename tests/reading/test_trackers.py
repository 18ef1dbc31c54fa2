"""Situations of public trackers in which a real file was misread, or ended a training run in an unclear way.

Each test names the thread. It asserts the right value, the words of the error, or the note.
"""

from __future__ import annotations

import csv
import io
import json
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

import fmeco as api
from fmeco.assembly.data import described
from fmeco.checkpoints.foreign.files import read_foreign
from fmeco.core import Data
from fmeco.data.spec_reader import reader_module
from fmeco.datasets import _images
from fmeco.errors import DataError, FmecoError
from tests.conftest import Answer, photos, picture, tiny, tones, write
from tests.data.test_data import build

Fmeco = Callable[..., Answer]
NONE = {"classes": None, "limit_per_class": None}
WHITE = [255, 255, 255]


def how(size: int = 16, **keys: Any) -> dict[str, Any]:
    """A preprocessing of the newest rule that changes no image of this size."""
    keys = {"color": "rgb", "decode": 2, "background": WHITE, **keys}
    return {"size": size, "resize": size, "interpolation": "bilinear", **keys}


def said(data: Data) -> str:
    return "\n".join(data.notes)


def told(name: str, **keys: Any) -> str:
    """What the user learns of a dataset: its notes, or the error that refuses it."""
    try:
        return said(build(name=name, **keys))
    except FmecoError as error:
        return "\n".join([str(error), *getattr(error, "hints", ())])


def table(path: str, *rows: Sequence[object], delimiter: str = ",") -> str:
    """Write rows, the first of which is the header, with quotes where a cell needs them."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def frame(path: str, **columns: Sequence[Any]) -> str:
    """Write a Parquet table."""
    pytest.importorskip("polars").DataFrame(columns).write_parquet(path)
    return path


def numeric(data: Data) -> list[str]:
    return [column["name"] for column in data.spec.preprocessing["numeric"]]


def categories(data: Data, name: str) -> list[str]:
    return next(list(c["categories"]) for c in data.spec.preprocessing["categorical"] if c["name"] == name)


def read_back(data: Data, name: str) -> dict[int, float]:
    """Row -> number of a column of a table, as the inputs hold it."""
    columns = data.spec.preprocessing["numeric"]
    at = next(j for j, one in enumerate(columns) if one["name"] == name)
    return {
        int(part.name(i).rpartition(":")[2]): float(part[i]["columns"][at]) * columns[at]["std"] + columns[at]["mean"]
        for part in (data.train, data.val, data.test)
        if part is not None
        for i in range(len(part))
    }


def classes(data: Data) -> tuple[str, ...]:
    return tuple(data.spec.targets["label"].classes)


LETTERS = ["ab"[i * i % 7 % 2] for i in range(60)]


# ---------------------------------------------------------------- images


def tiff(path: str, pixels: Any, photometric: int, extra: int | None = None) -> str:
    """Write a TIFF (H, W, C) of 8 or 16 bits, by bytes. extra: number of extra samples, which have no meaning of their own."""
    h, w, c = pixels.shape
    bits = pixels.dtype.itemsize * 8
    data = pixels.astype(f"<u{bits // 8}").tobytes()
    tags: list[tuple[int, int, tuple[int, ...]]] = [
        (256, 3, (w,)), (257, 3, (h,)), (258, 3, (bits,) * c), (259, 3, (1,)), (262, 3, (photometric,)),
        (273, 4, (8,)), (277, 3, (c,)), (278, 3, (h,)), (279, 4, (len(data),)), (284, 3, (1,)),
    ]  # fmt: skip
    if extra is not None:
        tags.append((338, 3, (0,) * extra))
    start = 8 + len(data)
    outside = start + 2 + 12 * len(tags) + 4
    ifd, more = struct.pack("<H", len(tags)), b""
    for tag, kind, values in tags:
        packed = struct.pack(f"<{len(values)}{'HI'[kind == 4]}", *values)
        if len(packed) > 4:
            ifd += struct.pack("<HHII", tag, kind, len(values), outside + len(more))
            more += packed
        else:
            ifd += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    Path(path).write_bytes(b"II*\0" + struct.pack("<I", start) + data + ifd + bytes(4) + more)
    return path


RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)


@pytest.mark.situation("TIFF images of 16 bits in which white is 0, such as X-rays", "read rightly")
@pytest.mark.parametrize("bits", [8, 16])
def test_image_in_which_white_is_zero(bits: int) -> None:
    """https://github.com/InsightSoftwareConsortium/ITK/pull/6636, https://github.com/darktable-org/darktable/pull/18815"""
    values = (RAMP * (257 if bits == 16 else 1)).astype(f"u{bits // 8}")
    tiff("x.tif", values[..., None], photometric=0)
    assert np.array_equal(_images.decode("x.tif", how())[0].numpy(), 255 - RAMP)


@pytest.mark.situation("images with more bands than red, green and blue", "refused by name")
@pytest.mark.parametrize("bands", [4, 5])
def test_image_with_bands_that_no_eye_sees(bands: int) -> None:
    """https://github.com/SCoulY/Sentinel-2-Water-Segmentation/issues/2, https://github.com/weecology/DeepForest-pytorch/issues/59"""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, bands)).astype("uint8")
    tiff("nir.tif", pixels, photometric=2, extra=bands - 3)
    with pytest.raises(DataError, match=r"nir\.tif: .*(bands|channels)"):
        _images.decode("nir.tif", how())


@pytest.mark.situation("PNG images with much metadata", "read rightly")
@pytest.mark.parametrize("chunk", ["icc profile", "compressed text", "international text"])
def test_png_with_much_metadata(chunk: str) -> None:
    """https://github.com/python-pillow/Pillow/issues/8363, https://github.com/python-pillow/Pillow/issues/2445"""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype("uint8")
    more: dict[str, Any] = {}
    if chunk == "icc profile":
        more["icc_profile"] = bytes(2_000_000)
    else:
        info = more["pnginfo"] = PngImagePlugin.PngInfo()
        add = info.add_text if chunk == "compressed text" else info.add_itxt
        add("workflow", "x" * 2_000_000, zip=True)
    Image.fromarray(pixels).save("x.png", **more)
    assert np.array_equal(_images.decode("x.png", how()).permute(1, 2, 0).numpy(), pixels)


def wide_gamut() -> bytes:
    """An ICC profile with the primaries and the gamma of Adobe RGB (1998)."""
    fixed = lambda x: struct.pack(">i", round(x * 65536))  # noqa: E731
    xyz = lambda *v: b"XYZ \0\0\0\0" + b"".join(map(fixed, v))  # noqa: E731
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(563 / 256 * 256)) + b"\0\0"
    name = b"Adobe RGB (1998)\0"
    desc = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78)
    parts = {
        b"desc": desc + bytes(-len(desc) % 4), b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947), b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    at, tags, body = 132 + 12 * len(parts), struct.pack(">I", len(parts)), b""
    for key, part in parts.items():
        tags += key + struct.pack(">II", at + len(body), len(part))
        body += part
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(0.9642) + fixed(1) + fixed(0.8249)
    return head.ljust(128, b"\0") + tags + body


@pytest.mark.situation("images with a colour profile other than sRGB", "read rightly")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_image_with_a_colour_profile(suffix: str) -> None:
    """https://github.com/OpenDisplay/Home_Assistant_Integration/issues/73, https://github.com/image-rs/image/issues/3072"""
    patches = Image.new("RGB", (32, 16), (60, 140, 60))
    patches.paste((180, 60, 50), (16, 0, 32, 16))
    adobe, srgb = ImageCms.ImageCmsProfile(io.BytesIO(wide_gamut())), ImageCms.createProfile("sRGB")
    seen = ImageCms.profileToProfile(patches, adobe, srgb)
    assert seen is not None
    assert np.abs(np.array(seen).astype(int) - np.array(patches)).max() > 15, "the profile matters"
    patches.save(
        f"x.{suffix}", icc_profile=wide_gamut(), **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {})
    )
    decoded = _images.decode(f"x.{suffix}", how()).permute(1, 2, 0).numpy().astype(int)
    wanted = np.array(seen).astype(int)
    assert np.abs(decoded - wanted)[:, [4, 28]].max() <= 4


def exif(kind: str) -> bytes:
    """EXIF data that says "turn me", in a way that real cameras and programs write and that libraries stumble over."""
    entries = [(0x0112, 3, 1, struct.pack("<HH", 6, 0))]
    if kind == "a fraction of 0/0":  # its value follows the entries
        entries.append((0x011A, 5, 1, struct.pack("<I", 8 + 2 + 24 + 4)))
    if kind == "a value beyond its end":
        entries.append((0x010F, 2, 5000, struct.pack("<I", 4000)))
    if kind == "text where a number belongs":
        entries.append((0x0128, 2, 4, b"cm\0\0"))
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHI", *e[:3]) + e[3] for e in entries) + bytes(4)
    data = b"II*\0\x08\0\0\0" + ifd + bytes(8)
    return b"Exif\0\0" + (b"Exif\0\0" if kind == "a header that is there twice" else b"") + data


@pytest.mark.situation("photographs with damaged EXIF data", "read rightly")
@pytest.mark.parametrize(
    "kind",
    ["a header that is there twice", "a fraction of 0/0", "a value beyond its end", "text where a number belongs"],
)
def test_photo_with_damaged_exif(kind: str) -> None:
    """https://github.com/python-pillow/Pillow/issues/8348, https://github.com/python-pillow/Pillow/issues/8605"""
    left_red = np.zeros((32, 16, 3), "uint8")
    left_red[:16] = (250, 10, 10)  # the upper half is red; turned by 90 degrees clockwise, the right half is
    Image.fromarray(left_red).save("x.jpg", quality=100, subsampling=0, exif=exif(kind))
    decoded = _images.decode("x.jpg", how())
    if kind != "a header that is there twice":  # viewers turn the other three
        assert decoded.shape == (3, 16, 32)
        assert decoded[0, :, 20:].min() > 230 and decoded[0, :, :12].max() < 25
    else:
        assert sorted(decoded.shape[1:]) == [16, 32]


@pytest.mark.situation("JPEG photographs that are damaged in the middle", "refused by name")
def test_jpeg_with_the_bytes_of_another_file_is_named() -> None:
    """https://github.com/ultralytics/yolov5/issues/2451, https://github.com/ultralytics/ultralytics/issues/13142

    Zeros in place of the second half, or an end marker after the first, are decoded by Pillow without a word.
    """
    body = picture(Path("x.jpg"), (40, 200, 40), size=(256, 256)).read_bytes()
    other = picture(Path("y.jpg"), (200, 40, 40), seed=1, size=(256, 256)).read_bytes()
    half = len(body) // 2
    Path("x.jpg").write_bytes(body[:half] + other[:4096] + body[half + 4096 :])
    with pytest.raises(DataError, match=r"x\.jpg"):
        _images.decode("x.jpg", how(256))


@pytest.mark.situation("photographs of phones and drones with several pictures in one JPEG", "read rightly")
@pytest.mark.parametrize("orientation", [1, 6])
def test_jpeg_with_several_pictures(orientation: int) -> None:
    """https://github.com/ultralytics/yolov5/issues/2446, https://github.com/idealo/imagededup/issues/35"""
    red = np.zeros((32, 16, 3), "uint8")
    red[:16] = (250, 10, 10)
    made, tag = Image.fromarray(red), Image.Exif()
    tag[0x0112] = orientation
    made.save("mpo.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], exif=tag, quality=100)
    made.save("plain.jpg", exif=tag, quality=100)
    with Image.open("mpo.jpg") as opened:
        assert opened.format == "MPO"
    assert torch.equal(_images.decode("mpo.jpg", how()), _images.decode("plain.jpg", how()))


@pytest.mark.situation("images whose ending names another format", "read rightly")
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_image_with_the_ending_of_another_format(kind: str) -> None:
    """https://github.com/haraldk/TwelveMonkeys/issues/185"""
    Image.new("RGB", (16, 16), (250, 10, 10)).save("x.jpg", kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.abs(_images.decode("x.jpg", how())[:, 5, 5].numpy().astype(int) - [250, 10, 10]).max() <= 1


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300)


@pytest.mark.situation("a class of which all files have an ending that is not read", "said")
@pytest.mark.parametrize("suffix", [".heic", ".jxl", ".svg"])
def test_class_of_unread_files_is_named(suffix: str) -> None:
    """https://github.com/caezium/burrow/pull/283, https://github.com/pharmapsychotic/clip-interrogator-ext/issues/50"""
    photos(Path("photos"), ("blue", "green"), each=4)
    Path("photos/iphone").mkdir()
    for i in range(4):
        Path(f"photos/iphone/{i}{suffix}").write_bytes(HEIC)
    assert re.search(r"\biphone\b", told("image_folder", path="photos", image_size=16))


@pytest.mark.situation("a class of which all files have an ending that is not read", "said")
@pytest.mark.parametrize("suffix", [".mp3", ".ogg", ".m4a"])
def test_class_of_unread_recordings_is_named(suffix: str) -> None:
    """https://github.com/domesticatedviking/TextyMcSpeechy/pull/41"""
    pytest.importorskip("soundfile")
    tones(Path("tones"), each=4)
    Path("tones/phone").mkdir()
    for i in range(4):
        Path(f"tones/phone/{i}{suffix}").write_bytes(b"ID3" + bytes(500))
    assert re.search(r"\bphone\b", told("audio", path="tones", sample_rate=8000, seconds=0.2, mels=16))


@pytest.mark.situation("an empty class folder", "said")
@pytest.mark.parametrize("where", ["train", "val", "unsplit"])
def test_empty_class_folder_is_named(where: str) -> None:
    """https://github.com/huggingface/pytorch-image-models/issues/957"""
    root = Path("photos")
    for part in ("train", "val") if where != "unsplit" else ("",):
        photos(root / part, each=3)
    Path(root, where.replace("unsplit", ""), "violet").mkdir()
    assert "violet" in told("image_folder", path="photos", image_size=16)


@pytest.mark.situation("JPEG photographs with rarer endings", "read rightly")
@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPEG", ".Jpg"])
def test_jpeg_with_a_rarer_ending_is_read(suffix: str) -> None:
    """https://github.com/supervisely/supervisely/pull/839, https://github.com/pytorch/vision/issues/552"""
    for label in ("blue", "red"):
        for i in range(4):
            file = picture(Path(f"photos/{label}/{i}.jpg"), (40, 40, 200), seed=i)
            file.rename(file.with_suffix(suffix if label == "red" else ".jpg"))
    data = build(name="image_folder", path="photos", image_size=16)
    assert classes(data) == ("blue", "red") and sum(data.spec.sizes.values()) == 8


@pytest.mark.situation("a class that is absent from the validation split", "read rightly")
@pytest.mark.parametrize("gone", ["blue", "green", "red"])
def test_a_class_that_is_absent_from_validation_moves_no_label(gone: str) -> None:
    """https://github.com/ultralytics/ultralytics/issues/13936, https://github.com/huggingface/pytorch-image-models/issues/211"""
    photos(Path("photos/train"), each=3)
    photos(Path("photos/val"), tuple(c for c in ("blue", "green", "red") if c != gone), each=2)
    data = build(name="image_folder", path="photos", image_size=16)
    assert data.val is not None
    for i in range(len(data.val)):
        assert (
            classes(data)[int(data.val.targets["label"][i])] == data.val.name(i).rpartition("/")[0].rpartition("/")[2]
        )


@pytest.mark.situation("a class that only the test split has", "said")
@pytest.mark.parametrize("kind", ["image_folder", "text", "csv_table"])
def test_a_class_without_training_samples_is_named(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """https://github.com/ultralytics/ultralytics/pull/26192 (the class "d" that only the test split has)"""
    if kind == "image_folder":
        photos(Path("p/train"), ("blue", "green"), each=4)
        photos(Path("p/test"), ("blue", "green", "red"), each=2)
        assert re.search(r"\bred\b", told(kind, path="p", image_size=16))
    elif kind == "text":
        Path("p").mkdir()
        for part, labels in (("train", "ab" * 20), ("test", "abred")):
            names = list(labels) if part == "train" else ["a", "b", "red"]
            write(
                f"p/{part}.jsonl",
                "\n".join(json.dumps({"text": f"words {i} {n}", "label": n}) for i, n in enumerate(names)),
            )
        caplog.set_level("INFO")
        described(build(name=kind, path="p"))
        assert "no training samples of red, but the test split has some" in caplog.text
    else:
        rows = [[i, "ab"[i % 2], "train"] for i in range(40)] + [
            [i, ("a", "b", "red")[i % 3], "test"] for i in range(9)
        ]
        table("t.csv", ["x", "label", "part"], *rows)
        caplog.set_level("INFO")
        described(build(name=kind, path="t.csv", split_column="part"))
        assert "no training samples of red, but the test split has some" in caplog.text


@pytest.mark.situation("test files without labels, whose labels are all -1", "said")
@pytest.mark.parametrize("suffix", ["jsonl", "tsv", "csv"])
def test_labels_of_minus_one_are_no_class(suffix: str) -> None:
    """https://github.com/huggingface/datasets/issues/245, https://github.com/tensorflow/datasets/issues/1356"""
    Path("sst2").mkdir()
    for part, count in (("train", 40), ("val", 10), ("test", 10)):
        rows = [{"text": f"{part} sentence {i}", "label": -1 if part == "test" else i % 2} for i in range(count)]
        if suffix == "jsonl":
            write(f"sst2/{part}.jsonl", "\n".join(map(json.dumps, rows)))
        else:
            cells = [["text", "label"], *([row["text"], row["label"]] for row in rows)]
            table(f"sst2/{part}.{suffix}", *cells, delimiter="\t" if suffix == "tsv" else ",")
    assert "-1" in told("text", path="sst2")


@pytest.mark.situation("folders that a notebook makes", "read rightly")
def test_folders_of_notebooks_are_no_classes() -> None:
    """https://github.com/open-mmlab/mmpretrain/issues/507"""
    photos(Path("photos"), each=3)
    picture(Path("photos/.ipynb_checkpoints/x-checkpoint.png"), (1, 2, 3))
    picture(Path("photos/red/.ipynb_checkpoints/x-checkpoint.png"), (1, 2, 3))
    data = build(name="image_folder", path="photos", image_size=16)
    assert classes(data) == ("blue", "green", "red") and sum(data.spec.sizes.values()) == 9


@pytest.mark.situation("paths that Windows wrote", "read rightly")
@pytest.mark.parametrize("dataset", ["csv_images", "audio", "images"])
def test_paths_with_backslashes(dataset: str) -> None:
    r"""https://github.com/abbyy/barcode_detection_benchmark/issues/2, https://github.com/microsoft/CNTK/issues/1321"""
    if dataset == "audio":
        pytest.importorskip("soundfile")
        tones(Path("data"), each=4)
    else:
        photos(Path("data"), ("blue", "red"), each=4)
    files = [file.relative_to("data") for file in sorted(Path("data").glob("*/*"))]
    if dataset == "images":
        write("data/t.txt", "\n".join(str(file).replace("/", "\\") for file in files) + "\n")
        data = build(name=dataset, path="data/t.txt", image_size=16)
    else:
        rows = [[str(file).replace("/", "\\"), file.parent.name] for file in files]
        table("data/t.csv", ["path", "label"], *rows)
        data = build(name=dataset, path="data/t.csv", **({"image_size": 16} if dataset == "csv_images" else {}))
    assert sum(data.spec.sizes.values()) == 8


# ---------------------------------------------------------------- recordings

SOUND = {"name": "audio", "sample_rate": 8000, "seconds": 0.4, "mels": 16}


def wave(path: str, samples: Any, rate: int = 8000, **more: Any) -> str:
    pytest.importorskip("soundfile").write(path, samples, rate, **more)
    return path


def hum(seconds: float = 0.4, rate: int = 8000, pitch: float = 700.0) -> Any:
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


def heard(path: str, spec: Any) -> torch.Tensor:
    return next(iter(reader_module(spec).read(spec, [path])[0].values()))


@pytest.fixture
def sound() -> Any:
    pytest.importorskip("soundfile")
    tones(Path("tones"), each=6)
    return build(path="tones", **SOUND).spec


@pytest.mark.situation("recordings without a sample", "refused by name")
def test_recording_without_a_sample(sound: Any) -> None:
    """https://github.com/persephone-tools/persephone/issues/52, https://github.com/embeddings-benchmark/mteb/issues/3977"""
    wave("empty.wav", np.zeros(0))
    with pytest.raises(DataError, match=r"empty\.wav"):
        heard("empty.wav", sound)


@pytest.mark.situation("recordings whose ending is in capitals, or names another format", "read rightly")
@pytest.mark.parametrize("kind", ["x.WAV", "x.Flac", "flac as .wav", "ogg as .wav", "mp3 as .wav", "wav as .flac"])
def test_recording_with_another_ending(kind: str, sound: Any) -> None:
    """https://github.com/bbc/audiowaveform/issues/110, https://github.com/iver56/torch-audiomentations/issues/58"""
    wanted = heard(wave("right.wav", hum()), sound)
    if " as " in kind:
        inside, _, suffix = kind.partition(" as ")
        file = f"x{suffix}"
        wave(f"y.{inside}", hum())
        Path(f"y.{inside}").rename(file)
    else:
        file = wave(kind, hum(), format=kind[2:].upper())
    got = heard(file, sound)
    limit = 0.02 if "ogg" not in kind and "mp3" not in kind else 0.6
    assert (got - wanted).abs().mean() < limit


@pytest.mark.situation("float recordings on the scale of 16-bit numbers", "read rightly")
@pytest.mark.parametrize("keys", [{}, {"input": "waveform"}], ids=["spectrogram", "waveform"])
def test_float_recording_on_the_scale_of_integers(keys: dict[str, Any]) -> None:
    """https://github.com/librosa/librosa/issues/696, https://github.com/dscripka/openWakeWord/issues/295"""
    pytest.importorskip("soundfile")
    tones(Path("tones"), each=6)
    spec = build(path="tones", **{**{k: v for k, v in SOUND.items() if not keys or k != "mels"}, **keys}).spec
    quiet, loud = wave("quiet.wav", hum(), subtype="FLOAT"), wave("loud.wav", hum() * 32767, subtype="FLOAT")
    assert (heard(quiet, spec) - heard(loud, spec)).abs().max() < 0.02


@pytest.mark.situation("transcripts that look like a missing value", "read rightly")
@pytest.mark.parametrize("word", ["null", "none", "nan", "NA"])
def test_transcript_that_looks_like_a_missing_value(word: str) -> None:
    """https://github.com/huggingface/datasets/issues/4467 (the Luxembourgish word for 0 is "null")"""
    rows = [[wave(f"{i}.wav", hum(pitch=300 + 20 * i)), word if i % 2 else "een"] for i in range(12)]
    table("t.csv", ["path", "label"], *rows)
    data = build(name="audio", path="t.csv", task="text", sample_rate=8000, seconds=0.4, mels=16)
    assert set(word) <= set("".join(data.spec.targets["label"].classes))


# ---------------------------------------------------------------- series

KEYS = {"context": 8, "horizon": 2, "val_fraction": 0.25, "test_fraction": 0.0}


@pytest.mark.situation("a column that does not change in training", "read rightly")
@pytest.mark.parametrize("value", [0.0, 0.1, 14.62, 1e6 + 0.1])
def test_table_column_that_is_constant_in_training(value: float) -> None:
    """https://github.com/scikit-learn/scikit-learn/issues/17794, https://github.com/elixir-nx/scholar/pull/363"""
    rows = [[value, i, LETTERS[i], "train"] for i in range(60)] + [[value + 1, 3, "a", "test"], [value, 4, "b", "test"]]
    data = build(name="csv_table", path=table("t.csv", ["still", "x", "label", "part"], *rows), split_column="part")
    assert data.test is not None
    at = numeric(data).index("still")
    assert sorted(abs(float(data.test[i]["columns"][at])) for i in range(2)) == pytest.approx([0, 1], abs=1e-3)


@pytest.mark.situation("a number that stands for a missing value", "read rightly")
def test_a_listed_number_is_missing() -> None:
    """https://github.com/open-ideas/IDEAS/issues/1303"""
    rows = [[-9999 if i in (20, 21, 50) else 5 + i % 7, LETTERS[i]] for i in range(60)]
    table("t.csv", ["wind", "label"], *rows)
    data = build(name="csv_table", path="t.csv", missing=["-9999"])
    stats = data.spec.preprocessing["numeric"][0]
    assert 5 <= stats["mean"] <= 11 and stats["missing"]


@pytest.mark.situation("a series that is shorter than a window", "said")
def test_a_short_series_is_named() -> None:
    """https://github.com/autogluon/autogluon/pull/3469, https://github.com/awslabs/gluonts/issues/1724"""
    rows = [["long", i, i % 5] for i in range(100)] + [["short", i, 3] for i in range(95, 100)]
    told_ = told("series", path=table("t.csv", ["id", "time", "value"], *rows), id="id", value="value", **KEYS)
    assert re.search(r"\bshort\b", told_)


# ---------------------------------------------------------------- events


def shop(items: Callable[[int], object], count: int = 240) -> list[list[object]]:
    return [[f"u{i % 8}", items(i), i] for i in range(count)]


SHOP = {"name": "events", "split": "leave_one_out", "length": 10}
HEAD = ["user", "item", "time"]


@pytest.mark.situation("a table whose header is repeated below", "read rightly")
@pytest.mark.parametrize("dataset", ["csv_table", "text", "csv_images", "events", "series"])
def test_a_repeated_header_is_no_row(dataset: str) -> None:
    """https://github.com/whitfin/s3-concat/issues/3, https://github.com/ckan/datapusher/pull/74"""
    keys: dict[str, Any] = {}
    if dataset == "csv_table":
        header, rows = ["colour", "label"], [["red" if i % 3 else "blue", LETTERS[i]] for i in range(60)]
    elif dataset == "text":
        header, rows = ["text", "label"], [[f"words {i}", LETTERS[i]] for i in range(60)]
    elif dataset == "csv_images":
        photos(Path("p"), ("blue", "red"), each=6)
        header, rows = ["path", "label"], [[str(f), f.parent.name] for f in sorted(Path("p").glob("*/*"))]
        keys = {"image_size": 16}
    elif dataset == "events":
        header, rows, keys = HEAD, shop(lambda i: f"p{i % 11}"), {k: v for k, v in SHOP.items() if k != "name"}
    else:
        header, rows, keys = ["time", "a"], [[i, i % 5] for i in range(100)], KEYS
    middle = len(rows) // 2
    table("t.csv", header, *rows[:middle], header, *rows[middle:])
    try:
        data = build(name=dataset, path="t.csv", **keys)
    except FmecoError as error:
        assert re.search(rf"(row|:|line) ?{middle + 2}|header", str(error)), error
        return
    assert sum(data.spec.sizes.values()) == len(rows), "the second header is no sample"
    assert header[-1] not in classes(data)


# ---------------------------------------------------------------- tables


@pytest.mark.situation("rows with a delimiter at their end", "refused by name")
def test_rows_with_a_delimiter_at_their_end() -> None:
    """https://github.com/pandas-dev/pandas/issues/14124, https://github.com/pandas-dev/pandas/issues/9295"""
    write("t.csv", "x,y,label\n" + "".join(f"{i},{i * i},{LETTERS[i]},\n" for i in range(60)))
    with pytest.raises(DataError, match=r"row 2 has 4 values, but the table has 3 columns"):
        build(name="csv_table", path="t.csv")


@pytest.mark.situation("a last column without a name and without values", "said")
def test_header_and_rows_with_a_delimiter_at_their_end() -> None:
    """https://github.com/pandas-dev/pandas/issues/41304"""
    write("t.csv", "x,y,label,\n" + "".join(f"{i},{i * i},{LETTERS[i]},\n" for i in range(60)))
    data = build(name="csv_table", path="t.csv")
    assert numeric(data) == ["x", "y"] and not data.spec.preprocessing["categorical"]
    assert re.search("no (name|value)|empty|unnamed|without a name", said(data))


@pytest.mark.situation("columns of the same name", "refused by name")
@pytest.mark.parametrize("dataset", ["csv_table", "text", "series"])
def test_columns_of_the_same_name(dataset: str) -> None:
    """https://github.com/python/cpython/issues/61739, https://github.com/pandas-dev/pandas/issues/9424"""
    header = {"csv_table": "x,x,label", "text": "text,text,label", "series": "time,a,a"}[dataset]
    write(
        "t.csv", header + "\n" + "".join(f"{i},{i + 1},{LETTERS[i] if dataset != 'series' else i}\n" for i in range(60))
    )
    assert re.search(
        "more than once|twice|same name", told(dataset, path="t.csv", **(KEYS if dataset == "series" else {}))
    )


@pytest.mark.situation("the index that pandas writes into Parquet", "said")
@pytest.mark.parametrize("name", ["__index_level_0__", "Unnamed: 0", "Unnamed: 0.1"])
def test_the_index_of_pandas_is_no_feature(name: str) -> None:
    """https://github.com/huggingface/datasets/pull/3565, https://github.com/qri-io/qri/issues/48"""
    columns = {"x": [float(i % 9) for i in range(60)], "label": LETTERS}
    index = {name: list(range(60))}
    frame("t.parquet", **({**columns, **index} if name.startswith("__") else {**index, **columns}))
    data = build(name="csv_table", path="t.parquet")
    assert numeric(data) == ["x"] and re.search("no name|index|row numbers|numbers the rows", said(data))


@pytest.mark.situation("a first line that names the separator", "refused by name")
@pytest.mark.parametrize("sep", [";", ",", "\t", "|"])
@pytest.mark.parametrize("dataset", ["csv_table", "text"])
def test_a_first_line_that_names_the_separator(sep: str, dataset: str) -> None:
    """https://github.com/pandas-dev/pandas/issues/47303, https://github.com/tspence/csharp-csv-reader/issues/28"""
    head = ["x" if dataset == "csv_table" else "text", "y", "label"]
    lines = [f"sep={sep}", sep.join(head), *(sep.join([str(i), str(i * i), LETTERS[i]]) for i in range(60))]
    write("t.csv", "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"t\.csv:1: the first line names the separator"):
        build(name=dataset, path="t.csv")


@pytest.mark.situation("spaces before quotes", "read rightly")
@pytest.mark.parametrize("dataset", ["csv_table", "text"])
def test_spaces_before_quotes(dataset: str) -> None:
    """https://github.com/python/cpython/issues/117286, https://github.com/mholt/PapaParse/issues/829"""
    if dataset == "csv_table":
        rows = "".join(f'{i}, "{"Berlin" if i % 3 else "Rome"}", {LETTERS[i]}\n' for i in range(60))
        write("t.csv", 'x, "city", label\n' + rows)
        data = build(name="csv_table", path="t.csv")
        assert [column["name"] for column in data.spec.preprocessing["categorical"]] == ["city"]
        assert categories(data, "city") == ["Berlin", "Rome"]
    else:
        write("t.csv", "text, label\n" + "".join(f'"words, {i}", "{LETTERS[i]}"\n' for i in range(60)))
        data = build(name="text", path="t.csv")
        assert classes(data) == ("a", "b") and sum(data.spec.sizes.values()) == 60


@pytest.mark.situation("a name of a column that holds another separator", "read rightly")
@pytest.mark.parametrize("name", ["load (a; b; c; d)", "tab\tand\tagain\there"])
def test_a_column_name_that_holds_another_separator(name: str) -> None:
    """https://github.com/pandas-dev/pandas/issues/40201 (the separator is guessed from the header)"""
    table("t.csv", [name, "y", "label"], *([i, i * i, LETTERS[i]] for i in range(60)))
    assert len(numeric(build(name="csv_table", path="t.csv"))) == 2


@pytest.mark.situation("a quote that swallows the rows up to the next one", "said")
@pytest.mark.parametrize("dataset", ["text", "csv_table"])
def test_a_quote_that_swallows_rows(dataset: str) -> None:
    """https://github.com/apple/turicreate/issues/1692, https://github.com/pytorch/text/issues/612"""
    cells = [f"a screen of {i} inches" for i in range(60)]
    cells[10], cells[40] = '"10 inches', '40 inches"'
    write("t.csv", "text,label\n" + "".join(f"{cell},{LETTERS[i]}\n" for i, cell in enumerate(cells)))
    message = told(dataset, path="t.csv")
    assert re.search(r"quot|line break|several lines|row 12|:12\b", message), message


@pytest.mark.situation("labels that differ only in what nobody sees", "said")
@pytest.mark.parametrize(
    "twin",
    ["a\u200b", "\ufeffa", "a\u00ad", "A", "a\u00a0"],
    ids=["zero width", "bom", "soft hyphen", "case", "no-break space"],
)
@pytest.mark.parametrize("dataset", ["csv_table", "text"])
def test_labels_that_look_the_same(twin: str, dataset: str) -> None:
    """https://github.com/apple/turicreate/issues/1531, https://github.com/NVIDIA/DIGITS/pull/420"""
    labels = [twin if i % 10 == 0 else label for i, label in enumerate(LETTERS)]
    header = ["x" if dataset == "csv_table" else "text", "label"]
    table("t.csv", header, *([i if dataset == "csv_table" else f"words {i}", label] for i, label in enumerate(labels)))
    try:
        data = build(name=dataset, path="t.csv")
    except FmecoError as error:
        assert "a" in str(error)
        return
    assert len(classes(data)) == 2 or re.search("differ|same|two ways|invisible|look|case", said(data))


@pytest.mark.situation("tables that are saved as UTF-16", "refused by name")
@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("dataset", ["csv_table", "text csv", "text txt", "text jsonl", "events", "series"])
def test_tables_in_utf_16(coding: str, dataset: str) -> None:
    """https://github.com/HKUDS/Vibe-Trading/pull/862, https://github.com/huggingface/datasets/issues/6851"""
    kind, _, suffix = dataset.partition(" ")
    body = {
        "csv_table": "x,label\n" + "".join(f"{i},{LETTERS[i]}\n" for i in range(60)),
        "text csv": "text,label\n" + "".join(f"words {i},{LETTERS[i]}\n" for i in range(60)),
        "text txt": "".join(f"some words {i}\n" for i in range(60)),
        "text jsonl": "".join(json.dumps({"text": f"words {i}", "label": LETTERS[i]}) + "\n" for i in range(60)),
        "events": "user,item,time\n" + "".join(f"u{i % 8},p{i % 11},{i}\n" for i in range(240)),
        "series": "time,a\n" + "".join(f"{i},{i % 5}\n" for i in range(100)),
    }[dataset]
    path = f"t.{suffix or 'csv'}"
    Path(path).write_bytes(body.encode(coding))
    keys = KEYS if kind == "series" else {"split": "leave_one_out"} if kind == "events" else {}
    with pytest.raises(FmecoError, match=r"UTF|NUL|encod|zero byte"):
        build(name=kind, path=path, **keys, **({"label": None} if suffix == "txt" else {}))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:665232916d127eb726be0e4a8ea09109f6739e74ce72c70d\nsize 146946961\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404, not found</title></head>\n<body>Sign in, please</body></html>\n"


@pytest.mark.situation("a Git LFS pointer or a web page in place of a file", "refused by name")
@pytest.mark.parametrize("path", ["t.csv", "t.parquet", "t.jsonl", "t.txt", "w.safetensors", "w.pth"])
@pytest.mark.parametrize("what", ["pointer", "page"])
def test_a_pointer_or_a_page_in_place_of_a_file(path: str, what: str) -> None:
    """https://github.com/InertExpert2911/Mutual_Fund_Data/issues/1, https://github.com/benedekrozemberczki/datasets/issues/10"""
    Path(path).write_bytes(POINTER if what == "pointer" else PAGE)

    def read() -> None:
        if path.startswith("w."):
            read_foreign(Path(path))
        elif path in ("t.jsonl", "t.txt"):
            build(name="text", path=path, **({"label": None} if path == "t.txt" else {}))
        else:
            build(name="csv_table", path=path)

    with pytest.raises(FmecoError, match=r"(?i)LFS" if what == "pointer" else r"(?i)web page|HTML") as caught:
        read()
    assert path in str(caught.value)


@pytest.mark.situation("negative numbers in the ways of accounts, SAP and Fortran", "read rightly")
@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["(123.45)", "99.00", "(7.50)", "12.25"], [-123.45, 99.0, -7.5, 12.25]),
        (["123.45-", "99.00", "7.50-", "12.25"], [-123.45, 99.0, -7.5, 12.25]),
        (["\u2212123.45", "99.00", "\u22127.50", "12.25"], [-123.45, 99.0, -7.5, 12.25]),
        (["1.5D+03", "2.5D+00", "-7.5D-01", "1.25d+01"], [1500.0, 2.5, -0.75, 12.5]),
    ],
    ids=["accounts", "sap", "typesetting", "fortran"],
)
def test_other_notations_of_numbers(cells: list[str], values: list[float]) -> None:
    """https://github.com/openexchangerates/accounting.js/issues/30, https://github.com/SheetJS/sheetjs/issues/1966,
    https://github.com/pola-rs/polars/issues/28163, https://github.com/ERGO-Code/HiGHS/issues/1618"""
    table("t.csv", ["x", "y", "label"], *([cells[i % 4], i, LETTERS[i]] for i in range(60)))
    try:
        data = build(name="csv_table", path="t.csv")
    except FmecoError as error:
        assert "x" in str(error) and cells[0] in str(error)
        return
    assert "x" in numeric(data), "a column of numbers is no column of categories"
    assert read_back(data, "x")[2] == pytest.approx(values[0], abs=1e-2)


@pytest.mark.situation("dates far in the future that mean no end", "read rightly")
@pytest.mark.parametrize("far", ["9999-12-31", "2999-12-31", "0001-01-01"])
def test_dates_far_in_the_future(far: str) -> None:
    """https://github.com/pandas-dev/pandas/issues/61447, https://github.com/geopandas/pyogrio/issues/230"""
    rows = [[far if i % 9 == 0 else f"2024-{i % 12 + 1:02}-{i % 28 + 1:02}", i, LETTERS[i]] for i in range(60)]
    try:
        data = build(name="csv_table", path=table("t.csv", ["until", "x", "label"], *rows))
    except FmecoError as error:
        assert "until" in str(error)
        return
    years = [c for c in data.spec.preprocessing["numeric"] if c["name"] == "until" and c.get("part") == "year"]
    assert years and min(int(far[:4]), 2024) <= years[0]["mean"] <= max(int(far[:4]), 2024)


@pytest.mark.situation("a column of Parquet that is no number, text or date", "refused by name")
@pytest.mark.parametrize("kind", ["list", "struct", "binary"])
def test_a_nested_column_is_named(kind: str) -> None:
    """https://github.com/pola-rs/polars/issues/6038, https://github.com/pola-rs/polars/issues/25296"""
    cells = {"list": [[1, 2]] * 60, "struct": [{"a": 1}] * 60, "binary": [b"\xff\x00"] * 60}[kind]
    frame("t.parquet", x=list(range(60)), pixels=cells, label=LETTERS)
    with pytest.raises(FmecoError, match="pixels"):
        build(name="csv_table", path="t.parquet")


@pytest.mark.situation("several labels in a cell, with another separator", "said")
@pytest.mark.parametrize("separator", [",", ";", " "])
@pytest.mark.parametrize("dataset", ["text", "csv_images"])
def test_labels_with_another_separator(separator: str, dataset: str) -> None:
    """https://github.com/Lightning-Universe/lightning-flash/issues/728 (11 classes instead of 6)"""
    names = ["rust", "scab", "healthy", "frog"]
    cells = [separator.join(name for j, name in enumerate(names) if (i >> j) & 1) or "rust" for i in range(48)]
    if dataset == "text":
        table("t.csv", ["text", "label"], *([f"leaf {i}", cell] for i, cell in enumerate(cells)))
        message = told("text", path="t.csv", task="multilabel")
    else:
        photos(Path("p"), each=16)
        files = sorted(Path("p").glob("*/*"))
        table("t.csv", ["path", "label"], *([str(f), cell] for f, cell in zip(files, cells, strict=True)))
        message = told("csv_images", path="t.csv", task="multilabel", image_size=16)
    assert "separator" in message


@pytest.mark.situation("texts that look like a missing value", "read rightly")
@pytest.mark.parametrize("word", ["null", "None", "nan", "NA", "N/A"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_text_that_looks_like_a_missing_value(word: str, suffix: str) -> None:
    """https://github.com/huggingface/datasets/issues/4467, https://github.com/pandas-dev/pandas/issues/32084"""
    texts = [word if i == 7 else f"words {i}" for i in range(60)]
    if suffix == "jsonl":
        write("t.jsonl", "\n".join(json.dumps({"text": t, "label": n}) for t, n in zip(texts, LETTERS, strict=True)))
    else:
        table(
            f"t.{suffix}",
            ["text", "label"],
            *zip(texts, LETTERS, strict=True),
            delimiter="\t" if suffix == "tsv" else ",",
        )
    data = build(name="text", path=f"t.{suffix}")
    assert sum(data.spec.sizes.values()) == 60


@pytest.mark.situation("texts without a word", "said")
@pytest.mark.parametrize("empty", ["", "   ", "\u200b", "\n"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_empty_texts_are_told(empty: str, suffix: str) -> None:
    """https://github.com/tomaarsen/SpanMarkerNER/issues/33, https://github.com/koaning/whatlies/issues/312"""
    texts = [empty if i in (7, 30) else f"words {i}" for i in range(60)]
    if suffix == "jsonl":
        write("t.jsonl", "\n".join(json.dumps({"text": t, "label": n}) for t, n in zip(texts, LETTERS, strict=True)))
    else:
        table("t.csv", ["text", "label"], *zip(texts, LETTERS, strict=True))
    message = told("text", path=f"t.{suffix}")
    assert re.search(r"empty|no text|nothing|blank|:8\b|:9\b", message), message


@pytest.mark.situation("one JSON array in place of JSON lines", "refused by name")
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_in_place_of_lines(indent: int | None) -> None:
    """https://github.com/huggingface/datasets/issues/6460, https://github.com/hiyouga/LlamaFactory/issues/8805"""
    rows = [{"text": f"words {i}", "label": LETTERS[i]} for i in range(60)]
    write("t.jsonl", json.dumps(rows, indent=indent))
    with pytest.raises(FmecoError, match=r"t\.jsonl:1: "):
        build(name="text", path="t.jsonl")


@pytest.mark.situation("a table without a header", "refused by name")
@pytest.mark.parametrize("dataset", ["csv_table", "text", "events", "series", "csv_images"])
def test_a_table_without_a_header(dataset: str) -> None:
    """https://github.com/pytorch/tutorials/pull/1708, https://github.com/apache/superset/issues/9874"""
    photos(Path("p"), ("blue", "red"), each=6)
    rows: list[list[object]] = {
        "csv_table": [[i, i * i, LETTERS[i]] for i in range(60)],
        "text": [[f"words {i}", LETTERS[i]] for i in range(60)],
        "events": [list(row) for row in shop(lambda i: f"p{i % 11}")],
        "series": [[f"2024-01-{i + 1:02}", i] for i in range(31)],
        "csv_images": [[str(f), f.parent.name] for f in sorted(Path("p").glob("*/*"))],
    }[dataset]
    with pytest.raises(FmecoError, match=r"column|no '"):
        build(name=dataset, path=table("t.csv", *rows), **(KEYS if dataset == "series" else {}))


# ---------------------------------------------------------------- weights and training


@pytest.mark.situation("weights whose names have the prefix of a wrapper", "read rightly")
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "net.backbone."])
def test_weights_with_the_prefix_of_a_wrapper(prefix: str, fmeco: Fmeco) -> None:
    """https://github.com/pytorch/examples/issues/1029, https://github.com/torchgeo/torchgeo/issues/4036"""
    from safetensors.torch import load_file, save_file

    data = {"name": "digits", "classes": [0, 1, 2], "image_size": 8, "limit_per_class": 20, "color": "gray"}
    run = api.pretrain(tiny(dataset=data), out="run")
    state = load_file(run.checkpoint / "backbone.safetensors")
    save_file({f"{prefix}{name}": tensor for name, tensor in state.items()}, "w.safetensors")
    config = write("c.yaml", {**tiny(dataset=data), "from": "w.safetensors", "transfer": "probe"})
    answer = fmeco("finetune", config, "--out", "next")
    assert answer.code == 0, answer.err
    assert "100.0% of the backbone" in answer.err
    new = load_file(Path("next/checkpoints/best/backbone.safetensors").resolve())
    assert all(torch.equal(new[name], tensor) for name, tensor in state.items())


@pytest.mark.situation("weights that hold no finite number", "refused by name")
@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=["inf", "nan"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_weights_that_are_not_finite(value: float, half: bool, fmeco: Fmeco) -> None:
    """https://github.com/NVIDIA/FasterTransformer/issues/221, https://github.com/mahmoodlab/UNI/issues/18"""
    from safetensors.torch import load_file, save_file

    run = api.pretrain(tiny(), out="run")
    state = {
        name: tensor.half() if half else tensor
        for name, tensor in load_file(run.checkpoint / "backbone.safetensors").items()
    }
    name = next(name for name, tensor in state.items() if tensor.ndim > 1)
    state[name][0, 0] = value
    save_file(state, "w.safetensors")
    answer = fmeco("finetune", write("c.yaml", {**tiny(), "from": "w.safetensors"}), "--out", "next")
    assert answer.code not in (0, 1) and name in answer.err and re.search("finite|nan|inf", answer.err), answer.err


@pytest.mark.situation("a last batch of one sample with batch normalisation", "read rightly")
@pytest.mark.parametrize("count", [17, 33])
def test_a_last_batch_of_one_sample(count: int) -> None:
    """https://github.com/fastai/fastai/pull/970, https://github.com/scverse/scvi-tools/issues/2314"""
    photos(Path("p/train"), ("blue", "red"), each=count // 2)
    picture(Path("p/train/red/last.png"), (200, 40, 40), seed=999)
    photos(Path("p/val"), ("blue", "red"), each=2)
    config = tiny(
        dataset={"name": "image_folder", "path": "p", "image_size": 8, **NONE}, train={"epochs": 2, "batch_size": 16}
    )
    config["backbone"] = {"name": "torchvision/resnet18", "stem": "small"}
    done = api.pretrain(config, out="run")
    assert np.isfinite(done.metrics["val_loss"])


@pytest.mark.situation("fewer samples than one batch", "read rightly")
def test_fewer_samples_than_one_batch_are_trained_on() -> None:
    """https://github.com/fastai/fastai/issues/1352 (drop_last leaves no batch at all)"""
    photos(Path("p/train"), ("blue", "red"), each=4)
    photos(Path("p/val"), ("blue", "red"), each=4)
    config = tiny(
        dataset={"name": "image_folder", "path": "p", "image_size": 8, **NONE}, train={"epochs": 40, "batch_size": 512}
    )
    assert api.pretrain(config, out="run").metrics["val_accuracy"] == 1.0


@pytest.mark.situation("a target with a single class", "refused by name")
@pytest.mark.parametrize("dataset", ["csv_table", "text"])
def test_a_target_with_a_single_class(dataset: str) -> None:
    """https://github.com/Lightning-Universe/lightning-flash/issues/1278"""
    header = ["x" if dataset == "csv_table" else "text", "label"]
    table("t.csv", header, *([i if dataset == "csv_table" else f"words {i}", "yes"] for i in range(60)))
    with pytest.raises(FmecoError, match="only one class"):
        build(name=dataset, path="t.csv")


# ---------------------------------------------------------------- ordinary exports of spreadsheets and other programs


@pytest.mark.situation("points between thousands in a file with semicolons", "refused by name")
@pytest.mark.parametrize("role", ["feature", "target"])
def test_points_in_a_file_with_semicolons_may_separate_thousands(role: str) -> None:
    cells = ["6.411", "6.990", "763", "1.050", "12.500"]
    name = "label" if role == "target" else "people"
    rows = [f"{cells[i % 5]};{i}" for i in range(60)]
    write("t.csv", f"{name};{'x' if role == 'target' else 'label'}\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r"'1\.050' may be 1050 or 1\.050.*semicolons"):
        build(name="csv_table", path="t.csv", task="auto")
    data = build(name="csv_table", path="t.csv", decimal={name: ","})
    if role == "feature":
        values = sorted(set(read_back(data, "people").values()))
        assert values == pytest.approx([763, 1050, 6411, 6990, 12500], rel=1e-4)


@pytest.mark.situation("a dash in place of cents", "read rightly")
@pytest.mark.parametrize("unit", ["", "CHF "])
def test_a_dash_in_place_of_cents_is_no_minus(unit: str) -> None:
    cells = [f"{unit}{text}" for text in ("5.50", "6.-", "17'069.-", "12.00")]
    table("t.csv", ["price", "label"], *([cells[i % 4], LETTERS[i]] for i in range(60)))
    data = build(name="csv_table", path="t.csv")
    assert sorted(set(read_back(data, "price").values())) == pytest.approx([5.5, 6, 12, 17069], rel=1e-4)


@pytest.mark.situation("an empty line at the end of a file of sentences", "read rightly")
@pytest.mark.parametrize("end", ["\n", "\n\n", "\n \n\n"])
def test_empty_lines_at_the_ends_separate_nothing(end: str) -> None:
    pytest.importorskip("tokenizers")
    write("t.txt", "\n" + "\n".join(f"sentence {i} of the file" for i in range(40)) + end)
    data = build(name="text", path="t.txt", label=None)
    assert sum(data.spec.sizes.values()) == 40


@pytest.mark.situation("few empty lines between many", "refused by name")
def test_one_empty_line_between_many_is_undecided() -> None:
    pytest.importorskip("tokenizers")
    lines = [f"sentence {i} of the file" for i in range(80)]
    write("t.txt", "\n".join([*lines[:40], "", *lines[40:]]) + "\n")
    with pytest.raises(DataError, match="80 lines with 1 empty ones"):
        build(name="text", path="t.txt", label=None)
    assert sum(build(name="text", path="t.txt", label=None, documents="line").spec.sizes.values()) == 80


@pytest.mark.situation("quotes in a TSV file", "read rightly")
def test_a_tsv_file_with_quotes_is_read_with_them() -> None:
    pytest.importorskip("tokenizers")
    from fmeco.datasets._documents import Layout, read_documents

    rows = [[f'He said "great" {i}', LETTERS[i]] for i in range(60)]
    table("t.tsv", ["text", "label"], *rows, delimiter="\t")
    assert read_documents("t.tsv", Layout(label="label")).texts == [text for text, _ in rows]
    write("plain.tsv", "text\tlabel\n" + "".join(f'5" pipe {i}\t{LETTERS[i]}\n' for i in range(60)))
    assert read_documents("plain.tsv", Layout(label="label")).texts[0] == '5" pipe 0'


@pytest.mark.situation("labels that are objects", "refused by name")
def test_a_label_that_is_an_object_is_refused() -> None:
    pytest.importorskip("tokenizers")
    rows = [json.dumps({"text": f"words {i}", "label": {"name": "x"} if i == 7 else "ab"[i % 2]}) for i in range(20)]
    write("t.jsonl", "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r"t\.jsonl:8: the label is an object"):
        build(name="text", path="t.jsonl", label="label")


@pytest.mark.situation("hours without a zero in front", "read rightly")
@pytest.mark.parametrize("pattern", ["1/{}/2023 {}:30", "{}.01.2023 {}:30", "2023-01-{:02} {}:30"])
def test_hours_without_a_zero_are_dates(pattern: str) -> None:
    table("t.csv", ["made", "label"], *([pattern.format(i % 28 + 1, i % 24), LETTERS[i]] for i in range(60)))
    data = build(name="csv_table", path="t.csv")
    assert {"year", "hour"} <= {one.get("part") for one in data.spec.preprocessing["numeric"]}


@pytest.mark.situation("empty columns at the end of a table", "said")
@pytest.mark.parametrize("extra", [1, 2, 3])
def test_empty_columns_at_the_end_are_left_out(extra: int) -> None:
    write("t.csv", "x,label" + "," * extra + "\n" + "".join(f"{i},{LETTERS[i]}{',' * extra}\n" for i in range(60)))
    data = build(name="csv_table", path="t.csv")
    assert numeric(data) == ["x"] and "no value" in said(data)


@pytest.mark.situation("folders whose names hold names of splits", "refused by name")
@pytest.mark.parametrize(
    "folders", [("seg_train", "seg_test", "seg_pred"), ("my_train", "my_val"), ("Train_10", "Val_10")]
)
def test_folders_with_names_of_splits_are_no_classes(folders: tuple[str, ...]) -> None:
    for folder in folders:
        photos(Path("photos", folder), each=2)
    with pytest.raises(DataError, match="look like splits"):
        build(name="image_folder", path="photos")


@pytest.mark.situation("folders of class folders", "refused by name")
def test_one_picture_beside_the_class_folders_changes_nothing() -> None:
    for folder in ("2019", "2020"):
        photos(Path("photos", folder), each=8)
    picture(Path("photos/2019/overview.png"), (1, 2, 3))
    with pytest.raises(DataError, match="all hold the same folders"):
        build(name="image_folder", path="photos")


@pytest.mark.situation("names of classes", "said")
def test_check_names_the_classes(fmeco: Fmeco) -> None:
    photos(Path("photos"), each=6)
    config = tiny(dataset={"name": "image_folder", "path": "photos", **NONE, "image_size": 16})
    answer = fmeco("check", write("c.yaml", config))
    assert answer.code == 0 and "blue, green, red" in answer.out
