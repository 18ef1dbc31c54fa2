"""Draw training samples as the model gets them: decoded, augmented, with what lies on them."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from fmeco.assembly.stages import Training
from fmeco.core.data import Batch, DataSpec, Inputs, InputSpec
from fmeco.data.reading import Reading
from fmeco.data.spec_reader import reader_module
from fmeco.errors import ConfigError, clean, readable
from fmeco.files import replacing

SHOWN, COLUMNS = 24, 6  # samples, and pictures per row
SMALLEST = 128  # height below which pictures are enlarged


def check_drawable(spec: DataSpec) -> None:
    """Raise ConfigError for data that the reader of a spec cannot draw."""
    if getattr(reader_module(spec), "sheet", None) is None:
        raise ConfigError(f"--pictures: {spec.modality} data cannot be drawn", "images can")


def draw_training(training: Training, file: Path) -> int:
    """Write a grid of the first augmented training samples of a run to a PNG file. Returns their number. Raises DiskError."""
    spec, loader = training.data.spec, training.loader
    size = min(loader.batch_size, len(loader.samples))
    alone = dataclasses.replace(loader, micro_batch=size, reading=Reading(0, 1, None), rank=0, world=1)
    samples: list[Inputs] = []
    captions: list[str] = []
    with closing(alone.batches(0, -(-SHOWN // size))) as batches:
        for batch in batches:
            for at in range(min(len(batch), SHOWN - len(samples))):
                samples.append({name: _stored(x[at], spec.inputs.get(name)) for name, x in batch.views[0].items()})
                captions.append(_caption(training, batch, at))
    with replacing(file) as temporary:
        module = reader_module(spec)
        assert module is not None
        module.sheet(spec, samples, captions, COLUMNS, SMALLEST).save(temporary, format="PNG")
    return len(samples)


def _stored(x: Tensor, spec: InputSpec | None) -> Tensor:
    """Turn an input of the model back into stored values (see `standardize`)."""
    x = x.cpu()
    if spec is None or not spec.mean:
        return x
    per_channel = (-1,) + (1,) * (x.ndim - 1)
    std, mean = (torch.tensor(values).view(per_channel) for values in (spec.std, spec.mean))
    stored = (x.float() * std + mean) / spec.scale
    return stored.round().clamp(0, 255).to(torch.uint8) if spec.dtype == "uint8" else stored


def _caption(training: Training, batch: Batch, at: int) -> str:
    """Name a sample, and its class if it has one."""
    labels = []
    for name, target in training.data.spec.targets.items():
        values = batch.target.get(name)
        if target.traits.one_class and isinstance(values, Tensor) and values[at] >= 0:
            labels.append(target.classes[int(values[at])])
    name = readable(training.loader.samples.name(int(batch.index[at])))
    return clean(", ".join([*labels, Path(name).name]))
