"""Forecasts of a series: all steps of the horizon at once, as numbers or as quantiles."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fmeco.core import (
    SHOWN,
    Backbone,
    Batch,
    Cases,
    ConfigError,
    DataSpec,
    Doc,
    Ge,
    Inputs,
    Loss,
    Lt,
    Objective,
    Part,
    Table,
)
from fmeco.nn import linear_head
from fmeco.nn.layers import Head, by_instance, trial
from fmeco.objectives import _linear_forecast

DEFAULT_FOR = ("series",)  # kinds of targets


def check(loss: str, quantiles: list[float], **_: Any) -> list[str]:
    if loss == "quantile" and (sorted(set(quantiles)) != quantiles or 0.5 not in quantiles):
        return [f"quantiles {quantiles}: they must ascend and include 0.5, which is the prediction"]
    if loss == "quantile" and not 0 < quantiles[0] <= quantiles[-1] < 1:
        return [f"quantiles {quantiles}: they must lie between 0 and 1"]
    return []


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    target: Annotated[str, Doc("name of the dataset's target to learn")] = "future",
    loss: Literal["mse", "mae", "quantile"] = "mse",
    quantiles: Annotated[
        list[float], Doc("with loss quantile: the quantiles to forecast; the outer two are the reported interval")
    ] = [
        0.1,
        0.5,
        0.9,
    ],
    dropout: Annotated[float, Doc("dropout before the head"), Ge(0), Lt(1)] = 0.0,
) -> Objective:
    described = spec.targets.get(target)
    if described is None or described.kind != "series" or set(spec.seen) != {"series"}:
        kind = "no such target" if described is None else f"it is of kind {described.kind}"
        raise ConfigError(
            f"objective forecast needs a series target '{target}' and a series as the only input: {kind}",
            "dataset: series reads such data",
        )
    context = spec.seen["series"].shape[0]
    width = flat_width(backbone, context)
    return Forecast(backbone, target, described.steps, width, loss, quantiles if loss == "quantile" else [0.5], dropout)


def flat_width(backbone: Backbone, context: int) -> int:
    """Find the length of the vector that `flat` returns, by running the backbone on zeros."""
    with trial(backbone):
        return flat(backbone, {"series": torch.zeros(2, context)}).shape[1]


def flat(backbone: Backbone, inputs: Inputs) -> Tensor:
    """Concatenate all tokens (B, T * D), so that the head can tell the newest one; without tokens, return the vector (B, D)."""
    features = backbone(inputs)
    return features.vector if features.tokens is None else features.tokens.flatten(1)


class Forecast(Objective):
    """Forecast H steps by a linear head on all tokens, (B, T * D) -> (B, H) per quantile. https://arxiv.org/abs/2211.14730

    Each window is standardised by its own mean and deviation, and the forecast is scaled back, so that the model works at
    levels that training has not seen (RevIN, without its learned map: https://openreview.net/forum?id=cGDAkQo1C0p).
    """

    def __init__(
        self, backbone: Backbone, target: str, steps: int, width: int, kind: str, quantiles: list[float], dropout: float
    ) -> None:
        super().__init__()
        self.backbone, self.target, self.steps, self.kind, self.levels = backbone, target, steps, kind, quantiles
        self.head = Head(width, steps * len(quantiles), dropout)
        first = {"mse": "mse", "mae": "mae", "quantile": "pinball"}[kind]
        names = ["mse", "mae", "mase", *(["pinball"] if kind == "quantile" else [])]
        self.directions: Mapping[str, Literal["max", "min"]] = dict.fromkeys([first, *names], "min")
        self.baselines = _linear_forecast.baselines(
            target, quantiles, functools.partial(errors_of_numbers, quantiles, kind)
        )

    def forecast(self, batch: Batch) -> Tensor:
        """Compute the forecast (B, H, Q), in the units of the inputs."""
        normal, mean, std = by_instance(batch.views[0]["series"])
        out = self.head(flat(self.backbone, {**batch.views[0], "series": normal})).float()
        values: Tensor = out.unflatten(1, (self.steps, len(self.levels))) * std.unsqueeze(-1) + mean.unsqueeze(-1)
        return values

    def loss(self, batch: Batch) -> Loss:
        future, got = batch.target[self.target], self.forecast(batch)
        assert isinstance(future, Tensor)
        if self.kind == "quantile":
            each = pinball(got, future, self.levels).mean((1, 2))  # (B,)
        else:
            error = got[..., 0] - future
            each = (error.square() if self.kind == "mse" else error.abs()).mean(1)
        return Loss(each.sum(), len(each))

    def head_rows(self, batch: Batch) -> dict[str, Tensor]:
        """Compute what the head reads and wants, in units of each window's deviation, and these deviations."""
        normal, mean, std = by_instance(batch.views[0]["series"])
        future = batch.target[self.target]
        assert isinstance(future, Tensor)
        tokens = flat(self.backbone, {**batch.views[0], "series": normal})
        return {"tokens": tokens.float(), "wanted": (future - mean) / std, "std": std[:, 0]}

    def solve(self, rows: Mapping[str, Tensor], penalties: Mapping[str, float]) -> dict[str, float]:
        """Write the head by ridge regression. Quantiles are those of the errors of windows that were left out of a fit."""
        # The loss is in the inputs' units, so the windows that vary most count most.
        weight = rows["weight"] * (rows["std"].square() if self.kind == "mse" else rows["std"])
        data = linear_head.examples(rows["tokens"], rows["wanted"], "squares", weight)
        if not linear_head.fits(data):
            return {}
        penalty = penalties.get(self.target)
        penalty = linear_head.choose_penalty(data, in_order=True) if penalty is None else penalty
        head = linear_head.fit(data, penalty)
        bias = head.bias[:, None].expand(-1, len(self.levels))  # (H, Q)
        if self.kind != "mse":
            errors = data.y - linear_head.held_out_outputs(data, penalty, in_order=True)  # (N, H)
            bias = bias + torch.from_numpy(np.quantile(errors.numpy(), self.levels, axis=0)).float().T
        with torch.no_grad():
            self.head.weight.copy_(head.weight.repeat_interleave(len(self.levels), 0))
            self.head.bias.copy_(bias.flatten())
        return {self.target: penalty}

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        future = batch.target[self.target]
        assert isinstance(future, Tensor)
        return self.errors(self.forecast(batch).sort(-1).values, future, batch.target.get("naive"))

    def errors(self, forecast: Tensor, future: Tensor, naive: Any = None) -> dict[str, Tensor]:
        """Compute the rows for forecasts (B, H, Q), by the module's function `errors`."""
        return errors(self.levels, self.kind, forecast, future, naive)

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(rows[name].double().nanmean()) for name in self.directions if name in rows}
        if "covered" in rows:  # no direction is better: it should equal the difference of the outer quantiles
            values[f"coverage/{self.levels[0]:g}-{self.levels[-1]:g}"] = float(rows["covered"].double().mean())
        return {name: value for name, value in values.items() if value == value}

    def page(self, rows: dict[str, Tensor]) -> list[Part]:
        error = rows["mae"].double()
        points = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
        spread = tuple(error.quantile(points).tolist())
        worst = error.argsort(descending=True, stable=True)[:SHOWN].tolist()
        return [
            Table("Mean absolute error of a forecast", ("10% are below", "half", "90%", "all"), (spread,)),
            Cases("Worst forecasts", tuple(worst), tuple(f"mean absolute error {float(error[i]):.4g}" for i in worst)),
        ]

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Forecast, and sort quantiles that cross, which never makes them worse: https://arxiv.org/abs/0704.3649"""
        return {"forecast": self.forecast(batch).sort(-1).values}

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return lists of H numbers per sample: `prediction`, and with several quantiles also `low` and `high`."""
        columns = {"prediction": self.levels.index(0.5)}
        if len(self.levels) > 1:
            columns |= {"low": 0, "high": -1}
        return [{name: values[:, at].tolist() for name, at in columns.items()} for values in outputs["forecast"]]


def errors(levels: list[float], kind: str, forecast: Tensor, future: Tensor, naive: Any = None) -> dict[str, Tensor]:
    """Compute the errors of each sample (B,), mean over the horizon.

    levels: the quantiles that are forecast.
    kind: the loss that they were trained with.
    forecast: (B, H, Q).
    future: the true values (B, H).
    naive: (B,), the error that MASE is relative to; nan for samples without one.
    """
    error = forecast[..., levels.index(0.5)] - future
    rows = {"mse": error.square().mean(1), "mae": error.abs().mean(1)}
    if isinstance(naive, Tensor):
        rows["mase"] = rows["mae"] / naive
    if kind == "quantile":
        rows["pinball"] = pinball(forecast, future, levels).mean((1, 2))
        inside = (forecast[..., 0] <= future) & (future <= forecast[..., -1])
        rows["covered"] = inside.float().mean(1)
    return rows


def errors_of_numbers(
    levels: list[float], kind: str, forecast: Tensor, spread: Tensor, future: Tensor, naive: Any = None
) -> dict[str, Tensor]:
    """Compute the errors of forecasts of one number per step (B, H).

    spread: distance of the number to its quantiles (H, Q). Quantiles are judged by them, and other errors by the number.
    """
    rows = errors(levels, kind, forecast.unsqueeze(-1) + spread, future, naive)
    return {**rows, **errors([0.5], "mae", forecast.unsqueeze(-1), future, naive)}


def pinball(forecast: Tensor, future: Tensor, levels: list[float]) -> Tensor:
    """Compute the pinball loss (B, H, Q), which the true quantiles minimise: max(q e, (q - 1) e) for e = future - forecast.

    https://doi.org/10.2307/1913643 (Koenker and Bassett 1978)
    """
    level = torch.tensor(levels, device=forecast.device, dtype=forecast.dtype)
    error = future.unsqueeze(-1) - forecast
    return torch.maximum(level * error, (level - 1) * error)
