"""Texts: reading documents, a tokenizer that is learned from the training split, and ids packed in one array."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmeco.core import (
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Inputs,
    InputSpec,
    Samples,
    clean,
    listing,
    nearest,
    same_modality,
)
from fmeco.data import parquet
from fmeco.datasets import _splits, _tables
from fmeco.datasets._splits import Indices
from fmeco.nn.ids import numbering

VOCABULARY, LENGTH = 8000, 128
PAD, SEPARATOR = "[PAD]", "[SEP]"  # the first two ids; bytes that are no word of their own are the next 256
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet")
TOGETHER = 1024  # texts that are cut into tokens at once

Documented = Literal["auto", "line", "block"]


class Layout(NamedTuple):
    """Where the text of a file is. columns: the names of a table's columns, where it has no header."""

    text: str = "text"
    label: str | None = None
    columns: tuple[str, ...] | None = None
    documents: Documented = "auto"


class Documents(NamedTuple):
    """Texts, a name for each, their labels ("" = none), where the files have any, and the files' other columns."""

    texts: list[str]
    names: list[str]
    labels: list[str] | None
    others: Mapping[str, list[str]] = {}

    def __add__(self, other: Documents) -> Documents:  # type: ignore[override]  # not as tuples are
        if (self.labels is None) != (other.labels is None):
            raise DataError(f"{other.names[0]}: some of the files have labels, and others have none")
        labels = None if self.labels is None or other.labels is None else self.labels + other.labels
        others = {name: values + other.others[name] for name, values in self.others.items() if name in other.others}
        return Documents(self.texts + other.texts, self.names + other.names, labels, others)


# ---------------------------------------------------------------- files


def read_documents(path: str, layout: Layout) -> Documents:
    """The documents of a file, by its suffix. Raises DataError that names file and line, ConfigError for a column."""
    file = Path(path)
    suffix = file.suffix.lower()
    if not file.is_file():
        raise DataError(f"{clean(path)}: no such file")
    if suffix not in SUFFIXES:
        raise DataError(f"{clean(path)}: texts are read from {', '.join(SUFFIXES)}")
    try:
        content = parquet.as_csv(path) if suffix == ".parquet" else file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{clean(path)}: not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{clean(path)}: {error.strerror}") from None
    if suffix == ".txt":
        found = Documents(*_plain(content, path, layout.documents), None)
    else:
        if suffix == ".parquet":
            layout = layout._replace(columns=None)  # it has a header always
        lines = _json_lines(content, path) if suffix in (".jsonl", ".ndjson") else _rows(content, path, layout, suffix)
        found = _fields(lines, path, layout)
    if not found.texts:
        raise DataError(f"{clean(path)}: no texts in this file")
    return found


def _plain(content: str, path: str, documents: Documented) -> tuple[list[str], list[str]]:
    """A document per line; or, where documents span lines, per block of lines between empty ones."""
    lines = content.splitlines()
    blocks = documents == "block" or (documents == "auto" and any(not line.strip() for line in lines))
    texts: list[list[str]] = []
    starts: list[int] = []
    fresh = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            fresh = True
        elif fresh or not blocks:
            texts.append([line])
            starts.append(number)
            fresh = False
        else:
            texts[-1].append(line)
    return ["\n".join(text) for text in texts], [f"{path}:{number}" for number in starts]


Row = tuple[int, Mapping[str, Any]]  # line, values by name


def _json_lines(content: str, path: str) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{clean(path)}:{number}: not valid JSON: {clean(error)}") from None
            if not isinstance(row, dict):
                raise DataError(f'{clean(path)}:{number}: expected an object, as in {{"text": ...}}')
            yield number, row


