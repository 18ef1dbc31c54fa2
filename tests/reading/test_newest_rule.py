"""Specs of new data: Python's inputs are read as those of files, and a checkpoint's schema knows every key they store."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel

from fmeco.checkpoints.schema import Spec, check
from fmeco.core import Data, DataError, DataSpec, Samples, fit
from fmeco.data.spec_reader import reader_module
from fmeco.errors import CheckpointError, FmecoError
from fmeco.inference.inputs import read, sources_of
from tests.conftest import photos, texts
from tests.data.test_data import build
from tests.reading.test_strangers_checkpoints import NESTED, changed, places


def inputs_of(spec: DataSpec, inputs: Any) -> list[dict[str, torch.Tensor]]:
    samples = read(spec, sources_of(inputs, spec))
    return [dict(fit(samples[i], spec)) for i in range(len(samples))]


def same(one: list[dict[str, torch.Tensor]], two: list[dict[str, torch.Tensor]]) -> bool:
    return len(one) == len(two) > 0 and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(one, two, strict=True)
    )


# ---------------------------------------------------------------- data that uses every key of each dataset's preprocessing

DAY = datetime.datetime(2024, 1, 20)
MOMENTS = [DAY + datetime.timedelta(days=i, hours=i % 24) for i in range(60)]
# Column -> (cells as a table has them, the values that they mean).
COLUMNS: Mapping[str, tuple[list[str], list[Any]]] = {
    "price": ([f"1.{i:03},5 €" for i in range(60)], [1000.5 + i for i in range(60)]),
    "share": ([f"{i},25%" for i in range(60)], [i + 0.25 for i in range(60)]),
    "balance": ([f"({i})" if i % 2 else str(i) for i in range(60)], [-i if i % 2 else i for i in range(60)]),
    "after": ([f"{i}-" if i % 2 else str(i) for i in range(60)], [-i if i % 2 else i for i in range(60)]),
    "fortran": ([f"{i}.5D-02" for i in range(60)], [(i + 0.5) / 100 for i in range(60)]),
    "gaps": ([str(i) if i % 7 else "-999" for i in range(60)], [float(i) if i % 7 else -999.0 for i in range(60)]),
    "day": ([f"{m:%d.%m.%Y %H:%M}" for m in MOMENTS], MOMENTS),
    "us_day": ([f"{m:%m/%d/%Y}" for m in MOMENTS], [m.date() for m in MOMENTS]),
    "clock": ([f"{i % 24:02}:30" for i in range(60)], [datetime.time(i % 24, 30) for i in range(60)]),
    "code": ([f"{i % 5:03}" for i in range(60)], [f"{i % 5:03}" for i in range(60)]),
    "flag": ([("false", "true")[i % 2] for i in range(60)], [i % 2 == 1 for i in range(60)]),
    "word": (["xyz"[i % 3] for i in range(60)], ["xyz"[i % 3] for i in range(60)]),
}


def table() -> Data:
    labels = ["ab"[i % 2] for i in range(60)]
    with open("t.csv", "w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(
            [[*COLUMNS, "label"], *zip(*(cells for cells, _ in COLUMNS.values()), labels, strict=True)]
        )
    return build(name="csv_table", path="t.csv", missing=["", "-999"])


def images() -> Data:
    return build(name="image_folder", path=str(photos(Path("photos"))), image_size=32, background=[0, 255, 0])


def deep_images() -> Data:
    for i in range(12):
        values = (np.arange(600).reshape(20, 30) * 6 + i).astype(np.uint16)
        Path(f"deep/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(f"deep/{i % 2}/{i}.png")
    return build(name="image_folder", path="deep", image_size=16)


def recordings() -> Data:
    from tests.conftest import tones

    return build(name="audio", path=str(tones(Path("tones"))), sample_rate=8000, seconds=0.3, mels=16)


def waveforms() -> Data:
    from tests.conftest import tones

    return build(name="audio", path=str(tones(Path("tones"))), sample_rate=8000, seconds=0.3, input="waveform")


def documents() -> Data:
    rows = [json.loads(line) for line in texts(Path("plain.jsonl")).read_text().splitlines()]
    Path("t.jsonl").write_text("\n".join(json.dumps({"title": row["label"], **row}) for row in rows))
    return build(name="text", path="t.jsonl", text=["title", "text"], vocabulary=300, length=12)


def events() -> Data:
    lines = [f"u{i % 5},i{i % 7},{DAY + datetime.timedelta(hours=i)}" for i in range(90)]
    Path("e.csv").write_text("\n".join(["user,item,time", *lines]))
    return build(name="events", path="e.csv")


def hours() -> Data:
    lines = [f"{DAY + datetime.timedelta(hours=i)},{i % 24},{i % 7}" for i in range(240)]
    Path("s.csv").write_text("\n".join(["time,a,b", *lines]))
    return build(name="series", path="s.csv", context=24, horizon=4, fill="interpolate")


def months() -> Data:
    lines = [f"{2000 + i // 12}-{i % 12 + 1:02}-01,{i % 12}" for i in range(120)]
    Path("m.csv").write_text("\n".join(["time,a", *lines]))
    return build(name="series", path="m.csv", context=12, horizon=3)


MADE: dict[str, Callable[[], Data]] = {
    "table": table,
    "images": images,
    "images of 16 bits": deep_images,
    "recordings": recordings,
    "waveforms": waveforms,
    "documents": documents,
    "events": events,
    "hours": hours,
    "months": months,
}
NEEDS = {"recordings": "soundfile", "waveforms": "soundfile", "documents": "tokenizers"}


def made(name: str) -> Data:
    pytest.importorskip(NEEDS.get(name, "torch"))
    return MADE[name]()


# ---------------------------------------------------------------- the schema of what a checkpoint stores


def undeclared(value: Any, schema: Any, path: str = "") -> list[str]:
    """The keys of a JSON value that no class of its schema declares."""
    if isinstance(value, list):
        return [key for one in value for key in undeclared(one, schema, path)]
    if not isinstance(value, dict):
        return []
    classes = [one for one in leaves(schema) if isinstance(one, type) and issubclass(one, BaseModel)]
    if not classes:
        return []
    fields = {name: field.annotation for one in classes for name, field in one.model_fields.items()}
    if path and not fields.keys() & value.keys():  # a mapping of names to objects
        return [key for one in value.values() for key in undeclared(one, schema, path)]
    found = [f"{path}{key}" for key in value if path and key not in fields]
    return found + [
        key for name in fields if name in value for key in undeclared(value[name], fields[name], f"{name}.")
    ]


def leaves(kind: Any) -> list[Any]:
    return [leaf for inner in get_args(kind) for leaf in leaves(inner)] or [kind]


def plugin(spec: DataSpec) -> Any:
    return reader_module(spec)


def stored(spec: DataSpec) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(spec.to_json(), allow_nan=False))
    return raw


@pytest.mark.parametrize("name", MADE)
def test_the_schema_declares_all_that_new_data_stores(name: str) -> None:
    spec = made(name).spec
    schema: Any = plugin(spec).SPEC
    check(Spec, stored(spec), Path("meta.json"))
    check(schema, stored(spec), Path("meta.json"))
    assert spec.decode == 2
    assert set(undeclared(stored(spec), schema)) <= {"preprocessing.decode"}, "which the checkpoint's schema declares"


@pytest.mark.situation("a wrong type in a JSON file of a checkpoint", "refused by name")
@pytest.mark.parametrize("name", MADE)
def test_a_wrong_type_is_named_or_can_be_read(name: str) -> None:
    """Each key of `preprocessing` gets each kind of value: it is refused by name, or inputs are read or refused."""
    spec = made(name).spec
    raw, module = stored(spec), plugin(spec)
    schema: Any = module.SPEC
    own = FILES_OF[name]
    refused = tried = 0
    for path in places(raw["preprocessing"]):
        if path == ("decode",):  # rules of a newer version are refused when a checkpoint is opened
            continue
        for wrong in (None, -1, 10**30, 0.5, "\x1b[31mx", [], {"a": [NESTED]}):
            tried += 1
            wrongly = {**raw, "preprocessing": changed(raw["preprocessing"], path, wrong)}
            try:
                check(Spec, wrongly, Path("meta.json"), "spec")
                check(schema, wrongly, Path("meta.json"), "spec")
            except CheckpointError as error:
                refused += 1
                assert "\x1b" not in error.message
                assert str(path[0]) in error.message
                continue
            other = DataSpec.from_json(wrongly)
            try:
                samples: Samples = module.read(other, [own])
                samples[0]
            except FmecoError:
                pass
    assert refused > tried * 0.5


FILES_OF = {
    "table": "t.csv",
    "images": "photos/blue/00.png",
    "images of 16 bits": "deep/0/0.png",
    "recordings": "tones/high/ann_00.wav",
    "waveforms": "tones/high/ann_00.wav",
    "documents": "t.jsonl",
    "events": "e.csv",
    "hours": "s.csv",
    "months": "m.csv",
}

# ---------------------------------------------------------------- inputs in Python


@pytest.mark.situation("numbers and dates in Python, of columns with another notation", "read rightly")
@pytest.mark.parametrize("form", ["values", "dicts", "texts", "polars"])
def test_values_in_python_mean_what_the_cells_of_the_file_mean(form: str) -> None:
    """1000.5 is the file's 1.000,5, also where 1.005 would be read as 1005; a date is one, in whatever order."""
    spec = table().spec
    wanted = inputs_of(spec, "t.csv")
    values: Any = {name: value for name, (_, value) in COLUMNS.items()}
    if form == "texts":
        values = {name: cells for name, (cells, _) in COLUMNS.items()}
    elif form == "dicts":
        values = [{name: value[i] for name, value in values.items()} for i in range(60)]
    elif form == "polars":
        values = pytest.importorskip("polars").DataFrame(values)
    assert same(inputs_of(spec, values), wanted)


