"""Folders of samples: names of splits, links, names of classes, folders of the system, special files, duplicates."""

from __future__ import annotations

import os
import re
import socket
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fmeco as api
from fmeco.core import DataError
from fmeco.datasets import _splits
from tests.conftest import Answer, photos, picture, tiny, tones, write
from tests.data.test_data import build

Fmeco = Callable[..., Answer]
NFC, NFD = (unicodedata.normalize(form, "grüne Äpfel") for form in ("NFC", "NFD"))


def pictures(**dataset: Any) -> dict[str, Any]:
    """A config of a folder of pictures that trains in well under a second."""
    none = {"classes": None, "limit_per_class": None}
    return tiny(dataset={"name": "image_folder", "path": "photos", "image_size": 8, **none, **dataset})


# ---------------------------------------------------------------- names of splits

PAIRS = [("Train", "Test"), ("TRAIN", "VAL"), ("train_set", "test_set"), ("training_set", "validation_set")]
PAIRS += [
    ("training-data", "dev"),
    ("Training", "Validation"),
    ("trainset", "testset"),
    ("train images", "test images"),
]


@pytest.mark.situation("names of split folders", "read rightly")
@pytest.mark.parametrize(("train", "other"), PAIRS, ids=[train for train, _ in PAIRS])
@pytest.mark.parametrize("kind", ["image_folder", "audio"])
def test_split_folders_are_known_by_common_spellings(kind: str, train: str, other: str) -> None:
    for folder, each in ((train, 5), (other, 2)):
        if kind == "audio":
            pytest.importorskip("soundfile")
            tones(Path("data", folder), each=each)
        else:
            photos(Path("data", folder), each=each)
    data = build(name=kind, path="data")
    part = _splits.split_called(other)
    assert part in ("val", "test")
    classes = data.spec.targets["label"].classes
    assert classes == (("high", "low") if kind == "audio" else ("blue", "green", "red"))
    assert data.spec.sizes[part] == 2 * len(classes)
    assert data.spec.sizes["train"] + (data.spec.sizes["val"] if part == "test" else 0) == 5 * len(classes)


@pytest.mark.situation("names of split folders", "read rightly")
@pytest.mark.parametrize("words", [("Train", "Valid"), ("training", "dev"), ("TRAIN", "TEST")])
def test_split_columns_are_known_by_the_same_spellings(words: tuple[str, str]) -> None:
    rows = [f"{i},{i % 2},{words[i % 5 == 0]}" for i in range(40)]
    write("t.csv", "x,label,part\n" + "\n".join(rows) + "\n")
    data = build(name="csv_table", path="t.csv", split_column="part")
    part = _splits.split_called(words[1])
    assert part is not None
    assert data.spec.sizes == {"train": 32, part: 8}


@pytest.mark.situation("names of split folders", "refused by name")
@pytest.mark.parametrize("folders", [("val", "test"), ("train", "Train"), ("train", "val", "validation")])
def test_ambiguous_split_folders_are_refused(folders: tuple[str, ...]) -> None:
    for folder in folders:
        photos(Path("photos", folder), each=2)
    if len(os.listdir("photos")) < len(folders):
        pytest.skip("this file system does not tell upper from lower case")
    with pytest.raises(
        DataError, match=r"photos: (holds val, test, but no|Train, train can each|val, validation can each)"
    ):
        build(name="image_folder", path="photos")


@pytest.mark.situation("folders of class folders", "refused by name")
@pytest.mark.parametrize("folders", [("images", "backup"), ("2023", "2024", "2025"), ("part1", "part2")])
def test_folders_that_hold_the_same_folders_are_no_classes(folders: tuple[str, ...]) -> None:
    for folder in folders:
        photos(Path("photos", folder), each=2)
    with pytest.raises(DataError, match="all hold the same folders, blue, green, red") as caught:
        build(name="image_folder", path="photos")
    assert f"dataset.path=photos/{min(folders)}" in "\n".join(caught.value.hints)
    chosen = build(name="image_folder", path="photos", classes=list(folders))
    assert chosen.spec.targets["label"].classes == folders


