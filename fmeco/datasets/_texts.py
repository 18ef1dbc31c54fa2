"""Turn documents into samples of token ids, stored in one array."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmeco.core import (
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Given,
    Inputs,
    InputSpec,
    Samples,
    Spelling,
    Splitting,
    clean,
    listing,
    same_modality,
)
from fmeco.datasets import _columns, _splits, _targets, _text_files
from fmeco.datasets._documents import SUFFIXES, Documents, Layout, given_documents, read_documents
from fmeco.datasets._numbers import Rules
from fmeco.datasets._splits import Indices
from fmeco.datasets._tokens import (
    Packed,
    Wanted,
    changes,
    encode,
    library,
    load,
    pieces,
    preprocessing,
    separator_id,
    with_prompt,
)
from fmeco.nn.ids import numbering

_BLANK = " \t\n\r\u00a0\u00ad\u200b\ufeff"  # spaces, and characters without a shape


class Texts(Samples):
    """Serve texts as ids: sample i is "tokens" (L_i,) int64. length: maximum number of tokens, for the note on cut texts."""

    in_memory = True

    def __init__(self, packed: Packed, names: Sequence[str], targets: Mapping[str, Tensor], length: int) -> None:
        self.packed, self.names, self.targets = packed, names, targets
        self.lengths = self.sizes = torch.from_numpy(np.diff(packed.ends))
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

    def digest(self, index: int, *, stored: bool = False) -> bytes | None:
        start, end = self.packed.ends[index : index + 2]
        return hashlib.blake2b(self.packed.ids[start:end].tobytes(), digest_size=16).digest()


def build_texts(
    known: DataSpec | None,
    documents: Documents,
    parts: dict[str, Indices] | None,
    wanted: Wanted,
    layout: Layout,
    *,
    where: str,
    whole: bool,
    reader: str = "text",
    task: str = "class",
    spelling: Spelling | None = None,
    pack: bool = False,
    splitting: Splitting,
) -> Data:
    """Build a Data from documents.

    parts: positions of each split's documents, if files decide the splits.
    wanted: the config's keys for the tokenizer.
    task: kind of the labels.
    spelling: of missing labels and of numbers.
    pack: join the documents and cut them into pieces of equal length, without labels.
    Raises ConfigError and DataError that name the key, file or row.
    """
    same_modality(known, "text")
    library()
    rules = Rules.of(known, spelling)
    _targets.check_decimal(rules, [layout.label] if layout.label is not None else [])
    if documents.labels is None or pack:
        targets = _targets.without_targets(len(documents.texts), splitting.classes)
    else:
        targets = _targets.read_targets(
            {"label": documents.labels},
            known.targets if known is not None else {},
            _targets.Layout({"label": layout.label or "label"}, task, classes=splitting.classes),
            rules,
            where=where,
            names=documents.names,
        )
    kept, codes, notes = targets.kept, targets.codes, targets.notes + _empty(documents, targets.kept, where)
    # Texts are split by a hash of their content, so moving the file or adding lines moves no text to another split.
    chosen = [documents.texts[i] for i in kept.tolist()]
    groups = [documents.groups[i] for i in kept.tolist()] if documents.groups is not None else None
    if parts is not None:
        parts = {part: np.flatnonzero(np.isin(kept, at)) for part, at in parts.items()}
        if "train" in parts and "val" not in parts:
            parts = _with_validation(parts, chosen, codes, groups, splitting)
        elif splitting.split is not None:
            raise ConfigError(f"dataset.split: {where} already has validation texts", "leave dataset.split out")
    parts = _splits.assign(chosen, codes, splitting, whole=whole, decided=parts, groups=groups)
    prep = preprocessing(known, wanted, layout, (chosen[i] for i in parts.get("train", np.arange(0)).tolist()))
    tokenizer, length = load(prep["tokenizer"], "the checkpoint's tokenizer" if known else where), prep["length"]
    _, offset = numbering(tokenizer)
    made: dict[str, Texts] = {}
    for part, at in parts.items():
        own = with_prompt({} if pack else prep, (chosen[i] for i in at.tolist()))
        packed = encode(tokenizer, own, None if pack else length)
        names = [documents.names[i] for i in kept[at].tolist()]
        if pack:
            packed = pieces(packed, length, separator_id(tokenizer, where) + offset)
            names = [f"{part}, piece {i}" for i in range(len(packed.ends) - 1)]
        made[part] = Texts(packed, names, targets.at(at), length)
        if not pack:  # a piece may hold several documents, and so has no group
            made[part].groups = _columns.take(documents.others, kept[at])
        notes += [f"{part}: {note}" for note in made[part].notes]
    spec = DataSpec(
        modality="text",
        inputs={"tokens": InputSpec((length,), "int64", ragged=True, offset=offset)},
        targets=targets.targets,
        preprocessing=prep,
        reader=reader,
        sizes={part: len(samples) for part, samples in made.items()},
        fingerprint=_splits.fingerprint([(chosen[i], int(codes[i])) for i in range(len(chosen))]),
    )
    return Data(spec, made.get("train"), made.get("val"), made.get("test"), notes=(*notes, *changes(known, prep)))


def _empty(documents: Documents, kept: Indices, where: str) -> list[str]:
    """Return a note on texts without a visible character."""
    blank = [documents.names[i] for i in kept.tolist() if not documents.texts[i].strip(_BLANK)]
    return [f"{where}: {len(blank):,} texts are empty: {listing(blank)}"] if blank else []


def _with_validation(
    parts: dict[str, Indices], texts: Sequence[str], codes: Indices, groups: Sequence[str] | None, splitting: Splitting
) -> dict[str, Indices]:
    """Hold out a share of the training texts for validation. Returns the positions of each split."""
    at = parts["train"]
    own = [groups[i] for i in at.tolist()] if groups is not None else None
    alone = dataclasses.replace(splitting, test_fraction=0.0, limit_per_class=None)
    cut = _splits.assign([texts[i] for i in at.tolist()], codes[at], alone, groups=own)
    return {**{part: at[inside] for part, inside in cut.items()}, **parts, "train": at[cut["train"]]}


def read(spec: DataSpec, sources: Sequence[str | Given]) -> Samples:
    """Read the texts of files, without labels; a source that is not a file is a text itself, or rows with texts.

    Raises DataError for absent files and bad content.
    """
    prep = spec.preprocessing
    texts: list[str] = []
    names: list[str] = []
    for source in sources:
        text = prep["text"] if isinstance(prep["text"], str) else tuple(prep["text"])
        layout = Layout(text, None, None, decode=spec.decode)
        if isinstance(source, Given):
            documents = given_documents(source, layout)
            texts += documents.texts
            names += documents.names
        elif os.path.exists(source):
            if prep["columns"] is not None and not _has_header(source, layout):
                layout = layout._replace(columns=tuple(prep["columns"]))
            documents = read_documents(source, layout)
            texts += documents.texts
            names += documents.names
        elif Path(source).suffix.lower() in SUFFIXES:
            raise DataError(f"{clean(source)}: no such file")
        else:
            texts.append(source)
            names.append(source)
    for text, name in zip(texts, names, strict=True):
        _check_text(text, name)
    packed = encode(load(prep["tokenizer"], "the checkpoint's tokenizer"), with_prompt(prep, texts), prep["length"])
    samples = Texts(packed, names, {}, prep["length"])
    spoken = {source for source in sources if isinstance(source, str)}
    if like_paths := [text for text in texts if text in spoken and _like_a_path(text)]:
        samples.notes += (f"no such file, so read as a text: {listing(like_paths, 3)}",)
    return samples


def _has_header(path: str, layout: Layout) -> bool:
    """Tell whether the first line of a file names the columns of the text."""
    try:
        line = _text_files.beginning(path).partition("\n")[0]
    except OSError:
        return False  # reading the file will report the error
    return all(name in line for name in layout.texts)


def _check_text(text: str, name: str) -> None:
    """Raise DataError for a text that is no valid Unicode: tokenizers cannot read half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{clean(name)}: no valid text: half of a surrogate pair at character {error.start}") from None


def _like_a_path(text: str) -> bool:
    """Tell whether a text looks like the path of a file, such as notes/new.md."""
    return not any(map(str.isspace, text)) and (os.sep in text or Path(text).suffix != "")
