"""A group, such as a speaker, a patient or a customer, is in one split, whatever the samples are and wherever its name is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmeco.config.check import choose
from fmeco.config.load import load_config
from fmeco.core import ConfigError, Data, DataError
from tests.conftest import COLOURS, Answer, picture, tiny, tones, write
from tests.data.test_data import build

PEOPLE = ("ann", "bob", "cid", "dot")
PATTERN = "([a-z]+)_[0-9]+[.]"  # of red/ann_00.png: ann


def pictures(root: str, people: tuple[str, ...] = PEOPLE, each: int = 3) -> None:
    for i, who in enumerate(people * each):
        for colour in ("red", "blue"):
            picture(Path(root, colour, f"{who}_{i:02}.png"), COLOURS[colour], seed=i)


def sentences(people: tuple[str, ...] = PEOPLE, each: int = 6) -> list[dict[str, str]]:
    return [{"text": f"{who} says {i}", "label": "ab"[i % 2], "who": who} for who in people for i in range(each)]


def files() -> None:
    """Samples of ann, bob, cid and dot, as every dataset reads them."""
    pictures("p")
    found = sorted(str(path.relative_to("p")) for path in Path("p").rglob("*.png"))
    rows = [f"{file},{file.partition('/')[0]},{file.partition('/')[2][:3]}" for file in found]
    write("p/t.csv", "path,label,who\n" + "\n".join(rows))
    write("t.csv", "n,who,label\n" + "\n".join(f"{i},{PEOPLE[i % 4]},{'ab'[i // 4 % 2]}" for i in range(40)))
    write("t.jsonl", "\n".join(map(json.dumps, sentences())))
    write("s.csv", "text,label,who\n" + "\n".join(",".join(row.values()) for row in sentences()))
    for who in PEOPLE:
        write(f"letters/by_{who}.txt", "\n".join(row["text"] for row in sentences((who,))))


IMAGES = {"image_size": 8}
TEXTS = {"name": "text", "vocabulary": 300, "length": 12}
READ: dict[str, tuple[dict[str, Any], str]] = {  # a config, and what `evaluate --by` calls its groups
    "image_folder": ({"name": "image_folder", "path": "p", "group_split": PATTERN, **IMAGES}, "group"),
    "images": ({"name": "images", "path": "p", "group_split": PATTERN, **IMAGES}, "group"),
    "csv_images": ({"name": "csv_images", "path": "p/t.csv", "group_split": "who", **IMAGES}, "who"),
    "csv_images by path": ({"name": "csv_images", "path": "p/t.csv", "group_split": PATTERN, **IMAGES}, "group"),
    "csv_table": ({"name": "csv_table", "path": "t.csv", "group_split": "who"}, "who"),
    "jsonl": ({**TEXTS, "path": "t.jsonl", "group_split": "who"}, "who"),
    "csv of texts": ({**TEXTS, "path": "s.csv", "group_split": "who"}, "who"),
    "folder of texts": ({**TEXTS, "path": "letters", "group_split": "by_([a-z]+)"}, "group"),
}


def homes(data: Data, called: str) -> dict[str, set[str]]:
    parts = {part: getattr(data, part) for part in ("train", "val", "test")}
    return {part: set(samples.groups[called]) for part, samples in parts.items() if samples is not None}


@pytest.mark.parametrize("what", READ)
def test_groups_of_one_name_go_to_one_split_in_every_dataset(what: str) -> None:
    if READ[what][0]["name"] == "text":
        pytest.importorskip("tokenizers")
    files()
    raw, called = READ[what]
    # These three splits are those that a table's group_split and a recording's speaker have always had.
    data = build(**raw)
    assert homes(data, called) == {"train": {"ann", "bob", "dot"}, "val": {"cid"}}
    if "test_fraction" in choose("dataset", raw).plugin.model.model_fields:
        parts = homes(build(**raw, test_fraction=0.25), called)
        assert parts == {"train": {"ann", "dot"}, "val": {"bob"}, "test": {"cid"}}
    folds = [homes(build(**raw, split={"fold": k, "of": 4}), called)["val"] for k in (1, 2, 3, 4)]
    assert [len(fold) for fold in folds] == [1, 1, 1, 1]
    assert set.union(*folds) == set(PEOPLE)
    whole = homes(build(known=data.spec, whole=True, **raw), called)
    assert whole == {"test": set(PEOPLE)}, "what is evaluated whole has groups to measure by"
    with pytest.raises(DataError, match="are too few: no group is left for val"):
        build(**raw, split={"fold": 5, "of": 5})


def test_a_group_in_two_given_splits_is_named() -> None:
    pytest.importorskip("tokenizers")
    for part, people in (("train", ("ann", "bob")), ("val", ("bob", "cid")), ("test", ("ann",))):
        pictures(f"p/{part}", people)
        write(f"t/{part}.jsonl", "\n".join(map(json.dumps, sentences(people))))
    found = sorted(str(path.relative_to("p")) for path in Path("p").rglob("*.png"))
    write("p/t.csv", "path,label,part\n" + "\n".join(f"{f},{f.split('/')[1]},{f.split('/')[0]}" for f in found))
    for raw in (
        {"name": "image_folder", "path": "p", "group_split": PATTERN, **IMAGES},
        {"name": "csv_images", "path": "p/t.csv", "split_column": "part", "group_split": PATTERN, **IMAGES},
        {**TEXTS, "path": "t", "group_split": "who"},
    ):
        with pytest.raises(DataError, match="group_split: 'bob' in both the train and the val split"):
            build(**raw)
    # A training folder beside a test is cut by groups, and the test's groups may not be among them.
    raw = {"name": "image_folder", "train": "p/train", "group_split": PATTERN, **IMAGES}
    assert homes(build(**raw), "group") == {"train": {"ann"}, "val": {"bob"}}
    with pytest.raises(DataError, match="'ann' in both the train and the test split"):
        build(**raw, test="p/test")
    raw = {**TEXTS, "train": "t/train.jsonl", "group_split": "who"}
    assert homes(build(**raw), "who") == {"train": {"ann"}, "val": {"bob"}}
    with pytest.raises(DataError, match="'ann' in both the train and the test split"):
        build(**raw, test="t/test.jsonl")


@pytest.mark.parametrize(
    ("what", "group", "error", "message"),
    [
        ("image_folder", "who", ConfigError, "'who' has 0 groups and needs one"),
        ("images", "(x)", DataError, r"finds no group in the path of blue/ann_00\.png"),
        ("csv_images", "whom", ConfigError, "no column 'whom' (did you mean 'who'?)"),
        ("csv_table", PATTERN, ConfigError, "no column"),
        ("jsonl", "author", ConfigError, "no column 'author'"),
        ("folder of texts", "author", ConfigError, "no column 'author'"),
    ],
)
def test_what_finds_no_groups_is_said(what: str, group: str, error: type[Exception], message: str) -> None:
    files()
    with pytest.raises(error) as caught:
        build(**{**READ[what][0], "group_split": group})
    assert message.replace("\\", "") in str(caught.value)


def test_samples_without_a_group_are_named() -> None:
    pytest.importorskip("tokenizers")
    rows = sentences()
    rows[4]["who"] = ""
    write("t.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"t\.jsonl: no value of column 'who' in row 5"):
        build(**TEXTS, path="t.jsonl", group_split="who")


def test_packed_texts_are_of_documents_of_whole_groups() -> None:
    pytest.importorskip("tokenizers")
    files()
    data = build(**READ["folder of texts"][0], pack=True)
    assert sum(data.spec.sizes.values()) > 4
    assert not data.split("train").groups, "a piece is of several documents"


def test_a_speaker_is_a_group() -> None:
    pytest.importorskip("soundfile")
    tones(Path("t"))
    raw = {"name": "audio", "path": "t", "sample_rate": 8000, "seconds": 0.3, "mels": 16}
    old, new = build(**raw, speaker=PATTERN), build(**raw, group_split=PATTERN)
    assert homes(old, "speaker") == homes(new, "group") == {"train": {"ann", "bob", "dot"}, "val": {"cid"}}
    assert old.spec == new.spec
    assert choose("dataset", {**raw, "speaker": PATTERN}).to_dict()["group_split"] == PATTERN
    both = {"dataset": {**raw, "speaker": PATTERN, "group_split": PATTERN}, "backbone": "cnn"}
    with pytest.raises(ConfigError, match=r"dataset\.speaker: is the old name of 'group_split', which is also given"):
        load_config(both)


def test_groups_that_a_pattern_finds_are_measured_by(fmeco: Callable[..., Answer]) -> None:
    pictures("p")
    config_ = tiny(dataset={}, train={"epochs": 1})
    config_["dataset"] = {**READ["image_folder"][0], "val_fraction": 0.5}
    answer = fmeco("pretrain", write("c.yaml", config_), "--out", "run")
    assert answer.code == 0, answer.err
    answer = fmeco("evaluate", "run", "--split", "val", "--by", "group", "--json")
    assert answer.code == 0, answer.err
    assert {row["group"]: row["samples"] for row in answer.json["groups"]} == {"bob": 6, "cid": 6}
