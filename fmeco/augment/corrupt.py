"""Rows of tables in which some columns hold what another training row holds there, for objectives that compare views.

SCARF, https://arxiv.org/abs/2106.15147 section 3: a corrupted column is drawn from its own distribution over the training
rows. There one of two views is corrupted, by 0.6; here both are, so that the same share of columns tells them apart.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from fmeco.core import Augment, ConfigError, DataSpec, Doc, Gt, Inputs, Lt, Samples, mix, uniform

SHARE = 0.6  # of the columns, in which two views differ
_ROW = 0x726F77


def default(spec: DataSpec, views: int) -> str | None:
    """The name that a config means which says nothing, where the data is of this kind."""
    return "corrupt" if spec.modality == "table" and views > 1 else None


def build(
    spec: DataSpec,
    train: Samples,
    *,
    rate: Annotated[
        float | None,
        Doc("share of a view's columns to replace; null = as many as make two views differ in 0.6"),
        Gt(0),
        Lt(1),
    ] = None,
) -> Augment:
    if spec.modality != "table":
        raise ConfigError(f"augment corrupt is for tables; this dataset holds {spec.modality} data")
    if train.tensors is None:
        raise ConfigError(
            "augment corrupt draws from the training rows, and some of these cannot be read", "repair or remove them"
        )
    return Corrupt(train.tensors, 1 - math.sqrt(1 - SHARE) if rate is None else rate)


class Corrupt(Augment):
    def __init__(self, rows: Inputs, rate: float) -> None:
        self.rows, self.rate = rows, rate

    def batch(self, inputs: Inputs, keys: Tensor) -> Inputs:
        out = dict(inputs)
        for name, x in inputs.items():  # (B, F)
            rows, columns = self.rows[name], torch.arange(x.shape[1])
            cells = mix(keys[:, None], sum(map(ord, name)), columns)  # (B, F): apart for numbers and categories
            source = (mix(cells, _ROW) >> 1) % len(rows)
            drawn = rows[source, columns].to(x.device)
            out[name] = torch.where((uniform(cells, 0) < self.rate).to(x.device), drawn, x)
        return out
