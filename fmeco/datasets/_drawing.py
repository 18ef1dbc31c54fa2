"""Draw images with what lies on them: masks in colours, boxes with the names of their classes, points."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fmeco.core import IGNORED, DataSpec, Inputs

Colour = tuple[int, int, int]
VISIBLE = 0.5  # share of a mask's colour in a pixel
UNKNOWN: Colour = (90, 90, 90)  # of pixels without a class


def colours(count: int) -> list[Colour]:
    """Choose colours that differ: hues a golden angle apart."""
    hues = [number * 0.618034 % 1 for number in range(count)]
    return [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 0.95)) for hue in hues]  # type: ignore[misc]


def picture(spec: DataSpec, inputs: Inputs) -> Image.Image:
    """Draw a sample as it is stored: the image (C, H, W) uint8, and on it its riders."""
    pixels = inputs["image"].expand(3, -1, -1) if len(inputs["image"]) == 1 else inputs["image"]
    classes = {one.input: one.classes for one in spec.targets.values() if one.input}
    for name, one in spec.riders.items():
        if one.form == "mask" and name in inputs:
            pixels = _tinted(pixels, inputs[name], len(classes.get(name, ())))
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    for name, one in spec.riders.items():
        if name not in inputs:
            continue
        if one.form == "boxes":
            draw_boxes(image, inputs[name], classes.get(name, ()))
        elif one.form == "points":
            draw = ImageDraw.Draw(image)
            for x, y, label in inputs[name].tolist():
                if label:
                    draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colours(int(label))[-1])
    return image


def _tinted(pixels: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Colour the pixels (3, H, W) of each class but the first, which is most often the background."""
    table = torch.zeros(IGNORED + 1, 3)
    table[1:classes] = torch.tensor(colours(max(0, classes - 1))).view(-1, 3).float()
    table[IGNORED] = torch.tensor(UNKNOWN).float()
    coloured = (mask != 0)[None]
    mixed = pixels.float() * (1 - VISIBLE) + VISIBLE * table[mask.long()].permute(2, 0, 1)
    return torch.where(coloured, mixed, pixels.float()).to(torch.uint8)


def draw_boxes(
    image: Image.Image, boxes: Tensor, classes: Sequence[str], scores: Sequence[float] | None = None
) -> None:
    """Draw boxes (n, 5) of a rider into an RGB image, each with its class and, if there is one, its score."""
    draw, palette = ImageDraw.Draw(image), colours(len(classes))
    line = max(1, round(min(image.size) / 200))
    font = ImageFont.load_default(size=max(9, min(image.size) / 30))
    for number, (left, top, right, bottom, label) in reversed(list(enumerate(boxes.tolist()))):  # the surest on top
        if not label:
            continue
        colour = palette[int(label) - 1]
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=line)
        text = classes[int(label) - 1] + (f" {scores[number]:.2f}" if scores is not None else "")
        place = draw.textbbox((left, top), text, font=font)
        draw.rectangle(place, fill=colour)
        draw.text((left, top), text, fill=(0, 0, 0) if sum(colour) > 380 else (255, 255, 255), font=font)


def sheet(
    spec: DataSpec, samples: Sequence[Inputs], captions: Sequence[str], columns: int, smallest: int
) -> Image.Image:
    """Draw samples side by side. smallest: height below which they are enlarged."""
    pictures = [picture(spec, sample) for sample in samples]
    factor = -(-smallest // pictures[0].height)
    if factor > 1:
        pictures = [one.resize((one.width * factor, one.height * factor), Image.Resampling.NEAREST) for one in pictures]
    return grid(pictures, captions, columns)


def grid(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int) -> Image.Image:
    """Put pictures of one size side by side, with a caption below each."""
    width, height = pictures[0].size
    font = ImageFont.load_default(size=12)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + 6) + 6, rows * (height + 24) + 6), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for number, (one, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = 6 + number % columns * (width + 6), 6 + number // columns * (height + 24)
        sheet.paste(one, (x, y))
        shown = caption
        while shown and draw.textlength(shown, font=font) > width:
            shown = shown[:-2] + "\u2026" if len(shown) > 2 else ""
        draw.text((x, y + height + 3), shown, fill=(40, 40, 40), font=font)
    return sheet