@pytest.mark.situation("numbers and dates in Python, of columns with another notation", "read rightly")
def test_a_point_of_a_number_never_separates_thousands() -> None:
    spec = table().spec
    row = {name: value[1] for name, (_, value) in COLUMNS.items()}
    [small], [large] = (inputs_of(spec, {**row, "price": price}) for price in (1.234, 1234))
    [text] = inputs_of(spec, {**row, "price": "1.234 €"})
    for price in (decimal.Decimal("1234.0"), np.float32(1234), np.int16(1234)):
        assert torch.equal(inputs_of(spec, {**row, "price": price})[0]["columns"], large["columns"])
    assert torch.equal(large["columns"], text["columns"])
    assert small["columns"][0] < large["columns"][0]


@pytest.mark.situation("columns in Python, written in another case", "said")
def test_columns_in_python_are_matched_as_those_of_files() -> None:
    spec = table().spec
    values = {name.upper(): value for name, (_, value) in reversed(COLUMNS.items())}
    samples = read(spec, sources_of(values, spec))
    assert same([dict(samples[i]) for i in range(60)], inputs_of(spec, "t.csv"))
    assert "inputs: columns are written in another case than in training" in samples.notes[0]
    assert any("another order" in note for note in samples.notes)
    unseen = read(spec, sources_of([{**{n: v[1] for n, (_, v) in COLUMNS.items()}, "word": "new"}], spec))
    assert "categories not seen in training, in 1 of 1 rows: new" in unseen.notes[-1]