def _rows(content: str, path: str, layout: Layout, suffix: str) -> Iterator[Row]:
    """Rows of CSV; or of a TSV file, which has no quotes."""
    csv.field_size_limit(1 << 30)  # documents are longer than what tables usually hold
    if suffix == ".tsv":
        reader = csv.reader(io.StringIO(content, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        first = content.partition("\n")[0]
        delimiter = "," if suffix == ".parquet" else max(",;\t", key=first.count)
        reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    header = layout.columns
    try:
        for row in reader:
            if not row:
                continue
            if header is None or (tuple(row) == header):
                header = tuple(name.strip() for name in row)
                continue
            if len(row) != len(header):
                hint = "name the columns of a table without a header: dataset.columns=[text, label]"
                raise DataError(
                    f"{clean(path)}:{reader.line_num}: {len(row)} values, and there are {len(header)} columns", hint
                )
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{clean(path)}:{reader.line_num}: not a valid table: {error}") from None


def _fields(rows: Iterable[Row], path: str, layout: Layout) -> Documents:
    texts: list[str] = []
    names: list[str] = []
    labels: list[str] = []
    others: dict[str, list[str]] = {}
    for number, row in rows:
        for name in (layout.text, *([layout.label] if layout.label is not None else [])):
            if name not in row:
                key = "text" if name == layout.text else "label"
                hints = ["dataset.label: null reads it without labels"] if key == "label" else []
                if not Path(path).suffix.lower().endswith("l"):
                    hints.append("name the columns of a table without a header: dataset.columns=[text, label]")
                raise ConfigError(
                    f"{clean(path)}:{number}: dataset.{key}: no '{clean(name)}'{nearest(name, row)}; it has: {listing(list(row), 20)}",
                    *hints,
                )
        text = row[layout.text]
        if not isinstance(text, str):
            raise DataError(f"{clean(path)}:{number}: '{clean(layout.text)}' is no text")
        texts.append(text)
        names.append(f"{path}:{number}")
        if layout.label is not None:
            value = row[layout.label]
            labels.append(
                "" if value is None else "|".join(map(str, value)) if isinstance(value, list) else str(value).strip()
            )
        for name, value in row.items():
            if name != layout.text and isinstance(value, str | int):
                others.setdefault(name, [""] * (len(texts) - 1)).append(str(value).strip())
        for values in others.values():
            values += [""] * (len(texts) - len(values))
    return Documents(texts, names, labels if layout.label is not None else None, _tables.grouping(others))


# ---------------------------------------------------------------- tokens


def library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ConfigError("text needs the package tokenizers", "pip install 'fmeco[text]'") from None
    return tokenizers


def learn(texts: Iterable[str], vocabulary: int, lowercase: bool) -> str:
    """A byte-level BPE of at most `vocabulary` ids, as JSON. https://arxiv.org/abs/1508.07909 section 3.2; over bytes,
    as in the report of GPT-2, nothing is unknown."""
    hf = library()
    made = hf.Tokenizer(hf.models.BPE())
    if lowercase:
        made.normalizer = hf.normalizers.Lowercase()
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PAD, SEPARATOR],
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return str(made.to_str())


def load(description: str, where: str) -> Any:
    """A tokenizer from its JSON. Raises ConfigError for what is none."""
    hf = library()
    try:
        made = hf.Tokenizer.from_str(description)
    except Exception as error:  # the library raises nothing more special
        raise ConfigError(f"{where}: not a tokenizer of the package tokenizers: {clean(error)}") from None
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True  # "[PAD]" in a text is five characters
    return made


class Packed(NamedTuple):
    """Ids of N texts in one array; text i is ids[ends[i] : ends[i + 1]]. full: how many tokens texts had (N,)."""

    ids: np.ndarray[Any, Any]
    ends: Indices
    full: Indices


def encode(tokenizer: Any, texts: Sequence[str], length: int | None) -> Packed:
    """Texts -> ids, of each at most the first `length`, among which are the special tokens that the tokenizer's
    post-processor adds. length: None for documents that are joined, which get none."""
    count, offset = numbering(tokenizer)
    kind: Any = np.uint16 if count + offset <= 1 << 16 else np.int32
    special = 0 if length is None else tokenizer.num_special_tokens_to_add(False)
    if length is not None and length <= special:
        raise ConfigError(f"dataset.length: {length} leaves no room beside the tokenizer's {special} special tokens")
    parts: list[np.ndarray[Any, Any]] = []
    full: list[int] = []
    for start in range(0, len(texts), TOGETHER):
        for one in tokenizer.encode_batch_fast(list(texts[start : start + TOGETHER]), add_special_tokens=False):
            full.append(len(one.ids) + special)
            if (
                length is not None and special and one.ids
            ):  # a text is cut before they are added, so that none of them is lost
                one.truncate(length - special)
                one = tokenizer.post_process(one)
            parts.append(np.array(one.ids[:length], dtype=kind) + kind(offset))
    ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return Packed(np.concatenate(parts) if parts else np.zeros(0, kind), ends, np.array(full, dtype=np.int64))


def pieces(found: Packed, length: int, separator: int) -> Packed:
    """All texts in a row, each followed by the separator, cut into pieces of `length`; the rest is one, if it has two."""
    whole = np.insert(found.ids, found.ends[1:], separator)
    ends = np.arange(0, len(whole) + 1, length)
    if len(whole) - ends[-1] > 1:
        ends = np.append(ends, len(whole))
    return Packed(whole, ends, np.diff(ends))


class Texts(Samples):
    """Texts as ids: sample i is "tokens" (L_i,) int64."""

    in_memory = True

    def __init__(self, packed: Packed, names: Sequence[str], targets: Mapping[str, Tensor], length: int) -> None:
        self.packed, self.names, self.targets = packed, names, targets
        self.lengths = torch.from_numpy(np.diff(packed.ends))
        hashed = hashlib.sha256(packed.ids.tobytes() + packed.ends.tobytes())
        self.content = hashed.hexdigest()
        if cut := int((packed.full > length).sum()):
            self.notes = (
                f"{cut:,} of {len(self):,} texts are longer than {length} tokens (dataset.length) and are cut",
            )

    def __len__(self) -> int:
        return len(self.packed.ends) - 1

    def __getitem__(self, index: int) -> Inputs:
        start, end = self.packed.ends[index : index + 2]
        if start == end:
            raise DataError(f"{clean(self.names[index])}: an empty text")
        return {"tokens": torch.from_numpy(self.packed.ids[start:end].astype(np.int64))}

    def name(self, index: int) -> str:
        return self.names[index]


# ---------------------------------------------------------------- a dataset


class Wanted(NamedTuple):
    """What a config asks of the tokens; None = the checkpoint's, else the default."""

    vocabulary: int | None
    tokenizer: str | None
    lowercase: bool | None
    length: int | None


def build_texts(
    known: DataSpec | None,
    found: Documents,
    parts: dict[str, Indices] | None,
    wanted: Wanted,
    layout: Layout,
    *,
    where: str,
    whole: bool,
    reader: str = "text",
    task: str = "class",
    pack: bool = False,
    classes: list[str | int] | None = None,
    limit_per_class: int | None = None,
    limit_seed: int = 0,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    fold: Mapping[str, int] | None = None,
) -> Data:
    """A Data from documents. parts: which of them (positions) are for what, where the files say so."""
    same_modality(known, "text")
    library()
    labels = {"label": found.labels} if found.labels is not None and not pack else {}
    kept, codes = np.arange(len(found.texts)), np.zeros(len(found.texts), np.int64)
    notes: list[str] = []
    targets: _tables.Targets | None = None
    if labels:
        old = known.targets if known is not None else {}
        targets = _tables.read_targets(labels, old, classes, where=where, names=found.names, kind_of=lambda _: task)
        kept, codes, notes = targets.kept, targets.codes, targets.notes
    elif classes is not None:
        raise ConfigError("dataset.classes: these texts have no labels")
    # A text is known by its content: moving the file, or adding lines, moves no text to another split.
    chosen = [found.texts[i] for i in kept.tolist()]
    if parts is not None:
        parts = {part: np.flatnonzero(np.isin(kept, at)) for part, at in parts.items()}
        if "train" in parts and "val" not in parts:
            at = parts["train"]
            cut = _splits.split([chosen[i] for i in at.tolist()], codes[at], val_fraction, fold=fold)
            parts = {**{part: at[inside] for part, inside in cut.items()}, **parts, "train": at[cut["train"]]}
        elif fold is not None:
            raise ConfigError(f"dataset.split: {where} has validation texts of its own")
    elif whole:
        parts = {"test": np.arange(len(kept))}
    else:
        parts = _splits.split(chosen, codes, val_fraction, test_fraction, fold)
    if "train" in parts:
        parts["train"] = _splits.limit(chosen, codes, parts["train"], limit_per_class, limit_seed)
    how = preprocessing(known, wanted, layout, (chosen[i] for i in parts.get("train", np.arange(0)).tolist()))
    tokenizer, length = load(how["tokenizer"], "the checkpoint's tokenizer" if known else where), how["length"]
    _, offset = numbering(tokenizer)
    made: dict[str, Texts] = {}
    for part, at in parts.items():
        packed = encode(tokenizer, [chosen[i] for i in at.tolist()], None if pack else length)
        names = [found.names[i] for i in kept[at].tolist()]
        if pack:
            packed = pieces(packed, length, _separator(tokenizer, where) + offset)
            names = [f"{part}, piece {i}" for i in range(len(packed.ends) - 1)]
        made[part] = Texts(packed, names, targets.at(at) if targets is not None else {}, length)
        if not pack:  # a piece is of several documents
            made[part].groups = _tables.take(found.others, kept[at])
        notes += [f"{part}: {note}" for note in made[part].notes]
    spec = DataSpec(
        modality="text",
        inputs={"tokens": InputSpec((length,), "int64", ragged=True, offset=offset)},
        targets=targets.targets if targets is not None else {},
        preprocessing=how,
        reader=reader,
        sizes={part: len(samples) for part, samples in made.items()},
        fingerprint=_splits.fingerprint([(chosen[i], int(codes[i])) for i in range(len(chosen))]),
    )
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=tuple(notes))