@pytest.mark.situation("pictures beside their masks", "refused by name")
@pytest.mark.parametrize("folders", [("images", "masks"), ("Images", "Annotations", "labels")])
def test_pictures_and_masks_are_no_classes(folders: tuple[str, ...]) -> None:
    for folder in folders:
        for i in range(4):
            picture(Path("cells", folder, f"{i}.png"), (1, 2, 3), seed=i)
    with pytest.raises(DataError, match="look like pictures and their masks or labels"):
        build(name="image_folder", path="cells")
    assert build(name="image_folder", path="cells", classes=list(folders)).spec.targets["label"].classes == folders


@pytest.mark.situation("folders of class folders", "read rightly")
def test_subfolders_of_classes_are_read() -> None:
    photos(Path("photos/cat"), ("red", "blue"), each=2)
    photos(Path("photos/dog"), ("blue", "green"), each=2)
    assert build(name="image_folder", path="photos").spec.targets["label"].classes == ("cat", "dog")


@pytest.mark.situation("names of split folders", "said")
def test_a_folder_beside_the_splits_is_named() -> None:
    for folder in ("train", "val", "unlabelled", ".cache"):
        photos(Path("photos", folder), each=2)
    notes = build(name="image_folder", path="photos").notes
    assert "photos: not used, beside train, val: unlabelled" in notes


@pytest.mark.situation("old checkpoints", "read rightly")
def test_a_checkpoint_without_a_rule_finds_the_folders_that_it_found() -> None:
    photos(Path("photos/train"), each=4)
    photos(Path("photos/Test"), each=2)
    os.symlink("blue", "photos/train/azure")
    new = build(name="image_folder", path="photos")
    old = build(known=_rule_1(new), name="image_folder", path="photos")
    assert "test" in new.spec.sizes and "test" not in old.spec.sizes
    assert "1 linked folders" in "\n".join(old.notes)


def _rule_1(data: Any) -> Any:
    import dataclasses

    kept = {k: v for k, v in data.spec.preprocessing.items() if k not in ("decode", "background")}
    return dataclasses.replace(data.spec, preprocessing=kept, targets={})


# ---------------------------------------------------------------- links


@pytest.mark.situation("links to folders", "read rightly")
@pytest.mark.parametrize("kind", ["image_folder", "images", "audio"])
def test_linked_folders_are_followed(kind: str) -> None:
    if kind == "audio":
        pytest.importorskip("soundfile")
        tones(Path("elsewhere"))
    else:
        photos(Path("elsewhere"), each=4)
    Path("data").mkdir()
    for folder in Path("elsewhere").iterdir():
        os.symlink(folder.resolve(), Path("data", folder.name))
    linked = build(name=kind, path="data")
    direct = build(name=kind, path="elsewhere")
    assert linked.spec.sizes == direct.spec.sizes and linked.spec.targets == direct.spec.targets
    assert linked.train is not None and linked.train[0]


@pytest.mark.situation("links to folders", "said")
def test_cycles_and_second_ways_to_a_folder_are_left_out() -> None:
    photos(Path("photos"), each=4)
    alone = build(name="image_folder", path="photos").spec.sizes
    os.symlink("..", "photos/blue/up")
    os.symlink(Path("photos").resolve(), "photos/red/home")
    os.symlink("../green", "photos/blue/grass")
    picture(Path("outside/deep/00.png"), (1, 2, 3))
    os.symlink("..", "outside/deep/loop")
    os.symlink(Path("outside").resolve(), "photos/red/more")
    data = build(name="image_folder", path="photos")
    assert sum(data.spec.sizes.values()) == sum(alone.values()) + 1
    assert "photos: skipped 4 linked folders that lead to files listed anyway" in data.notes


@pytest.mark.situation("links to folders", "refused by name")
def test_a_broken_link_to_a_picture_is_named() -> None:
    photos(Path("photos"), each=2)
    os.symlink("/nowhere/x.png", "photos/red/x.png")
    with pytest.raises(DataError, match=r"photos/red/x\.png: it is a broken link"):
        build(name="image_folder", path="photos")


# ---------------------------------------------------------------- names


