"""Build models of transformers that read text, and read the tokenizer that comes with them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from fmeco.backbones._hf_body import Body
from fmeco.backbones._hf_config import network
from fmeco.backbones._hf_published import local_file, place
from fmeco.core import BLANK, HIDDEN, Backbone, ConfigError, DataSpec, Features, Inputs, InputSpec, Tokens, clean
from fmeco.nn.ids import numbering

LENGTH = 128  # most tokens of a text, where the config does not say


class Text(Body):
    """Ids (B, T), stored with an offset, 0 = padding -> tokens (B, T, D), mask (B, T), pooled (B, D)."""

    def __init__(self, net: nn.Module, pooling: str, offset: int, padding: int) -> None:
        super().__init__(net, pooling)
        self.width, self.offset, self.padding = int(net.config.hidden_size), offset, padding  # type: ignore[union-attr, arg-type]

    def forward(self, inputs: Inputs) -> Features:
        mask = inputs["tokens"].ne(0)  # (B, T)
        ids = torch.where(mask, inputs["tokens"] - self.offset, self.padding)
        given = {"input_ids": ids}
        if HIDDEN in inputs:
            x = self.net.get_input_embeddings()(ids)  # type: ignore[operator]  # (B, T, D)
            given = {"inputs_embeds": torch.where(inputs[HIDDEN].unsqueeze(-1), inputs[BLANK].to(x.dtype), x)}
        out = self.net(**given, attention_mask=mask.long())
        x = out.last_hidden_state
        if self.pooling == "mean":
            return Features(tokens=x, mask=mask)
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            last = mask.sum(1).sub(1).clamp_min(0)  # (B,)
            pooled = x[torch.arange(len(x), device=x.device), last] if self.causal else x[:, 0]
        return Features(pooled=pooled, tokens=x, mask=mask)

    def tokenize(self, inputs: Inputs) -> Tokens:
        return Tokens(inputs["tokens"].ne(0), ids=inputs["tokens"])

    def scores(self, tokens: Tensor) -> Tensor:
        found = nn.functional.linear(tokens, self.net.get_input_embeddings().weight)  # type: ignore[operator]
        return nn.functional.pad(found, (self.offset, 0))  # padding is never to be guessed


def build(config: Any, spec: DataSpec, pooling: str, where: str) -> Backbone:
    """Build a model for the texts of a dataset. Raises ConfigError for a tokenizer that is not the model's."""
    if "tokens" not in spec.inputs or spec.modality == "events":
        what = "events" if spec.modality == "events" else ", ".join(spec.inputs)
        raise ConfigError(f"the backbone {where} takes text; this dataset has {what}")
    one, count = spec.inputs["tokens"], int(spec.preprocessing["ids"])
    if count - one.offset != config.vocab_size:
        raise ConfigError(
            f"{where} has embeddings of {config.vocab_size} ids, and the tokenizer has {count - one.offset}",
            "backbone.weights: DEFAULT brings the model's own tokenizer, dataset.tokenizer: FILE another",
            f"to train from scratch with this one: backbone.options: {{vocab_size: {count - one.offset}}}",
        )
    blank = getattr(config, "pad_token_id", None)
    padding = blank if isinstance(blank, int) and 0 <= blank < config.vocab_size else 0
    made = Text(network(config, "text"), pooling, one.offset, padding)
    with torch.no_grad():
        made({"tokens": torch.full((1, one.shape[0]), count - 1)})  # some refuse a length only when they run
        ids = 1 + torch.arange(min(8, one.shape[0]))[None] % (count - 1)  # (1, T)
        other = torch.cat([ids[:, :-1], 1 + ids[:, -1:] % (count - 1)], 1)
        x, y = (made({"tokens": tokens}).tokens for tokens in (ids, other))
        assert x is not None and y is not None
        made.causal = torch.equal(x[:, :-1], y[:, :-1])
        # A width of embeddings that is not that of tokens has no room for what is shown in place of a hidden one.
        if made.net.get_input_embeddings().weight.shape[1] == made.width:  # type: ignore[operator]
            made.vocabulary = count
    return made.train()


def preprocessing(arch: str, config: Any) -> DataSpec:
    """Read the model's own tokenizer. Raises ConfigError where it is not the model's."""
    path = local_file(arch, "tokenizer.json")
    if path is None:  # then the dataset names one
        return DataSpec("text", {}, reader="text")
    where = clean(place(arch, "tokenizer.json"))
    try:
        described = path.read_text("utf-8")
        count, offset = numbering(importlib.import_module("tokenizers").Tokenizer.from_str(described))
    except Exception as error:  # the library raises nothing more special
        raise ConfigError(f"{where}: not a tokenizer of the package tokenizers: {clean(error)}") from None
    if count > config.vocab_size:
        raise ConfigError(f"{where} has {count} ids, and the model has embeddings of {config.vocab_size}")
    how = {
        "tokenizer": described,
        "ids": config.vocab_size + offset,  # some models have more embeddings than words, for round numbers
        "vocabulary": None,
        "lowercase": None,
        "length": min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH),
    }
    return DataSpec(
        "text", {"tokens": InputSpec((how["length"],), "int64", ragged=True, offset=offset)}, {}, how, "text"
    )