def _separator(tokenizer: Any, where: str) -> int:
    found: int | None = next(
        (i for token in (SEPARATOR, "</s>", "<|endoftext|>") if (i := tokenizer.token_to_id(token)) is not None), None
    )
    if found is None:
        raise ConfigError(f"{where}: dataset.pack needs a tokenizer with the token {SEPARATOR}")
    return found


def preprocessing(known: DataSpec | None, wanted: Wanted, layout: Layout, texts: Iterable[str]) -> dict[str, Any]:
    """How texts become ids: the checkpoint's way, or one learned from the training texts. ids: how many there are;
    vocabulary: how many were asked for. Weights of a library may come without a way of their own."""
    given = Path(wanted.tokenizer).read_text("utf-8") if wanted.tokenizer and Path(wanted.tokenizer).is_file() else None
    if known is not None and known.preprocessing:
        how = dict(known.preprocessing)
        for key, value in (("vocabulary", wanted.vocabulary), ("lowercase", wanted.lowercase), ("tokenizer", given)):
            if value is not None and value != how[key]:
                raise ConfigError(
                    f"dataset.{key}: the checkpoint's tokenizer is another one, and stays", f"leave out dataset.{key}"
                )
        return {**how, "length": wanted.length or how["length"], **_places(layout)}
    if wanted.tokenizer is not None:
        if given is None:
            raise ConfigError(f"dataset.tokenizer: {clean(wanted.tokenizer)}: no such file")
        if wanted.vocabulary is not None or wanted.lowercase is not None:
            raise ConfigError("dataset.tokenizer: a tokenizer has its own vocabulary and lowercase")
        described, vocabulary, lowercase = given, None, None
    else:
        vocabulary, lowercase = wanted.vocabulary or VOCABULARY, bool(wanted.lowercase)
        described = learn(texts, vocabulary, lowercase)
    return {
        "tokenizer": described,
        "ids": sum(numbering(load(described, "dataset.tokenizer"))),
        "vocabulary": vocabulary,
        "lowercase": lowercase,
        "length": wanted.length or LENGTH,
        **_places(layout),
    }


