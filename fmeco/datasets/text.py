"""Texts in JSONL, CSV, TSV, Parquet or plain text files, with or without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from fmeco.core import (
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Doc,
    FilePath,
    Ge,
    Gt,
    Inputs,
    Spelling,
    Splitting,
    clean,
    decode_rule,
    listing,
)
from fmeco.datasets import _documents, _splits, _stored, _texts, _tokens
from fmeco.datasets._texts import read as read
from fmeco.nn.ids import numbering

MODALITY = "text"

SPEC = _stored.Texts
SENTENCES = True  # `predict` also takes texts themselves
TAKES = {"rows": "dicts or a DataFrame with the text column of training"}
FILES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet")
FOLDERS = True  # a folder of such files is a dataset, too
LAYOUT = ("text", "label", "columns", "documents", "task", "missing", "decimal")
STARTER = {"backbone": "transformer"}

_STEMS_OF_RULE_1 = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def shown(spec: DataSpec) -> str:
    """Describe in a few words how texts are prepared."""
    prep = spec.preprocessing
    shown = f"a tokenizer of {prep['ids']} ids, texts of up to {prep['length']}" if "ids" in prep else "no tokenizer"
    return shown + (f", after the prompt '{clean(prep['prompt'])}'" if "prompt" in prep else "")


def show(spec: DataSpec, inputs: Inputs) -> str:
    """Turn the ids of a text back into characters, as far as the tokenizer keeps them."""
    tokenizer = _tokens.load(spec.preprocessing["tokenizer"], "tokenizer")
    ids = (inputs["tokens"] - numbering(tokenizer)[1]).tolist()
    return str(tokenizer.decode([one for one in ids if one >= 0], skip_special_tokens=True)).strip()


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[
        FilePath | None,
        Doc(
            "a .jsonl, .csv, .tsv, .parquet or .txt file, or a folder of them: train.*, val.* and test.*, or any names"
        ),
    ] = None,
    train: Annotated[FilePath | None, Doc("file of this split, instead of `path`")] = None,
    val: Annotated[FilePath | None, Doc("file of this split, instead of `path`")] = None,
    test: Annotated[FilePath | None, Doc("file of this split, instead of `path`")] = None,
    text: Annotated[
        str | list[str],
        Doc("column, or key of JSONL, of the text; several are joined, each after its name, as in `title: ...`"),
    ] = "text",
    label: Annotated[
        str | None, Doc("column, or key of JSONL, of the label; null = no labels; .txt files have none")
    ] = "label",
    columns: Annotated[list[str] | None, Doc("names of all columns, for a table without a header")] = None,
    documents: Annotated[
        Literal["auto", "line", "block"],
        Doc(
            "for .txt files: a document is a line, or a block of lines between empty lines; auto = block if there are empty lines"
        ),
    ] = "auto",
    task: Annotated[
        Literal["class", "multilabel", "number"], Doc("kind of the label; several labels of a text are written a|b")
    ] = "class",
    vocabulary: Annotated[
        int | None,
        Doc("number of ids of the byte-level BPE learned from the training texts; null = the checkpoint's, else 8000"),
        Ge(300),
    ] = None,
    tokenizer: Annotated[
        FilePath | None, Doc("a tokenizer.json of the package tokenizers, to use instead of learning one")
    ] = None,
    lowercase: Annotated[bool | None, Doc("convert texts to lower case; null = the checkpoint's, else false")] = None,
    length: Annotated[
        int | None, Doc("maximum number of tokens of a text; null = the checkpoint's, else 128"), Gt(1)
    ] = None,
    prompt: Annotated[
        str | None, Doc("put this text before each text, such as 'query: '; null = the checkpoint's, else none")
    ] = None,
    prompt_name: Annotated[
        str | None,
        Doc("the same with one of the model's own prompts, by its name in config_sentence_transformers.json"),
    ] = None,
    pack: Annotated[bool, Doc("join documents and cut them into pieces of `length` tokens, without labels")] = False,
    spelling: Spelling = Spelling(),
    splitting: Splitting = Splitting(),
) -> Data:
    if pack and (prompt or prompt_name):
        raise ConfigError("dataset.pack: documents that are joined have no prompt", "leave out dataset.prompt")
    files = _files(path, {"train": train, "val": val, "test": test}, whole, decode_rule(known))
    layout = _documents.Layout(
        text if isinstance(text, str) else tuple(text),
        None if pack else label,
        tuple(columns) if columns else None,
        documents,
        splitting.group_split,
        decode_rule(known),
    )
    documents_read, parts = _documents.merged(files, layout)
    return _texts.build_texts(
        known,
        documents_read,
        None if "path" in parts else parts,
        _tokens.Wanted(vocabulary, tokenizer, lowercase, length, prompt, prompt_name),
        layout,
        where=clean(path or train or test),
        whole=whole,
        task=task,
        spelling=spelling,
        pack=pack,
        splitting=splitting,
    )


def _files(path: str | None, parts: dict[str, str | None], whole: bool, rule: int) -> dict[str, list[str]]:
    """Find the files of each split; {"path": files} if their documents are to be split.

    rule: the decode rule, which decides what names of files mean a split.

    Raises ConfigError for keys that do not go together, DataError for a folder without texts, or with several per split.
    """
    named_files = {part: [file] for part, file in parts.items() if file is not None}
    if (path is None) == (not named_files):
        raise ConfigError("dataset: text needs either `path` or `train` (with `val` and `test`)")
    if path is None:
        if "train" not in named_files and not whole:
            raise ConfigError("dataset.train: missing: `val` and `test` need it, too")
        return named_files
    root = Path(path)
    if not root.is_dir():
        return {"path": [path]}
    inside = sorted(file for file in root.iterdir() if file.suffix.lower() in _documents.SUFFIXES and file.is_file())
    if not inside:
        raise DataError(
            f"{clean(path)}: no texts in this folder", f"texts are read from {', '.join(_documents.SUFFIXES)}"
        )
    named = {part: list[str]() for part in _STEMS_OF_RULE_1}
    for file in inside:
        stem = file.stem.lower()
        old = next((part for part, stems in _STEMS_OF_RULE_1.items() if stem in stems), None)
        if (part := old if rule == 1 else _splits.split_called(file.stem)) is not None:
            named[part].append(str(file))
    named = {part: files for part, files in named.items() if files}
    if twice := [part for part, files in named.items() if len(files) > 1]:
        raise DataError(
            f"{clean(path)}: several files for the split {listing(twice)}",
            "keep one file per split, or name the files by key",
        )
    return named if "train" in named or (whole and named) else {"path": [str(file) for file in inside]}


def example(folder: Path) -> dict[str, Any]:
    """Write short texts into a folder, and return the keys that read them: for the checks of plug-ins."""
    words = {"animal": ("cat", "dog", "cow", "hen"), "tool": ("saw", "axe", "drill", "file")}
    rows = [
        {"text": " ".join(words[label][(i + j * j) % 4] for j in range(2 + i % 9)) + f" {i}", "label": label}
        for i in range(30)
        for label in words
    ]
    file = folder / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return {"path": str(file), "vocabulary": 300, "length": 12}
