"""Clouds of points on generated solids, of several sizes; files of `x y z` lines predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from fmeco.core import (
    Classes,
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Doc,
    Ge,
    Gt,
    Inputs,
    InputSpec,
    Samples,
    Target,
    same_modality,
)

from ._shapes import SHAPES, points_on

KIND = "dataset"


class Clouds(Samples):
    in_memory = True

    def __init__(self, clouds: list[Tensor], names: list[str], labels: Tensor | None = None) -> None:
        self.clouds, self.names = clouds, names
        self.targets = {} if labels is None else {"label": labels}
        self.lengths = torch.tensor([len(cloud) for cloud in clouds])

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> Inputs:
        return {"points": self.clouds[index]}

    def name(self, index: int) -> str:
        return self.names[index]


def build(
    known: DataSpec | None,
    *,
    classes: Classes = None,
    each: Annotated[int, Doc("clouds of each class; a quarter of them validate"), Ge(4)] = 24,
    most: Annotated[int | None, Doc("points of the largest cloud; null = the checkpoint's, else 64"), Gt(8)] = None,
    noise: Annotated[float, Doc("standard deviation of every coordinate"), Ge(0)] = 0.05,
) -> Data:
    same_modality(known, "points")
    most = most or (known.inputs["points"].shape[0] if known is not None else 64)
    names = tuple(map(str, classes or SHAPES))
    if unknown := [name for name in names if name not in SHAPES]:
        raise ConfigError(f"dataset.classes: {unknown[0]} is none of {', '.join(SHAPES)}")
    cut = 3 * each // 4
    parts = []
    for start, end in ((0, cut), (cut, each)):
        drawn = [(shape, i) for shape in names for i in range(start, end)]
        clouds = [_cloud(shape, i, most, noise) for shape, i in drawn]
        labels = torch.tensor([names.index(shape) for shape, _ in drawn])
        parts.append(Clouds(clouds, [f"{shape}-{i}" for shape, i in drawn], labels))
    spec = DataSpec(
        "points",
        {"points": InputSpec((most, 3), ragged=True)},  # a batch is padded with rows of 0
        {"label": Target("class", names)},
        reader="clouds",
        sizes={"train": len(parts[0]), "val": len(parts[1])},
        fingerprint=f"{names}-{each}-{most}-{noise}",
    )
    return Data(spec, *parts)


def read(spec: DataSpec, sources: Sequence[str]) -> Samples:
    most = spec.inputs["points"].shape[0]
    return Clouds([_centred(_lines(source))[:most] for source in sources], list(sources))


def _cloud(shape: str, number: int, most: int, noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * SHAPES.index(shape) + number)
    count = int(torch.randint(most // 2, most + 1, (), generator=generator))
    points = points_on(shape, count, generator)
    return _centred(points + noise * torch.randn(points.shape, generator=generator))


def _centred(points: Tensor) -> Tensor:
    return points - points.mean(0)


def _lines(source: str) -> Tensor:
    try:
        rows = [[float(value) for value in line.split()] for line in Path(source).read_text("utf-8").splitlines()]
        return torch.tensor(rows).view(len(rows), 3)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{source}: not a file of `x y z` lines: {error}") from None
