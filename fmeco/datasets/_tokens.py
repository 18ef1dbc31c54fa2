"""Turn texts into token ids with a tokenizer, which may be learned from the training split."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmeco.core import ConfigError, DataError, DataSpec, clean, decode_rule, library_errors, listing, nearest
from fmeco.datasets._documents import Layout
from fmeco.datasets._splits import Indices
from fmeco.nn.ids import numbering

VOCABULARY, LENGTH = 8000, 128  # defaults: size of the vocabulary, and most tokens per text

PAD, SEPARATOR = "[PAD]", "[SEP]"  # the first two ids of a learned tokenizer; the 256 bytes follow

TOGETHER = 1024  # texts per call of the tokenizer

# Seconds, and characters per second, from which on a tokenizer is taken to hang: a hundredth of the usual speed.
PATIENCE, SLOWEST = 30.0, 10_000


def library() -> Any:
    """Import the package tokenizers, which is optional. Raises ConfigError if it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise ConfigError("text needs the package tokenizers", "pip install 'fmeco[text]'") from None
    return tokenizers


def learn(texts: Iterable[str], vocabulary: int, lowercase: bool) -> str:
    """Train a byte-level BPE tokenizer of at most `vocabulary` ids. Returns its JSON.

    https://arxiv.org/abs/1508.07909 section 3.2; on bytes, as in the GPT-2 report, so that no text has unknown tokens.
    """
    hf = library()
    tokenizer = hf.Tokenizer(hf.models.BPE())
    if lowercase:
        tokenizer.normalizer = hf.normalizers.Lowercase()
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PAD, SEPARATOR],
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def load(description: str, where: str) -> Any:
    """Build a tokenizer from its JSON, without truncation and padding. Raises ConfigError for invalid JSON."""
    hf = library()
    # The library raises plain Exceptions.
    with library_errors(f"{where}: not a valid file of the package tokenizers", Exception, kind=ConfigError):
        tokenizer = hf.Tokenizer.from_str(description)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "[PAD]" in a text is read as five characters
    return tokenizer


class Packed(NamedTuple):
    """Hold the ids of N texts in one array.

    ids: concatenated; text i is ids[ends[i] : ends[i + 1]].
    ends: (N + 1,).
    full: number of tokens of each text before it was cut (N,).
    """

    ids: np.ndarray[Any, Any]
    ends: Indices
    full: Indices


def encode(tokenizer: Any, texts: Sequence[str], length: int | None) -> Packed:
    """Tokenize texts, and cut each to `length` ids, including the special tokens that the tokenizer adds.

    length: None for documents that are to be joined: they are not cut and get no special tokens.
    Raises ConfigError for a length that leaves no room for text, DataError for a tokenizer that fails or never ends.
    """
    count, offset = numbering(tokenizer)
    kind: Any = np.uint16 if count + offset <= 1 << 16 else np.int32
    special = 0 if length is None else tokenizer.num_special_tokens_to_add(False)
    if length is not None and length <= special:
        raise ConfigError(
            f"dataset.length: {length} leaves no room for text besides the tokenizer's {special} special tokens"
        )
    parts: list[np.ndarray[Any, Any]] = []
    full: list[int] = []
    for start in range(0, len(texts), TOGETHER):
        for text in _encoded(tokenizer, list(texts[start : start + TOGETHER])):
            full.append(len(text.ids) + special)
            if length is not None and special and text.ids:
                # Cut before special tokens are added, so that none of them is lost.
                text.truncate(length - special)
                text = tokenizer.post_process(text)
            parts.append(np.array(text.ids[:length], dtype=kind) + kind(offset))
    ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return Packed(np.concatenate(parts) if parts else np.zeros(0, kind), ends, np.array(full, dtype=np.int64))


def _encoded(tokenizer: Any, texts: list[str]) -> Any:
    """Tokenize texts, without special tokens.

    The library runs in a thread of its own: a regular expression of a tokenizer may backtrack for ever, and nothing can
    interrupt it. Raises DataError then, and for a panic inside the library.
    """
    done: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            done.append(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        except BaseException as error:  # raised again below
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)  # a process does not wait for its daemon threads to exit
    thread.start()
    limit = PATIENCE + sum(map(len, texts)) / SLOWEST
    thread.join(limit)
    if thread.is_alive():
        raise DataError(
            f"the tokenizer has not finished {len(texts):,} texts after {limit:.0f} seconds",
            "a regular expression in it may never end on one of them: use another tokenizer",
        )
    with library_errors("the tokenizer fails on these texts", Exception):
        if failed:
            raise failed[0]
    return done[0]


def pieces(packed: Packed, length: int, separator: int) -> Packed:
    """Join all texts, each followed by the separator, and cut them into pieces of `length` ids.

    The remainder is a piece, too, if it has at least two ids.
    """
    joined = np.insert(packed.ids, packed.ends[1:], separator)
    ends = np.arange(0, len(joined) + 1, length)
    if len(joined) - ends[-1] > 1:
        ends = np.append(ends, len(joined))
    return Packed(joined, ends, np.diff(ends))


class Wanted(NamedTuple):
    """Hold the config's keys for the tokenizer and the prompt; None = the checkpoint's, else the default."""

    vocabulary: int | None
    tokenizer: str | None
    lowercase: bool | None
    length: int | None
    prompt: str | None = None
    prompt_name: str | None = None


