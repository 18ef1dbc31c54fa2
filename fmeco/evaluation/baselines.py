"""Fit a plain method to the data of a run, and measure it on the same samples as the run's model."""

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
    """Check that a checkpoint's objective offers a baseline. Raises ConfigError that lists the ones it offers."""
    offered, objective = model.objective.baselines, model.checkpoint.meta["config"]["objective"]["name"]
    if not offered:
        raise ConfigError(f"--baseline {clean(name)}: objective {objective} has none for {model.spec.modality} data")
    if name not in offered:
        raise ConfigError(
            f"--baseline {clean(name)}: objective {objective} has {', '.join(offered)}{nearest(name, offered)}"
        )


def fit_baseline(
    measured: Measured, name: str, ref: str | Path, overrides: Sequence[str] = ()
) -> tuple[dict[str, Tensor], int]:
    """Fit a baseline that a checkpoint's objective offers to the run's own training samples.

    measured: the checkpoint `ref` on a split.
    overrides: changes to the section of the dataset that it was trained on.

    Returns rows for the objective's `metrics`, of the same samples in the same order as those of `measured`, and the
    number of training samples. Raises ConfigError for a baseline that the objective does not offer.
    """
    data_error: FmecoError | None = None
    try:
        data = _training_data(measured, ref, overrides)
    except FmecoError as error:  # a baseline that needs no training can do without the data
        data, data_error = Data(measured.model.spec), error
    try:
        rows, samples = measured.model.objective.baselines[name](data, measured.samples, measured.rows)
    except FmecoError as error:
        raise data_error or error from None
    return {**rows, "index": measured.rows["index"]}, samples


def _training_data(measured: Measured, ref: str | Path, overrides: Sequence[str]) -> Data:
    """Build the run's own data, with the same share of training labels."""
    trained_config = measured.model.checkpoint.meta["config"]
    data, _ = data_for(measured.model, ref, None, overrides)
    return fraction(data, trained_config["train"]["label_fraction"], trained_config["seed"])
