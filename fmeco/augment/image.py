"""Image augmentation: the presets light, standard, trivial, rand and views, each key of which can be overridden.

light: shift by a few pixels, and flip.
standard: random resized crop, flip and colour jitter, as is usual for ImageNet.
trivial: TrivialAugment, https://arxiv.org/abs/2103.10158.
rand: RandAugment, https://arxiv.org/abs/1909.13719.
views: small crops and strong colour jitter, for objectives that compare views.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fmeco.core import Augment, ConfigError, DataSpec, Doc, Form, Ge, Inputs, Le, View, geometry, uniform
from fmeco.nn.libraries import import_torchvision

GREY = 127  # of what is filled in
NAMES = ("light", "standard", "trivial", "rand", "views")
# shift, crop_scale, flip, color, erase, ops
_PRESETS: dict[str, tuple[float, float, float, float, float, int]] = {
    "light": (0.125, 1.0, 0.5, 0.0, 0.0, 0),
    "standard": (0.0, 0.35, 0.5, 0.2, 0.0, 0),
    "trivial": (0.0, 0.35, 0.5, 0.0, 0.0, 1),
    "rand": (0.0, 0.35, 0.5, 0.0, 0.0, 2),
    "views": (0.0, 0.2, 0.5, 0.4, 0.0, 0),
}


def default(spec: DataSpec, views: int) -> str | None:
    """Name the augmentation to use when the config names none; None if this file does not apply to the data.

    views: how many views of each sample the objective asks for.
    """
    if "image" not in spec.seen:
        return None
    if views > 1:
        return "views"
    return "light" if spec.preprocessing.get("size", 224) <= 96 else "standard"


def build(
    spec: DataSpec,
    arch: str,
    *,
    shift: Annotated[
        float | None,
        Doc(
            "largest shift of the image, as a share of its size; null = the preset's. Not used with random resized crops"
        ),
        Ge(0),
        Le(0.5),
    ] = None,
    crop_scale: Annotated[
        float | None,
        Doc("smallest area of the random resized crop, as a share of the image; 1 = off; null = the preset's"),
        Ge(0.01),
        Le(1),
    ] = None,
    flip: Annotated[
        float | None,
        Doc(
            "probability of a horizontal flip; null = the preset's, or 0 if the dataset says that a mirror image means "
            "something else. At 0.5 an image is flipped in every other epoch"
        ),
        Ge(0),
        Le(1),
    ] = None,
    color: Annotated[
        float | None,
        Doc("strength of random changes of brightness, contrast and saturation; null = the preset's"),
        Ge(0),
        Le(1),
    ] = None,
    erase: Annotated[
        float | None, Doc("probability of erasing a random box; null = the preset's"), Ge(0), Le(1)
    ] = None,
    magnitude: Annotated[int, Doc("strength of the operations of the preset rand, 0 to 30"), Ge(0), Le(30)] = 9,
) -> Augment:
    if "image" not in spec.seen:
        raise ConfigError(
            f"augment: '{arch}' is for images; this dataset has {', '.join(spec.seen)}",
            "augment: none fits any data",
        )
    keys = (shift, crop_scale, flip, color, erase)
    preset = _PRESETS[arch]
    values = [preset[i] if value is None else value for i, value in enumerate(keys)]
    if flip is None and not spec.preprocessing.get("mirror", True):
        values[2] = 0.0
    return ImageAugment(spec, *values, ops=preset[5], magnitude=magnitude if arch == "rand" else None)


class ImageAugment(Augment):
    """Augment images: crops and library operations per sample in the worker; shifts, flips, colour and erasing per batch.

    ops: number of random operations per image.
    magnitude: strength of these operations, 0 to 30; None = random, as in TrivialAugment.
    """

    def __init__(
        self,
        spec: DataSpec,
        shift: float,
        crop_scale: float,
        flip: float,
        color: float,
        erase: float,
        *,
        ops: int,
        magnitude: int | None,
    ) -> None:
        described = spec.seen["image"]
        self.size, self.windows = described.shape[-1], described.windows
        self.riders = {name: one.form for name, one in spec.riders.items() if one.rides == "image"}
        # The library's operations move images alone.
        self.carries = frozenset({"mask", "boxes", "points"}) if not ops else frozenset()
        self.shift, self.crop_scale, self.flip, self.color, self.erase = shift, crop_scale, flip, color, erase
        self.ops, self.magnitude = ops, magnitude
        self.largest, self.scaled = 1.0, False  # largest area of the crop; whether the view's size is not the image's

    def for_view(self, view: View) -> Augment:
        """Return a copy of this augmentation with crops of the view's size and area."""
        copied = copy.copy(self)
        copied.size, copied.scaled = view.side(self.size), view.size != 1
        if view.area is not None:
            copied.crop_scale, copied.largest = view.area
        return copied

    @property
    def per_sample(self) -> bool:
        return self.crop_scale < 1 or self.scaled or self.windows or self.ops > 0

    def sample(self, inputs: Inputs, key: int) -> Inputs:
        rng = random.Random(key)
        height, width = inputs["image"].shape[-2:]  # (C, h, w) uint8
        out = dict(inputs)
        if self.crop_scale < 1 or self.scaled:
            # Of images that may have any size, evaluation shows windows of this size: crops are as large on average.
            in_windows = self.windows and not self.scaled
            whole = self.size**2 if in_windows else height * width
            largest = 2 - self.crop_scale if in_windows else self.largest
            out |= self._cut(inputs, _random_box(height, width, whole, self.crop_scale, largest, rng))
        elif self.windows:
            top, left = rng.randint(0, max(0, height - self.size)), rng.randint(0, max(0, width - self.size))
            out |= self._cut(inputs, (top, left, min(self.size, height), min(self.size, width)))
        for _ in range(self.ops):
            out["image"] = self._operation(out["image"], rng)
        return out

    def _cut(self, inputs: Inputs, box: tuple[int, int, int, int]) -> Inputs:
        """Cut a box out of an image and its riders, and resize it to (size, size). box: top, left, height, width."""
        top, left, h, w = box
        image = inputs["image"][:, top : top + h, left : left + w]
        side = (self.size, self.size)
        if (h, w) != side:
            image = F.interpolate(image.unsqueeze(0), side, mode="bilinear", antialias=True)[0]
        out = {"image": image}
        for name, form in self.riders.items():
            if name in inputs:
                out[name] = geometry.resized(geometry.cropped(inputs[name], form, *box), form, (h, w), side)
        return out

    def batch(self, inputs: Inputs, keys: Tensor) -> Inputs:
        x = inputs["image"]  # (B, C, H, W) uint8
        # Flipping every image in every other epoch shows more distinct images than random flips do
        # (https://arxiv.org/abs/2404.00498 section 3.6). The lowest bit of a sample's key alternates between epochs.
        mirrored = (keys & 1) == 1 if self.flip == 0.5 else uniform(keys, 1) < self.flip
        reach = round(self.shift * self.size) if self.crop_scale == 1 else 0
        out = dict(inputs)
        if reach:
            out |= _shifted(inputs, self.riders, keys, reach, mirrored)
        elif self.flip:
            chosen = mirrored.to(x.device).nonzero()[:, 0]
            out["image"] = x.index_copy(0, chosen, x[chosen].flip(-1))
            out |= _mirrored(inputs, self.riders, chosen, x.shape[-1])
        x = out["image"]
        if self.color:
            x = self._jitter(x, keys)
        if self.erase:
            x = self._erase(x, keys)
        return {**out, "image": x}

    def _jitter(self, x: Tensor, keys: Tensor) -> Tensor:
        """Change brightness, contrast and saturation of images (B, C, H, W), each by a factor from [1 - color, 1 + color].

        Each change is linear in the colours of an image: brightness multiplies by b, contrast interpolates towards the
        mean m by c, saturation towards the luma by s. Together they are one matrix and one offset per image:
        s c b I + (1 - s) c b [luma in every row], and (1 - c) b m.
        """
        bright, contrast, saturation = (
            (1 + self.color * (2 * uniform(keys, stream) - 1)).to(x.device).view(-1, 1, 1) for stream in (2, 3, 4)
        )
        colours = x.flatten(2).float()  # (B, C, H * W)
        offset = (1 - contrast) * bright * colours.mean((1, 2), keepdim=True)
        gain = bright * contrast
        if x.shape[1] == 3:
            luma = colours.new_tensor([0.299, 0.587, 0.114]).expand(3, 3)
            matrix = saturation * gain * torch.eye(3, device=x.device) + (1 - saturation) * gain * luma  # (B, 3, 3)
            colours = torch.baddbmm(offset, matrix, colours)
        else:
            colours = colours.mul_(gain).add_(offset)
        return colours.round_().clamp_(0, 255).to(torch.uint8).view(x.shape)

    def _erase(self, x: Tensor, keys: Tensor) -> Tensor:
        """Fill a random box, 2% to 25% of the image, with mid-grey (random erasing). https://arxiv.org/abs/1708.04896"""
        h, w = x.shape[-2:]
        area, ratio = 0.02 + 0.23 * uniform(keys, 6), torch.exp(1.2 * (uniform(keys, 7) - 0.5))
        box_h, box_w = (area * ratio).sqrt() * h, (area / ratio).sqrt() * w
        top, left = uniform(keys, 8) * (h - box_h), uniform(keys, 9) * (w - box_w)
        rows, columns = torch.arange(h).view(1, h, 1), torch.arange(w).view(1, 1, w)
        top, left, box_h, box_w = (v.view(-1, 1, 1) for v in (top, left, box_h, box_w))
        inside = (rows >= top) & (rows < top + box_h) & (columns >= left) & (columns < left + box_w)
        inside &= (uniform(keys, 5) < self.erase).view(-1, 1, 1)
        return x.masked_fill(inside.unsqueeze(1).to(x.device), GREY)

    def _operation(self, image: Tensor, rng: random.Random) -> Any:
        """Apply one random operation of TrivialAugment's wide space, or of RandAugment's at the fixed magnitude."""
        f = import_torchvision("torchvision.transforms.v2.functional")
        level = rng.random() if self.magnitude is None else self.magnitude / 30
        sign = rng.choice((-1, 1))
        wide = self.magnitude is None
        degrees, moved, sheared, enhanced = (135, 32, 0.99, 0.99) if wide else (30, 0.45 * self.size, 0.3, 0.9)
        name = rng.choice(
            (
                "identity",
                "shear_x",
                "shear_y",
                "translate_x",
                "translate_y",
                "rotate",
                "brightness",
                "saturation",
                "contrast",
                "sharpness",
                "posterize",
                "solarize",
                "autocontrast",
                "equalize",
            )
        )
        amount = sign * level
        shear = math.degrees(math.atan(amount * sheared))
        if name in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate"):
            angle = amount * degrees if name == "rotate" else 0.0
            move = [
                round(amount * moved) if name == "translate_x" else 0,
                round(amount * moved) if name == "translate_y" else 0,
            ]
            return f.affine(
                image,
                angle,
                move,
                1.0,
                [shear if name == "shear_x" else 0.0, shear if name == "shear_y" else 0.0],
            )
        if name in ("brightness", "saturation", "contrast", "sharpness"):
            if name == "saturation" and image.shape[0] != 3:
                return image
            return getattr(f, f"adjust_{name}")(image, 1 + amount * enhanced)
        if name == "posterize":
            return f.posterize(image, 8 - round(level * (6 if wide else 4)))
        if name == "solarize":
            return f.solarize(image, 255 * (1 - level))
        return image if name == "identity" else getattr(f, name)(image)


