"""Data: one decode, splits by name, an order that depends on the seed alone, and public datasets without a network."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fmeco.config.check import choose
from fmeco.core import Data, mix, uniform
from fmeco.data.order import chunks, epoch_order
from fmeco.datasets import _classes, _images
from fmeco.errors import DataError
from tests.conftest import COLOURS, Answer, photos, picture, write

HOW = {"size": 16, "resize": 16, "interpolation": "bilinear", "color": "rgb"}


def build(known: Any = None, whole: bool = False, **raw: Any) -> Data:
    choice = choose("dataset", raw)
    data: Data = choice.plugin.build({"known": known, "whole": whole, "arch": choice.arch}, choice.options)
    return data


def test_odd_but_valid_images_are_read_right() -> None:
    red = np.zeros((20, 30, 3), "uint8")
    red[:, :15, 0] = 255  # left half red, right half black
    base = Image.fromarray(red)
    files: dict[str, Callable[[Path], None]] = {
        "plain.png": base.save,
        "cmyk.jpg": lambda p: base.convert("CMYK").save(p),
        "palette.png": lambda p: base.convert("P").save(p),
        "palette.gif": lambda p: base.save(p),
        "rgba.png": lambda p: base.convert("RGBA").save(p),
        "photo.jpg": lambda p: base.save(p, quality=95),
        "upper.PNG": lambda p: base.save(p, "PNG"),
        "animated.gif": lambda p: base.save(p, save_all=True, append_images=[base.rotate(180)]),
        "sixteen.png": lambda p: Image.fromarray(red[:, :, 0].astype("uint16") * 257).save(p),
        "one.webp": lambda p: base.save(p, lossless=True),
    }
    for name, save in files.items():
        save(Path(name))
        pixels = _images.decode(name, HOW)
        assert pixels.shape == (3, 16, 24), name
        assert pixels.dtype == torch.uint8
        left, right = pixels[0, :, :10].float().mean(), pixels[0, :, 14:].float().mean()
        assert left > 200, name
        assert right < 40, name
    rotated = base.rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees clockwise to see me right"
    rotated.save("exif.png", exif=exif)
    assert torch.equal(_images.decode("exif.png", HOW), _images.decode("plain.png", HOW)), (
        "the camera's orientation is applied"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 50, ""),
        (b"GIF89a", ""),
        (random.Random(0).randbytes(300), "not an image"),
    ],
)
def test_unreadable_images_are_named_with_the_reason(content: bytes, reason: str) -> None:
    Path("x.png").write_bytes(content)
    with pytest.raises(DataError) as caught:
        _images.decode("x.png", HOW)
    assert "x.png" in caught.value.message
    assert reason in caught.value.message
    body = picture(Path("cut.jpg"), COLOURS["red"], size=(64, 64)).read_bytes()
    for share in (0.2, 0.5, 0.9):
        Path("cut.jpg").write_bytes(body[: int(len(body) * share)])
        with pytest.raises(DataError, match=r"cut\.jpg"):
            _images.decode("cut.jpg", HOW)


def test_a_pixel_bomb_is_refused_by_its_header() -> None:
    header = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    )
    Path("bomb.png").write_bytes(header + b"\0\0\0\0")
    with pytest.raises(DataError, match=r"bomb\.png"):
        _images.decode("bomb.png", HOW)


def test_scanning_skips_what_is_hidden_or_linked_and_says_so() -> None:
    root = photos(Path("p"), each=6)
    (root / "red" / ".ipynb_checkpoints").mkdir()
    picture(root / "red" / ".ipynb_checkpoints" / "01.png", COLOURS["red"])
    (root / "red" / "loop").symlink_to(root.resolve())
    (root / "red" / "notes.txt").write_text("x")
    picture(root / "red" / "deeper" / "one.png", COLOURS["red"])
    data = build(name="image_folder", path="p", image_size=8)
    assert sum(data.spec.sizes.values()) == 19
    text = "\n".join(data.notes)
    assert "1 hidden" in text
    assert "1 linked folders" in text
    assert "1 files that are not images" in text


def test_splits_are_by_name_stratified_and_stable() -> None:
    root = photos(Path("p"), each=20)
    first = build(name="image_folder", path="p", image_size=8)

    def val_names(data: Data) -> set[str]:
        val = data.split("val")
        return {val.name(i) for i in range(len(val))}

    before = val_names(first)
    assert {name.split("/")[0] for name in before} == {"blue", "green", "red"}
    assert len(before) == 12
    # Another order on disk, a moved root, and a new file: nobody changes sides (but one may join).
    for file in sorted(root.rglob("*.png"), reverse=True):
        file.rename(file.with_suffix(".tmp"))
        file.with_suffix(".tmp").rename(file)
    root.rename("q")
    moved = build(name="image_folder", path="q", image_size=8)
    assert val_names(moved) == before
    assert moved.spec.fingerprint == first.spec.fingerprint
    picture(Path("q/red/zz.png"), COLOURS["red"])
    assert len(val_names(build(name="image_folder", path="q", image_size=8)) ^ before) <= 2
    folds = [
        val_names(build(name="image_folder", path="q", image_size=8, split={"fold": k, "of": 4})) for k in (1, 2, 3, 4)
    ]
    assert len(set.union(*folds)) == sum(map(len, folds)) == 61, "folds are disjoint and cover everything"
    few, more = (build(name="image_folder", path="q", image_size=8, limit_per_class=n).split("train") for n in (3, 6))
    assert {few.name(i) for i in range(9)} < {more.name(i) for i in range(18)}
    other = build(name="image_folder", path="q", image_size=8, limit_per_class=3, limit_seed=1).split("train")
    assert {few.name(i) for i in range(9)} != {other.name(i) for i in range(9)}


def test_given_split_folders_and_their_spellings() -> None:
    for part, each in (("train", 6), ("valid", 3), ("test", 4)):
        photos(Path("p") / part, each=each)
    data = build(name="image_folder", path="p", image_size=8)
    assert data.spec.sizes == {"train": 18, "val": 9, "test": 12}
    assert build(name="image_folder", train="p/train", test="p/test", image_size=8).spec.sizes["test"] == 12
    chosen = build(name="image_folder", path="p", image_size=8, classes=["red", "blue"])
    assert chosen.spec.targets["label"].classes == ("red", "blue")
    assert chosen.spec.sizes == {"train": 12, "val": 6, "test": 8}


def test_numeric_class_names_sort_as_numbers() -> None:
    assert _classes.natural(["10", "9", "1"]) == ["1", "9", "10"]
    assert _classes.natural(["b", "a10", "a9"]) == ["a10", "a9", "b"]


def test_table_kinds_statistics_and_missing_values() -> None:
    rows = [f"{i},{'uvw'[i % 3]},{'?' if i % 5 == 0 else i}.5,{i % 4}" for i in range(60)]
    rows = [row.replace("?.5", "") for row in rows]
    data = build(name="csv_table", path=str(write("t.csv", "n,c,m,label\n" + "\n".join(rows))))
    how = data.spec.preprocessing
    assert [one["name"] for one in how["numeric"]] == ["n", "m"]
    assert how["categorical"][0]["categories"] == ["u", "v", "w"]
    train = data.split("train")
    x = torch.stack([train[i]["columns"] for i in range(len(train))])
    assert x.shape[1] == 3, "n, m and whether m was missing"
    names = [train.name(i) for i in range(len(train))]
    raw = np.array([float(rows[int(name.split(":")[1]) - 2].split(",")[0]) for name in names])
    assert how["numeric"][0]["mean"] == pytest.approx(raw.mean())
    assert torch.isfinite(x).all()
    again = build(name="csv_table", path=str(write("deep/t.csv", "n,c,m,label\n" + "\n".join(rows))))
    assert [again.split("train").name(i).split(":")[1] for i in range(len(train))] == [
        name.split(":")[1] for name in names
    ]
    amounts = build(
        name="csv_table", path=str(write("u.csv", "n,label\n" + "\n".join(f"{i},{i * 7}" for i in range(60))))
    )
    assert amounts.spec.targets["label"].kind == "number"


def serve_fashion_mnist(folder: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny FashionMNIST in the original file format."""
    import torchvision

    folder.mkdir()
    resources = []
    for part, count in (("train", 40), ("t10k", 20)):
        rng = np.random.default_rng(count)
        images = rng.integers(0, 255, (count, 28, 28), dtype="uint8")
        labels = np.arange(count, dtype="uint8") % 10
        for kind, body in (
            ("images-idx3", struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes()),
            ("labels-idx1", struct.pack(">II", 2049, count) + labels.tobytes()),
        ):
            file = folder / f"{part}-{kind}-ubyte.gz"
            file.write_bytes(gzip.compress(body))
            resources.append((file.name, hashlib.md5(file.read_bytes()).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [f"{server}{folder}/"])
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)


