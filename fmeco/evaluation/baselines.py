"""Fit a plain method to the data of a run, and measure it on the samples that the run's model was measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fmeco.core.data import Data
from fmeco.data.subset import fraction
from fmeco.errors import ConfigError, FmecoError, clean, nearest
from fmeco.evaluation.measure import Measured
from fmeco.inference.data_for import data_for
from fmeco.inference.model import Model


def check_offered(model: Model, name: str) -> None:
    """Check that a checkpoint's objective has a baseline of this name. Raises ConfigError that lists those it has."""
    offered, objective = model.objective.baselines, model.checkpoint.meta["config"]["objective"]["name"]
    if not offered:
        raise ConfigError(f"--baseline {clean(name)}: objective {objective} has none for {model.spec.modality} data")
    if name not in offered:
        raise ConfigError(
            f"--baseline {clean(name)}: objective {objective} has {', '.join(offered)}{nearest(name, offered)}"
        )


def fit_baseline(
    found: Measured, name: str, ref: str | Path, overrides: Sequence[str] = ()
) -> tuple[dict[str, Tensor], int]:
    """Fit one of the baselines that the objective of a checkpoint offers to the run's own training samples.

    found: the checkpoint `ref` on a split. overrides: changes to the section of the dataset that it was trained on.
    Returns the rows that the objective's `metrics` take, of the same samples in the same order as those of `found`, and how
    many training samples were learned from. Raises ConfigError for a name that the objective does not offer.
    """
    lacking: FmecoError | None = None
    try:
        data = _learned_from(found, ref, overrides)
    except FmecoError as error:  # a method that learns from nothing does without
        data, lacking = Data(found.model.spec), error
    try:
        rows, samples = found.model.objective.baselines[name](data, found.samples, found.rows)
    except FmecoError as error:
        raise lacking or error from None
    return {**rows, "index": found.rows["index"]}, samples


def _learned_from(found: Measured, ref: str | Path, overrides: Sequence[str]) -> Data:
    """Build the run's own data, with as much of the training split as the run had."""
    trained = found.model.checkpoint.meta["config"]
    data, _ = data_for(found.model, ref, None, overrides)
    return fraction(data, trained["train"]["label_fraction"], trained["seed"])