@pytest.mark.situation("names of classes in Unicode", "read rightly")
@pytest.mark.parametrize(("stored", "new"), [(NFC, NFD), (NFD, NFC)], ids=["from NFC", "from NFD"])
def test_names_are_compared_as_nfc(stored: str, new: str, fmeco: Fmeco) -> None:
    photos(Path("photos"), ("red", stored.replace(stored, "blue")), each=8)
    Path("photos/blue").rename(f"photos/{stored}")
    api.pretrain(pictures(classes=[new, "red"]), out="run")
    assert api.load("run").spec.targets["label"].classes == (NFC, "red")
    Path("photos").rename("moved")
    Path(f"moved/{stored}").rename(f"moved/{new}")
    answer = fmeco("evaluate", "run", "--dataset", "moved", "--json")
    assert answer.code == 0, answer.err
    done = api.finetune(
        {"dataset": {"name": "image_folder", "path": "moved"}, "train": {"epochs": 1}}, ref="run", out="next"
    )
    assert "head rows copied" in Path("next/run.log").read_text()
    assert NFC in Path("next/run.log").read_text().partition("head rows copied")[2]
    assert done.metrics


@pytest.mark.situation("names of classes in Unicode", "read rightly")
@pytest.mark.parametrize("dataset", ["csv_table", "csv_images", "text"])
def test_labels_in_tables_are_nfc(dataset: str) -> None:
    photos(Path("."), ("red",), each=12)
    names = [NFC, NFD, "red"]
    rows = [f"red/{i:02}.png,{i},word{i},{names[i % 3]}" for i in range(12)]
    write("t.csv", "path,number,text,label\n" + "\n".join(rows) + "\n")
    keys = {"csv_table": {"target": "label", "features": ["number"]}, "csv_images": {}, "text": {"label": "label"}}
    if dataset == "text":
        pytest.importorskip("tokenizers")
    data = build(name=dataset, path="t.csv", **keys[dataset])
    assert data.spec.targets["label"].classes == (NFC, "red")
    assert "written in two ways" in "\n".join(data.notes)


@pytest.mark.situation("names of classes in Unicode", "read rightly")
def test_several_labels_of_a_cell_are_nfc() -> None:
    cells = [f"{NFD}|red", NFC, "red", f"red|{NFC}"]
    write("t.csv", "text,label\n" + "\n".join(f"word{i},{cells[i % 4]}" for i in range(24)) + "\n")
    pytest.importorskip("tokenizers")
    data = build(name="text", path="t.csv", label="label", task="multilabel")
    assert data.spec.targets["label"].classes == (NFC, "red")
    assert data.train is not None and data.val is not None
    rows = torch.cat([data.train.targets["label"], data.val.targets["label"]])  # type: ignore[list-item]
    assert rows.sum(0).tolist() == [18, 18]


@pytest.mark.situation("names of classes in Unicode", "said")
def test_twins_of_one_name_are_told() -> None:
    photos(Path("photos"), ("red", "blue", "green"), each=4)
    Path("photos/blue").rename(f"photos/{NFC}")
    Path("photos/green").rename(f"photos/{NFD}")
    if len(os.listdir("photos")) < 3:
        pytest.skip("this file system knows one form alone")
    data = build(name="image_folder", path="photos")
    assert data.spec.targets["label"].classes == (NFC, "red")
    assert "1 class names are written in two ways" in "\n".join(data.notes)


@pytest.mark.situation("names that are not UTF-8", "refused by name")
def test_a_class_folder_that_is_not_utf8_is_refused_at_the_scan() -> None:
    photos(Path("photos"), each=4)
    os.rename(b"photos/red", b"photos/r\xe4d")
    with pytest.raises(DataError, match=r"r.*udce4d.* is not UTF-8"):
        build(name="image_folder", path="photos")


@pytest.mark.situation("names that are not UTF-8", "read rightly")
def test_a_file_that_is_not_utf8_is_trained_on_and_predicted(fmeco: Fmeco) -> None:
    photos(Path("photos"), each=6)
    os.rename(b"photos/red/00.png", b"photos/red/b\xe4d.png")
    Path("photos/red/01.png").write_bytes(b"broken")
    api.pretrain({**pictures(), "train": {"epochs": 1, "on_bad_sample": "skip"}}, out="run")
    answer = fmeco("predict", "run", "photos", "--output", "out.csv")
    assert answer.code == 0, answer.err
    assert len(Path("out.csv").read_text("utf-8", "surrogateescape").splitlines()) == 1 + 18


# ---------------------------------------------------------------- what no sample is


@pytest.mark.situation("folders of the system", "said")
@pytest.mark.parametrize(
    "name", ["@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"]
)
def test_folders_of_the_system_are_skipped_and_said(name: str) -> None:
    photos(Path("photos"), each=4)
    picture(Path("photos", name, "thumb.png"), (1, 2, 3))
    data = build(name="image_folder", path="photos")
    assert data.spec.targets["label"].classes == ("blue", "green", "red")
    assert f"photos: skipped 1 folders of the system, such as {name}" in data.notes


