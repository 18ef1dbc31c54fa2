"""Measure a checkpoint on a split, and keep the outputs of each sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fmeco.core.data import Samples
from fmeco.data.loader import evaluation_batches
from fmeco.data.reading import check_classes, choose_reading
from fmeco.errors import DataError
from fmeco.features import forward
from fmeco.inference.data_for import data_for
from fmeco.inference.model import Model, load
from fmeco.log import say
from fmeco.reports.findings import own_metric


class Measured(NamedTuple):
    """Hold the metrics of a checkpoint on a split.

    names: of the samples that could be read.
    rows: outputs (N, ...) of these samples; rows["index"] are positions in `samples`.
    samples: all samples of the split.
    """

    model: Model
    split: str
    names: list[str]
    metrics: dict[str, float]
    rows: dict[str, Tensor]
    samples: Samples

    @property
    def metric(self) -> str:
        """Name of the metric that selected the run's best checkpoint; the objective's first if that was a probe."""
        evaluating = self.model.checkpoint.meta["config"]["evaluate"]
        return own_metric(self.model.objective, str(evaluating["best"]).removeprefix("val_"))


def measure(
    ref: str | Path, dataset: str | Path | None, split: str | None, overrides: Sequence[str], model: Model | None = None
) -> Measured:
    """Measure a checkpoint on a split.

    dataset: as --dataset, with the same classes; None for the one that the checkpoint was trained on.
    split: default test if there is one, else val, else train.
    model: `load(ref)`, if it is loaded already.

    Raises DataError for a dataset with other targets or classes.
    """
    model = model or load(ref)
    data, on_bad_sample = data_for(model, ref, dataset, overrides)
    part = split or ("test" if data.test is not None else "val" if data.val is not None else "train")
    samples = data.split(part)
    for note in data.notes:
        say(note)
    for name, target in model.spec.targets.items():
        other = data.spec.targets.get(name)
        if other is None or (other.kind, other.classes) != (target.kind, target.classes):
            raise DataError(
                f"the checkpoint's target '{name}' is missing from the dataset, or has another kind or other classes there"
            )
    data = dataclasses.replace(data, spec=dataclasses.replace(data.spec, inputs=model.spec.inputs))
    reading = choose_reading("auto", data, samples, model.device, once=True)
    batches = evaluation_batches(
        data, samples, batch_size=64, reading=reading, device=model.device, channels_last=model.channels_last
    )
    bad: list[str] | None = [] if on_bad_sample == "skip" else None
    metrics, rows = forward.evaluate(model.objective, batches, model.device, model.precision, bad=bad)
    if bad:
        check_classes(data.spec, samples, rows["index"], part)
    for message in bad or []:
        say(f"skipped: {message}")
    return Measured(model, part, [samples.name(i) for i in rows["index"].tolist()], metrics, rows, samples)
