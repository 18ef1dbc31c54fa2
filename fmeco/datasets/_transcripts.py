"""What was said, as text: characters of an alphabet that the training split decides."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fmeco.core import ConfigError, DataError, Target, clean, listing
from fmeco.datasets._splits import Indices


def transcripts(columns: Mapping[str, Sequence[str]], path: str, lowercase: bool) -> list[str]:
    """The transcript of each row of the one label column: in Unicode's composed form, with single spaces between words.
    Raises ConfigError for several columns, DataError that names the rows without a transcript.

    "none" and "na" are words, so that only an empty cell is empty.
    """
    if len(columns) != 1:
        raise ConfigError("dataset.label_column: a transcript is one column", "task: text learns one target")
    (column,) = columns.values()
    said = [" ".join(unicodedata.normalize("NFC", text).split()) for text in column]
    if blank := [row for row, text in enumerate(said, 2) if not text]:
        raise DataError(
            f"{clean(path)}: no transcript in row {listing(blank)}", "fill or remove these rows: silence has no words"
        )
    return [text.lower() for text in said] if lowercase else said


def encode(
    said: Sequence[str], parts: Mapping[str, Indices], known: Target | None, path: str
) -> tuple[Target, dict[str, list[Tensor]]]:
    """Transcripts by split, each as the positions (L_i,) of its characters in the alphabet. The alphabet is that of a
    checkpoint (`known`), else the sorted characters of the first split, which is training's.

    Raises DataError for characters of another split that are not among them: they could never be recognised.
    """
    first = next(iter(parts.values()))
    alphabet = known.classes if known is not None else tuple(sorted({one for i in first.tolist() for one in said[i]}))
    code = {one: number for number, one in enumerate(alphabet)}
    values: dict[str, list[Tensor]] = {}
    for part, at in parts.items():
        for i in at.tolist():
            if strange := sorted(set(said[i]) - set(code)):
                whose = "the checkpoint" if known is not None else "the training split"
                raise DataError(
                    f"{clean(path)}: row {i + 2}, of the {part} split: {whose} never had {listing(list(map(repr, strange)))}",
                    f"it knows: {clean(''.join(alphabet))}",
                    "correct the transcript, or dataset.lowercase: true, or train on recordings that have it",
                )
        values[part] = [torch.tensor([code[one] for one in said[i]], dtype=torch.int64) for i in at.tolist()]
    return Target("text", alphabet), values