def _random_box(
    height: int, width: int, whole: int, smallest: float, largest: float, rng: random.Random
) -> tuple[int, int, int, int]:
    """Choose a random box (top, left, height, width), `smallest` to `largest` of an area and of aspect 3/4 to 4/3."""
    for _ in range(10):
        area = whole * rng.uniform(smallest, largest)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            break
    else:
        h = w = min(height, width)
    return rng.randint(0, height - h), rng.randint(0, width - w), h, w


def _mirrored(inputs: Inputs, riders: Mapping[str, Form], chosen: Tensor, width: int) -> Inputs:
    """Mirror the riders of the images at the positions `chosen`."""
    out: Inputs = {}
    for name in riders.keys() & inputs.keys():
        x = inputs[name]
        out[name] = x.index_copy(0, chosen, geometry.mirrored(x[chosen], riders[name], width))
    return out


def _shifted(inputs: Inputs, riders: Mapping[str, Form], keys: Tensor, reach: int, mirrored: Tensor) -> Inputs:
    """Shift images (B, C, H, W) and their riders by up to `reach` pixels in each direction.

    Images are padded by reflection. With boxes or points they are padded with grey, because nothing would say what objects
    the reflection shows.
    mirrored: (B,) bool, which images to flip first.
    """
    x = inputs["image"]
    _, channels, h, w = x.shape
    down, right = ((uniform(keys, stream) * (2 * reach + 1)).long() - reach for stream in (10, 11))  # (B,)
    rows, columns = torch.arange(h) + down[:, None], torch.arange(w) + right[:, None]  # (B, size): source of each pixel
    outside = ((rows < 0) | (rows >= h))[:, :, None] | ((columns < 0) | (columns >= w))[:, None, :]  # (B, H, W)
    rows, columns = (torch.minimum(at.abs(), 2 * (size - 1) - at.abs()) for at, size in ((rows, h), (columns, w)))
    columns = torch.where(mirrored[:, None], w - 1 - columns, columns)
    source = (rows[:, :, None] * w + columns[:, None, :]).flatten(1).to(x.device)  # (B, H * W)
    moved = x.flatten(2).gather(2, source[:, None].expand(-1, channels, -1)).view(x.shape)
    out = {"image": moved, **_mirrored(inputs, riders, mirrored.to(x.device).nonzero()[:, 0], w)}
    for name in riders.keys() & inputs.keys():
        if riders[name] == "mask":
            out[name] = inputs[name].flatten(1).gather(1, source).view(inputs[name].shape)
        else:
            out[name] = geometry.shifted(out[name], riders[name], -right, -down, h, w)
    if any(form != "mask" for form in riders.values()):
        out = _blanked(out, riders, outside.to(x.device))
    return out


def _blanked(inputs: Inputs, riders: Mapping[str, Form], outside: Tensor) -> Inputs:
    """Fill pixels (B, H, W) of images with grey, and leave them out of the masks."""
    out = {**inputs, "image": inputs["image"].masked_fill(outside[:, None], GREY)}
    for name in riders.keys() & inputs.keys():
        if riders[name] == "mask":
            out[name] = inputs[name].masked_fill(outside, geometry.IGNORED)
    return out