@pytest.fixture
def special(tmp_path: Path) -> Callable[[str], Path]:
    """A pipe, a socket or a link to a device, under a name of choice."""

    def make(path: str, kind: str = "pipe") -> Path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            os.symlink("/dev/zero", path)
        else:
            here = os.getcwd()
            os.chdir(Path(path).parent)  # names of sockets are short
            socket.socket(socket.AF_UNIX).bind(Path(path).name)
            os.chdir(here)
        return Path(path)

    return make


@pytest.mark.situation("pipes, devices and sockets", "said")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_special_files_in_a_folder_are_skipped(kind: str, special: Callable[..., Path]) -> None:
    photos(Path("photos"), each=4)
    special("photos/red/x.png", kind)
    data = build(name="image_folder", path="photos")
    assert sum(data.spec.sizes.values()) == 12
    assert "photos: skipped 1 pipes, sockets and devices" in data.notes


COMMANDS: dict[str, tuple[str, ...]] = {
    "config": ("pretrain", "x.yaml"),
    "check of a config": ("check", "x.yaml"),
    "table": ("pretrain", "t.yaml", "--set", "dataset.path=x.csv"),
    "text": ("pretrain", "text.yaml", "--set", "dataset.path=x.txt"),
    "jsonl": ("pretrain", "text.yaml", "--set", "dataset.path=x.jsonl"),
    "list of pictures": ("pretrain", "images.yaml", "--set", "dataset.path=x.txt"),
    "--dataset": ("finetune", "--from", "run", "--dataset", "x.csv"),
    "predict": ("predict", "run", "x.png"),
    "weights": ("finetune", "--from", "x.safetensors", "--dataset", "photos", "--set", "backbone=cnn"),
    "pickled weights": ("finetune", "--from", "x.pth", "--dataset", "photos", "--set", "backbone=cnn"),
    "plug-in": ("list", "backbones", "--plugin", "x.py"),
    "checkpoint": ("info", "bad"),
    "run": ("resume", "badrun"),
}


@pytest.mark.situation("pipes, devices and sockets", "refused by name")
@pytest.mark.parametrize("case", COMMANDS)
def test_no_command_waits_for_a_pipe(case: str, special: Callable[..., Path], fmeco: Fmeco) -> None:
    photos(Path("photos"), each=6)
    if case in ("predict", "--dataset"):
        api.pretrain(pictures(), out="run")
    if case == "checkpoint":
        special("bad/meta.json")
        special("bad/manifest.json")
    elif case == "run":
        special("badrun/config.yaml")
    else:
        special(next(part.rpartition("=")[2] for part in COMMANDS[case] if part.rpartition("=")[2].startswith("x.")))
    write("t.yaml", {**tiny(), "dataset": {"name": "csv_table", "path": "t"}})
    write("text.yaml", {**tiny(), "dataset": {"name": "text", "path": "t"}, "backbone": "transformer"})
    write(
        "images.yaml", {**tiny(), "dataset": {"name": "images", "path": "t"}, "objective": "simclr", "backbone": "cnn"}
    )
    done: list[Answer] = []
    thread = threading.Thread(target=lambda: done.append(fmeco(*COMMANDS[case])), daemon=True)
    thread.start()
    thread.join(20)
    assert done, "it waits"
    assert done[0].code in (2, 3, 4), done[0]
    assert "it is a named pipe, not a regular file" in done[0].err, done[0].err


# ---------------------------------------------------------------- classes that cannot be read


@pytest.mark.situation("a class of which no file can be read", "refused by name")
@pytest.mark.parametrize("where", ["all", "train", "val"])
def test_a_class_without_a_readable_file_ends_the_run(where: str, fmeco: Fmeco) -> None:
    for part, each in (("train", 6), ("val", 3)):
        for file in photos(Path("photos", part), ("blue", "red"), each=each).glob("red/*"):
            if where in (part, "all"):
                file.write_bytes(b"broken")
    config = {**pictures(), "train": {"epochs": 2, "batch_size": 12, "on_bad_sample": "skip"}}
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "run")
    assert answer.code == 3
    part, count = ("validation", 3) if where == "val" else ("training", 6)
    assert f"no {part} sample of 'red' ({count} samples) can be read" in answer.err
    answer = fmeco("check", "c.yaml")
    assert answer.code == 3 and "of 'red'" in answer.err