def test_public_datasets_download_once_and_fail_clearly(
    server: str, monkeypatch: pytest.MonkeyPatch, fmeco: Callable[..., Answer]
) -> None:
    served = Path("served")
    serve_fashion_mnist(served, server, monkeypatch)
    data = build(name="fashion_mnist", root="data")
    assert data.spec.sizes["test"] == 20
    assert data.spec.sizes["train"] + data.spec.sizes["val"] == 40
    assert data.split("train")[0]["image"].shape == (1, 28, 28)
    assert data.spec.targets["label"].classes[0] == "Ankle boot", "classes are in order of their names"
    for file in served.iterdir():
        file.unlink()
    build(name="torchvision/fashion_mnist", root="data", download=False)
    config_ = {"dataset": {"name": "fashion_mnist", "root": "elsewhere"}, "backbone": "mlp"}
    answer = fmeco("pretrain", write("c.yaml", config_))
    assert answer.code == 6, answer.err
    assert "FashionMNIST" in answer.err
    answer = fmeco("pretrain", "c.yaml", "--set", "dataset.download=false")
    assert answer.code == 3
    assert "elsewhere" in answer.err


def test_every_public_dataset_exists_in_the_library() -> None:
    import torchvision

    from fmeco.datasets.torchvision import _SOURCES, NAMES

    assert set(NAMES) == set(_SOURCES)
    assert all(hasattr(torchvision.datasets, kind) for kind, _, _ in _SOURCES.values())


