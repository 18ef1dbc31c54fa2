"""A small convolutional network for small images, which trains in minutes on a CPU.

A 2x2 whitening convolution, then three blocks of two convolutions, as in https://arxiv.org/abs/2404.00498 section 3.1, but
with ordinary batch norm.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.backbones._images import assumed as assumed
from fmeco.backbones._images import image_input
from fmeco.core import Backbone, ConfigError, DataSpec, Doc, Features, Inputs, map_size, resample
from fmeco.core.feature_maps import STRIDES

FLOOR = 5e-4  # added to the variances of patches, so that directions of almost no variance are not amplified

FINETUNE_LR = 5e-4  # small networks that little was learned by: they have to change more than a published one


def build(
    spec: DataSpec,
    *,
    widths: Annotated[list[int], Doc("channels of each block; each block halves height and width")] = [64, 256, 256],
    identity: Annotated[bool, Doc("initialise convolutions as identities (section 3.3 of the paper)")] = True,
    whiten: Annotated[
        bool, Doc("fit the first layer to whiten patches of the training images, and freeze its weights (section 3.2)")
    ] = True,
) -> Backbone:
    name, (channels, height, width) = image_input(spec, "cnn")
    if not widths or min(widths) < 1:
        raise ConfigError(f"backbone.widths: expected a list of positive numbers, got {widths}")
    if min(height, width) - 1 < 2 ** len(widths):
        raise ConfigError(f"backbone.widths: {len(widths)} blocks are too many for inputs of {height}x{width}")
    return CNN(name, channels, widths, identity, whiten)


class CNN(Backbone):
    """Compute features of images or spectrograms (B, C, H, W): pooled (B, widths[-1])."""

    def __init__(self, name: str, channels: int, widths: list[int], identity: bool, whiten: bool) -> None:
        super().__init__()
        self.input = name
        first = 8 * channels  # the 4 * C whitened numbers of a 2x2 patch, and their negatives
        layers: list[nn.Module] = [Whitening(channels) if whiten else nn.Conv2d(channels, first, 2), nn.GELU()]
        self.ends: dict[int, int] = {}  # stride -> number of layers up to the end of the block that has it
        for number, (before, after) in enumerate(zip([first, *widths[:-1]], widths, strict=True), 1):
            layers += [_convolution(before, after, identity), nn.MaxPool2d(2), nn.BatchNorm2d(after), nn.GELU()]
            layers += [_convolution(after, after, identity), nn.BatchNorm2d(after), nn.GELU()]
            self.ends[2**number] = len(layers)
        self.layers = nn.Sequential(*layers)
        self.width = widths[-1]
        self.map_strides = tuple(stride for stride in STRIDES if stride in self.ends) or (2,)
        used = self.ends[self.map_strides[-1]]
        self.unmapped = tuple(f"layers.{name}" for name, _ in self.layers[used:].named_parameters())
        self.map_widths = tuple(widths[stride.bit_length() - 2] for stride in self.map_strides)

    def forward(self, inputs: Inputs) -> Features:
        return Features(pooled=self.layers(inputs[self.input]).amax((2, 3)))  # (B, D)

    def mapped(self, inputs: Inputs) -> Features:
        x = self.layers(inputs[self.input])  # (B, D, h, w)
        return Features(x.amax((2, 3)), x.flatten(2).transpose(1, 2), grid=(x.shape[2], x.shape[3]))

    def maps(self, inputs: Inputs) -> list[Tensor]:
        x = image = inputs[self.input]
        maps, done = [], 0
        for stride in self.map_strides:
            x, done = self.layers[done : self.ends[stride]](x), self.ends[stride]
            # The whitening has no padding, and blocks round down.
            maps.append(resample(x, map_size(image.shape[2], image.shape[3], stride)))
        return maps

    def calibrate(self, inputs: Inputs) -> None:
        if isinstance(self.layers[0], Whitening):
            self.layers[0].fit(inputs[self.input])


class Whitening(nn.Module):
    """Whiten 2x2 patches of images, (B, C, H, W) -> (B, 8 * C, H - 1, W - 1).

    The output is the coordinates of each patch along the principal axes of training patches, scaled to unit variance, and
    their negatives, plus a bias. Only the bias is trained.
    """

    weight: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        axes = torch.eye(4 * channels).view(-1, channels, 2, 2)
        self.register_buffer("weight", torch.cat([axes, -axes]))
        self.bias = nn.Parameter(torch.zeros(8 * channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight, self.bias)

    def fit(self, images: torch.Tensor) -> None:
        """Compute the whitening weights from images (B, C, H, W)."""
        patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1).double()  # (N, 4 * C)
        values, axes = torch.linalg.eigh(patches.T @ patches / len(patches))
        # The sign of an axis is arbitrary and differs between machines: make its largest entry positive.
        axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
        rows = (axes / (values + FLOOR).sqrt()).T.view(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([rows, -rows]))


def _convolution(before: int, after: int, identity: bool) -> nn.Conv2d:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    if identity:
        with torch.no_grad():
            nn.init.dirac_(convolution.weight[:before])
    return convolution
