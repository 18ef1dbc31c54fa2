"""Compute confidence intervals and tests: the bootstrap (plain, paired, in blocks) and McNemar's test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fmeco.core.model import Objective
from fmeco.core.random import mix
from fmeco.errors import DataError

# Number of bootstrap draws: more for accuracy, which only counts correct answers, fewer for metrics that take longer.
ANSWER_DRAWS, METRIC_DRAWS = 2000, 200


def bootstrap(
    n: int, draws: int, stream: int, measure: Callable[[Tensor], float], block: int = 1
) -> tuple[float, float]:
    """Compute the 95% percentile interval of a statistic by the bootstrap over n samples; (nan, nan) if never defined.

    draws: number of bootstrap draws.
    stream: number that selects the random draws; the same number gives the same interval.
    measure: function (positions (n,), drawn with replacement) -> statistic; not finite if it is undefined on them.
    block: number of consecutive samples to draw together if neighbours resemble each other (circular block bootstrap,
        Politis and Romano 1992).

    https://doi.org/10.1201/9780429246593 (Efron and Tibshirani 1993), chapter 13.
    """
    block = min(block, n)
    inside = torch.arange(block)

    def positions(draw: int) -> Tensor:
        first = (mix(stream, draw, torch.arange(-(-n // block))) >> 1) % n
        return ((first[:, None] + inside) % n).flatten()[:n]

    values = [measure(positions(draw)) for draw in range(draws)]
    defined = torch.tensor([value for value in values if math.isfinite(value)], dtype=torch.float64)
    if not len(defined):
        return math.nan, math.nan
    low, high = defined.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def measure_at(objective: Objective, rows: Mapping[str, Tensor], metric: str, at: Tensor) -> float:
    """Compute a metric on the rows at positions `at` (n,); nan if it is undefined on them."""
    return objective.metrics({name: values[at] for name, values in rows.items()}).get(metric, math.nan)


def interval(
    first: Objective,
    first_rows: dict[str, Tensor],
    second: Objective,
    second_rows: dict[str, Tensor],
    metric: str,
    sign: int,
    block: int = 1,
) -> tuple[float, float]:
    """Compute the 95% interval of the difference in a metric, first minus second model, by the paired bootstrap.

    first_rows, second_rows: rows of the two objectives on the same samples, in the same order.
    sign: 1 if higher is better, -1 if lower is better, so that a positive difference favours the first.
    block: number of consecutive samples to draw together.

    Raises DataError if the metric is undefined on these samples.
    """
    a, b = first.correct(first_rows), second.correct(second_rows)
    gained = a.double() - b.double() if metric == "accuracy" and a is not None and b is not None else None

    def measure(at: Tensor) -> float:
        if gained is not None:
            return float(gained[at].mean())
        return sign * (measure_at(first, first_rows, metric, at) - measure_at(second, second_rows, metric, at))

    low, high = bootstrap(
        len(first_rows["index"]), METRIC_DRAWS if gained is None else ANSWER_DRAWS, 0x70616972, measure, block
    )
    if math.isnan(low):
        raise DataError(f"{metric} is not defined on these samples")
    return low, high


def wilson(right: int, total: int) -> tuple[float, float]:
    """Compute Wilson's 95% interval of a share, which stays inside 0 to 1 and has a width at 0 and at 1, too.

    https://doi.org/10.1080/01621459.1927.10502953
    """
    z = statistics.NormalDist().inv_cdf(0.975)
    centre = (right + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * math.sqrt(right * (total - right) / total + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Compute Student's 95% interval of the mean of two or more values, such as the gains of several seeds: (low, high)."""
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests, so that one below 0.05 is found by chance in at most 5% of such families of tests.

    https://www.jstor.org/stable/4615733 (Holm 1979).
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def mcnemar(only_one: int, only_other: int) -> float:
    """Compute the exact two-sided p-value of McNemar's test that two models are equally accurate.

    only_one, only_other: number of samples that only the first, or only the second, model answers correctly.

    https://doi.org/10.1007/BF02295996
    """
    from scipy.stats import binomtest

    if only_one + only_other == 0:
        return 1.0
    return float(binomtest(only_one, only_one + only_other).pvalue)
