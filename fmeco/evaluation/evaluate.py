"""Evaluate a checkpoint: metrics of a split, of groups of its samples, and of a baseline beside them."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fmeco.errors import ConfigError, clean, known_errors, listing, nearest
from fmeco.evaluation.baselines import check_offered, fit_baseline
from fmeco.evaluation.measure import Measured, measure
from fmeco.inference.model import load
from fmeco.nn.intervals import METRIC_DRAWS, bootstrap, interval, measure_at

FEW = 10  # samples; a group with fewer is marked, and gets no interval


@known_errors()
def evaluate(
    ref: str | Path,
    *,
    dataset: str | None = None,
    split: str | None = None,
    overrides: Sequence[str] = (),
    by: str | None = None,
    baseline: str | None = None,
) -> dict[str, Any]:
    """Compute metrics of a checkpoint on a split, of the dataset it was trained on or of another with the same classes.

    split: val or test; default test where there is one. A `dataset` path without split folders is used whole.
    by: a column of the dataset, or a target whose values are classes: also the metrics of each of its groups.
    baseline: one that the checkpoint's objective offers: also the metrics of that plain method, fitted to the run's training
    samples.
    Returns {"checkpoint", "split", "samples", "about", "metrics"}, metrics named SPLIT_NAME; and "metric", the one that
    picked the run's best checkpoint, with "groups" or "baseline" where they were asked for.
    """
    model = load(ref)
    if baseline is not None:
        check_offered(model, baseline)
    found = measure(ref, dataset, split, overrides, model)
    metric = found.metric

    def named(metrics: dict[str, float]) -> dict[str, float]:
        return {f"{found.split}_{name}": value for name, value in metrics.items()}

    answer: dict[str, Any] = {
        "checkpoint": str(found.model.checkpoint.path),
        "split": found.split,
        "samples": len(found.names),
        "about": dict(found.model.objective.about),
        "metrics": named(found.metrics),
    }
    if by is not None:
        rows = [{**row, "metrics": named(row["metrics"])} for row in groups(found, by, metric)]
        answer |= {"metric": f"{found.split}_{metric}", "by": by, "groups": rows}
    if baseline is not None:
        theirs, samples = fit_baseline(found, baseline, ref, overrides if dataset is None else ())
        objective = found.model.objective
        metrics = objective.metrics(theirs)
        if metric not in metrics:
            raise ConfigError(f"{metric} is not defined on these samples")
        sign = 1 if objective.directions[metric] == "max" else -1
        low, high = interval(objective, found.rows, objective, theirs, metric, sign, found.samples.block)
        answer |= {
            "metric": f"{found.split}_{metric}",
            "baseline": {
                "name": baseline,
                "trained_on": samples,
                "metrics": named(metrics),
                "difference": [sign * (found.metrics[metric] - metrics[metric]), low, high],
            },
        }
    return answer


def groups(found: Measured, by: str, metric: str) -> list[dict[str, Any]]:
    """Compute the metrics of each group of samples, the largest first.

    interval: the 95% interval of `metric` by a bootstrap over the group's samples, [low, high]; None where it is not
    defined, or the group is `few`.
    """
    values = _values(found, by)
    rows: list[dict[str, Any]] = []
    for value, _ in sorted(Counter(values).items(), key=lambda one: (-one[1], one[0])):
        at = torch.tensor([i for i, one in enumerate(values) if one == value])
        own = {name: x[at] for name, x in found.rows.items()}
        span = None
        if len(at) >= FEW:
            figure = functools.partial(measure_at, found.model.objective, own, metric)
            block = max(1, round(found.samples.block * len(at) / len(values)))
            low, high = bootstrap(len(at), METRIC_DRAWS, 0x67726F75, figure, block)
            span = None if math.isnan(low) else [low, high]
        metrics = found.model.objective.metrics(own)
        rows.append({"group": value, "samples": len(at), "few": len(at) < FEW, "metrics": metrics, "interval": span})
    return rows


def _values(found: Measured, by: str) -> list[str]:
    """Look up the value of each sample of `found` in a column, or its class."""
    index: list[int] = found.rows["index"].tolist()
    targets = {name: one.classes for name, one in found.model.spec.targets.items() if one.traits.one_class}
    if by in found.samples.groups:
        column = found.samples.groups[by]
        return [column[i] for i in index]
    if by in targets:
        return [targets[by][code] if code >= 0 else "" for code in (int(found.samples.targets[by][i]) for i in index)]
    valid = list(dict.fromkeys([*found.samples.groups, *targets]))
    raise ConfigError(
        f"--by {clean(by)}: no such column{nearest(by, valid)}; there are: {listing(valid, 50)}",
        "a column with more than 100 values must be named in dataset.group or dataset.group_split",
    )
