"""Compute the sizes that images are resized to, fill images up to a square, and map places of an image and of its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from fmeco.core import Form, geometry


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


class Place(NamedTuple):
    """Say where the picture of a file lies in the image that is made of it (`_images.canonical`), and how large both are.

    file: height and width of the picture, upright.
    picture: height and width that it is resized to.
    image: height and width of the image: those of the picture, or of a square around it.
    """

    file: tuple[int, int]
    picture: tuple[int, int]
    image: tuple[int, int]

    @staticmethod
    def of(width: int, height: int, prep: Mapping[str, Any]) -> Place:
        """Find the place of a picture of this size by the keys of a spec's preprocessing."""
        fit, side = prep.get("fit", "crop"), int(prep["resize"])
        picture = resized(width, height, side, fit, prep.get("decode", 1) == 1)
        return Place((height, width), picture, (side, side) if fit == "letterbox" else picture)

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of the picture's first pixel."""
        return (self.image[0] - self.picture[0]) // 2, (self.image[1] - self.picture[1]) // 2

    def forth(self, x: Tensor, form: Form) -> Tensor:
        """Map a mask (H, W), or boxes (n, 5) or points (n, 3) of the file, to the image."""
        (top, left), (height, width) = self.corner, self.image
        return geometry.cropped(geometry.resized(x, form, self.file, self.picture), form, -top, -left, height, width)

    def back(self, x: Tensor, form: Form) -> Tensor:
        """Map an answer on the image to the file."""
        (top, left), (height, width) = self.corner, self.picture
        return geometry.resized(geometry.cropped(x, form, top, left, height, width), form, self.picture, self.file)
