"""Draw training samples as the model gets them: decoded, augmented, with what lies on them."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmeco.core.data import Batch, Data, DataSpec, Inputs, InputSpec
from fmeco.data.loader import Loader
from fmeco.data.reading import Reading
from fmeco.data.spec_reader import reader_module
from fmeco.errors import ConfigError, DataError, ResourceError, clean, readable
from fmeco.files import replacing
from fmeco.reports import findings

SHOWN, COLUMNS = 24, 6  # samples, and pictures per row
SMALLEST = 128  # height below which pictures are enlarged


def check_drawable(spec: DataSpec) -> None:
    """Raise ConfigError for data that the reader of a spec cannot draw."""
    if getattr(reader_module(spec), "sheet", None) is None:
        raise ConfigError(
            f"--pictures: the dataset '{spec.reader or spec.modality}' cannot draw its samples",
            "those of images can; a plug-in does by its function `sheet`",
        )


def draw_training(data: Data, loader: Loader, file: Path) -> int:
    """Write a grid of the first augmented training samples of a run to a PNG file. Returns their number. Raises DiskError."""
    grid, count = training_grid(data, loader)
    with replacing(file) as temporary:
        grid.save(temporary, format="PNG")
    return count


def draw_augmented(run: Path, data: Data, loader: Loader) -> None:
    """Write the grid for the report, as a data URI, if the data can be drawn and read. Raises DiskError."""
    try:
        if getattr(reader_module(data.spec), "sheet", None) is None:
            return
        grid, _ = training_grid(data, loader)
    except (ConfigError, DataError, ResourceError):  # a plug-in that is not loaded, or files that have gone since
        return
    (run / findings.FOLDER).mkdir(exist_ok=True)
    with replacing(run / findings.FOLDER / "training.uri") as temporary:
        temporary.write_text(findings.picture_uri(grid, max(grid.size)), "utf-8")


def training_grid(data: Data, loader: Loader) -> tuple[Any, int]:
    """Draw the first augmented training samples of a run side by side. Returns an image of Pillow, and their number."""
    spec = data.spec
    size = min(loader.batch_size, len(loader.samples))
    alone = dataclasses.replace(loader, micro_batch=min(SHOWN, size), reading=Reading(0, 1, None), rank=0, world=1)
    samples: list[Inputs] = []
    captions: list[str] = []
    with closing(alone.batches(0, -(-SHOWN // size))) as batches:
        for batch in batches:
            if len(samples) >= SHOWN:
                break
            for at in range(min(len(batch), SHOWN - len(samples))):
                samples.append({name: _stored(x[at], spec.inputs.get(name)) for name, x in batch.views[0].items()})
                captions.append(_caption(data, loader, batch, at))
    module = reader_module(spec)
    assert module is not None
    return module.sheet(spec, samples, captions, COLUMNS, SMALLEST), len(samples)


def _stored(x: Tensor, spec: InputSpec | None) -> Tensor:
    """Turn an input of the model back into stored values (see `standardize`)."""
    x = x.cpu()
    if spec is None or not spec.mean:
        return x
    per_channel = (-1,) + (1,) * (x.ndim - 1)
    std, mean = (torch.tensor(values).view(per_channel) for values in (spec.std, spec.mean))
    stored = (x.float() * std + mean) / spec.scale
    return stored.round().clamp(0, 255).to(torch.uint8) if spec.dtype == "uint8" else stored


def _caption(data: Data, loader: Loader, batch: Batch, at: int) -> str:
    """Name a sample, and its class if it has one."""
    labels = []
    for name, target in data.spec.targets.items():
        values = batch.target.get(name)
        if target.traits.one_class and isinstance(values, Tensor) and values[at] >= 0:
            labels.append(target.classes[int(values[at])])
    name = readable(loader.samples.name(int(batch.index[at])))
    return clean(", ".join([*labels, Path(name).name]))
