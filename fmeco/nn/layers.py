"""Provide layers and helpers that several plug-ins share: heads, MLPs, instance normalisation, trial passes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(widths: list[int], *, batch_norm: bool, dropout: float) -> nn.Sequential:
    """Build an MLP (B, widths[0]) -> (B, widths[-1]); each layer is linear, batch norm, ReLU, dropout."""
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
    """Switch a network to eval mode without gradients inside the `with` block, such as to find its output shapes."""
    training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()
            yield
    finally:
        backbone.train(training)


class Head(nn.Linear):
    """Apply dropout and a linear layer: (B, width) -> (B, outputs).

    Weights start at zero, so the first predictions are equal for all classes, and a pretrained backbone gets no gradient
    through random weights.
    """

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
    """Normalise each window of a series (B, L) by its own mean and standard deviation. Returns these too, (B, 1) each."""
    variance, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
    std = (variance + 1e-5).sqrt()
    return (x - mean) / std, mean, std