def separator_id(tokenizer: Any, where: str) -> int:
    """Find the id of the token that separates documents. Raises ConfigError if the tokenizer has none."""
    separator: int | None = next(
        (i for token in (SEPARATOR, "</s>", "<|endoftext|>") if (i := tokenizer.token_to_id(token)) is not None), None
    )
    if separator is None:
        raise ConfigError(
            f"{where}: dataset.pack needs a tokenizer with a separator: {SEPARATOR}, </s> or <|endoftext|>"
        )
    return separator


def preprocessing(known: DataSpec | None, wanted: Wanted, layout: Layout, texts: Iterable[str]) -> dict[str, Any]:
    """Choose the tokenizer and collect the preprocessing of a text dataset.

    The tokenizer is the checkpoint's (`known`), else the file that the config names, else one learned from `texts`, the
    training texts. Published weights may come without a tokenizer.
    In the result, `ids` is the number of ids, and `vocabulary` the number that the config asked for.
    Raises ConfigError for keys that contradict the checkpoint or each other.
    """
    content = (
        Path(wanted.tokenizer).read_text("utf-8") if wanted.tokenizer and Path(wanted.tokenizer).is_file() else None
    )
    if known is not None and "tokenizer" in known.preprocessing:
        prep = {key: value for key, value in known.preprocessing.items() if key not in ("prompt", "prompts")}
        for key, value in (("vocabulary", wanted.vocabulary), ("lowercase", wanted.lowercase), ("tokenizer", content)):
            if value is not None and value != prep[key]:
                raise ConfigError(
                    f"dataset.{key}: differs from the checkpoint's tokenizer, which cannot change",
                    f"leave out dataset.{key}",
                )
        return {**prep, "length": wanted.length or prep["length"], **_places(layout), **_prompts(known, wanted)}
    if wanted.tokenizer is not None:
        if content is None:
            raise ConfigError(f"dataset.tokenizer: {clean(wanted.tokenizer)}: no such file")
        if wanted.vocabulary is not None or wanted.lowercase is not None:
            raise ConfigError(
                "dataset.tokenizer: a tokenizer file has its own vocabulary and lowercase",
                "leave out dataset.vocabulary and dataset.lowercase",
            )
        described, vocabulary, lowercase = content, None, None
    else:
        vocabulary, lowercase = wanted.vocabulary or VOCABULARY, bool(wanted.lowercase)
        described = learn(texts, vocabulary, lowercase)
    return {
        "tokenizer": described,
        "ids": sum(numbering(load(described, "dataset.tokenizer"))),
        "vocabulary": vocabulary,
        "lowercase": lowercase,
        "length": wanted.length or LENGTH,
        "decode": decode_rule(known),
        **_places(layout),
        **_prompts(known, wanted),
    }


def with_prompt(prep: Mapping[str, Any], texts: Iterable[str]) -> list[str]:
    """Put the prompt before each text that is not empty."""
    prompt = prep.get("prompt", "")
    return [prompt + text if text else text for text in texts]


def changes(known: DataSpec | None, prep: Mapping[str, Any]) -> list[str]:
    """Return a note if the prompt differs from the one of the published preprocessing (`known`)."""
    if known is None or (old := known.preprocessing.get("prompt", "")) == (new := prep.get("prompt", "")):
        return []
    return [f"dataset.prompt is {_quoted(new)}, in place of {_quoted(old)} for these weights"]


def _quoted(prompt: str) -> str:
    return f"'{clean(prompt)}'" if prompt else "none"


def _prompts(known: DataSpec | None, wanted: Wanted) -> dict[str, Any]:
    """Return the keys `prompt`, the text before each text, and `prompts`, the named ones of the model; absent = none.

    Raises ConfigError for a name that the model does not have, and for another prompt than a checkpoint's.
    """
    old: Mapping[str, Any] = known.preprocessing if known is not None else {}
    prompts: Mapping[str, str] = old.get("prompts", {})
    prompt, key = old.get("prompt", ""), "prompt"
    if wanted.prompt is not None:
        prompt = wanted.prompt
    if wanted.prompt_name is not None:
        key = "prompt_name"
        if wanted.prompt is not None:
            raise ConfigError("dataset.prompt_name: set either this or dataset.prompt")
        if wanted.prompt_name not in prompts:
            raise ConfigError(
                f"dataset.prompt_name: no prompt '{clean(wanted.prompt_name)}'{nearest(wanted.prompt_name, prompts)}; "
                f"the model has: {listing(prompts) or 'none'}",
                "dataset.prompt: TEXT puts any text before each text",
            )
        prompt = prompts[wanted.prompt_name]
    if known is not None and not known.published and prompt != old.get("prompt", ""):
        raise ConfigError(
            f"dataset.{key}: {_quoted(prompt)}: the checkpoint's texts were prepared with {_quoted(old.get('prompt', ''))}, "
            "which cannot change",
            f"leave dataset.{key} out",
        )
    return {**({"prompts": dict(prompts)} if prompts else {}), **({"prompt": prompt} if prompt else {})}


def _places(layout: Layout) -> dict[str, Any]:
    """Return the keys of the layout that a checkpoint keeps."""
    text = layout.text if isinstance(layout.text, str) else list(layout.text)
    return {"text": text, "columns": list(layout.columns) if layout.columns else None}
