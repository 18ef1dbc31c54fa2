"""SpecAugment: bands of frequency and stretches of time are masked, https://arxiv.org/abs/1904.08779 section 2; longer
recordings are cropped at random. Its time warping is left out: the paper found it to matter least (section 5). Of waveforms,
which have no bands, stretches of time become a constant.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from fmeco.core import Augment, ConfigError, DataSpec, Doc, Ge, Inputs, InputSpec, Le, mix_numbers, uniform

NAMES = ("specaugment",)
_CROP = 0x63726F70  # keeps the crop's number apart from those of the masks
NOTHING = 1e-3  # of a waveform; and not 0, with which batches are filled up


def default(spec: DataSpec, views: int) -> str | None:
    """The name that a config means which says nothing, where the data is of this kind."""
    return "specaugment" if {"spectrogram", "waveform"} & set(spec.inputs) else None


def build(
    spec: DataSpec,
    arch: str,
    *,
    masks: Annotated[int, Doc("of each kind"), Ge(0)] = 2,
    frequency: Annotated[float, Doc("largest mask, as a share of the bands; waveforms have none"), Ge(0), Le(1)] = 0.25,
    time: Annotated[float, Doc("largest mask, as a share of the frames"), Ge(0), Le(1)] = 0.2,
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
    """Crops of each sample in the worker; masks of the whole batch."""

    def __init__(self, one: InputSpec, masks: int, frequency: float, time: float) -> None:
        self.frames = one.shape[-1]
        self.fill = one.mean[0] / one.scale if one.mean else 0.0  # the mean, which the model sees as 0
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
    """Of waveforms: crops and masks of each sample, which has a length of its own."""

    def __init__(self, length: int, masks: int, time: float) -> None:
        self.length, self.masks, self.time = length, masks, time

    def sample(self, inputs: Inputs, key: int) -> Inputs:
        x = _cropped(inputs["waveform"], self.length, key)  # (L,)
        hidden = torch.zeros(len(x), dtype=torch.bool)
        for mask in range(self.masks):
            hidden |= _stretch(torch.tensor([key]), 4 * mask + 2, len(x), self.time)[0]
        return {**inputs, "waveform": x.masked_fill(hidden, NOTHING)}


def _cropped(x: Tensor, length: int, key: int) -> Tensor:
    """A random part of (..., length or more); what is shorter stays."""
    start = mix_numbers(key, _CROP) % (max(0, x.shape[-1] - length) + 1)
    return x[..., start : start + length]


def _stretch(keys: Tensor, stream: int, size: int, share: float) -> Tensor:
    """Which of `size` places (B, size) a mask hides: its length is uniform in 0..share * size, and its place in what is
    left, as in the paper's policies."""
    length = (uniform(keys, stream) * (share * size + 1)).long().clamp_max(size)[:, None]
    start = (uniform(keys, stream + 1)[:, None] * (size - length + 1)).long()
    at = torch.arange(size)
    return (at >= start) & (at < start + length)
