"""Forecast series by the value one season before, or by one linear map: the baselines that a network has to beat.

Both forecast one number per step. If the network forecasts quantiles, theirs are that number plus quantiles of their errors on
the validation split, so that both are judged as forecasts of quantiles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmeco.core import Baseline, ConfigError, Data, Samples

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # ridge penalties to try, relative to the variance of a standardised value
TOGETHER = 4096  # windows per block of the computation

Forecasting = Callable[[Tensor], Tensor]  # context (n, L) -> forecast (n, H)
# forecast (n, H), its distance to the quantiles (H, Q), future (n, H), naive error (n,) -> rows
Errors = Callable[[Tensor, Tensor, Tensor, Any], dict[str, Tensor]]


def baselines(target: str, levels: Sequence[float], errors: Errors) -> dict[str, Baseline]:
    """Return the baselines for a target, by name.

    levels: quantiles to forecast; one level is a forecast of one number per step.
    errors: computes the objective's rows from forecasts.
    """
    return {
        "seasonal_naive": functools.partial(seasonal_naive, target, levels, errors),
        "dlinear": functools.partial(dlinear, target, levels, errors),
    }


def seasonal_naive(
    target: str, levels: Sequence[float], errors: Errors, data: Data, samples: Samples, rows: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Forecast each step by the value one season before. Nothing is trained, but quantiles need the validation split.

    Returns (rows, number of windows that they depend on). Raises ConfigError if a season is longer than the context.
    """
    context, steps = data.spec.inputs["series"].shape[0], data.spec.targets[target].steps
    season = data.spec.preprocessing["season"]
    if season > context:
        raise ConfigError(f"--baseline seasonal_naive: a season of {season} is longer than the context of {context}")
    at = context - season + torch.arange(steps) % season

    def forecast(x: Tensor) -> Tensor:
        return x[:, at]

    spread, windows = _spread(target, levels, data, forecast)
    return _rows(target, errors, samples, rows["index"], forecast, spread), windows


def dlinear(
    target: str, levels: Sequence[float], errors: Errors, data: Data, samples: Samples, rows: Mapping[str, Tensor]
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

    best = fitted(min(STRENGTHS, key=validation_error))
    spread, _ = _spread(target, levels, data, best)
    return _rows(target, errors, samples, rows["index"], best, spread), len(train)


def _spread(target: str, levels: Sequence[float], data: Data, forecast: Forecasting) -> tuple[Tensor, int]:
    """Compute quantiles of the errors that a forecast makes on the validation split, for each step (H, Q).

    Returns (quantiles, number of windows). They are 0 for a single level: a forecast of one number.
    """
    if len(levels) == 1:
        return torch.zeros(data.spec.targets[target].steps, 1, dtype=torch.float64), 0
    val = data.split("val")
    errors = [(y - forecast(x)).numpy() for x, y in _windows(val, target, torch.arange(len(val)))]
    return torch.from_numpy(np.quantile(np.concatenate(errors), levels, axis=0).T), len(val)


def _windows(samples: Samples, target: str, at: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield context (n, L) and future (n, H) of the samples at positions `at`, in blocks, as float64."""
    inputs, future = samples.tensors, samples.targets[target]
    assert inputs is not None and isinstance(future, Tensor)
    for part in at.split(TOGETHER):
        yield inputs["series"][part].double(), future[part].double()


def _rows(
    target: str, errors: Errors, samples: Samples, index: Tensor, forecast: Forecasting, spread: Tensor
) -> dict[str, Tensor]:
    """Compute the objective's rows for the forecasts of a baseline. spread: distance to the quantiles of each step (H, Q)."""
    naive = samples.targets.get("naive")
    parts: list[dict[str, Tensor]] = []
    for at, (x, y) in zip(index.split(TOGETHER), _windows(samples, target, index), strict=True):
        parts.append(errors(forecast(x), spread, y, naive[at] if isinstance(naive, Tensor) else None))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
