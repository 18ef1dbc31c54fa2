"""Define the small decoder that reconstructs masked patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fmeco.core import Backbone

HEADS = 4


class Decoder(nn.Module):
    """Compute features of all tokens from those of the visible ones. https://arxiv.org/abs/2111.06377 section 3

    `forward(seen, hidden)`: features of the visible tokens (B, K, D) and the mask of the hidden ones (B, T) -> (B, T, D / 2).
    """

    def __init__(self, backbone: Backbone, depth: int) -> None:
        super().__init__()
        self.width = max(HEADS, backbone.width // 2 // HEADS * HEADS)
        self.enter = nn.Linear(backbone.width, self.width)
        self.blank = nn.Parameter(torch.randn(self.width) / math.sqrt(self.width))
        self.positions = nn.Parameter(torch.randn(backbone.tokens, self.width) / math.sqrt(self.width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                self.width, HEADS, 4 * self.width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(self.width)

    def forward(self, seen: Tensor, hidden: Tensor) -> Tensor:
        x = self.enter(seen)
        tokens = self.blank.to(x.dtype).expand(*hidden.shape, -1)
        x = tokens.masked_scatter(~hidden[..., None], x) + self.positions
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x)
        return features
