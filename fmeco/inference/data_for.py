"""Build the dataset to use a checkpoint on, preprocessed as in its training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmeco.checkpoints import refs
from fmeco.config.dataset_argument import section_for_use
from fmeco.config.load import load_config
from fmeco.config.parser import read_tree
from fmeco.core.data import Data, DataSpec
from fmeco.core.modality import same_modality
from fmeco.errors import ConfigError
from fmeco.inference.model import Model


def data_for(
    model: Model,
    ref: str | Path,
    dataset: str | Path | None,
    overrides: Sequence[str],
    known: DataSpec | None = None,
) -> tuple[Data, str]:
    """Build the dataset to use a checkpoint on: `dataset`, or the one that it was trained on.

    dataset: as --dataset: a path, or a dataset's name.
    known: the spec that inputs are made by; None for the checkpoint's.

    Returns the data, and what to do about unreadable samples: "error" or "skip".

    Raises ConfigError, DataError, and CheckpointError for data of another modality.
    """
    trained_config = model.checkpoint.meta["config"]
    whole = dataset is not None and Path(dataset).exists()
    if dataset is not None:
        raw: Any = section_for_use(str(dataset), trained_config.get("dataset", {}), model.spec.reader)
    else:
        refs.check_needs(model.checkpoint, ref, "datasets")
        run = Path(ref) / "config.yaml"
        raw = trained_config.get("dataset")
        if raw is not None:
            refs.section_of(model.checkpoint, "dataset")
        if run.is_file():  # holds absolute paths
            raw = read_tree(run)[0].get("dataset")
        if raw is None:
            raise ConfigError("this checkpoint was trained on data given in Python", "pass a dataset: --dataset X")
    config = {"from": "-", "dataset": raw, "train": {"on_bad_sample": trained_config["train"]["on_bad_sample"]}}
    settings = load_config(config, stage="finetune", overrides=overrides, name="-")
    section = settings.dataset
    assert section is not None
    if section.plugin.modality:
        same_modality(model.spec, section.plugin.modality, training=False)
    data: Data = section.plugin.build(
        {"known": known or model.spec, "whole": whole, "arch": section.arch}, section.options
    )
    same_modality(model.spec, data.spec.modality, training=False)
    return data, settings.train.on_bad_sample
