"""Choose what evaluations measure: probes of the backbone's vectors, and the metric that selects the best checkpoint."""

from __future__ import annotations

from typing import Literal

from fmeco.assembly.data import classes_of
from fmeco.assembly.stages import Measures, RunModel
from fmeco.errors import ConfigError, clean, nearest

UNLABELLED = "retrieval"  # the probe for data without classes: does a view find the other view of its sample?


def choose_measures(model: RunModel) -> Measures:
    """Choose the probes, the metrics and the metric that selects the best checkpoint.

    Raises ConfigError for a metric that the run does not have, and for early stopping, or a schedule that follows
    validation scores, without a validation split.
    """
    probes, directions = _probes(model)
    evaluate, train, data = model.config.evaluate, model.config.train, model.run_data.data
    best = (evaluate.best or next(iter(directions), "loss")).removeprefix("val_")
    if best not in directions:
        raise ConfigError(
            f"evaluate.best: this run has no metric {clean(best)}{nearest(best, directions)}",
            f"metrics: {', '.join(directions)}",
        )
    schedule = model.config.schedule
    scored = f"the schedule {schedule.name}" if "history" in schedule.plugin.injected else None
    needs_scores = "train.early_stop" if train.early_stop is not None else scored
    if needs_scores is not None and (data.val is None or len(data.val) == 0):
        raise ConfigError(f"{needs_scores} needs a validation split, and this dataset has none")
    return Measures(probes, directions, best, 1 if directions[best] == "max" else -1)


def _probes(model: RunModel) -> tuple[tuple[str, ...], dict[str, Literal["max", "min"]]]:
    """Choose the probes, and list the directions of all metrics, those of the probes first."""
    objective, data, varies = model.objective, model.run_data.data, model.augment.varies
    configured = model.config.evaluate.probes
    probes = objective.probes if configured is None else tuple(configured)
    if not probes or data.val is None or not len(data.val):
        return (), dict(objective.directions)
    named_probes = probes if classes_of(data) is not None else (UNLABELLED,)
    if named_probes == (UNLABELLED,) and not varies:
        if configured is None:
            return (), dict(objective.directions)
        raise ConfigError(
            "evaluate.probes: the validation split has no classes, and without an augmentation a sample has no two views",
            "label at least two validation samples (the others may stay empty), or choose an augmentation",
        )
    directions: dict[str, Literal["max", "min"]] = {**dict.fromkeys(named_probes, "max"), **objective.directions}
    if varies:
        directions |= {"alignment": "min", "uniformity": "min"}
    return probes, directions
