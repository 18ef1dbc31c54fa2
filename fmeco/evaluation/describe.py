"""Measure what a run came to on its splits, and describe it in its report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmeco.checkpoints.pointers import marked
from fmeco.config.arguments import checked
from fmeco.errors import ConfigError, clean, known_errors
from fmeco.evaluation.measure import Measured, measure
from fmeco.inference.model import load
from fmeco.reports import findings
from fmeco.reports.run_report import report


@known_errors()
@checked
def describe(run: str | Path, *, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measure the best checkpoint of a run on its validation and test split, and write its report anew.

    Returns for each split {"split", "samples", "metric", "value", "interval", "metrics"}. Raises ConfigError for what is no run.
    """
    run = Path(run)
    best = marked(run / "checkpoints", "best")
    if best is None or not (run / "config.yaml").is_file():
        raise ConfigError(f"{clean(run)} is not the folder of a run with a checkpoint")
    model = load(best)
    splits = [split for split in ("val", "test") if model.spec.sizes.get(split)]
    if not splits:
        raise ConfigError(f"{clean(run)}: its data has neither a validation nor a test split to describe")
    answers = [described(run, measure(best, None, split, overrides, model)) for split in splits]
    report(run)
    return answers


def described(run: Path, measured: Measured, patience: float = math.inf) -> dict[str, Any]:
    """Write what was found on a split to a run. Returns its figures. patience: seconds that the interval may take."""
    found = findings.find(
        measured.model.objective,
        measured.model.spec,
        measured.samples,
        measured.rows,
        split=measured.split,
        metric=measured.metric,
        step=measured.model.checkpoint.meta["step"],
        patience=patience,
    )
    findings.write(run, found)
    value = found["metrics"].get(found["metric"])
    return {key: found[key] for key in ("split", "samples", "metric", "interval", "metrics")} | {"value": value}
