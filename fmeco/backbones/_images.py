"""Find the image among a dataset's inputs, fit first convolutions to its channels, and know how ImageNet is prepared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from fmeco.core import DataSpec, InputSpec
from fmeco.errors import ConfigError


def image_input(spec: DataSpec, whose: str) -> tuple[str, tuple[int, int, int]]:
    """Find the one input that a convolutional network can take, an image or a spectrogram: its name and shape (C, H, W).
    Raises ConfigError where there is none, or more than one. whose: the backbone that asks."""
    found = [(name, one.shape) for name, one in spec.inputs.items() if len(one.shape) == 3]
    if len(found) != 1:
        raise ConfigError(
            f"the backbone {whose} takes images or spectrograms, one of each sample; this dataset has {', '.join(spec.inputs)}",
            "hf/ encoders of speech take waveforms" if "waveform" in spec.inputs else "backbone: mlp takes tables",
        )
    name, (channels, height, width) = found[0]
    return name, (channels, height, width)


def channels_as(weight: Tensor, channels: int) -> Tensor:
    """Change the input channels of a kernel, (O, I, h, w) -> (O, channels, h, w): an image whose channels are all equal gives
    the same response."""
    gray = weight.sum(1, keepdim=True)
    return gray.expand(-1, channels, -1, -1) / channels


def fit_channels(state: Mapping[str, Tensor], own: Mapping[str, Tensor], first: Iterable[str]) -> dict[str, Tensor]:
    """Fit the first convolutions (their names) of `state` to the number of channels that `own` has, where that is well
    defined: summed to one channel, or spread from one. Returns those that changed."""
    changed = {}
    for name in first:
        theirs, mine = state.get(name), own.get(name)
        if theirs is None or mine is None or theirs.ndim != 4 or mine.ndim != 4 or theirs.shape[1] == mine.shape[1]:
            continue
        if 1 in (theirs.shape[1], mine.shape[1]):
            changed[name] = channels_as(theirs, mine.shape[1])
    return changed


def assumed() -> tuple[str, DataSpec]:
    """Give what is assumed of weights that do not say how their inputs were prepared, and whose way that is."""
    return "ImageNet's", DataSpec(
        "image",
        {"image": InputSpec((3, 224, 224), "uint8", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))},
        preprocessing={"size": 224, "resize": 256, "interpolation": "bilinear", "color": "rgb"},
        reader="image_folder",
    )
