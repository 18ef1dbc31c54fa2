"""What several plug-ins share."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import DataSpec, Inputs
from fmeco.errors import ConfigError


def import_torchvision(module: str = "torchvision") -> Any:
    """torchvision, imported late: it takes two seconds. A pair that does not match torch is one clear sentence."""
    try:
        return importlib.import_module(module)
    except (RuntimeError, ImportError, AttributeError, OSError) as error:
        raise ConfigError(
            f"torchvision cannot be used with this torch ({torch.__version__}): {str(error).splitlines()[0]}",
            "install torch and torchvision together, from the same index: pip install --upgrade torch torchvision",
        ) from None


def mlp(widths: list[int], *, batch_norm: bool, dropout: float) -> nn.Sequential:
    """Linear, batch norm, ReLU, dropout for each step of `widths`: (B, widths[0]) -> (B, widths[-1])."""
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers.append(nn.Linear(before, after))
        if batch_norm:
            layers.append(nn.BatchNorm1d(after))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


@contextlib.contextmanager
def trial(backbone: nn.Module) -> Iterator[None]:
    """Within, a network can be tried on zeros: in evaluation mode, without gradients, and as it was afterwards."""
    training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()
            yield
    finally:
        backbone.train(training)


class Head(nn.Linear):
    """The linear head of an objective, (B, width) -> (B, outputs), with dropout before it; starts at zero so that the
    first predictions are the same for every class and a pretrained backbone gets no random gradient."""

    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__(width, outputs)
        self.dropout = dropout
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        if self.dropout:
            features = F.dropout(features, self.dropout, self.training)
        return F.linear(features, self.weight, self.bias)


def by_instance(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of series (B, L), each less its mean and divided by its deviation; and these (B, 1) each."""
    variance, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
    std = (variance + 1e-5).sqrt()
    return (x - mean) / std, mean, std


def image_input(spec: DataSpec, whose: str) -> tuple[str, tuple[int, int, int]]:
    """The name and shape (C, H, W) of the one input that a convolutional network can take: an image, a spectrogram.
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
    """(O, I, h, w) -> (O, channels, h, w): an image whose channels are all equal gives the same response."""
    gray = weight.sum(1, keepdim=True)
    return gray.expand(-1, channels, -1, -1) / channels


def fit_channels(state: Mapping[str, Tensor], own: Mapping[str, Tensor], first: Iterable[str]) -> dict[str, Tensor]:
    """The first convolutions (their names) of `state` for the number of channels that `own` has, where that is well
    defined: summed to one channel, or spread from one."""
    changed = {}
    for name in first:
        theirs, mine = state.get(name), own.get(name)
        if theirs is None or mine is None or theirs.ndim != 4 or mine.ndim != 4 or theirs.shape[1] == mine.shape[1]:
            continue
        if 1 in (theirs.shape[1], mine.shape[1]):
            changed[name] = channels_as(theirs, mine.shape[1])
    return changed


def mirrored(inputs: Inputs) -> Inputs:
    """The same batch with its images (B, C, H, W) mirrored."""
    return {name: x.flip(-1) if x.ndim == 4 else x for name, x in inputs.items()}


# ---------------------------------------------------------------- intervals


# ---------------------------------------------------------------- metrics of ranked scores


# ---------------------------------------------------------------- what a representation is like
