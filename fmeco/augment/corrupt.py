"""Random replacement of table columns by values of other training rows, for objectives that compare views (SCARF).

https://arxiv.org/abs/2106.15147 section 3: the new value of a column is drawn from that column's values over the training
rows. SCARF corrupts one of two views, at a rate of 0.6. fmeco corrupts both, at a lower rate, so that the two views also
differ in 0.6 of their columns.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from fmeco.core import Augment, ConfigError, DataSpec, Doc, Gt, Inputs, Lt, Samples, mix, uniform

SHARE = 0.6  # default share of columns in which two views differ
_ROW = 0x726F77


def default(spec: DataSpec, views: int) -> str | None:
    """Name the augmentation to use when the config names none; None if this file does not apply to the data."""
    return "corrupt" if spec.modality == "table" and views > 1 else None


def build(
    spec: DataSpec,
    train: Samples,
    *,
    rate: Annotated[
        float | None,
        Doc("share of a view's columns to replace; null = 0.37, at which two views differ in 0.6 of their columns"),
        Gt(0),
        Lt(1),
    ] = None,
) -> Augment:
    if spec.modality != "table":
        raise ConfigError(
            f"augment: 'corrupt' is for tables; this dataset holds {spec.modality} data",
            "augment: none fits any data",
        )
    if train.tensors is None:
        raise ConfigError(
            "augment: 'corrupt' needs every training row in memory, and some rows of this dataset cannot be read",
            "repair or remove those rows",
        )
    return Corrupt(train.tensors, 1 - math.sqrt(1 - SHARE) if rate is None else rate)


class Corrupt(Augment):
    """Replace each cell with probability `rate` by the same column's value in a random training row."""

    def __init__(self, rows: Inputs, rate: float) -> None:
        self.rows, self.rate = rows, rate

    def batch(self, inputs: Inputs, keys: Tensor) -> Inputs:
        out = dict(inputs)
        for name, x in inputs.items():  # (B, F)
            rows, columns = self.rows[name], torch.arange(x.shape[1])
            cells = mix(
                keys[:, None], sum(map(ord, name)), columns
            )  # (B, F): the input's name keeps the keys of numbers and categories apart
            source = (mix(cells, _ROW) >> 1) % len(rows)
            drawn = rows[source, columns].to(x.device)
            out[name] = torch.where((uniform(cells, 0) < self.rate).to(x.device), drawn, x)
        return out
