"""PointNet without its spatial transformers: one network for every point, then the maximum. https://arxiv.org/abs/1612.00593"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from fmeco.core import Backbone, ConfigError, DataSpec, Doc, Features, Gt, Inputs

KIND = "backbone"


class PointNet(Backbone):
    def __init__(self, coordinates: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.points = nn.Sequential(
            nn.Linear(coordinates, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, inputs: Inputs) -> Features:
        points = inputs["points"]
        mask = (points != 0).any(-1)  # (B, N): the rows of padding are 0
        tokens = self.points(points)  # (B, N, D)
        lowest = torch.finfo(tokens.dtype).min
        return Features(pooled=tokens.masked_fill(~mask[..., None], lowest).amax(1), tokens=tokens, mask=mask)


def build(spec: DataSpec, *, width: Annotated[int, Doc("features of a point"), Gt(0)] = 32) -> Backbone:
    if "points" not in spec.inputs:
        raise ConfigError("the backbone pointnet takes clouds of points")
    return PointNet(spec.inputs["points"].shape[1], width)