@pytest.mark.situation("images in Python", "read rightly")
@pytest.mark.parametrize("mode", ["transparent", "palette", "profile", "turned TIFF", "16 bits", "inverted TIFF"])
def test_images_in_python_are_read_by_the_newest_rule(mode: str) -> None:
    deep = mode in ("16 bits", "inverted TIFF")
    spec = (deep_images() if deep else images()).spec
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    file, keys = "x.png", dict[str, Any]()
    if mode == "palette":
        image = image.convert("P")
    elif mode == "profile":
        from PIL import ImageCms

        keys = {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()}
    elif mode == "turned TIFF":
        exif = Image.Exif()
        exif[0x0112] = 6
        file, keys, image = "x.tiff", {"exif": exif}, image.convert("RGB")
    elif deep:
        image = Image.fromarray((np.arange(600).reshape(20, 30) * 6).astype(np.uint16))
        if mode == "inverted TIFF":
            file, keys = "x.tiff", {"tiffinfo": {262: 0}}
    image.save(file, **keys)
    wanted = inputs_of(spec, file)
    with Image.open(file) as opened:
        assert same(inputs_of(spec, opened), wanted)
        assert same(inputs_of(spec, [opened]), wanted), "a second time, when it is loaded"
    if mode == "transparent":
        assert same(inputs_of(spec, pixels), wanted)
    if mode == "16 bits":
        assert same(inputs_of(spec, np.asarray(image)), wanted)


