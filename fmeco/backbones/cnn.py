"""A small convolutional network for small images, that learns in minutes on a CPU.

Three blocks of two convolutions after a 2x2 one, as in https://arxiv.org/abs/2404.00498 section 3.1, with ordinary batch
norm and without the whitening of the first layer.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from fmeco.core import Backbone, ConfigError, DataSpec, Doc, Features, Inputs


def build(
    spec: DataSpec,
    *,
    widths: Annotated[list[int], Doc("channels of each block; a block halves the image")] = [64, 256, 256],
    identity: Annotated[bool, Doc("convolutions begin by passing on what they get (section 3.3)")] = True,
) -> Backbone:
    if "image" not in spec.inputs:
        raise ConfigError(f"the backbone cnn takes images; this dataset has {', '.join(spec.inputs)}")
    channels, height, width = spec.inputs["image"].shape
    if not widths or min(widths) < 1:
        raise ConfigError(f"backbone.widths: the blocks' channels must be positive, got {widths}")
    if min(height, width) - 1 < 2 ** len(widths):
        raise ConfigError(f"backbone.widths: {len(widths)} blocks are too many for images of {height}x{width} pixels")
    return CNN(channels, widths, identity)


class CNN(Backbone):
    """images (B, C, H, W) -> pooled (B, widths[-1])."""

    def __init__(self, channels: int, widths: list[int], identity: bool) -> None:
        super().__init__()
        first = 8 * channels  # a 2x2 patch has 4 * C numbers; each of them and its negative
        layers: list[nn.Module] = [nn.Conv2d(channels, first, 2), nn.GELU()]
        for before, after in zip([first, *widths[:-1]], widths, strict=True):
            layers += [_convolution(before, after, identity), nn.MaxPool2d(2), nn.BatchNorm2d(after), nn.GELU()]
            layers += [_convolution(after, after, identity), nn.BatchNorm2d(after), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.width = widths[-1]

    def forward(self, inputs: Inputs) -> Features:
        return Features(pooled=self.layers(inputs["image"]).amax((2, 3)))  # (B, D)


def _convolution(before: int, after: int, identity: bool) -> nn.Conv2d:
    made = nn.Conv2d(before, after, 3, padding=1, bias=False)
    if identity:
        with torch.no_grad():
            nn.init.dirac_(made.weight[:before])
    return made
