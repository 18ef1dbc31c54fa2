"""A transformer for text, events, tables, images and series, with a stem for each kind of data.

Pre-norm blocks (https://arxiv.org/abs/2002.04745). The stem turns inputs into tokens: ids of text or items, columns of a
table (https://arxiv.org/abs/2106.11959), patches of an image or spectrogram (https://arxiv.org/abs/2010.11929), or patches
of a series (https://arxiv.org/abs/2211.14730).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.backbones._images import assumed as assumed
from fmeco.backbones._stems import Columns, Ids, Patches, Stem, Steps
from fmeco.core import (
    BLANK,
    HIDDEN,
    Backbone,
    ConfigError,
    DataSpec,
    Doc,
    Features,
    Ge,
    Gt,
    Inputs,
    Lt,
    Tokens,
    grid_strides,
)

BASE = 10000.0  # the wavelengths of rotary positions grow from 2 pi to almost 2 pi * BASE

FINETUNE_LR = 5e-4  # small networks that little was learned by: they have to change more than a published one


def build(
    spec: DataSpec,
    *,
    width: Annotated[int, Doc("width of a token"), Gt(0)] = 128,
    depth: Annotated[int, Doc("number of blocks"), Gt(0)] = 4,
    heads: Annotated[int, Doc("attention heads per block; they divide the width"), Gt(0)] = 4,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
    causal: Annotated[bool, Doc("each token attends only to earlier ones, as objective next requires")] = False,
    positions: Annotated[
        Literal["rotary", "learned"] | None,
        Doc("position encoding; null = rotary for text and events, learned for patches; table columns have none"),
    ] = None,
    patch: Annotated[
        int | list[int] | None,
        Doc("patch size: pixels, or [height, width], required for images; steps for series, null = 16"),
    ] = None,
) -> Backbone:
    if width % heads or width // heads % 2:
        raise ConfigError(f"backbone.heads: the width of {width} must be {heads} times an even number")
    if causal and "tokens" not in spec.seen:
        raise ConfigError("backbone.causal: true is for text and events only")
    if "series" not in spec.seen and (patch is not None) != _is_image(spec):
        raise ConfigError(
            "backbone.patch: missing: images need the side of a patch, in pixels"
            if patch is None
            else "backbone.patch: is for images and series only; leave the key out"
        )
    stem: Stem
    if "tokens" in spec.seen:
        stem = Ids(spec, width)
    elif _is_image(spec):
        stem = Patches(spec, width, [patch, patch] if isinstance(patch, int) else list(patch or ()))
    elif set(spec.seen) == {"series"}:
        stem = Steps(spec, width, 16 if patch is None else patch)
    elif spec.seen and set(spec.seen) <= {"columns", "categories"}:
        if positions is not None:
            raise ConfigError("backbone.positions: table columns have no order; leave the key out")
        stem = Columns(spec, width)
    else:
        raise ConfigError(
            f"the backbone transformer takes text, events, tables, images or series; this dataset has {', '.join(spec.seen)}"
        )
    if positions is None:
        positions = "rotary" if isinstance(stem, Ids) else None if isinstance(stem, Columns) else "learned"
    return Transformer(stem, width, depth, heads, dropout, causal, positions)


def _is_image(spec: DataSpec) -> bool:
    """Tell whether the only input is an image or a spectrogram (C, H, W)."""
    return len(spec.seen) == 1 and len(next(iter(spec.seen.values())).shape) == 3


class Transformer(Backbone):
    """Compute tokens (B, T, D) from inputs. Padding is at the end and does not change the real tokens."""

    def __init__(
        self, stem: Stem, width: int, depth: int, heads: int, dropout: float, causal: bool, positions: str | None
    ) -> None:
        super().__init__()
        self.stem, self.width, self.causal, self.dropout = stem, width, causal, dropout
        self.vocabulary, self.numbers, self.grid = stem.vocabulary, stem.numbers, stem.grid
        self.tokens = stem.length if stem.grid is not None else 0
        if isinstance(stem, Patches):
            self.map_strides = grid_strides(max(stem.patch))
            self.map_widths = (width,) * len(self.map_strides)
        self.positions = nn.Parameter(torch.zeros(stem.length, width)) if positions == "learned" else None
        self.blocks = nn.ModuleList(Block(width, heads, dropout, causal) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        angles = rotations(stem.length, width // heads) if positions == "rotary" else None
        self.register_buffer("angles", angles, persistent=False)
        for name, p in self.named_parameters():
            if p.ndim > 1:  # (outputs, inputs) of a layer, (ids, D) of embeddings: scaled to outputs of size 1
                # Each block adds to the residual stream twice; scaled so that the sum over all blocks keeps its size.
                added = 2 * depth if name.endswith("out.weight") else 1
                nn.init.normal_(p, std=1 / math.sqrt(p.shape[1] * added))
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    angles: Tensor | None

    def forward(self, inputs: Inputs) -> Features:
        x, identity = self.stem(inputs)  # (B, T, D), (T, D) or None
        if BLANK in inputs:
            x = torch.where(inputs[HIDDEN].unsqueeze(-1), inputs[BLANK].to(x.dtype), x)
        if identity is not None:
            x = x + identity
        length = x.shape[1]
        if self.positions is not None:
            x = x + self.positions[:length]
        left_out = HIDDEN in inputs and BLANK not in inputs
        if left_out:  # drop the masked tokens: each sample has the same number of them
            x = x[~inputs[HIDDEN]].view(len(x), -1, self.width)
        x = F.dropout(x, self.dropout, self.training)
        mask = self.stem.mask(inputs)
        # A causal model needs no mask: padding comes last, and it does not attend to later tokens.
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
        embeddings: Tensor = self.stem.embedding(ids)
        return embeddings

    def depth_of(self, name: str) -> int:
        first, _, rest = name.partition(".")
        if first == "blocks":
            return 1 + int(rest.partition(".")[0])
        return 0 if first in ("stem", "positions") else 1 + len(self.blocks)

    def adapt(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Fit learned positions and item embeddings of a checkpoint to this model.

        Positions: cut to the length of this model. Those of a series are aligned at the newest patch; patches older than the
        checkpoint's oldest reuse its position.
        Items: keep their ids and embeddings; items that were appended keep their new, random embeddings.
        """
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
    """Apply x + attention(norm(x)), then x + mlp(norm(x)): (B, T, D) -> (B, T, D)."""

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
    """Compute cosine and sine of the rotation angle of each position and pair of coordinates (2, T, d / 2)."""
    speed = BASE ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * speed
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate pairs of coordinates of queries or keys (B, heads, T, d) by an angle proportional to the position.

    The product of a query and a key then depends only on the distance of their positions.
    https://arxiv.org/abs/2104.09864 equation (34).
    """
    cos, sin = angles.to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
