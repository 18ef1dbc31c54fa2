"""Layers and blocks that several plug-ins share: heads, perceptrons, standardised windows, networks on trial."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(widths: list[int], *, batch_norm: bool, dropout: float) -> nn.Sequential:
    """Stack linear, batch norm, ReLU, dropout for each step of `widths`: (B, widths[0]) -> (B, widths[-1])."""
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
    """Try a network on zeros: within, it is in evaluation mode and without gradients, and afterwards as it was."""
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
    """Standardise each window of series (B, L) by its own mean and deviation. Returns these too, (B, 1) each."""
    variance, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
    std = (variance + 1e-5).sqrt()
    return (x - mean) / std, mean, std
