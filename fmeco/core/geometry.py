"""Bring samples to the shapes and values of their spec, and move what lies on an image (its riders) as the image is moved.

A rider's `form` says how it is stored. Coordinates are pixels of the image's grid: the pixel in column c covers c to c + 1.

mask: (H, W), the class of each pixel, or IGNORED.
boxes: (n, 5) float32, a row per object: left, top, right, bottom, class + 1.
points: (n, 3) float32, a row per point: x, y, class + 1.

A row of zeros is no object. It pads a batch, and takes the place of an object that is moved out of the image.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core.data import DataSpec, Form, Inputs, InputSpec
from fmeco.errors import DataError

IGNORED = 255  # in masks: a pixel without a class
SMALLEST = 1.0  # width and height in pixels below which what is left of a box is dropped


def fit(inputs: Inputs, spec: DataSpec, leading: int = 0, *, whole: bool = False) -> Inputs:
    """Centre-crop each input that is larger than its shape in the spec, with its riders. Inputs of ids (int64) are cut at the
    end instead.

    leading: number of dimensions before those of a sample: 0 for one sample, 1 for a whole split.
    whole: leave images whole that the spec allows to be larger (`InputSpec.windows`).

    Raises DataError if an input is smaller than its shape in the spec, or if a mask has another size than its image.
    Dimension 0 of a ragged input may be smaller.
    """
    out = dict(inputs)
    for name, wanted in spec.seen.items():
        x, starts = out[name], [0] * len(wanted.shape)
        riders = {rider: one for rider, one in spec.riders.items() if one.rides == name and rider in out}
        _check_masks(out, name, riders)
        if whole and wanted.windows:
            continue
        for dim, size in enumerate(wanted.shape):
            if x.shape[leading + dim] > size:
                extra = x.shape[leading + dim] - size
                starts[dim] = 0 if wanted.dtype == "int64" else centred(extra, spec.preprocessing)
                x = x.narrow(leading + dim, starts[dim], size)
        shape = tuple(x.shape[leading:])
        if shape != wanted.shape and not (wanted.ragged and shape[1:] == wanted.shape[1:]):
            raise DataError(f"input '{name}' has shape {shape}, the model expects {wanted.shape}")
        out[name] = x
        for rider, one in riders.items():
            out[rider] = cropped(out[rider], one.form, starts[-2], starts[-1], *wanted.shape[-2:])
    return out


def centred(extra: int, preprocessing: Mapping[str, Any]) -> int:
    """Return where a centre crop begins in an image that is larger by `extra` pixels.

    Half of an odd difference ends in .5. It is rounded to the nearest even integer, as torchvision and timm do; version 1 of the
    decode rule rounds down, and so does "crop_rounding", as transformers does.
    """
    down = preprocessing.get("decode", 1) == 1 or "crop_rounding" in preprocessing
    return extra // 2 if down else round(extra / 2)


def _check_masks(inputs: Inputs, name: str, riders: dict[str, InputSpec]) -> None:
    """Raise DataError for a mask of another size than the image that it lies on."""
    size = tuple(inputs[name].shape[-2:])
    for rider, one in riders.items():
        if one.form == "mask" and tuple(inputs[rider].shape[-2:]) != size:
            own = "x".join(map(str, inputs[rider].shape[-2:]))
            raise DataError(f"the mask '{rider}' has {own} pixels, and its {name} has {'x'.join(map(str, size))}")


def pad(parts: Sequence[Tensor]) -> Tensor:
    """Stack samples (L_i, ...) of different lengths to (B, max L_i, ...), with zeros at the end."""
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def cropped(x: Tensor, form: Form, top: int, left: int, height: int, width: int) -> Tensor:
    """Cut a rider (..., H, W), (..., n, 5) or (..., n, 3) as its image is cut to `height` rows from `top` on.

    Masks have no class outside of the image.
    """
    if form == "mask":
        bottom, right = top + height - x.shape[-2], left + width - x.shape[-1]
        if min(top, left, -bottom, -right) < 0:
            return F.pad(x, (-left, right, -top, bottom), value=IGNORED)
        return x[..., top : top + height, left : left + width]
    return _placed(x, form, (1.0, 1.0), x.new_tensor([-left, -top]), height, width)


def resized(x: Tensor, form: Form, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize one rider (H, W), (n, 5) or (n, 3) as its image is resized from `old` to `new` (h, w)."""
    if old == new:
        return x
    if form == "mask":
        return F.interpolate(x[None, None], new, mode="nearest-exact")[0, 0]
    return _placed(x, form, (new[1] / old[1], new[0] / old[0]), x.new_zeros(2), *new)


def mirrored(x: Tensor, form: Form, width: int) -> Tensor:
    """Mirror riders as their images of `width` columns are mirrored."""
    if form == "mask":
        return x.flip(-1)
    out = x.clone()
    out[..., 0] = width - x[..., 2 if form == "boxes" else 0]
    if form == "boxes":
        out[..., 2] = width - x[..., 0]
    return out.where(x[..., -1:] > 0, 0.0)


def shifted(x: Tensor, form: Form, right: Tensor, down: Tensor, height: int, width: int) -> Tensor:
    """Shift boxes (B, n, 5) or points (B, n, 3) by some pixels (B,), as their images (B, C, height, width) are."""
    return _placed(x, form, (1.0, 1.0), torch.stack([right, down], 1)[:, None].to(x), height, width)


def _placed(x: Tensor, form: Form, scale: tuple[float, float], offset: Tensor, height: int, width: int) -> Tensor:
    """Scale and move boxes or points; clip boxes to the image, and drop what is outside.

    scale: of x and y. offset: x and y in pixels, (2,) or (B, 1, 2).
    """
    factor, size = x.new_tensor(scale), x.new_tensor([width, height])
    present = x[..., -1] > 0
    ends = [x[..., at : at + 2] * factor + offset for at in ((0, 2) if form == "boxes" else (0,))]  # each (..., n, 2)
    if form == "boxes":
        ends = [end.clamp_min(0).minimum(size) for end in ends]
        present = present & (ends[1] - ends[0] >= SMALLEST).all(-1)
    else:
        present = present & ((ends[0] >= 0) & (ends[0] < size)).all(-1)
    return torch.cat([*ends, x[..., -1:]], -1).where(present[..., None], 0.0)


def standardize(inputs: Inputs, spec: DataSpec) -> Inputs:
    """Normalise stored values (B, ...) for the model: `(x * scale - mean) / std` per channel, as float32."""
    out = dict(inputs)
    for name, input_spec in spec.inputs.items():
        if input_spec.mean and name in out:
            x = out[name]
            last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
            factor, offset = _affine(input_spec, x.shape[1:], last, x.device)
            out[name] = x.to(torch.float32, copy=True).mul_(factor).sub_(offset)
    return out


@functools.lru_cache(maxsize=64)
def _affine(spec: InputSpec, shape: torch.Size, last: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute scale / std and mean / std, expanded to the shape (1, ...) of a sample.

    They have the batch's memory layout, because elementwise kernels then vectorise. last: channels_last layout.
    """
    with torch.inference_mode(False):
        per_channel = (1, -1) + (1,) * (len(shape) - 1)
        std, mean = (torch.tensor(values, device=device).view(per_channel) for values in (spec.std, spec.mean))
        layout = torch.channels_last if last else torch.contiguous_format
        factor, offset = (x.expand(1, *shape).contiguous(memory_format=layout) for x in (spec.scale / std, mean / std))
        return factor, offset
