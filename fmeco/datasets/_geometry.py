"""Compute the sizes that images are resized to, and fill images up to a square."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor


def resized(width: int, height: int, side: int, fit: str, first_rule: bool) -> tuple[int, int]:
    """Return the size (h, w) that an image is resized to.

    side: length of its short side (crop), of its long side (letterbox), or of both (squash).
    first_rule: version 1 of the decode rule.
    """
    short, long = min(width, height), max(width, height)
    if fit == "squash":
        return side, side
    if fit == "letterbox":  # as timm does
        ratio = long / side
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    if first_rule:
        scale = side / short
        return max(side, round(height * scale)), max(side, round(width * scale))
    return int(side * height / short), int(side * width / short)  # as torchvision and timm do


def least(width: int, height: int, side: int, fit: str, first_rule: bool) -> tuple[int, int]:
    """Return the size (w, h) below which a JPEG is not decoded: twice the size that it is resized to."""
    if first_rule:
        return side, side
    if fit == "letterbox":
        h, w = resized(width, height, side, fit, first_rule)
        return 2 * w, 2 * h
    return 2 * side, 2 * side


def boxed(pixels: Tensor, side: int, background: Sequence[int]) -> Tensor:
    """Put an image (C, h, w) into the middle of a square of one colour, (C, side, side).

    background: [red, green, blue], of which an image of one channel gets the brightness.
    """
    channels, height, width = pixels.shape
    colour = list(background)
    if channels == 1:
        colour = list(Image.new("RGB", (1, 1), tuple(colour)).convert("L").tobytes())
    box = torch.tensor(colour, dtype=pixels.dtype).view(-1, 1, 1).repeat(1, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    box[:, top : top + height, left : left + width] = pixels
    return box
