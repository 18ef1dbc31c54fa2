"""`--dataset X`: which dataset reads a folder or a file, and what a new table inherits from the checkpoint that it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fmeco as api
from fmeco.config.dataset_argument import dataset_section, section_for_use
from fmeco.datasets import _documents, _histories
from fmeco.errors import ConfigError
from fmeco.plugins import registry as plugins
from tests.conftest import Answer, photos, tones, write

TRAIN = {"epochs": 1, "batch_size": 16, "tensorboard": False}
TRANSFORMER = {"name": "transformer", "width": 8, "depth": 1, "heads": 2}


def table(path: str, header: str, rows: list[str]) -> None:
    write(path, header + "\n" + "\n".join(rows) + "\n")


def rows_of_numbers() -> dict[str, Any]:
    rows = [f"{i},{'ab'[i % 2]},{'xyz'[i % 3]},{('train', 'train', 'val', 'test')[i % 4]}" for i in range(60)]
    table("first.csv", "n,answer,place,part", rows)
    table("other.csv", "place,n,answer", [",".join(row.split(",")[k] for k in (2, 0, 1)) for row in rows[:20]])
    keys = {"target": "answer", "group": ["place"], "split_column": "part"}
    return {"dataset": {"name": "csv_table", **keys}, "backbone": {"name": "mlp", "hidden": [8]}}


def rows_of_images() -> dict[str, Any]:
    photos(Path(), ("blue", "red"))
    table("first.csv", "file,kind", [f"{c}/{i:02}.png,{c}" for c in ("blue", "red") for i in range(12)])
    table("other.csv", "kind,file", [f"{c},{c}/{i:02}.png" for c in ("blue", "red") for i in range(10)])
    keys = {"image_column": "file", "label_column": "kind", "image_size": 8}
    return {"dataset": {"name": "csv_images", **keys}, "backbone": {"name": "mlp", "hidden": [8]}}


def rows_of_masks() -> dict[str, Any]:
    photos(Path(), ("blue", "red"))
    found = [(f"{c}/{i:02}.png", f"{c}-{i:02}.png", c) for c in ("blue", "red") for i in range(12)]
    for file, mask, c in found:
        with Image.open(file) as image:
            Image.new("L", image.size, int(c == "red")).save(mask)
    table("first.csv", "file,drawn", [f"{file},{mask}" for file, mask, _ in found])
    table("other.csv", "drawn,file", [f"{mask},{file}" for file, mask, _ in found])
    keys = {"image_column": "file", "mask_column": "drawn", "image_size": 32}
    task = {"backbone": {"name": "cnn", "widths": [8, 8]}, "objective": {"name": "segmentation", "width": 16}}
    return {"dataset": {"name": "masks", **keys}, **task}


def rows_of_boxes() -> dict[str, Any]:
    photos(Path(), ("blue", "red"))
    found = [(f"{c}/{i:02}.png", i, c) for c in ("blue", "red") for i in range(12)]
    table("first.csv", "file,l,t,r,b,kind", [f"{file},{i},2,{i + 9},20,{c}" for file, i, c in found])
    table("other.csv", "kind,b,r,t,l,file", [f"{c},20,{i + 9},2,{i},{file}" for file, i, c in found])
    keys = {"image_column": "file", "box_columns": list("ltrb"), "label_column": "kind", "image_size": 32}
    task = {"backbone": {"name": "cnn", "widths": [8, 8]}, "objective": {"name": "detection", "width": 16, "depth": 1}}
    return {"dataset": {"name": "boxes", **keys}, **task}


def rows_of_recordings() -> dict[str, Any]:
    pytest.importorskip("soundfile")
    found = sorted(tones(Path("t")).rglob("*.wav"))
    table("first.csv", "file,kind", [f"{file},{file.parent.name}" for file in found])
    table("other.csv", "kind,file", [f"{file.parent.name},{file}" for file in found])
    keys = {"path_column": "file", "label_column": "kind", "sample_rate": 8000, "seconds": 0.2, "mels": 16}
    return {"dataset": {"name": "audio", **keys}, "backbone": {"name": "mlp", "hidden": [8]}}


def rows_of_texts() -> dict[str, Any]:
    pytest.importorskip("tokenizers")
    rows = [f"a {('cat', 'saw')[i % 2]} number {i},{'ab'[i % 2]}" for i in range(40)]
    table("first.csv", "body,kind", rows)
    table("other.csv", "kind,body", [",".join(row.split(",")[::-1]) for row in rows])
    keys = {"text": "body", "label": "kind", "vocabulary": 300, "length": 12}
    return {"dataset": {"name": "text", **keys}, "backbone": TRANSFORMER}


def rows_of_series() -> dict[str, Any]:
    rows = [f"{day},{shop},{day * day % 13}" for shop in "ab" for day in range(60)]
    table("first.csv", "day,shop,sold", rows)
    table("other.csv", "shop,sold,day", [",".join(row.split(",")[k] for k in (1, 2, 0)) for row in rows])
    keys = {"time": "day", "id": "shop", "value": "sold", "context": 8, "horizon": 3}
    return {"dataset": {"name": "series", **keys}, "backbone": {"name": "mlp", "hidden": [8]}}


def rows_of_events() -> dict[str, Any]:
    rows = [f"u{i % 6},i{i % 7},{i}" for i in range(60)]
    table("first.csv", "who,what,when", rows)
    table("other.csv", "when,what,who", [",".join(row.split(",")[::-1]) for row in rows])
    keys = {"user": "who", "item": "what", "time": "when", "length": 6}
    return {"dataset": {"name": "events", **keys}, "backbone": {**TRANSFORMER, "causal": True}, "objective": "next"}


TABLES: dict[str, Callable[[], dict[str, Any]]] = {
    "csv_table": rows_of_numbers,
    "csv_images": rows_of_images,
    "boxes": rows_of_boxes,
    "masks": rows_of_masks,
    "audio": rows_of_recordings,
    "text": rows_of_texts,
    "series": rows_of_series,
    "events": rows_of_events,
}


def test_every_dataset_of_tables_is_tried_here() -> None:
    assert set(TABLES) == {name for name, plugin in plugins.plugins("datasets").items() if ".csv" in plugin.files}
    assert all(plugins.plugins("datasets")[name].layout for name in TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_a_new_table_has_the_columns_of_the_one_in_training(name: str, fmeco: Callable[..., Answer]) -> None:
    config = TABLES[name]()
    config["dataset"]["path"] = "first.csv"
    api.pretrain({**config, "train": TRAIN}, out="run")
    answer = fmeco("evaluate", "run", "--dataset", "other.csv", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["samples"] > 5
    if name == "csv_table":
        answer = fmeco("evaluate", "run", "--dataset", "other.csv", "--by", "place", "--json")
        assert {row["group"] for row in answer.json["groups"]} == {"x", "y", "z"}


def test_what_a_table_inherits_is_there_and_has_its_new_name(monkeypatch: pytest.MonkeyPatch) -> None:
    table("t.csv", "n,answer,id", ["1,a,7"])
    trained = {"target": "answer", "drop": ["id", "name"], "time": "day", "split_column": None, "val_fraction": 0.4}
    found = section_for_use("t.csv", {"name": "csv_table", **trained}, "csv_table")
    assert found == {"name": "csv_table", "path": "t.csv", "target": "answer", "drop": ["id"]}
    assert section_for_use("t.csv", {"name": "sklearn/wine"}, "csv_table") == {"name": "csv_table", "path": "t.csv"}
    assert section_for_use("digits", {"name": "csv_table", **trained}, "csv_table") == "digits"
    monkeypatch.setattr(plugins, "_EXTRA", {})
    body = 'RENAMED = {"point": "points"}\nLAYOUT = ("points", "unit?")\ndef build(*, path: str, points: str = "p", unit: str = "u"): ...'
    add("clouds", f'FILES = (".csv",)\n{body}')
    found = section_for_use("t.csv", {"name": "clouds", "point": "n", "unit": "id"}, "clouds")
    assert found == {"name": "clouds", "path": "t.csv", "points": "n", "unit": "id"}
    with pytest.raises(
        ConfigError, match=r"LAYOUT names point, but build\(\) has no such key \(did you mean 'points'\?\)"
    ):
        add("wrong", body.replace('LAYOUT = ("points"', 'LAYOUT = ("point"'))


def add(name: str, text: str) -> None:
    plugins.add_file(write(f"plug/{name}.py", f'"""A stranger."""\nKIND = "dataset"\n{text}\n'))


def test_a_strangers_files_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_EXTRA", {})
    for file in ("clouds/cat/1.xyz", "both/cat/1.xyz", "both/cat/1.png", "one.xyz", "one.las"):
        write(file, "")
    table("t.csv", "path,label", ["clouds/cat/1.xyz,cat"])
    assert dataset_section("clouds") == {"name": "image_folder", "path": "clouds"}, "nobody knows these files"
    build = "def build(*, path: str): ..."
    add("points", f'SUFFIXES = (".xyz", ".ply")\nFILES = (".las",)\n{build}')
    assert dataset_section("clouds") == {"name": "points", "path": "clouds"}
    assert dataset_section("both") == {"name": "image_folder", "path": "both"}
    assert dataset_section("one.las") == {"name": "points", "path": "one.las"}
    assert dataset_section("t.csv") == {"name": "points", "path": "t.csv"}
    add("points_of_table", f'FILES = (".csv",)\nLISTS = "points"\n{build}')
    assert dataset_section("t.csv") == {"name": "points_of_table", "path": "t.csv"}
    with pytest.raises(
        ConfigError, match=r"one\.xyz: expected a folder, a file \(\.csv, .*\.las, .*\), or a dataset's name"
    ):
        dataset_section("one.xyz")
    add("flights", f'FILES = (".las",)\n{build}')
    with pytest.raises(ConfigError, match=r"one\.las: points, flights read such files"):
        dataset_section("one.las")
    add("flights", f'FILES = (".las",)\nFALLBACK = True\n{build}')
    assert dataset_section("one.las") == {"name": "flights", "path": "one.las"}


def test_init_writes_what_a_dataset_says_that_it_needs(
    fmeco: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_EXTRA", {})
    write("one.las", "a,b\n1,2\n")
    add(
        "points",
        'FILES = (".las",)\nSTARTER = {"backbone": "mlp", "column": "what"}\ndef build(*, path: str, what: str): ...',
    )
    assert fmeco("init", "new", "--dataset", "one.las").code == 0
    text = Path("new/pretrain.yaml").read_text()
    assert "dataset: {name: points, path: 'one.las', what: 'b'}" in text
    assert "backbone: mlp" in text


def test_suffixes_that_are_written_twice_agree() -> None:
    known = plugins.plugins("datasets")
    assert known["text"].files == _documents.SUFFIXES
    assert known["events"].files == _histories.SUFFIXES
