"""Choose what evaluations measure: probes of the backbone's vectors, and the metric that picks the best checkpoint."""

from __future__ import annotations

from typing import Literal

from fmeco.assembly.data import classes_of
from fmeco.assembly.stages import Measures, RunModel
from fmeco.errors import ConfigError, clean, nearest

UNLABELLED = "retrieval"  # the probe of data without classes: does a view find its other view?


def choose_measures(model: RunModel) -> Measures:
    """Choose probes, metrics and the best metric. Raises ConfigError for a metric that the run does not have, and for what
    needs a validation split where there is none."""
    probes, directions = _probes(model)
    evaluate, train, data = model.config.evaluate, model.config.train, model.given.data
    best = (evaluate.best or next(iter(directions), "loss")).removeprefix("val_")
    if best not in directions:
        raise ConfigError(
            f"evaluate.best: {clean(best)} is no metric of this run{nearest(best, directions)}",
            f"metrics: {', '.join(directions)}",
        )
    waits = train.early_stop is not None or model.config.schedule.name == "plateau"
    if waits and (data.val is None or len(data.val) == 0):
        raise ConfigError("early_stop and the plateau schedule need a validation split, and this dataset has none")
    return Measures(probes, directions, best, 1 if directions[best] == "max" else -1)


def _probes(model: RunModel) -> tuple[tuple[str, ...], dict[str, Literal["max", "min"]]]:
    """Choose the probes, and list the directions of all metrics, the probes' first."""
    objective, data, varies = model.objective, model.given.data, model.augment.varies
    asked = model.config.evaluate.probes
    probes = objective.probes if asked is None else tuple(asked)
    if not probes or data.val is None or not len(data.val):
        return (), dict(objective.directions)
    named = probes if classes_of(data) is not None else (UNLABELLED,)
    if named == (UNLABELLED,) and not varies:
        if asked is None:
            return (), dict(objective.directions)
        raise ConfigError(
            "evaluate.probes: the validation split has no classes, and without an augmentation no two views of a sample",
            "a table with a label column may leave most labels empty: a partly labelled split is enough",
        )
    directions: dict[str, Literal["max", "min"]] = {**dict.fromkeys(named, "max"), **objective.directions}
    if varies:
        directions |= {"alignment": "min", "uniformity": "min"}
    return probes, directions
