"""Texts of real files: several columns, broken JSON, tokenizers that fail, and what ends a line."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmeco.core import Data
from fmeco.datasets import _documents, _tokens
from fmeco.datasets import text as text_dataset
from fmeco.errors import DataError
from tests.conftest import Answer, texts, write
from tests.data.test_data import build

hf = pytest.importorskip("tokenizers")

Fmeco = Callable[..., Answer]
TRANSFORMER = {"name": "transformer", "width": 16, "depth": 1, "heads": 2}


def decoded(data: Data) -> list[str]:
    """The texts of a dataset, as its token ids spell them, in order of the file's lines."""
    tokenizer = hf.Tokenizer.from_str(data.spec.preprocessing["tokenizer"])
    found: dict[int, str] = {}
    for samples in (data.train, data.val):
        for i in range(len(samples) if samples is not None else 0):
            assert samples is not None
            ids = [x - data.spec.inputs["tokens"].offset for x in samples[i]["tokens"].tolist()]
            found[int(samples.name(i).rpartition(":")[2])] = tokenizer.decode(ids).removeprefix(" ")
    return [found[line] for line in sorted(found)]


def lines(path: str, *rows: Any) -> str:
    """Write rows as JSON lines; a str is a line as it stands."""
    return str(write(path, "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"))


ROWS = [{"title": f"Title {i}", "body": f"The body of {i}.", "label": "ab"[i % 2]} for i in range(30)]


@pytest.mark.situation("several columns of text", "read rightly")
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_several_columns_are_joined_with_their_names(kind: str) -> None:
    path = f"t.{kind}"
    rows = [*ROWS, {"title": "", "body": "No title.", "label": "a"}]
    if kind == "jsonl":
        lines(path, *rows)
    elif kind == "parquet":
        pytest.importorskip("polars").DataFrame(rows).write_parquet(path)
    else:
        cut = {"csv": ",", "tsv": "\t"}[kind]
        write(
            path,
            "\n".join(
                cut.join(row[key] for key in ("title", "body", "label")) for row in [{k: k for k in rows[0]}, *rows]
            ),
        )
    data = build(name="text", path=path, text=["title", "body"], vocabulary=300)
    joined = [f"title: {row['title']}\nbody: {row['body']}" for row in ROWS] + ["body: No title."]
    assert decoded(data) == joined
    assert data.spec.preprocessing["text"] == ["title", "body"]
    new = text_dataset.read(data.spec, [path, "a sentence"])
    assert len(new) == 32
    shown = hf.Tokenizer.from_str(data.spec.preprocessing["tokenizer"]).decode(new[3]["tokens"].tolist())
    assert shown.removeprefix(" ") == joined[3]


@pytest.mark.situation("several columns of text", "read rightly")
def test_commands_read_several_columns(fmeco: Fmeco) -> None:
    config = {
        "dataset": {"name": "text", "path": lines("t.jsonl", *ROWS), "text": ["title", "body"], "vocabulary": 300},
        "backbone": TRANSFORMER,
        "train": {"epochs": 1, "batch_size": 8, "tensorboard": False},
    }
    assert fmeco("pretrain", write("c.yaml", config), "--out", "run").code == 0
    rows = fmeco("predict", "run", lines("new.jsonl", *ROWS[:3]), "--json").json["predictions"]
    assert [row["error"] for row in rows] == [None] * 3
    assert fmeco("evaluate", "run", "--dataset", "new.jsonl", "--json").json["samples"] == 3
    answer = fmeco("predict", "run", lines("less.jsonl", {"title": "x"}))
    assert answer.code == 2 and "less.jsonl:1: dataset.text: no 'body'" in answer.err


