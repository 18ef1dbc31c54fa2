"""Build the dataset to use a checkpoint on, preprocessed as in its training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmeco.checkpoints import refs
from fmeco.config.dataset_argument import section_for_use
from fmeco.config.load import load_config
from fmeco.config.parser import read_tree
from fmeco.config.resuming import check_unedited
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
        raw = _trained_section(model, _config_of(Path(ref)))
    settings = load_config(_config(model, raw), stage="finetune", overrides=overrides, name="-")
    section = settings.dataset
    assert section is not None
    if section.plugin.modality:
        same_modality(model.spec, section.plugin.modality, training=False)
    data: Data = section.plugin.build(
        {"known": known or model.spec, "whole": whole, "arch": section.arch}, section.options
    )
    same_modality(model.spec, data.spec.modality, training=False)
    return data, settings.train.on_bad_sample


def _config(model: Model, dataset: Any) -> dict[str, Any]:
    """Make a config with this dataset's section, and the checkpoint's rule for unreadable samples."""
    on_bad_sample = model.checkpoint.meta["config"]["train"]["on_bad_sample"]
    return {"from": "-", "dataset": dataset, "train": {"on_bad_sample": on_bad_sample}}


def _config_of(ref: Path) -> Path:
    """Return the path of the config.yaml of a run, or of the run that a checkpoint lies in: both say where the data is."""
    in_run = ref.parent.name == "checkpoints" and not (ref / "config.yaml").exists()
    return (ref.parent.parent if in_run else ref) / "config.yaml"


def _trained_section(model: Model, run: Path) -> Any:
    """Return the section of the dataset that a checkpoint was trained on.

    run: config.yaml of its run, which holds absolute paths and says where moved data is; it may be absent.

    Raises ConfigError if there is no such section, or if it was edited in another key: the splits would be others.
    """
    trained = model.checkpoint.meta["config"].get("dataset")
    if trained is None:
        raise ConfigError("this checkpoint was trained on data given in Python", "pass a dataset: --dataset X")
    refs.section_of(model.checkpoint, "dataset")
    if not run.is_file():
        return trained
    here = read_tree(run)[0].get("dataset")
    now, then = (load_config(_config(model, section), stage="finetune", name="-") for section in (here, trained))
    check_unedited(run, now, then, hint="--set dataset.KEY=VALUE changes a value for one command")
    return here
