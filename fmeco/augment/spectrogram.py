"""SpecAugment: random crops of recordings, and masks over frequency bands and time, https://arxiv.org/abs/1904.08779 section 2.

Time warping is left out: the paper found that it matters least (section 5). Waveforms have no bands: they are masked in
time only, with a constant.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from fmeco.core import Augment, ConfigError, DataSpec, Doc, Ge, Inputs, InputSpec, Le, mix_numbers, uniform

NAMES = ("specaugment",)
_CROP = 0x63726F70  # keeps the crop's random number independent of those of the masks
NOTHING = 1e-3  # fills the masks of a waveform; not 0, which marks the padding of a batch


def default(spec: DataSpec, views: int) -> str | None:
    """Name the augmentation to use when the config names none; None if this file does not apply to the data."""
    return "specaugment" if {"spectrogram", "waveform"} & set(spec.inputs) else None


def build(
    spec: DataSpec,
    arch: str,
    *,
    masks: Annotated[int, Doc("number of masks of each kind, frequency and time"), Ge(0)] = 2,
    frequency: Annotated[
        float, Doc("largest frequency mask, as a share of the bands; not used for waveforms"), Ge(0), Le(1)
    ] = 0.25,
    time: Annotated[float, Doc("largest time mask, as a share of the recording"), Ge(0), Le(1)] = 0.2,
) -> Augment:
    if "waveform" in spec.inputs:
        return TimeMasks(spec.inputs["waveform"].shape[0], masks, time)
    if "spectrogram" not in spec.inputs:
        raise ConfigError(
            f"augment: '{arch}' is for recordings; this dataset has {', '.join(spec.inputs)}",
            "augment: none fits any data",
        )
    return SpecAugment(spec.inputs["spectrogram"], masks, frequency, time)


class SpecAugment(Augment):
    """Augment spectrograms: crop each sample in the worker, mask the batch on the device."""

    def __init__(self, spectrogram: InputSpec, masks: int, frequency: float, time: float) -> None:
        self.frames = spectrogram.shape[-1]
        # Masks are filled with the mean, which normalisation maps to 0.
        self.fill = spectrogram.mean[0] / spectrogram.scale if spectrogram.mean else 0.0
        self.masks, self.frequency, self.time = masks, frequency, time

    def sample(self, inputs: Inputs, key: int) -> Inputs:
        return {**inputs, "spectrogram": _cropped(inputs["spectrogram"], self.frames, key)}  # (1, mels, frames)

    def batch(self, inputs: Inputs, keys: Tensor) -> Inputs:
        x = inputs["spectrogram"]  # (B, 1, mels, frames)
        bands, frames = x.shape[-2:]
        hidden = torch.zeros(len(keys), bands, frames, dtype=torch.bool)
        for mask in range(self.masks):
            hidden |= _stretch(keys, 4 * mask, bands, self.frequency)[:, :, None]
            hidden |= _stretch(keys, 4 * mask + 2, frames, self.time)[:, None, :]
        return {**inputs, "spectrogram": x.masked_fill(hidden[:, None].to(x.device), self.fill)}


class TimeMasks(Augment):
    """Augment waveforms: crop and mask each sample in the worker, since samples differ in length."""

    def __init__(self, length: int, masks: int, time: float) -> None:
        self.length, self.masks, self.time = length, masks, time

    def sample(self, inputs: Inputs, key: int) -> Inputs:
        x = _cropped(inputs["waveform"], self.length, key)  # (L,)
        hidden = torch.zeros(len(x), dtype=torch.bool)
        for mask in range(self.masks):
            hidden |= _stretch(torch.tensor([key]), 4 * mask + 2, len(x), self.time)[0]
        return {**inputs, "waveform": x.masked_fill(hidden, NOTHING)}


def _cropped(x: Tensor, length: int, key: int) -> Tensor:
    """Cut a random part (..., length) out of x; return x unchanged if it is shorter."""
    start = mix_numbers(key, _CROP) % (max(0, x.shape[-1] - length) + 1)
    return x[..., start : start + length]


def _stretch(keys: Tensor, stream: int, size: int, share: float) -> Tensor:
    """Draw one mask per key, as a bool tensor (B, size).

    Its length is uniform in 0..share * size and its start uniform over the positions left, as in the paper (section 2).
    """
    length = (uniform(keys, stream) * (share * size + 1)).long().clamp_max(size)[:, None]
    start = (uniform(keys, stream + 1)[:, None] * (size - length + 1)).long()
    at = torch.arange(size)
    return (at >= start) & (at < start + length)