def test_order_and_keys() -> None:
    order = epoch_order(1000, 0, 0)
    assert sorted(order.tolist()) == list(range(1000))
    assert not torch.equal(order, epoch_order(1000, 0, 1))
    assert not torch.equal(order, epoch_order(1000, 1, 0))
    labels = torch.tensor([0] * 90 + [1] * 10)
    drawn = torch.cat([epoch_order(100, 0, epoch, labels) for epoch in range(9)])
    assert abs(int((labels[drawn] == 1).sum()) - 450) <= 9, "both classes equally often"
    counts = drawn[labels[drawn] == 0].bincount(minlength=90)
    assert counts[:90].max() - counts[:90].min() <= 2, "no sample of the large class is forgotten"
    u = uniform(mix(3, torch.arange(100_000)), 1)
    assert 0 <= float(u.min()) < float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 0.005
    assert abs(float(u.var()) - 1 / 12) < 0.001
    assert len(mix(0, torch.arange(100_000)).unique()) == 100_000
    assert chunks(66, 32) == [(0, 22), (22, 44), (44, 66)], "no short last batch"
    assert chunks(64, 32) == [(0, 32), (32, 64)]
    assert chunks(1, 32) == [(0, 1)]


def test_a_balanced_epoch_repeats_no_sample_before_all_of_its_class_was_shown() -> None:
    labels = torch.tensor([0] * 21 + [1] * 7)  # 14 of each class in an epoch
    for epochs in range(1, 7):
        drawn = torch.cat([epoch_order(28, 3, epoch, labels) for epoch in range(epochs)])
        counts = drawn.bincount(minlength=28)
        assert counts[21:].tolist() == [2 * epochs] * 7
        whole, begun = divmod(14 * epochs, 21)
        assert sorted(counts[:21].tolist()) == [whole] * (21 - begun) + [whole + 1] * begun


