"""Compute the sizes of feature maps, and resample them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

STRIDES = (4, 8, 16, 32)  # of the maps that heads for segmentation and detection usually take


def map_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Return (ceil(height / stride), ceil(width / stride)): the size of a feature map."""
    return -(-height // stride), -(-width // stride)


def grid_strides(patch: int) -> tuple[int, ...]:
    """Return the strides of a pyramid that is made of one grid of tokens. patch: side of a token's patch.

    The grid is enlarged at most four times, as in https://arxiv.org/abs/2203.16527 section 3.
    """
    return tuple(stride for stride in STRIDES if 4 * stride >= patch)


def resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Change the size of maps, (B, C, h, w) -> (B, C, *size): average where it shrinks, interpolate bilinearly where it grows."""
    small = min(x.shape[2], size[0]), min(x.shape[3], size[1])
    if small != x.shape[2:]:
        x = F.adaptive_avg_pool2d(x, small)
    if small != size:
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
    return x
