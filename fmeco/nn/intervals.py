"""Confidence intervals and tests: the bootstrap, also of pairs and of blocks, and McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fmeco.core.model import Objective
from fmeco.core.random import mix
from fmeco.errors import DataError

# Draws of the bootstrap: of right and wrong answers, which are only counted, and of metrics, which take longer.
ANSWER_DRAWS, METRIC_DRAWS = 2000, 200


def bootstrap(
    n: int, draws: int, stream: int, measure: Callable[[Tensor], float], block: int = 1
) -> tuple[float, float]:
    """Give the 95% interval of a figure by the bootstrap over n samples (percentiles). measure: positions (n,), drawn with
    replacement -> the figure, not finite where it is not defined on them; nan where it never is.

    https://doi.org/10.1201/9780429246593 (Efron and Tibshirani 1993), chapter 13. block: so many in a row are drawn
    together, where each is like the next (Politis and Romano 1992, the circular block bootstrap).
    """
    block = min(block, n)
    inside = torch.arange(block)

    def positions(draw: int) -> Tensor:
        first = (mix(stream, draw, torch.arange(-(-n // block))) >> 1) % n
        return ((first[:, None] + inside) % n).flatten()[:n]

    found = [measure(positions(draw)) for draw in range(draws)]
    defined = torch.tensor([one for one in found if math.isfinite(one)], dtype=torch.float64)
    if not len(defined):
        return math.nan, math.nan
    low, high = defined.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def measure_at(objective: Objective, rows: Mapping[str, Tensor], metric: str, at: Tensor) -> float:
    """Compute a metric of the rows at positions (n,); nan where it is not defined on them."""
    return objective.metrics({name: values[at] for name, values in rows.items()}).get(metric, math.nan)


def interval(
    one: Objective,
    mine: dict[str, Tensor],
    other: Objective,
    theirs: dict[str, Tensor],
    metric: str,
    sign: int,
    block: int = 1,
) -> tuple[float, float]:
    """Give the 95% interval of the difference of two models on the same samples, by the paired bootstrap, `block` samples in a
    row at a time."""
    a, b = one.correct(mine), other.correct(theirs)
    gained = a.double() - b.double() if metric == "accuracy" and a is not None and b is not None else None

    def measure(at: Tensor) -> float:
        if gained is not None:
            return float(gained[at].mean())
        return sign * (measure_at(one, mine, metric, at) - measure_at(other, theirs, metric, at))

    low, high = bootstrap(
        len(mine["index"]), METRIC_DRAWS if gained is None else ANSWER_DRAWS, 0x70616972, measure, block
    )
    if math.isnan(low):
        raise DataError(f"{metric} is not defined on these samples")
    return low, high


def mcnemar(only_one: int, only_other: int) -> float:
    """Compute the exact two-sided p of McNemar's test: could a fair coin decide which of two models is right where one of them
    is? https://doi.org/10.1007/BF02295996"""
    from scipy.stats import binomtest

    if only_one + only_other == 0:
        return 1.0
    return float(binomtest(only_one, only_one + only_other).pvalue)
