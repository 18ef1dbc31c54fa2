"""Find the image among the inputs, fit first convolutions to its channels, and state ImageNet's preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from fmeco.core import DataSpec, InputSpec
from fmeco.errors import ConfigError


def image_input(spec: DataSpec, whose: str) -> tuple[str, tuple[int, int, int]]:
    """Find the dataset's image or spectrogram. Returns its name and shape (C, H, W).

    whose: name of the backbone, for the error message.
    Raises ConfigError unless there is exactly one.
    """
    images = [(name, described.shape) for name, described in spec.seen.items() if len(described.shape) == 3]
    if len(images) != 1:
        raise ConfigError(
            f"the backbone {whose} takes images or spectrograms, one per sample; this dataset has {', '.join(spec.seen)}",
            "speech encoders of hf/ take waveforms" if "waveform" in spec.seen else "backbone: mlp takes tables",
        )
    name, (channels, height, width) = images[0]
    return name, (channels, height, width)


def channels_as(weight: Tensor, channels: int) -> Tensor:
    """Change the number of input channels of a kernel, (O, I, h, w) -> (O, channels, h, w).

    The response to an image whose channels are all equal stays the same.
    """
    gray = weight.sum(1, keepdim=True)
    return gray.expand(-1, channels, -1, -1) / channels


def fit_channels(state: Mapping[str, Tensor], own: Mapping[str, Tensor], first: Iterable[str]) -> dict[str, Tensor]:
    """Fit the first convolutions of `state` to the number of input channels in `own`: sum to one channel, or spread from one.

    first: names of their weights. Weights for which both numbers of channels exceed 1 stay as they are.
    Returns the tensors that changed.
    """
    changed = {}
    for name in first:
        theirs, mine = state.get(name), own.get(name)
        if theirs is None or mine is None or theirs.ndim != 4 or mine.ndim != 4 or theirs.shape[1] == mine.shape[1]:
            continue
        if 1 in (theirs.shape[1], mine.shape[1]):
            changed[name] = channels_as(theirs, mine.shape[1])
    return changed


def assumed() -> tuple[str, DataSpec]:
    """Return the preprocessing to assume for weights that do not state theirs: (whose it is, the preprocessing)."""
    return "ImageNet's", DataSpec(
        "image",
        {"image": InputSpec((3, 224, 224), "uint8", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))},
        preprocessing={"size": 224, "resize": 256, "interpolation": "bilinear", "color": "rgb"},
        reader="image_folder",
    )
