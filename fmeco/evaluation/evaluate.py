"""Evaluate a checkpoint: metrics of a split, of groups of its samples, and of a baseline."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmeco.config.arguments import checked
from fmeco.errors import ConfigError, clean, known_errors, listing, nearest
from fmeco.evaluation.baselines import check_offered, fit_baseline
from fmeco.evaluation.measure import Measured, measure
from fmeco.inference.model import load
from fmeco.nn.intervals import METRIC_DRAWS, bootstrap, interval, measure_at

FEW = 10  # a group with fewer samples is marked as `few`, and gets no interval


@known_errors()
@checked
def evaluate(
    ref: str | Path,
    *,
    dataset: str | Path | None = None,
    split: str | None = None,
    overrides: Sequence[str] = (),
    by: str | None = None,
    baseline: str | None = None,
) -> dict[str, Any]:
    """Compute the metrics of a checkpoint on a split.

    dataset: as --dataset, with the same classes; None for the one that the checkpoint was trained on. A path without
        split folders is used whole.
    split: val or test; default test if there is one.
    by: a column of the dataset, or a target whose values are classes: also compute the metrics of each group.
    baseline: also compute the metrics of this plain method, which the checkpoint's objective offers, fitted to the
        run's training samples.

    Returns {"checkpoint", "split", "samples", "about", "metrics", "directions"}, metrics named SPLIT_NAME, and for each
    whether "max" or "min" is better. With `by` or `baseline`
    also "metric", which selected the run's best checkpoint, and "groups" and "gaps", or "baseline".

    Raises ConfigError, DataError, CheckpointError.
    """
    model = load(ref)
    if baseline is not None:
        check_offered(model, baseline)
    measured = measure(ref, dataset, split, overrides, model)
    metric = measured.metric

    def named(metrics: dict[str, float]) -> dict[str, float]:
        return {f"{measured.split}_{name}": value for name, value in metrics.items()}

    answer: dict[str, Any] = {
        "checkpoint": str(measured.model.checkpoint.path),
        "split": measured.split,
        "samples": len(measured.names),
        "about": dict(measured.model.objective.about),
        "metrics": named(measured.metrics),
        "directions": {f"{measured.split}_{name}": way for name, way in measured.model.objective.directions.items()},
    }
    if by is not None:
        found = groups(measured, by, metric)
        rows = [{**row, "metrics": named(row["metrics"])} for row in found]
        gaps = [
            {**gap, "metric": f"{measured.split}_{gap['metric']}"} for gap in gaps_between(measured, by, metric, found)
        ]
        answer |= {"metric": f"{measured.split}_{metric}", "by": by, "groups": rows, "gaps": gaps}
    if baseline is not None:
        baseline_rows, samples = fit_baseline(measured, baseline, ref, overrides if dataset is None else ())
        objective = measured.model.objective
        metrics = objective.metrics(baseline_rows)
        if metric not in metrics:
            raise ConfigError(f"{metric} is not defined on these samples for the baseline {baseline}")
        sign = 1 if objective.directions[metric] == "max" else -1
        low, high = interval(objective, measured.rows, objective, baseline_rows, metric, sign, measured.samples.block)
        answer |= {
            "metric": f"{measured.split}_{metric}",
            "baseline": {
                "name": baseline,
                "trained_on": samples,
                "metrics": named(metrics),
                "difference": [sign * (measured.metrics[metric] - metrics[metric]), low, high],
            },
        }
    return answer


def groups(measured: Measured, by: str, metric: str) -> list[dict[str, Any]]:
    """Compute the metrics of each group of samples, the largest group first.

    Returns rows of group, samples, few, metrics and interval: the 95% interval [low, high] of `metric` by a bootstrap
    over the group's samples; None if it is not defined, or the group is `few`.
    """
    values = _values(measured, by)
    rows: list[dict[str, Any]] = []
    for value, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])):
        positions = torch.tensor([i for i, item in enumerate(values) if item == value])
        group_rows = {name: x[positions] for name, x in measured.rows.items()}
        span = None
        if len(positions) >= FEW:
            figure = functools.partial(measure_at, measured.model.objective, group_rows, metric)
            block = max(1, round(measured.samples.block * len(positions) / len(values)))
            low, high = bootstrap(len(positions), METRIC_DRAWS, 0x67726F75, figure, block)
            span = None if math.isnan(low) else [low, high]
        metrics = measured.model.objective.metrics(group_rows)
        rows.append(
            {
                "group": value,
                "samples": len(positions),
                "few": len(positions) < FEW,
                "metrics": metrics,
                "interval": span,
            }
        )
    return rows


def gaps_between(measured: Measured, by: str, metric: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare the groups that are furthest apart, without those that are `few`.

    For `metric`, and with a positive class also for the share of samples that are answered positively (demographic parity)
    and the share of positive samples that are (equal opportunity, https://arxiv.org/abs/1610.02413 equation 2.2).

    rows: of `groups`, for the same `by`.

    Returns rows of name, metric, high and low (the groups), difference (0 or more) and its 95% interval by a bootstrap over the
    samples of both groups; None if it is not defined. These are the groups furthest apart of all, so the interval is a little
    too far from 0. [] for fewer than two groups.
    """
    values, wanted = _values(measured, by), {metric: metric}
    if positive := measured.model.objective.about.get("positive class"):
        wanted |= {"demographic parity": f"answered/{positive}", "equal opportunity": f"recall/{positive}"}
    found = []
    for name, figure in wanted.items():
        scores = {row["group"]: row["metrics"].get(figure, math.nan) for row in rows if not row["few"]}
        scores = {group: score for group, score in scores.items() if not math.isnan(score)}
        if len(scores) < 2:
            continue
        high, low = max(scores, key=lambda group: scores[group]), min(scores, key=lambda group: scores[group])
        top, bottom = ([i for i, value in enumerate(values) if value == group] for group in (high, low))
        interval = _gap_interval(measured, top, bottom, figure) if high != low else None
        found.append(
            {
                "name": name,
                "metric": figure,
                "high": high,
                "low": low,
                "difference": scores[high] - scores[low],
                "interval": interval,
            }
        )
    return found


def _gap_interval(measured: Measured, high: list[int], low: list[int], metric: str) -> list[float] | None:
    both = torch.tensor([*high, *low])

    def gap(at: Tensor) -> float:
        one, other = (both[at[(at < len(high)) == first]] for first in (True, False))
        if not len(one) or not len(other):
            return math.nan
        first, second = (measure_at(measured.model.objective, measured.rows, metric, each) for each in (one, other))
        return first - second

    ends = bootstrap(len(both), METRIC_DRAWS, 0x67617073, gap, measured.samples.block)
    return None if math.isnan(ends[0]) else list(ends)


def _values(measured: Measured, by: str) -> list[str]:
    """Look up each sample's value in a column, or its class."""
    index: list[int] = measured.rows["index"].tolist()
    targets = {name: target.classes for name, target in measured.model.spec.targets.items() if target.traits.one_class}
    if by in measured.samples.groups:
        column = measured.samples.groups[by]
        return [column[i] for i in index]
    if by in targets:
        return [
            targets[by][code] if code >= 0 else "" for code in (int(measured.samples.targets[by][i]) for i in index)
        ]
    valid = list(dict.fromkeys([*measured.samples.groups, *targets]))
    raise ConfigError(
        f"--by {clean(by)}: no such column{nearest(by, valid)}; there are: {listing(valid, 50)}",
        "a column with more than 100 values must be named in dataset.group or dataset.group_split",
    )
