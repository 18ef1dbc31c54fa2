"""A transformer for text, events, tables, images and series: one body, and a stem for what the data is made of.

Pre-norm blocks (https://arxiv.org/abs/2002.04745). A stem says what tokens are made of: ids of text or items, columns of a table
(https://arxiv.org/abs/2106.11959), patches of an image or spectrogram (https://arxiv.org/abs/2010.11929), or of a series
(https://arxiv.org/abs/2211.14730).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.backbones._images import assumed as assumed
from fmeco.backbones._stems import Columns, Ids, Patches, Stem, Steps
from fmeco.core import BLANK, HIDDEN, Backbone, ConfigError, DataSpec, Doc, Features, Ge, Gt, Inputs, Lt, Tokens

BASE = 10000.0  # of the rotations' wavelengths


def build(
    spec: DataSpec,
    *,
    width: Annotated[int, Doc("of a token"), Gt(0)] = 128,
    depth: Annotated[int, Doc("blocks"), Gt(0)] = 4,
    heads: Annotated[int, Doc("of attention; they share the width"), Gt(0)] = 4,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
    causal: Annotated[bool, Doc("a token sees only those before it, as objective next needs")] = False,
    positions: Annotated[
        Literal["rotary", "learned"] | None, Doc("null = rotary for text, learned for patches; columns have none")
    ] = None,
    patch: Annotated[
        int | list[int] | None,
        Doc("side of a patch, or [height, width]; images need it. Of series its steps; null = 16"),
    ] = None,
) -> Backbone:
    if width % heads or width // heads % 2:
        raise ConfigError(f"backbone.heads: a width of {width} is not {heads} times an even number")
    if causal and "tokens" not in spec.inputs:
        raise ConfigError("backbone.causal: only text and events are read in one direction")
    if "series" not in spec.inputs and (patch is not None) != _is_image(spec):
        raise ConfigError(
            "backbone.patch: the side of a patch of an image, which images need and nothing else but series takes"
        )
    stem: Stem
    if "tokens" in spec.inputs:
        stem = Ids(spec, width)
    elif _is_image(spec):
        stem = Patches(spec, width, [patch, patch] if isinstance(patch, int) else list(patch or ()))
    elif set(spec.inputs) == {"series"}:
        stem = Steps(spec, width, 16 if patch is None else patch)
    elif spec.inputs and set(spec.inputs) <= {"columns", "categories"}:
        if positions is not None:
            raise ConfigError("backbone.positions: the columns of a table have no order")
        stem = Columns(spec, width)
    else:
        raise ConfigError(
            f"the backbone transformer takes text, events, tables, images or series; this dataset has {', '.join(spec.inputs)}"
        )
    if positions is None:
        positions = "rotary" if isinstance(stem, Ids) else None if isinstance(stem, Columns) else "learned"
    return Transformer(stem, width, depth, heads, dropout, causal, positions)


def _is_image(spec: DataSpec) -> bool:
    return len(spec.inputs) == 1 and len(next(iter(spec.inputs.values())).shape) == 3


class Transformer(Backbone):
    """Inputs -> tokens (B, T, D). Padding is at the end, and changes nothing before it."""

    def __init__(
        self, stem: Stem, width: int, depth: int, heads: int, dropout: float, causal: bool, positions: str | None
    ) -> None:
        super().__init__()
        self.stem, self.width, self.causal, self.dropout = stem, width, causal, dropout
        self.vocabulary, self.numbers, self.grid = stem.vocabulary, stem.numbers, stem.grid
        self.tokens = stem.length if stem.grid is not None else 0
        self.positions = nn.Parameter(torch.zeros(stem.length, width)) if positions == "learned" else None
        self.blocks = nn.ModuleList(Block(width, heads, dropout, causal) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        angles = rotations(stem.length, width // heads) if positions == "rotary" else None
        self.register_buffer("angles", angles, persistent=False)
        for name, p in self.named_parameters():
            if p.ndim > 1:  # (outputs, inputs) of a layer, (ids, D) of embeddings: what they make is of size 1
                # What is added to the residual stream, twice in each block, is scaled so that its sum keeps its size.
                added = 2 * depth if name.endswith("out.weight") else 1
                nn.init.normal_(p, std=1 / math.sqrt(p.shape[1] * added))
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    angles: Tensor | None

    def forward(self, inputs: Inputs) -> Features:
        x, place = self.stem(inputs)  # (B, T, D), (T, D) or None
        if BLANK in inputs:
            x = torch.where(inputs[HIDDEN].unsqueeze(-1), inputs[BLANK].to(x.dtype), x)
        if place is not None:
            x = x + place
        length = x.shape[1]
        if self.positions is not None:
            x = x + self.positions[:length]
        left_out = HIDDEN in inputs and BLANK not in inputs
        if left_out:  # as many of each sample
            x = x[~inputs[HIDDEN]].view(len(x), -1, self.width)
        x = F.dropout(x, self.dropout, self.training)
        mask = self.stem.mask(inputs)
        # What comes later is not seen by a causal model, and padding comes last.
        seen = None if mask is None or self.causal else mask[:, None, None]  # (B, 1, 1, T)
        angles = None if self.angles is None else self.angles[:, :length]
        for block in self.blocks:
            x = block(x, seen, angles)
        return Features(tokens=self.norm(x), mask=mask, grid=None if left_out else self.grid)

    def tokenize(self, inputs: Inputs) -> Tokens:
        return self.stem.tokenize(inputs)

    def scores(self, tokens: Tensor) -> Tensor:
        assert self.stem.embedding is not None
        return F.linear(tokens, self.stem.embedding.weight)

    def embedded(self, ids: Tensor) -> Tensor:
        assert self.stem.embedding is not None
        found: Tensor = self.stem.embedding(ids)
        return found

    def depth_of(self, name: str) -> int:
        first, _, rest = name.partition(".")
        if first == "blocks":
            return 1 + int(rest.partition(".")[0])
        return 0 if first in ("stem", "positions") else 1 + len(self.blocks)

    def adapt(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Learned positions of longer samples serve shorter ones; those of series are counted from the newest patch back, and
        what is older than any before is where the oldest was. Items keep their ids when new ones are appended: these start
        afresh."""
        changed: dict[str, Tensor] = {}
        theirs, mine = state.get("positions"), self.positions
        if mine is not None and self.grid is None and theirs is not None and len(theirs) != len(mine):
            if isinstance(self.stem, Steps):
                older = theirs[:1].expand(max(0, len(mine) - len(theirs)), -1)
                changed["positions"] = torch.cat([older, theirs])[-len(mine) :]
            elif len(theirs) > len(mine):
                changed["positions"] = theirs[: len(mine)]
        name = "stem.embedding.weight"
        if self.stem.grows and self.stem.embedding is not None and name in state:
            own, theirs = self.stem.embedding.weight.detach(), state[name]
            if theirs.shape[1:] == own.shape[1:] and len(theirs) < len(own):
                changed[name] = torch.cat([theirs, own[len(theirs) :].to(theirs)])
        return {**state, **changed}, list(changed)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, seen: Tensor | None, angles: Tensor | None) -> Tensor:
        rate = self.dropout if self.training else 0.0
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, d)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        mixed = F.scaled_dot_product_attention(q, k, v, seen, rate, is_causal=self.causal)
        x = x + F.dropout(self.attention_out(mixed.transpose(1, 2).flatten(2)), rate, self.training)
        inner = F.gelu(self.mlp_in(self.norm2(x)))
        return x + F.dropout(self.mlp_out(inner), rate, self.training)


def rotations(length: int, size: int) -> Tensor:
    """Cosine and sine of the angle of each position and pair of coordinates (2, T, d / 2)."""
    speed = BASE ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * speed
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn pairs of coordinates of queries or keys (B, heads, T, d) by an angle proportional to the position: products of
    two of them then depend on how far apart they are alone. https://arxiv.org/abs/2104.09864 equation (34)."""
    cos, sin = angles.to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