def test_float_pixels_are_refused_and_sixteen_bits_are_a_fixed_rule() -> None:
    for value in (250, 260):
        Image.fromarray(np.full((20, 20), value, "uint16")).save("deep.png")
        assert _images.decode("deep.png", HOW).float().mean() == value // 257
    Image.fromarray(np.random.default_rng(0).random((20, 20)).astype("float32")).save("f.tiff")
    with pytest.raises(DataError, match="8 or 16 bits"):
        _images.decode("f.tiff", HOW)


def test_large_numbers_keep_their_differences() -> None:
    rows = [f"{1_700_000_000 + i},{'ab'[i % 2]}" for i in range(1000)]
    data = build(name="csv_table", path=str(write("t.csv", "time,label\n" + "\n".join(rows))))
    train = data.split("train")
    values = torch.stack([train[i]["columns"] for i in range(len(train))])
    assert len(values.unique()) == len(train)
    assert abs(float(values.mean())) < 1e-3
    assert abs(float(values.std()) - 1) < 0.01


def test_a_table_with_a_split_column_is_evaluated_on_its_test_rows(fmeco: Callable[..., Answer]) -> None:
    rows = [f"{i},{'ab'[i % 2]},{('train', 'train', 'val', 'test', 'train')[i % 5]}" for i in range(200)]
    write("t.csv", "x,label,part\n" + "\n".join(rows))
    config_ = {
        "dataset": {"name": "csv_table", "path": "t.csv", "split_column": "part"},
        "backbone": "mlp",
        "train": {"epochs": 1},
    }
    assert fmeco("pretrain", write("c.yaml", config_), "--out", "run").code == 0
    assert fmeco("evaluate", "run", "--dataset", "t.csv", "--json").json["samples"] == 40
    write("u.csv", "x,label,part\n" + "\n".join(row.replace("train", "test") for row in rows))
    answer = fmeco("pretrain", "c.yaml", "--set", "dataset.path=u.csv")
    assert answer.code == 3
    assert "no row is in the training split" in answer.err
    answer = fmeco("predict", "run", write("v.csv", "x\n1\nmany\n3\n"), "--json")
    assert answer.code == 0
    assert ["many" in (row["error"] or "") for row in answer.json["predictions"]] == [False, True, False]


def test_folders_names_and_separators_that_are_odd(fmeco: Callable[..., Answer]) -> None:
    root = photos(Path("p"))
    odd = os.fsencode(root / "red") + b"/caf\xe9.png"
    Path(os.fsdecode(odd)).write_bytes((root / "red" / "00.png").read_bytes())
    config_ = {
        "dataset": {"name": "image_folder", "path": "p", "image_size": 8},
        "backbone": "mlp",
        "train": {"epochs": 1},
    }
    assert fmeco("pretrain", write("c.yaml", config_), "--out", "run").code == 0
    answer = fmeco("predict", "run", "p/red")
    assert answer.code == 0
    assert "caf\\udce9.png" in answer.out
    photos(Path("only/test"), each=4)
    assert fmeco("evaluate", "run", "--dataset", "only", "--json").json["samples"] == 12
    (Path("only/test/red/00.png")).write_bytes(b"broken")
    assert fmeco("evaluate", "run", "--dataset", "only").code == 3
    answer = fmeco("evaluate", "run", "--dataset", "only", "--set", "train.on_bad_sample=skip", "--json")
    assert answer.json["samples"] == 11

    many = [
        f"{c}/{i:02}.png,{labels}" for c, labels in (("blue", "a"), ("red", "b"), ("green", "a/b")) for i in range(10)
    ]
    write("p/many.csv", "path,label\n" + "\n".join(many))
    config_["dataset"] = {
        "name": "csv_images",
        "path": str(Path("p/many.csv").resolve()),
        "task": "multilabel",
        "separator": "/",
        "image_size": 8,
    }
    assert fmeco("pretrain", write("c.yaml", config_), "--out", "many").code == 0
    answer = fmeco("evaluate", "many/checkpoints/best", "--dataset", "p/many.csv")
    assert answer.code == 0, answer.err
    assert str(Path().resolve()) not in Path("many/checkpoints/best/meta.json").read_text(), (
        "a checkpoint travels without paths of this machine"
    )
