"""Define how ids are numbered: padding, items of event sequences, tokens of a tokenizer."""

from __future__ import annotations

from typing import Any

# Ids of items in event sequences: 0 = padding, 1 = an item that training did not see, 2 and up = items seen in training.
UNKNOWN_ITEM, FIRST_ITEM = 1, 2


def numbering(tokenizer: Any) -> tuple[int, int]:
    """Return the number of ids of a tokenizer (package `tokenizers`), and the offset that is added to ids when stored.

    Batches are padded with 0. So the offset is 0 if id 0 is the tokenizer's padding token, else 1. The number of ids may
    include unused ones.
    """
    count = 1 + max(tokenizer.get_vocab().values(), default=0)
    return count, 0 if tokenizer.id_to_token(0) in ("[PAD]", "<pad>", "<|padding|>") else 1
