"""Compute features with weights that no run made: files of other tools, and published weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fmeco.assembly.data import build_data, check_modality
from fmeco.assembly.model import build_backbone, load_weights
from fmeco.assembly.source import read_source
from fmeco.config.load import read_config
from fmeco.core.data import Batch, Data, Samples
from fmeco.core.model import Backbone, Loss, Objective
from fmeco.data.loader import channels_last
from fmeco.distributed.ranks import ALONE
from fmeco.errors import ConfigError, clean
from fmeco.inference.model import batches_once, vectors_of
from fmeco.log import say


class Headless(Objective):
    """Hold a backbone without a head: it has vectors, and neither a loss nor metrics."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def loss(self, batch: Batch) -> Loss:
        raise TypeError("a backbone without a head has no loss")

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        raise TypeError("a backbone without a head has no metrics")

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        raise TypeError("a backbone without a head has no metrics")


def data_and_features(
    ref: str | Path, dataset: str | Path | None, overrides: Sequence[str]
) -> tuple[Data, Callable[[Samples], tuple[Tensor, list[int], list[str]]]]:
    """Build a dataset for weights that no run made, prepared as they expect, and a function that computes its features.

    dataset: as --dataset.
    overrides: as --set: backbone and its keys, keys of the dataset, and of `transfer:` how the weights are loaded.

    Raises ConfigError, DataError, CheckpointError.
    """
    if dataset is None:
        raise ConfigError(f"{clean(ref)} does not know a dataset", "pass one: --dataset X")
    config = read_config(None, stage="finetune", ref=ref, dataset=dataset, overrides=overrides)
    run_source = read_source(config, ALONE, None, None)
    source = run_source.source
    assert source is not None
    data = build_data(run_source, whole=Path(dataset).exists())
    check_modality(run_source, data.spec)
    backbone = build_backbone(source.backbone, data)
    for line in load_weights(backbone, source, config.carry).lines():
        say(line)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = Headless(backbone).to(device).eval()
    use_channels_last = channels_last("auto", data.spec)
    if use_channels_last:
        objective.to(memory_format=torch.channels_last)

    def features(samples: Samples) -> tuple[Tensor, list[int], list[str]]:
        return vectors_of(objective, batches_once(data.spec, samples, 64, device, use_channels_last), device, "fp32")

    return data, features
