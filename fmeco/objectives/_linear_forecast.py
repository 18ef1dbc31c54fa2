"""Forecast series by what was a season before, or by one linear map: plain methods that networks have to beat."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fmeco.core import Baseline, ConfigError, Data, Samples

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, in the variance of a standardised value
TOGETHER = 4096  # windows that a linear map is fitted to at once

Forecasting = Callable[[Tensor], Tensor]  # what is known (n, L) -> what comes (n, H)
Errors = Callable[[Tensor, Tensor, Any], dict[str, Tensor]]  # forecasts (n, H), what came (n, H), naive (n,) -> rows


def baselines(target: str, errors: Errors) -> dict[str, Baseline]:
    """Offer the methods for a target. errors: makes the objective's rows of forecasts."""
    return {
        "seasonal_naive": functools.partial(seasonal_naive, target, errors),
        "dlinear": functools.partial(dlinear, target, errors),
    }


def seasonal_naive(
    target: str, errors: Errors, data: Data, samples: Samples, rows: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Forecast each step as what it was a season before. Learns from nothing."""
    context, steps = data.spec.inputs["series"].shape[0], data.spec.targets[target].steps
    season = data.spec.preprocessing["season"]
    if season > context:
        raise ConfigError(f"--baseline seasonal_naive: a season of {season} is longer than the context of {context}")
    at = context - season + torch.arange(steps) % season
    return _rows(target, errors, samples, rows["index"], lambda x: x[:, at]), 0


def dlinear(
    target: str, errors: Errors, data: Data, samples: Samples, rows: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Forecast by one linear map from what is known to what comes, for all series: DLinear, fitted exactly rather than by
    gradients.

    DLinear (https://arxiv.org/abs/2205.13504 section 4) adds a linear map of the moving average and one of the rest. Both are
    linear in the window, so that together they are one map W, and its least squares have a closed form
    (https://arxiv.org/abs/2403.14587 section 3): W = (X'X + l I)^-1 X'Y. Windows are taken less their mean, which is
    added again; l is the best of a few on the validation split.
    """
    train, val = data.split("train"), data.split("val")
    context = data.spec.inputs["series"].shape[0]
    square, product = torch.zeros(context, context, dtype=torch.float64), None
    for x, y in _windows(train, target, torch.arange(len(train))):
        mean = x.mean(1, keepdim=True)
        square += (x - mean).T @ (x - mean)
        part = (x - mean).T @ (y - mean)
        product = part if product is None else product + part
    assert product is not None
    values, vectors = torch.linalg.eigh(square / len(train))

    def fitted(strength: float) -> Forecasting:
        weight = vectors @ ((vectors.T @ (product / len(train))) / (values[:, None].clamp_min(0) + strength))
        return lambda x: (x - x.mean(1, keepdim=True)) @ weight + x.mean(1, keepdim=True)

    def missed(strength: float) -> float:
        forecast = fitted(strength)
        windows = _windows(val, target, torch.arange(len(val)))
        return sum(float((forecast(x) - y).square().sum()) for x, y in windows)

    return _rows(target, errors, samples, rows["index"], fitted(min(STRENGTHS, key=missed))), len(train)


def _windows(samples: Samples, target: str, at: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what is known (n, L) and what comes (n, H) of the samples at positions, some at a time, in float64."""
    inputs, future = samples.tensors, samples.targets[target]
    assert inputs is not None and isinstance(future, Tensor)
    for part in at.split(TOGETHER):
        yield inputs["series"][part].double(), future[part].double()


def _rows(target: str, errors: Errors, samples: Samples, index: Tensor, forecast: Forecasting) -> dict[str, Tensor]:
    """Make the rows that the objective would have, had it forecast so."""
    naive = samples.targets.get("naive")
    parts: list[dict[str, Tensor]] = []
    for at, (x, y) in zip(index.split(TOGETHER), _windows(samples, target, index), strict=True):
        parts.append(errors(forecast(x), y, naive[at] if isinstance(naive, Tensor) else None))
    return {name: torch.cat([one[name] for one in parts]) for name in parts[0]}
