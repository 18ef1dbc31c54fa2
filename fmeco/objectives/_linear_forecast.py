"""Forecast series by the value one season before, or by one linear map: the baselines that a network has to beat."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fmeco.core import Baseline, ConfigError, Data, Samples

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # ridge penalties to try, relative to the variance of a standardised value
TOGETHER = 4096  # windows per block of the computation

Forecasting = Callable[[Tensor], Tensor]  # context (n, L) -> forecast (n, H)
Errors = Callable[[Tensor, Tensor, Any], dict[str, Tensor]]  # forecast (n, H), future (n, H), naive error (n,) -> rows


def baselines(target: str, errors: Errors) -> dict[str, Baseline]:
    """Return the baselines for a target, by name. errors: computes the objective's rows from forecasts."""
    return {
        "seasonal_naive": functools.partial(seasonal_naive, target, errors),
        "dlinear": functools.partial(dlinear, target, errors),
    }


def seasonal_naive(
    target: str, errors: Errors, data: Data, samples: Samples, rows: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Forecast each step by the value one season before. Nothing is trained.

    Returns (rows, 0). Raises ConfigError if a season is longer than the context.
    """
    context, steps = data.spec.inputs["series"].shape[0], data.spec.targets[target].steps
    season = data.spec.preprocessing["season"]
    if season > context:
        raise ConfigError(f"--baseline seasonal_naive: a season of {season} is longer than the context of {context}")
    at = context - season + torch.arange(steps) % season
    return _rows(target, errors, samples, rows["index"], lambda x: x[:, at]), 0


def dlinear(
    target: str, errors: Errors, data: Data, samples: Samples, rows: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Forecast by one linear map from context to horizon, shared by all series: DLinear, solved in closed form.

    DLinear (https://arxiv.org/abs/2205.13504 section 4) sums a linear map of the moving average and one of the remainder.
    Both are linear in the window, so together they are one map W, with the least-squares solution
    W = (X'X + l I)^-1 X'Y (https://arxiv.org/abs/2403.14587 section 3). The mean of each window is subtracted before and
    added after; l is chosen from STRENGTHS on the validation split.
    Returns (rows, number of training windows).
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

    def validation_error(strength: float) -> float:
        forecast = fitted(strength)
        windows = _windows(val, target, torch.arange(len(val)))
        return sum(float((forecast(x) - y).square().sum()) for x, y in windows)

    return _rows(target, errors, samples, rows["index"], fitted(min(STRENGTHS, key=validation_error))), len(train)


def _windows(samples: Samples, target: str, at: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield context (n, L) and future (n, H) of the samples at positions `at`, in blocks, as float64."""
    inputs, future = samples.tensors, samples.targets[target]
    assert inputs is not None and isinstance(future, Tensor)
    for part in at.split(TOGETHER):
        yield inputs["series"][part].double(), future[part].double()


def _rows(target: str, errors: Errors, samples: Samples, index: Tensor, forecast: Forecasting) -> dict[str, Tensor]:
    """Compute the objective's rows for the forecasts of a baseline."""
    naive = samples.targets.get("naive")
    parts: list[dict[str, Tensor]] = []
    for at, (x, y) in zip(index.split(TOGETHER), _windows(samples, target, index), strict=True):
        parts.append(errors(forecast(x), y, naive[at] if isinstance(naive, Tensor) else None))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