@pytest.mark.situation("a damaged image, opened in Python", "said")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "gif", "webp"])
def test_a_damaged_image_in_python_is_a_row_with_its_error(suffix: str) -> None:
    spec = images().spec
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(f"x.{suffix}")
    body = bytearray(Path(f"x.{suffix}").read_bytes())
    for at in range(len(body) // 2, len(body), 7):
        body[at] ^= 0xA5
    Path(f"x.{suffix}").write_bytes(body)
    with Image.open(f"x.{suffix}") as opened:
        samples = read(spec, sources_of([opened, f"x.{suffix}"], spec))
        problems = [problem_of(samples, 0), problem_of(samples, 1)]
    assert (problems[0] is None) == (problems[1] is None) == (suffix in ("tiff", "webp"))
    assert problems[0] is None or problems[0].startswith("inputs[0]: ")


def problem_of(samples: Samples, index: int) -> str | None:
    try:
        samples[index]
    except DataError as error:
        return error.message
    return None


@pytest.mark.situation("16-bit arrays of an unknown range", "refused by name")
def test_an_array_of_16_bits_without_a_range_is_refused() -> None:
    spec = images().spec
    with pytest.raises(DataError, match="inputs: 16 bits per pixel, with no value above 4000"):
        inputs_of(spec, np.full((20, 30), 4000, np.uint16))


@pytest.mark.situation("waveforms in Python", "read rightly")
@pytest.mark.parametrize("kind", ["recordings", "waveforms"])
@pytest.mark.parametrize("channels", [1, 2])
def test_waveforms_in_python_are_read_by_the_newest_rule(kind: str, channels: int) -> None:
    soundfile = pytest.importorskip("soundfile")
    spec = made(kind).spec
    noise = np.random.default_rng(0).standard_normal((2400, channels)).astype(np.float32) * 0.1 + 0.3
    soundfile.write("x.wav", noise, 8000, subtype="FLOAT")
    assert same(inputs_of(spec, noise), inputs_of(spec, "x.wav"))


@pytest.mark.situation("silent or cancelling waveforms in Python", "refused by name")
@pytest.mark.parametrize("wave", [np.zeros(2400), np.full(2400, 0.5), np.outer(np.sin(np.arange(2400)), [0.5, -0.5])])
def test_waveforms_in_python_are_refused_as_recordings_are(wave: Any) -> None:
    spec = made("recordings").spec
    with pytest.raises(DataError, match=r"inputs: (it is silent|its channels cancel)"):
        inputs_of(spec, wave)


@pytest.mark.situation("waveforms in Python that are much shorter than those of training", "said")
def test_short_waveforms_in_python_are_told() -> None:
    spec = made("recordings").spec
    tone = np.sin(np.arange(400))
    samples = read(spec, sources_of([tone, np.tile(tone, 6), np.zeros((2, 2, 2))], spec))
    assert "1 of 3 recordings are shorter than" in samples.notes[0]
    assert "the first is inputs[0], 0.05 s" in samples.notes[0]


@pytest.mark.situation("times in Python", "read rightly")
@pytest.mark.parametrize("name", ["hours", "months", "events"])
def test_times_in_python_are_read_by_the_newest_rule(name: str) -> None:
    spec = made(name).spec
    with open(FILES_OF[name], newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row["time"] = datetime.datetime.fromisoformat(row["time"])
        row.update({key: float(row[key]) for key in ("a", "b") if key in row})
    assert same(inputs_of(spec, rows), inputs_of(spec, FILES_OF[name]))
    if name == "events":  # digits that Python's datetime does not have decide the order
        exact = np.datetime64("2024-01-20T00:00:00.000000000") + np.array([1, 0, 2]).astype("m8[ns]")
        [late] = inputs_of(spec, {"user": ["u", "u", "u"], "item": ["i1", "i2", "i3"], "time": exact})
        [ordered] = inputs_of(spec, "i2, i1, i3")
        assert torch.equal(late["tokens"], ordered["tokens"])


@pytest.mark.situation("texts in Python", "read rightly")
def test_texts_of_several_columns_in_python_are_joined() -> None:
    spec = made("documents").spec
    rows = [json.loads(line) for line in Path("t.jsonl").read_text().splitlines()]
    assert same(inputs_of(spec, rows), inputs_of(spec, "t.jsonl"))


@pytest.mark.situation("lists, structures or bytes as cells in Python", "refused by name")
@pytest.mark.parametrize("cell", [["a"], {"a": 1}, b"a", np.zeros(2), ()], ids=str)
@pytest.mark.parametrize("name", ["table", "documents", "events"])
def test_cells_that_are_no_cells_are_refused(name: str, cell: Any) -> None:
    spec = made(name).spec
    with pytest.raises(DataError, match="inputs: the column text holds lists, structures or bytes"):
        inputs_of(spec, [{"text": cell, "title": "t", "time": 1}])
