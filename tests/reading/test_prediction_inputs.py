"""What `predict` and `embed` are given: files that are missing or broken, and rows, tables and arrays in Python."""

from __future__ import annotations

import csv
import datetime
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fmeco as api
from fmeco.config.dataset_argument import dataset_section, described, section_for_use
from fmeco.config.load import load_config, read_config
from fmeco.errors import ConfigError, DataError
from fmeco.inference.model import Model
from tests.checkpoints.test_golden import alike
from tests.conftest import Answer, photos, picture, texts, tiny, tones

Fmeco = Callable[..., Answer]
GOLDEN = Path(__file__).parents[1] / "golden" / "format1" / "finished"
EXTRAS = {"audio": "soundfile", "text": "tokenizers"}
MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
NAMES = ["audio", "events", "image", "series", "table", "text"]


def model_of(name: str) -> Model:
    pytest.importorskip(EXTRAS.get(name, "torch"))
    shutil.copytree(GOLDEN / name / "inputs", "inputs", dirs_exist_ok=True)
    return api.load(GOLDEN / name / "checkpoint")


def files_of(name: str) -> list[str]:
    expected = json.loads((GOLDEN / name / "predictions.json").read_text("utf-8"))
    return [str(one) for one in expected["inputs"]]


def answers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The predictions without the names of the inputs."""
    assert rows and all(row["error"] is None for row in rows), rows
    return [{key: value for key, value in row.items() if key != "input"} for row in rows]


def same(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> bool:
    """Compare predictions; numbers nearly, because batches of another size are summed in another order."""
    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a) for a, b in zip(one, two, strict=True)
    )


def cell(text: str) -> Any:
    """A cell as libraries read it: a number where it is one, None where it is missing."""
    for kind in (int, float):
        try:
            return kind(text) if text.lower() != "nan" else None
        except ValueError:
            continue
    return None if text.lower() in MISSING else text


def table(file: str) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """The rows and columns of a CSV file."""
    with open(file, newline="") as text:
        rows = [{key: cell(value) for key, value in row.items()} for row in csv.DictReader(text)]
    return rows, {key: [row[key] for row in rows] for key in rows[0]}


# ---------------------------------------------------------------- files that cannot be read


@pytest.mark.situation("a missing file among the inputs", "said")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", ["first", "last"])
def test_a_missing_file_is_a_row_with_its_error(name: str, order: str, fmeco: Fmeco) -> None:
    good = answers(model_of(name).predict(files_of(name)))
    missing = f"inputs/missing{Path(files_of(name)[0]).suffix or '.csv'}"
    if not Path(files_of(name)[0]).exists():  # sentences
        missing = "inputs/missing.csv"
    inputs = [missing, *files_of(name)] if order == "first" else [*files_of(name), missing]
    answer = fmeco("predict", GOLDEN / name / "checkpoint", *inputs, "--json")
    assert answer.code == 0, answer.err
    rows = answer.json["predictions"]
    bad = rows.pop(0 if order == "first" else -1)
    assert bad["input"] == missing
    assert missing in bad["error"]
    assert "not exist" in bad["error"] or "no such file" in bad["error"]
    assert all(bad[key] is None for key in bad if key not in ("input", "error"))
    assert same(answers(rows), good)
    assert "1 of " in answer.err


@pytest.mark.situation("only missing files as inputs", "refused by name")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_missing_files_ends_the_command(name: str, fmeco: Fmeco) -> None:
    model_of(name)
    answer = fmeco("predict", GOLDEN / name / "checkpoint", "a.csv", "b.csv", "--json")
    assert answer.code == 3
    assert "none of the 2 inputs could be read" in answer.json["error"]["message"]
    assert "a.csv" in answer.json["error"]["message"]


@pytest.mark.situation("a broken file among the inputs", "said")
@pytest.mark.parametrize(
    ("name", "suffix", "content"),
    [
        ("table", ".csv", b"a,b\n1\n"),
        ("table", ".csv", b"\xff\xfe\x00"),
        ("table", ".csv", b"colour\nred\n"),
        ("table", ".csv", b""),
        ("series", ".csv", b"time,a\nmonday,1\n"),
        ("series", ".csv", b"day,a\n1,1\n"),
        ("events", ".csv", b"user,item,time\nu1,,3\n"),
        ("events", ".csv", b"who,item,time\nu1,i1,3\n"),
        ("text", ".jsonl", b'{"text": 3}\n'),
        ("text", ".jsonl", b'{"body": "a cat"}\n'),
        ("text", ".csv", b"\xff\xfe\x00"),
        ("image", ".png", b"no image"),
        ("audio", ".wav", b""),
    ],
)
def test_a_broken_file_does_not_take_the_others_along(name: str, suffix: str, content: bytes) -> None:
    model = model_of(name)
    broken = Path(f"broken{suffix}")
    broken.write_bytes(content)
    rows = model.predict([*files_of(name), str(broken), *files_of(name)])
    bad = [row for row in rows if row["error"]]
    assert len(bad) == 1
    assert "broken" in bad[0]["error"]
    good = [row for row in rows if not row["error"]]
    assert same(answers(good), 2 * answers(model.predict(files_of(name))))


@pytest.mark.situation("an empty folder among the inputs", "said")
@pytest.mark.parametrize("name", ["image", "audio"])
def test_an_empty_folder_does_not_take_the_others_along(name: str) -> None:
    model = model_of(name)
    Path("empty").mkdir()
    rows = model.predict(["empty", *files_of(name)])
    assert rows[0]["input"] == "empty"
    assert "no " in rows[0]["error"]
    assert all(row["error"] is None for row in rows[1:])


# ---------------------------------------------------------------- the same data, passed in Python


@pytest.mark.situation("one path instead of a list of paths", "read rightly")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_is_one_input(name: str, kind: Any) -> None:
    model, file = model_of(name), next((file for file in files_of(name) if Path(file).exists()), None)
    if file is None:
        Path("new.txt").write_text("a cat and a dog\n")
        file = "new.txt"
    rows = model.predict([file])
    assert model.predict(kind(file)) == rows
    assert api.predict(GOLDEN / name / "checkpoint", kind(file)) == rows
    assert torch.allclose(model.embed(kind(file)), model.embed([file]))


@pytest.mark.situation("rows in Python: dicts, columns, a DataFrame", "read rightly")
@pytest.mark.parametrize("name", ["table", "series", "events"])
@pytest.mark.parametrize("form", ["dicts", "columns", "arrays", "DataFrame", "list of a DataFrame"])
def test_rows_in_python_are_read_as_those_of_a_file(name: str, form: str) -> None:
    model = model_of(name)
    file = next(file for file in files_of(name) if Path(file).exists())
    rows, columns = table(file)
    given: Any
    if form == "dicts":
        given = rows
    elif form == "columns":
        given = columns
    elif form == "arrays":
        given = {key: np.array(column, dtype=object if None in column else None) for key, column in columns.items()}
    else:
        given = pytest.importorskip("polars").DataFrame(columns)
        given = [given] if form.startswith("list") else given
    found = model.predict(given)
    assert same(answers(found), answers(model.predict(file)))
    assert found[0]["input"].startswith("inputs")
    assert torch.allclose(model.embed(given), model.embed(file))


@pytest.mark.situation("rows in Python: dicts, columns, a DataFrame", "read rightly")
def test_a_single_row_and_mixed_inputs_keep_their_order() -> None:
    model, file = model_of("table"), "inputs/" + next(iter(Path(GOLDEN / "table/inputs").iterdir())).name
    rows, _ = table(file)
    from_file = answers(model.predict(file))
    assert same(answers(model.predict(rows[1])), from_file[1:2])
    mixed = model.predict([rows[1], file, rows[0], rows[2]])
    assert same(answers(mixed), [from_file[1], *from_file, from_file[0], from_file[2]])
    assert [row["input"] for row in mixed] == [
        "inputs[0]",
        *(f"{file}:{i + 2}" for i in range(len(rows))),
        "inputs[2]",
        "inputs[3]",
    ]


@pytest.mark.situation("values of libraries in rows", "read rightly")
def test_numbers_of_libraries_mean_what_they_mean_in_a_file() -> None:
    """NaN is missing; whole numbers that a library turned into floats, and booleans, are the categories of training."""
    rows = [f"{i % 4 or ''},{i % 3},{('true', 'false')[i % 2]},{i},{'ab'[(i // 2) % 2]}" for i in range(80)]
    Path("t.csv").write_text("\n".join(["code,size,flag,n,label", *rows]))
    config = {
        "dataset": {"name": "csv_table", "path": "t.csv", "categorical": ["code"], "drop": ["n"]},
        "backbone": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 2, "tensorboard": False},
    }
    model = api.load(api.pretrain(config, out="run").run)
    wanted = answers(model.predict("t.csv"))
    columns = {
        "code": np.array([float(i % 4) if i % 4 else np.nan for i in range(80)]),
        "size": np.array([i % 3 for i in range(80)], dtype=np.int8),
        "flag": [i % 2 == 0 for i in range(80)],
    }
    assert same(answers(model.predict(columns)), wanted)
    one_by_one = [{key: column[i] for key, column in columns.items()} for i in range(80)]
    assert same(answers(model.predict(one_by_one)), wanted)
    assert same(answers(model.predict([{**one_by_one[3], "code": 3.0}])), wanted[3:4])


@pytest.mark.situation("times in Python", "read rightly")
@pytest.mark.parametrize("kind", ["date", "datetime", "datetime64", "polars"])
def test_times_in_python_are_times(kind: str) -> None:
    begin = datetime.date(2024, 1, 1)
    days = [begin + datetime.timedelta(days=i) for i in range(120)]
    lines = [f"{day},{i * i % 13},{i % 7}" for i, day in enumerate(days)]
    Path("s.csv").write_text("\n".join(["time,a,b", *lines]))
    config = {
        "dataset": {"name": "series", "path": "s.csv", "context": 16, "horizon": 4},
        "backbone": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 1, "tensorboard": False},
    }
    model = api.load(api.pretrain(config, out="run").run)
    times: Any = days
    if kind in ("datetime", "polars"):
        times = [datetime.datetime(day.year, day.month, day.day) for day in days]
    elif kind == "datetime64":
        times = np.array(days, dtype="datetime64[ns]")
    columns: Any = {"time": times, "a": [i * i % 13 for i in range(120)], "b": [i % 7 for i in range(120)]}
    if kind == "polars":
        columns = pytest.importorskip("polars").DataFrame(columns)
    assert same(answers(model.predict(columns)), answers(model.predict("s.csv")))


@pytest.mark.situation("texts in Python", "read rightly")
@pytest.mark.parametrize("form", ["list", "tuple", "array", "polars", "dicts", "columns", "DataFrame", "one"])
def test_texts_in_python_are_read_as_those_of_a_file(form: str) -> None:
    model = model_of("text")
    texts = ["a cat and a dog", "saw, axe;\n drill", "  two  spaces "]
    Path("t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    wanted = answers(model.predict("t.jsonl"))
    polars = pytest.importorskip("polars")
    given: dict[str, Any] = {
        "list": texts,
        "tuple": tuple(texts),
        "array": np.array(texts),
        "polars": polars.Series(texts),
        "dicts": [{"text": text, "id": i} for i, text in enumerate(texts)],
        "columns": {"text": texts},
        "DataFrame": polars.DataFrame({"text": texts}),
        "one": texts[0],
    }
    assert same(answers(model.predict(given[form])), (wanted[:1] if form == "one" else wanted))
    assert torch.allclose(model.embed(given[form]), model.embed("t.jsonl")[: 1 if form == "one" else None])


@pytest.mark.situation("a text that looks like the path of a missing file", "said")
@pytest.mark.parametrize("text", ["notes/new.md", "new.jpg", "/data/texts"])
def test_a_text_that_looks_like_a_path_is_said(text: str, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("text")
    with caplog.at_level("INFO"):
        rows = model.predict([text, "a cat and/or a dog.", "..."])
    assert all(row["error"] is None for row in rows)
    assert f"no such file, so read as a text: {text}" in caplog.text
    assert "and/or" not in caplog.text


@pytest.mark.situation("half a surrogate pair in a text", "said")
@pytest.mark.parametrize("form", ["string", "dict"])
def test_half_a_surrogate_pair_in_a_text_is_a_row_with_its_error(form: str) -> None:
    model, text = model_of("text"), "a \ud800 cat"
    bad, *good = model.predict([text if form == "string" else {"text": text}, "a cat", *files_of("text")])
    assert "half of a surrogate pair at character 2" in bad["error"]
    assert all(row["error"] is None for row in good)


@pytest.mark.situation("images in Python", "read rightly")
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16", "1", "turned"])
def test_images_in_python_are_read_as_those_of_files(mode: str) -> None:
    model = model_of("image")
    file = "one.png" if mode != "turned" else "one.jpg"
    image = Image.open(picture(Path("source.png"), (200, 60, 40), size=(19, 23)))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)
    elif mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(file, exif=exif)
    else:
        image = image.convert(mode)
    if mode != "turned":
        image.save(file)
    wanted = answers(model.predict(file))
    with Image.open(file) as opened:
        assert same(answers(model.predict(opened)), wanted)
        assert opened.size == (19, 23), "the caller's image is left as it was"
        assert same(answers(model.predict([opened, file])), 2 * wanted)
        pixels = np.asarray(opened)
    if mode in ("RGB", "L", "RGBA", "I;16"):
        assert same(answers(model.predict(pixels)), wanted)
        assert same(answers(model.predict([pixels, torch.from_numpy(pixels.astype(pixels.dtype))])), 2 * wanted)
        assert torch.allclose(model.embed([pixels]), model.embed(file))
    if mode == "L":
        assert same(answers(model.predict(pixels[..., None])), wanted)


@pytest.mark.situation("waveforms in Python", "read rightly")
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 11025])
@pytest.mark.parametrize("seconds", [0.2, 3.0])
def test_waveforms_in_python_are_read_as_those_of_files(channels: int, rate: int, seconds: float) -> None:
    model = model_of("audio")
    soundfile = pytest.importorskip("soundfile")
    wave = 0.2 * np.random.default_rng(0).standard_normal((int(rate * seconds), channels))
    soundfile.write("one.wav", wave, rate, subtype="FLOAT")
    wave = soundfile.read("one.wav", dtype="float32", always_2d=True)[0]
    wave = wave[:, 0] if channels == 1 else wave
    wanted = answers(model.predict("one.wav"))
    assert same(answers(model.predict({"array": wave, "sampling_rate": rate})), wanted)
    assert same(answers(model.predict([{"array": wave, "sampling_rate": rate}, "one.wav"])), 2 * wanted)
    if rate == 8000:  # the checkpoint's own
        assert same(answers(model.predict(wave)), wanted)
        assert torch.allclose(model.embed([torch.from_numpy(wave)]), model.embed("one.wav"))


# ---------------------------------------------------------------- what does not fit


@pytest.mark.situation("an input of a kind that the model does not take", "refused by name")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image", {"image": "a.jpg"}, "inputs: a dict is no input of this model, which is for image data"),
        ("image", [{"a": 1}], r"inputs\[0\]: a dict"),
        ("image", 5, "inputs: a int"),
        ("image", [5], r"inputs\[0\]: a int"),
        ("image", [None], r"inputs\[0\]: a NoneType"),
        ("image", b"a.jpg", "inputs: a bytes"),
        ("image", [["a.jpg"]], r"inputs\[0\]: a list"),
        ("audio", [3.0], r"inputs\[0\]: a float"),
        ("table", np.zeros((3, 4)), "inputs: a ndarray is no input of this model, which is for table data"),
        ("table", [np.zeros(4)], r"inputs\[0\]: a ndarray"),
        ("table", {"a": [1, 2], "b": [1]}, "columns of this dict differ in length"),
        ("text", np.zeros((3, 4)), "inputs: a ndarray"),
        ("series", np.zeros((3, 4)), "inputs: a ndarray"),
        ("events", torch.zeros(3), "inputs: a Tensor"),
        ("events", 7, "inputs: a int"),
    ],
)
def test_an_input_that_does_not_fit_is_named(name: str, value: Any, message: str) -> None:
    model = model_of(name)
    with pytest.raises(ConfigError, match=message) as caught:
        model.predict(value)
    assert "differ" in message or "pass paths" in str(caught.value)
    with pytest.raises(ConfigError, match=message):
        model.embed(value)


@pytest.mark.situation("an array that is no image or waveform", "said")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image", np.zeros((3, 20, 20), np.uint8), "HxWxC, and this one is 3x20x20: move its channels"),
        ("image", np.zeros((20, 20, 3), np.float32), "uint8 .* and this one is float32"),
        ("image", np.zeros((20, 20, 2), np.uint8), "this one is 20x20x2"),
        ("image", np.zeros((2, 20, 20, 3), np.uint8), "this one is 2x20x20x3"),
        ("image", np.zeros((0, 20, 3), np.uint8), "this one is 0x20x3"),
        ("audio", np.zeros(4000, np.int16), "floats, and this one is 4000 int16"),
        ("audio", np.full(4000, 3000.0), "from -1 to 1"),
        ("audio", np.full(4000, np.nan), "from -1 to 1"),
        ("audio", np.zeros((2, 4000)), "Lxchannels, and this one has 4000 channels"),
        ("audio", np.zeros(10), "too short"),
        ("audio", {"array": np.zeros(4000)}, "array and sampling_rate"),
        ("audio", {"array": np.zeros(4000), "sampling_rate": 1}, "sample rate is 1 Hz"),
    ],
)
def test_an_array_that_does_not_fit_is_a_row_with_its_error(name: str, value: Any, message: str) -> None:
    model = model_of(name)
    bad, *good = model.predict([value, *files_of(name)])
    assert bad["input"] == "inputs[0]"
    assert re.search(message, bad["error"]), bad["error"]
    assert all(row["error"] is None for row in good)
    with pytest.raises(DataError, match=message):
        model.embed([value])


@pytest.mark.situation("rows in Python without a column of training", "refused by name")
@pytest.mark.parametrize("name", ["table", "series", "events", "text"])
def test_rows_without_a_column_are_refused(name: str) -> None:
    model = model_of(name)
    rows = model.predict([{"colour": "red"}]) if name == "table" else []
    if name == "table":
        assert "the model needs the column" in rows[0]["error"]
    else:
        with pytest.raises(ConfigError, match="colour"):
            model.predict([{"colour": "red"}])


@pytest.mark.situation("rows in Python without a key that others have", "said")
def test_a_key_that_a_row_lacks_is_missing_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("table")
    rows, _ = table(next(file for file in files_of("table") if Path(file).exists()))
    lacking = {key: value for key, value in rows[1].items() if key != "width"}
    with caplog.at_level("INFO"):
        found = answers(model.predict([rows[0], lacking]))
    assert found == answers(model.predict([rows[0], {**rows[1], "width": None}]))
    assert "no width: it counts as missing" in caplog.text


@pytest.mark.situation("nothing at all as inputs", "read rightly")
@pytest.mark.parametrize("name", ["image", "table"])
def test_no_inputs_give_no_rows(name: str) -> None:
    model = model_of(name)
    assert model.predict([]) == []
    assert model.embed([]).shape == (0, model.objective.product.width)


# ---------------------------------------------------------------- the dataset that --dataset X names

QUICK = ["train.steps=1", "train.tensorboard=false", "train.cache=off"]


def layout(which: str) -> str:
    """Write data of one of many layouts. Returns what --dataset gets."""
    if which.startswith("jsonl"):
        Path(which).mkdir()
        for part in ("train", "val") if which == "jsonl folder, split" else ("one", "two"):
            texts(Path(which, f"{part}.jsonl"))
    if which == "texts.csv":
        rows = [f"a {('cat', 'saw')[i % 2]} number {i},{'ab'[i % 2]},notes/{i}.md" for i in range(40)]
        Path(which).write_text("\n".join(["text,label,path", *rows]))
    elif which in ("texts.jsonl", "texts.txt"):
        texts(Path(which))
    elif which == "numbers.csv":
        rows = [f"{i % 7},{i * 3 % 11},{('flat', 'oval')[i % 2]},{('no', 'yes')[i // 2 % 2]}" for i in range(40)]
        Path(which).write_text("\n".join(["width,height,shape,label", *rows]))
    elif which == "series.csv":
        Path(which).write_text("\n".join(["time,a,b", *(f"{i},{i * i % 13},{i % 7}" for i in range(300))]))
    elif which == "events.csv":
        Path(which).write_text("\n".join(["user,item,time", *(f"u{i % 6},i{i % 12},{i}" for i in range(120))]))
    elif which == "recordings with covers":
        tones(Path(which), each=6)
        for name in ("high", "low"):
            picture(Path(which, name, "cover.jpg"), (9, 9, 9))
    elif which == "recordings.csv":
        files = sorted(tones(Path("t"), each=6).rglob("*.wav"))
        Path(which).write_text("\n".join(["path,label", *(f"{file},{file.parent.name}" for file in files)]))
    elif which == "images":
        photos(Path(which), each=6)
    elif which in ("images.csv", "files.csv"):
        files = sorted(photos(Path("p"), each=6).rglob("*.png"))
        column = "path" if which == "images.csv" else "file"
        Path(which).write_text("\n".join([f"{column},label", *(f"{file},{file.parent.name}" for file in files)]))
    return which


@pytest.mark.situation("--dataset X for a checkpoint of its modality", "read rightly")
@pytest.mark.parametrize(
    ("name", "which", "dataset", "keys"),
    [
        ("text", "texts.csv", "text", []),
        ("text", "texts.jsonl", "text", []),
        ("text", "texts.txt", "text", None),
        ("text", "jsonl folder", "text", []),
        ("text", "jsonl folder, split", "text", []),
        ("table", "numbers.csv", "csv_table", []),
        ("series", "series.csv", "series", []),
        ("events", "events.csv", "events", []),
        ("audio", "recordings with covers", "audio", []),
        ("audio", "recordings.csv", "audio", []),
        ("image", "recordings with covers", "image_folder", None),
        ("image", "images", "image_folder", []),
        ("image", "images.csv", "csv_images", []),
        ("image", "files.csv", "csv_images", ["dataset.image_column=file"]),
    ],
)
@pytest.mark.parametrize("of", ["checkpoint", "run"])
def test_a_checkpoint_finds_the_dataset_of_its_modality(
    name: str, which: str, dataset: str, keys: list[str] | None, of: str
) -> None:
    pytest.importorskip(EXTRAS.get(name, "torch"))
    given, ref = layout(which), GOLDEN / name / "checkpoint"
    if of == "run":
        shutil.copytree(ref, "run/checkpoints/step-00000001")
        ref = Path("run")
    config = read_config(None, stage="finetune", ref=ref, dataset=given)
    assert config.dataset is not None
    assert config.dataset.name == dataset
    reader = json.loads((GOLDEN / name / "checkpoint/meta.json").read_text())["spec"]["reader"]
    assert section_for_use(given, {}, reader) == {"name": dataset, "path": given}, "evaluate chooses the same"
    if of == "checkpoint" and keys is not None:
        assert api.finetune(ref=ref, dataset=Path(given), overrides=[*QUICK, *keys], out="out").metrics


@pytest.mark.situation("--dataset X for a checkpoint of its modality", "read rightly")
@pytest.mark.parametrize("ref", ["run", "run/checkpoints", "run/checkpoints/step-00000010", "run/checkpoints/best"])
def test_a_checkpoint_is_described_however_it_is_named(ref: str) -> None:
    """Where a file system has no links, `best` is a small file."""
    shutil.copytree(GOLDEN / "text" / "checkpoint", "run/checkpoints/step-00000010")
    Path("run/checkpoints/best").write_text("step-00000010")
    spec, section = described(ref)
    assert spec["modality"] == section["name"] == "text"


@pytest.mark.situation("--dataset X without a checkpoint", "read rightly")
@pytest.mark.parametrize(
    ("which", "dataset"),
    [
        ("jsonl folder", "text"),
        ("texts.csv", "csv_images"),
        ("numbers.csv", "csv_table"),
        ("series.csv", "csv_table"),
        ("recordings with covers", "image_folder"),
        ("recordings.csv", "audio"),
        ("images.csv", "csv_images"),
        ("texts.jsonl", "text"),
    ],
)
def test_without_a_checkpoint_the_content_decides(which: str, dataset: str) -> None:
    section = dataset_section(layout(which))
    assert isinstance(section, dict)
    assert section["name"] == dataset


@pytest.mark.situation("--dataset X of another modality than the checkpoint", "refused by name")
@pytest.mark.parametrize(
    ("name", "which", "holds", "offers"),
    [
        ("text", "images", "image", "text"),
        ("table", "texts.jsonl", "text", "csv_table"),
        ("image", "texts.jsonl", "text", "image_folder"),
        ("series", "images", "image", "series"),
        ("audio", "images.csv", "image", "audio"),
        ("image", "numbers.csv", "table", "csv_images"),
    ],
)
@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_data_of_another_modality_is_refused_with_the_datasets_that_fit(
    name: str, which: str, holds: str, offers: str, command: str, fmeco: Fmeco
) -> None:
    pytest.importorskip(EXTRAS.get(name, "torch"))
    ref = GOLDEN / name / "checkpoint"
    start = ["finetune", "--from", ref, "--out", "out"] if command == "finetune" else ["evaluate", ref]
    answer = fmeco(*start, "--dataset", layout(which))
    if command == "evaluate" and which == "images.csv":
        assert answer.code == 3  # the checkpoint's own dataset reads the table, and finds other classes in it
        return
    assert answer.code == 4, answer.err
    assert f"but the dataset holds {holds} data" in answer.err
    assert f"datasets of {json.loads((ref / 'meta.json').read_text())['spec']['modality']} data: " in answer.err
    assert offers in answer.err
    assert ("cross_modality" in answer.err) == (command == "finetune")


# ---------------------------------------------------------------- arguments of the Python functions


@pytest.mark.situation("an argument of the wrong type", "refused by name")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: api.pretrain(tiny(), data=[1]),
            r"pretrain\(data=...\): expected an object of fmeco.core.data.Data; got a list",
        ),
        (lambda: api.pretrain(tiny(), backbone=torch.nn.Linear), r"backbone=...\): .*Backbone; got the class Linear"),
        (lambda: api.pretrain(tiny(), backbone=torch.nn.Linear(2, 2)), "Backbone; got a Linear"),
        (lambda: api.pretrain(7), "source=...\\): expected a path or a string or a dict; got a int"),
        (
            lambda: api.pretrain(tiny(), overrides="seed=1"),
            "overrides=...\\): expected a list, each of it a string; got a str",
        ),
        (lambda: api.pretrain(tiny(), overrides=[1]), "overrides=...\\): expected a list"),
        (lambda: api.pretrain(tiny(), out=5), "out=...\\): expected a string or a path; got a int"),
        (lambda: api.pretrain(tiny(), stop=True), "stop=...\\): expected a function"),
        (lambda: api.finetune(tiny(), ref=["run"]), "ref=...\\): expected a string or a path; got a list"),
        (
            lambda: api.finetune(tiny(), ref="run", dataset={"name": "digits"}),
            "dataset=...\\): expected a string or a path",
        ),
        (lambda: api.finetune(tiny(), ref="run", force="yes"), "force=...\\): expected True or False"),
        (lambda: api.resume(3), "run=...\\): expected a string or a path"),
        (lambda: api.resume("run", epochs=[3]), "epochs=...\\): expected a string or a number"),
        (lambda: api.load(None), "ref=...\\): expected a string or a path; got a NoneType"),
        (lambda: api.load("run", backbone="resnet18"), "backbone=...\\): "),
        (lambda: api.predict(5, ["a.jpg"]), "predict\\(ref=...\\)"),
        (lambda: api.embed("run", dataset=None, output=None), "embed\\(output=...\\)"),
        (lambda: api.evaluate({"run": 1}), "evaluate\\(ref=...\\)"),
        (
            lambda: api.rank("run", dataset="digits"),
            "refs=...\\): expected a list, each of it a string or a path; got a str",
        ),
        (lambda: api.probe(["run"], dataset="digits"), "probe\\(ref=...\\)"),
    ],
)
def test_an_argument_of_another_type_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.situation("values of libraries in a config", "read rightly")
def test_numbers_of_numpy_and_paths_are_values_of_a_config() -> None:
    folder = photos(Path("p"), each=6)
    plain = {
        "dataset": {"name": "image_folder", "path": "p", "image_size": 8, "classes": ["blue", "red"]},
        "backbone": {"name": "mlp", "hidden": [8]},
        "optimizer": {"name": "adamw", "lr": 0.25},
        "train": {"epochs": 1.0, "batch_size": 8, "tensorboard": False},
        "seed": 3,
    }
    rich = {
        "dataset": {
            "name": np.str_("image_folder"),
            "path": folder,
            "image_size": np.int64(8),
            "classes": ("blue", "red"),
        },
        "backbone": {"name": "mlp", "hidden": np.array([8])},
        "optimizer": {"name": "adamw", "lr": np.float32(0.25)},
        "train": {"epochs": np.float64(1), "batch_size": torch.tensor(8), "tensorboard": np.bool_(False)},
        "seed": np.uint8(3),
    }
    assert load_config(rich, stage="pretrain").to_dict() == load_config(plain, stage="pretrain").to_dict()
    assert api.pretrain(rich, out=Path("run")).metrics == api.pretrain(plain, out="plain").metrics


@pytest.mark.situation("a value in a config that is none", "refused by name")
@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("dataset", {"name": "digits", "classes": {1, 2}}, "dataset.classes: a set is no value of a config"),
        ("backbone", {"name": "mlp", "hidden": [object()]}, "backbone.hidden: a object"),
        ("backbone", torch.nn.ReLU(), "backbone: a ReLU"),
        ("train", {"device": torch.device("cpu")}, "train.device: a device"),
        ("seed", b"1", "seed: a bytes"),
    ],
)
def test_another_object_in_a_config_is_named(section: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        api.pretrain({**tiny(), section: value}, out="run")


@pytest.mark.situation("a number of epochs for resume", "read rightly")
def test_epochs_of_resume_may_be_a_number() -> None:
    api.pretrain(tiny(train={"epochs": 1}), out="run")
    api.resume("run", epochs=2)
    assert json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["epoch"] == 2
