"""Turn texts into ids with a tokenizer, which may be learned from the training split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmeco.core import ConfigError, DataSpec, clean
from fmeco.datasets._documents import Layout
from fmeco.datasets._splits import Indices
from fmeco.nn.ids import numbering

VOCABULARY, LENGTH = 8000, 128

PAD, SEPARATOR = "[PAD]", "[SEP]"  # the first two ids; bytes that are no word of their own are the next 256

TOGETHER = 1024  # texts that are cut into tokens at once


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


class Wanted(NamedTuple):
    """What a config asks of the tokens; None = the checkpoint's, else the default."""

    vocabulary: int | None
    tokenizer: str | None
    lowercase: bool | None
    length: int | None


def separator_id(tokenizer: Any, where: str) -> int:
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
