"""Build text models of transformers, and read their tokenizers."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from fmeco.backbones._hf_body import Body, Pooling
from fmeco.backbones._hf_config import network
from fmeco.backbones._hf_published import local_file, place
from fmeco.backbones._hf_sentence import read_limits
from fmeco.core import (
    BLANK,
    HIDDEN,
    Backbone,
    ConfigError,
    DataSpec,
    Features,
    Inputs,
    InputSpec,
    Tokens,
    clean,
    library_errors,
)
from fmeco.nn.ids import numbering

LENGTH = 128  # default maximum number of tokens per text


class Text(Body):
    """Compute features of ids (B, T): tokens (B, T, D), mask (B, T) and pooled (B, D).

    offset: added to the tokenizer's ids in the inputs, so that 0 is padding.
    padding: the network's own id for padding.
    """

    def __init__(self, net: nn.Module, pooling: Pooling, offset: int, padding: int) -> None:
        super().__init__(net, pooling)
        self.width, self.offset, self.padding = int(net.config.hidden_size), offset, padding  # type: ignore[union-attr, arg-type]

    def forward(self, inputs: Inputs) -> Features:
        mask = inputs["tokens"].ne(0)  # (B, T)
        ids = torch.where(mask, inputs["tokens"] - self.offset, self.padding)
        arguments = {"input_ids": ids}
        if HIDDEN in inputs:
            x = self.net.get_input_embeddings()(ids)  # type: ignore[operator]  # (B, T, D)
            arguments = {"inputs_embeds": torch.where(inputs[HIDDEN].unsqueeze(-1), inputs[BLANK].to(x.dtype), x)}
        out = self.net(**arguments, attention_mask=mask.long())
        x = out.last_hidden_state
        if self.pooling == Pooling("mean"):
            return Features(tokens=x, mask=mask)
        pooled = self._pooled(x, mask, getattr(out, "pooler_output", None))
        return Features(
            pooled=nn.functional.normalize(pooled) if self.pooling.normalize else pooled, tokens=x, mask=mask
        )

    def _pooled(self, x: Tensor, mask: Tensor, own: Tensor | None) -> Tensor:
        """Turn tokens (B, T, D) into vectors (B, D). own: what the network's own pooler gave."""
        by = self.pooling.by
        if by == "model" and own is not None:
            return own
        if by == "mean":
            return Features(tokens=x, mask=mask).vector
        if by == "max":
            return x.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)
        if by == "last" or (by == "model" and self.causal):
            last = mask.sum(1).sub(1).clamp_min(0)  # (B,)
            return x[torch.arange(len(x), device=x.device), last]
        return x[:, 0]

    def tokenize(self, inputs: Inputs) -> Tokens:
        return Tokens(inputs["tokens"].ne(0), ids=inputs["tokens"])

    def scores(self, tokens: Tensor) -> Tensor:
        scores = nn.functional.linear(tokens, self.net.get_input_embeddings().weight)  # type: ignore[operator]
        return nn.functional.pad(scores, (self.offset, 0))  # id 0, padding, is never a target


def build(config: Any, spec: DataSpec, pooling: Pooling, where: str) -> Backbone:
    """Build a model for the texts of a dataset. Raises ConfigError if the tokenizer's ids do not match the embeddings."""
    if "tokens" not in spec.seen or spec.modality == "events":
        what = "events" if spec.modality == "events" else ", ".join(spec.seen)
        raise ConfigError(f"the backbone {where} takes text; this dataset has {what}")
    described, count = spec.seen["tokens"], int(spec.preprocessing["ids"])
    if count - described.offset != config.vocab_size:
        raise ConfigError(
            f"{where} has embeddings of {config.vocab_size} ids, and the tokenizer has {count - described.offset}",
            "use the model's tokenizer: backbone.weights: DEFAULT brings it, or name its file with dataset.tokenizer",
            f"to train from scratch with this tokenizer: backbone.options: {{vocab_size: {count - described.offset}}}",
        )
    blank = getattr(config, "pad_token_id", None)
    padding = blank if isinstance(blank, int) and 0 <= blank < config.vocab_size else 0
    made = Text(network(config, "text"), pooling, described.offset, padding)
    with torch.no_grad():
        made(
            {"tokens": torch.full((1, described.shape[0]), count - 1)}
        )  # some models reject a length only when they run
        ids = 1 + torch.arange(min(8, described.shape[0]))[None] % (count - 1)  # (1, T)
        other = torch.cat([ids[:, :-1], 1 + ids[:, -1:] % (count - 1)], 1)
        x, y = (made({"tokens": tokens}).tokens for tokens in (ids, other))
        assert x is not None and y is not None
        made.causal = torch.equal(x[:, :-1], y[:, :-1])
        # A masked token is replaced by a vector of the tokens' width, so embeddings of another width cannot be masked.
        if made.net.get_input_embeddings().weight.shape[1] == made.width:  # type: ignore[operator]
            made.vocabulary = count
    return made.train()


def _lowercased(content: str) -> str:
    """Add a conversion to lower case to a tokenizer's JSON."""
    tokenizers = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_str(content)
    steps = [tokenizers.normalizers.Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer is not None else [])]
    tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
    return str(tokenizer.to_str())


def preprocessing(arch: str, config: Any) -> DataSpec:
    """Read the model's tokenizer.json. Raises ConfigError if it is invalid or has more ids than the model's embeddings."""
    path = local_file(arch, "tokenizer.json")
    if path is None:  # the dataset's config then has to name a tokenizer
        return DataSpec("text", {}, reader="text")
    where = clean(place(arch, "tokenizer.json"))
    # The library raises plain Exceptions.
    with library_errors(f"{where}: not a valid file of the package tokenizers", Exception, kind=ConfigError):
        content = path.read_text("utf-8")
        count, offset = numbering(importlib.import_module("tokenizers").Tokenizer.from_str(content))
    if count > config.vocab_size:
        raise ConfigError(f"{where} has {count} ids, and the model has embeddings of {config.vocab_size}")
    preparation = {
        "tokenizer": content,
        "ids": config.vocab_size + offset,  # some models have more embeddings than tokens, to round the number up
        "vocabulary": None,
        "lowercase": None,
        "length": min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH),
    }
    limits = read_limits(arch, getattr(config, "max_position_embeddings", None))
    if limits is not None:
        preparation["length"] = limits.length or preparation["length"]
        preparation |= {"prompts": limits.prompts} if limits.prompts else {}
        preparation |= {"prompt": limits.prompt} if limits.prompt else {}
        if limits.lowercase:
            preparation["tokenizer"] = _lowercased(content)
    return DataSpec(
        "text",
        {"tokens": InputSpec((preparation["length"],), "int64", ragged=True, offset=offset)},
        {},
        preparation,
        "text",
    )
