"""Read transcripts, and encode them as characters of an alphabet that is taken from the training split."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fmeco.core import ConfigError, DataError, Target, clean, listing
from fmeco.datasets._splits import Indices


def transcripts(columns: Mapping[str, Sequence[str]], path: str, lowercase: bool) -> list[str]:
    """Read the transcripts of the label column, in Unicode's composed form (NFC), with single spaces between words.

    Only an empty cell counts as missing: "none" and "na" are words.
    Raises ConfigError for several columns, DataError that names the rows without a transcript.
    """
    if len(columns) != 1:
        raise ConfigError(
            "dataset.label_column: several columns are named, and dataset.task: text learns only one", "name one column"
        )
    (column,) = columns.values()
    texts = [" ".join(unicodedata.normalize("NFC", text).split()) for text in column]
    if blank := [row for row, text in enumerate(texts, 2) if not text]:
        raise DataError(
            f"{clean(path)}: no transcript in row {listing(blank)}", "fill in the transcript, or remove the row"
        )
    return [text.lower() for text in texts] if lowercase else texts


def encode(
    texts: Sequence[str], parts: Mapping[str, Indices], known: Target | None, path: str
) -> tuple[Target, dict[str, list[Tensor]]]:
    """Encode transcripts as positions (L_i,) of their characters in the alphabet. Returns (target, split -> transcripts).

    The alphabet is that of the checkpoint (`known`), else the sorted characters of the first split, which is training.
    Raises DataError for characters of other splits that are not in the alphabet: they could never be recognised.
    """
    first = next(iter(parts.values()))
    alphabet = (
        known.classes if known is not None else tuple(sorted({char for i in first.tolist() for char in texts[i]}))
    )
    code = {char: number for number, char in enumerate(alphabet)}
    values: dict[str, list[Tensor]] = {}
    for part, at in parts.items():
        for i in at.tolist():
            if strange := sorted(set(texts[i]) - set(code)):
                whose = "the checkpoint" if known is not None else "the training split"
                raise DataError(
                    f"{clean(path)}: row {i + 2}, in the {part} split: {whose} has no character {listing(list(map(repr, strange)))}",
                    f"its characters: {clean(''.join(alphabet))}",
                    "correct the transcript, set dataset.lowercase: true, or add recordings with this character to training",
                )
        values[part] = [torch.tensor([code[char] for char in texts[i]], dtype=torch.int64) for i in at.tolist()]
    return Target("text", alphabet), values
