"""Build the dataset that a checkpoint is used on, read as the checkpoint's inputs were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmeco.checkpoints import refs
from fmeco.config.dataset_argument import section_for_use
from fmeco.config.load import load_config
from fmeco.config.parser import parse_yaml
from fmeco.core.data import Data, DataSpec
from fmeco.errors import CheckpointError, ConfigError
from fmeco.inference.model import Model


def data_for(
    model: Model,
    ref: str | Path,
    dataset: str | None,
    overrides: Sequence[str],
    known: DataSpec | None = None,
) -> tuple[Data, str]:
    """Build the dataset to use a checkpoint on: --dataset, or the one it was trained on, each read by the checkpoint's
    spec. Returns it and what to do about bad samples."""
    trained = model.checkpoint.meta["config"]
    whole = dataset is not None and Path(dataset).exists()
    if dataset is not None:
        raw: Any = section_for_use(dataset, trained.get("dataset", {}), model.spec.reader)
    else:
        refs.check_needs(model.checkpoint, ref, "datasets")
        run = Path(ref) / "config.yaml"
        raw = trained.get("dataset")
        if run.is_file():  # holds absolute paths
            raw = parse_yaml(run.read_text("utf-8"), str(run))[0].get("dataset")
        if raw is None:
            raise ConfigError("this checkpoint was trained on data given in Python", "name a dataset: --dataset X")
    asked = {"from": "-", "dataset": raw, "train": {"on_bad_sample": trained["train"]["on_bad_sample"]}}
    settings = load_config(asked, stage="finetune", overrides=overrides, name="-")
    section = settings.dataset
    assert section is not None
    data: Data = section.plugin.build(
        {"known": known or model.spec, "whole": whole, "arch": section.arch}, section.options
    )
    if data.spec.modality != model.spec.modality:
        raise CheckpointError(
            f"the checkpoint is for {model.spec.modality} data, and this dataset holds {data.spec.modality} data"
        )
    return data, settings.train.on_bad_sample
