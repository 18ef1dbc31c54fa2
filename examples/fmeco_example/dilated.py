"""Convolutions over time, each of which sees twice as far as the one before. https://arxiv.org/abs/1803.01271 section 3.3"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from fmeco.core import Backbone, ConfigError, DataSpec, Doc, Features, Ge, Gt, Inputs

KIND = "backbone"


def build(
    spec: DataSpec,
    *,
    width: Annotated[int, Doc("features of a moment; a multiple of 4"), Gt(0)] = 32,
    depth: Annotated[int, Doc("layers"), Ge(1)] = 5,
) -> Backbone:
    if "motion" not in spec.inputs:
        raise ConfigError("the backbone dilated takes recordings of motions", "dataset: {name: motions}")
    return Dilated(spec.inputs["motion"].shape[0], width, depth)


def check(width: int, depth: int) -> list[str]:
    return [] if width % 4 == 0 else [f"width is a multiple of 4, not {width}"]


class Dilated(Backbone):
    """Recordings (B, 3, T) -> tokens (B, T, D), one for each moment."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Conv1d(channels, width, 5, padding=2)
        self.layers = nn.ModuleList(Layer(width, 2**i) for i in range(depth))

    def forward(self, inputs: Inputs) -> Features:
        x = self.stem(inputs["motion"])  # (B, D, T)
        for layer in self.layers:
            x = layer(x)
        return Features(tokens=x.transpose(1, 2))

    def depth_of(self, name: str) -> int:
        first, _, rest = name.partition(".")
        return 0 if first == "stem" else 1 + int(rest.partition(".")[0])


class Layer(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.convolution = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.convolution(nn.functional.gelu(self.norm(x)))
        return x + changed