def _places(layout: Layout) -> dict[str, Any]:
    return {"text": layout.text, "columns": list(layout.columns) if layout.columns else None}


def read(spec: DataSpec, sources: Sequence[str]) -> Samples:
    """The texts of files, whose labels may be absent; a source that is no file is a text itself."""
    how = spec.preprocessing
    texts: list[str] = []
    names: list[str] = []
    for source in sources:
        if os.path.exists(source):
            layout = Layout(how["text"], None, None)
            if how["columns"] is not None and how["text"] not in _first_line(source):
                layout = layout._replace(columns=tuple(how["columns"]))
            found = read_documents(source, layout)
            texts += found.texts
            names += found.names
        elif Path(source).suffix.lower() in SUFFIXES:
            raise DataError(f"{clean(source)}: no such file")
        else:
            texts.append(source)
            names.append(source)
    packed = encode(load(how["tokenizer"], "the checkpoint's tokenizer"), texts, how["length"])
    return Texts(packed, names, {}, how["length"])


def _first_line(path: str) -> str:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return file.readline()


def merged(files: Mapping[str, Sequence[str]], layout: Layout) -> tuple[Documents, dict[str, Indices]]:
    """The documents of files, and which of them (positions) belong to what."""
    every: list[Documents] = []
    parts: dict[str, Indices] = {}
    count = 0
    for part, paths in files.items():
        start = count
        for path in paths:
            every.append(
                read_documents(path, layout if not path.lower().endswith(".txt") else layout._replace(label=None))
            )
            count += len(every[-1].texts)
        parts[part] = np.arange(start, count)
    total = every[0]
    for one in every[1:]:
        total = total + one
    return total, parts
