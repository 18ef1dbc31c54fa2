"""Turn documents into samples of ids, packed in one array."""

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
    Inputs,
    InputSpec,
    Samples,
    Splitting,
    clean,
    same_modality,
)
from fmeco.datasets import _columns, _splits, _targets
from fmeco.datasets._documents import SUFFIXES, Documents, Layout, first_line, read_documents
from fmeco.datasets._splits import Indices
from fmeco.datasets._tokens import Packed, Wanted, encode, library, load, pieces, preprocessing, separator_id
from fmeco.nn.ids import numbering


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
    splitting: Splitting,
) -> Data:
    """A Data from documents. parts: which of them (positions) are for what, where the files say so."""
    same_modality(known, "text")
    library()
    labels = {"label": found.labels} if found.labels is not None and not pack else {}
    kept, codes = np.arange(len(found.texts)), np.zeros(len(found.texts), np.int64)
    notes: list[str] = []
    targets: _targets.Targets | None = None
    if labels:
        old = known.targets if known is not None else {}
        targets = _targets.read_targets(
            labels, old, splitting.classes, where=where, names=found.names, kind_of=lambda _: task
        )
        kept, codes, notes = targets.kept, targets.codes, targets.notes
    elif splitting.classes is not None:
        raise ConfigError("dataset.classes: these texts have no labels")
    # A text is known by its content: moving the file, or adding lines, moves no text to another split.
    chosen = [found.texts[i] for i in kept.tolist()]
    groups = [found.groups[i] for i in kept.tolist()] if found.groups is not None else None
    if parts is not None:
        parts = {part: np.flatnonzero(np.isin(kept, at)) for part, at in parts.items()}
        if "train" in parts and "val" not in parts:
            at = parts["train"]
            own = [groups[i] for i in at.tolist()] if groups is not None else None
            alone = dataclasses.replace(splitting, test_fraction=0.0, limit_per_class=None)
            cut = _splits.assign([chosen[i] for i in at.tolist()], codes[at], alone, groups=own)
            parts = {**{part: at[inside] for part, inside in cut.items()}, **parts, "train": at[cut["train"]]}
        elif splitting.split is not None:
            raise ConfigError(f"dataset.split: {where} has validation texts of its own")
    parts = _splits.assign(chosen, codes, splitting, whole=whole, given=parts, groups=groups)
    how = preprocessing(known, wanted, layout, (chosen[i] for i in parts.get("train", np.arange(0)).tolist()))
    tokenizer, length = load(how["tokenizer"], "the checkpoint's tokenizer" if known else where), how["length"]
    _, offset = numbering(tokenizer)
    made: dict[str, Texts] = {}
    for part, at in parts.items():
        packed = encode(tokenizer, [chosen[i] for i in at.tolist()], None if pack else length)
        names = [found.names[i] for i in kept[at].tolist()]
        if pack:
            packed = pieces(packed, length, separator_id(tokenizer, where) + offset)
            names = [f"{part}, piece {i}" for i in range(len(packed.ends) - 1)]
        made[part] = Texts(packed, names, targets.at(at) if targets is not None else {}, length)
        if not pack:  # a piece is of several documents
            made[part].groups = _columns.take(found.others, kept[at])
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


def read(spec: DataSpec, sources: Sequence[str]) -> Samples:
    """The texts of files, whose labels may be absent; a source that is no file is a text itself."""
    how = spec.preprocessing
    texts: list[str] = []
    names: list[str] = []
    for source in sources:
        if os.path.exists(source):
            layout = Layout(how["text"], None, None)
            if how["columns"] is not None and how["text"] not in first_line(source):
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
