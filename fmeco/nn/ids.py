"""Conventions of ids: padding, items of events, tokenizers."""

from __future__ import annotations

from typing import Any

# Ids of events: of an item that training did not see, and the first that it did; 0 is padding.
UNKNOWN_ITEM, FIRST_ITEM = 1, 2


def numbering(tokenizer: Any) -> tuple[int, int]:
    """Count the ids of a tokenizer of the package tokenizers (some numbers may stand for nothing), and give the offset
    that they are stored with: batches are filled up with 0, which must not be a word of the text."""
    count = 1 + max(tokenizer.get_vocab().values(), default=0)
    return count, 0 if tokenizer.id_to_token(0) in ("[PAD]", "<pad>", "<|padding|>") else 1