BROKEN = [
    (r'{"text": "half of \ud83d a smiley", "label": "a"}', "half of a character"),
    (r'{"text": "x", "label": "\udc80"}', "half of a character"),
    ('{"text": "x", "label": "a", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ('{"text": "x", "label": "a", "text": "y"}', "the key 'text' appears more than once"),
    ('{"text": "x", "label": ' + "9" * 5000 + "}", "not valid JSON"),
    ('{"text": "x", "label": "a"', "not valid JSON"),
    ('["text", "a"]', "expected an object"),
    ('{"text": ["x"], "label": "a"}', "'text' is not a string"),
]


@pytest.mark.situation("lines of JSONL that no library can use", "refused by name")
@pytest.mark.parametrize(("line", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
@pytest.mark.parametrize("command", ["train", "predict"])
def test_a_line_that_cannot_be_used_is_named(line: str, reason: str, command: str) -> None:
    good = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)]
    path = lines("t.jsonl", *good[:7], line, *good[7:])
    with pytest.raises(DataError, match=reason) as caught:
        if command == "train":
            build(name="text", path=path, vocabulary=300)
        else:
            spec = build(name="text", path=lines("good.jsonl", *good), vocabulary=300).spec
            text_dataset.read(spec, [path])
    assert "t.jsonl:8: " in str(caught.value)


@pytest.mark.situation("lines of JSONL that no library can use", "read rightly")
def test_whole_escapes_are_characters() -> None:
    rows = [
        r'{"text": "a \ud83d\ude00 N", "label": "L"}'.replace("N", str(i)).replace("L", "ab"[i % 2]) for i in range(20)
    ]
    data = build(name="text", path=lines("t.jsonl", *rows), vocabulary=300)
    assert decoded(data) == [json.loads(row)["text"] for row in rows]


def endless(path: str) -> str:
    """Write a tokenizer whose regular expression backtracks over a row of letters a for longer than its library allows."""
    tokenizer = hf.Tokenizer(hf.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Split(hf.Regex(r"^(a+)+$"), "isolated")
    tokenizer.save(path)
    return path


@pytest.mark.situation("a tokenizer that fails or never ends", "refused by name")
def test_a_tokenizer_that_panics_is_one_sentence(fmeco: Fmeco) -> None:
    texts(Path("t.jsonl"))
    config = {
        "dataset": {"name": "text", "path": "t.jsonl", "tokenizer": endless("slow.json")},
        "backbone": TRANSFORMER,
        "train": {"epochs": 1, "tensorboard": False},
    }
    assert fmeco("pretrain", write("c.yaml", config), "--out", "run").code == 0
    for arguments in (
        ("predict", "run", "a" * 40 + "b"),
        ("evaluate", "run", "--dataset", lines("new.jsonl", {"text": "a" * 40 + "b", "label": "tool"})),
    ):
        answer = fmeco(*arguments)
        assert answer.code == 3 and "the tokenizer fails on these texts" in answer.err, answer.err


@pytest.mark.situation("an argument that is no valid text", "refused by name")
@pytest.mark.parametrize("argument", ["caf\udce9", "\ud800"])
def test_a_text_that_is_no_unicode_is_refused(argument: str) -> None:
    spec = build(name="text", path=str(texts(Path("t.jsonl"))), vocabulary=300).spec
    with pytest.raises(DataError, match="no valid text: half of a surrogate pair"):
        text_dataset.read(spec, [argument])


@pytest.mark.situation("a tokenizer that fails or never ends", "refused by name")
def test_a_tokenizer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tokens, "PATIENCE", 0.1)
    hold = threading.Event()

    class Endless:
        def encode_batch_fast(self, *_: Any, **__: Any) -> Any:
            hold.wait(20)

    with pytest.raises(DataError, match="has not finished 2 texts after 0 seconds"):
        _tokens._encoded(Endless(), ["a", "b"])
    hold.set()


@pytest.mark.situation("a tokenizer that fails or never ends", "refused by name")
@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(1)])
def test_what_stops_the_program_passes(raised: BaseException) -> None:
    class Stopping:
        def encode_batch_fast(self, *_: Any, **__: Any) -> Any:
            raise raised

    with pytest.raises(type(raised)):
        _tokens._encoded(Stopping(), ["a"])


@pytest.mark.situation("characters that some programs end a line at", "read rightly")
@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_line_of_text_ends_where_the_file_ends_it(char: str) -> None:
    text = [f"line {i} goes{char}on here" for i in range(20)]
    for end in ("\n", "\r\n"):
        Path("t.txt").write_text("".join(line + end for line in text), "utf-8", newline="")
        read = _documents.read_documents("t.txt", _documents.Layout())
        assert read.texts == text and read.names[-1] == "t.txt:20"
    data = build(name="text", path="t.txt", vocabulary=300)
    assert data.spec.sizes["train"] + data.spec.sizes["val"] == 20
    prep = {key: value for key, value in data.spec.preprocessing.items() if key != "decode"}
    spec = dataclasses.replace(data.spec, preprocessing=prep)
    assert len(text_dataset.read(spec, ["t.txt"])) == 40, "an old checkpoint reads its files as before"


@pytest.mark.situation("several columns of text", "refused by name")
@pytest.mark.parametrize(("value", "reason"), [(5, "'body' is not a string"), (["x"], "'body' is not a string")])
def test_a_value_that_is_no_text_is_refused(value: Any, reason: str) -> None:
    path = lines("t.jsonl", *ROWS, {"title": "x", "body": value, "label": "a"})
    with pytest.raises(DataError, match=f"t.jsonl:31: {reason}"):
        build(name="text", path=path, text=["title", "body"], vocabulary=300)