@pytest.mark.situation("a class of which no file can be read", "said")
def test_a_class_with_some_readable_files_is_trained(fmeco: Fmeco) -> None:
    for file in sorted(photos(Path("photos"), ("blue", "red"), each=8).glob("red/*"))[:3]:
        file.write_bytes(b"broken")
    answer = fmeco(
        "pretrain", write("c.yaml", {**pictures(), "train": {"epochs": 2, "on_bad_sample": "skip"}}), "--out", "run"
    )
    assert answer.code == 0, answer.err
    assert "skipped 3 samples that could not be read" in answer.err
    assert len(Path("run/bad_samples.txt").read_text().splitlines()) == 3


# ---------------------------------------------------------------- the same sample twice


def _twice(kind: str) -> dict[str, Any]:
    """Data with a sample in train and val, and one under two labels. Returns the dataset's section."""
    if kind == "text":
        pytest.importorskip("tokenizers")
        rows = [f'{{"text": "word{i} some words", "label": "{"ab"[i % 2]}"}}' for i in range(20)]
        Path("train.jsonl").write_text("\n".join([*rows, '{"text": "word3 some words", "label": "a"}']) + "\n")
        Path("val.jsonl").write_text("\n".join([rows[4], '{"text": "new words", "label": "b"}']) + "\n")
        return {"name": "text", "train": "train.jsonl", "val": "val.jsonl", "label": "label"}
    if kind == "audio":
        pytest.importorskip("soundfile")
    for part, each in (("train", 6), ("val", 2)):
        tones(Path("data", part), each=each) if kind == "audio" else photos(
            Path("data", part), ("high", "low"), each=each
        )
    files = {folder: sorted(Path("data", folder).iterdir()) for folder in ("train/high", "train/low", "val/high")}
    files["val/high"][0].write_bytes(files["train/high"][2].read_bytes())
    files["train/low"][1].write_bytes(files["train/high"][5].read_bytes())
    if kind == "csv_images":
        rows = [
            f"{file.relative_to('data')},{file.parent.name},{file.parts[1]}"
            for file in sorted(Path("data").glob("*/*/*"))
        ]
        write("data/t.csv", "path,label,part\n" + "\n".join(rows) + "\n")
        return {"name": kind, "path": "data/t.csv", "split_column": "part"}
    return {"name": kind, "path": "data"}


@pytest.mark.situation("the same sample twice", "said")
@pytest.mark.parametrize("kind", ["image_folder", "csv_images", "audio", "text"])
def test_samples_in_two_splits_or_classes_are_told(kind: str, fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    import tests.conftest

    monkeypatch.setitem(tests.conftest.COLOURS, "high", (200, 40, 40))
    monkeypatch.setitem(tests.conftest.COLOURS, "low", (40, 40, 200))
    section = _twice(kind)
    config = tiny(dataset={**section}, train={"epochs": 2})
    config["dataset"] = section if kind in ("audio", "text") else {**section, "image_size": 16}
    config["backbone"] = {"name": "transformer", "width": 16, "depth": 1, "heads": 2} if kind == "text" else "cnn"
    answer = fmeco("check", write("c.yaml", config))
    assert answer.code == 0, answer.err
    assert re.search("[1-9] samples occur in two splits, with equal bytes: train .* = val ", answer.out), answer.out
    assert re.search("[1-9] samples occur in two classes, with equal bytes: train .* = train ", answer.out), answer.out
    for cache in ("auto", "off"):
        answer = fmeco("pretrain", "c.yaml", "--set", f"train.cache={cache}", "--out", f"run-{cache}")
        assert answer.code == 0, answer.err
        log = Path(f"run-{cache}/run.log").read_text()
        assert log.count("samples occur in two splits, with equal bytes: train ") == 1
        assert log.count("samples occur in two classes") == 1


@pytest.mark.situation("the same sample twice", "said")
def test_samples_that_differ_in_one_bit_are_no_twins(fmeco: Fmeco) -> None:
    photos(Path("photos"), each=6)
    body = Path("photos/red/00.png").read_bytes()
    Path("photos/red/00.png").write_bytes(body + b"0")
    Path("photos/blue/00.png").write_bytes(body + b"1")
    answer = fmeco("check", write("c.yaml", pictures()), "--json")
    assert answer.code == 0 and answer.json["twins"] == []
