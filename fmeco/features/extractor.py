"""Compute the features of a frozen network once, and cache them on disk for later epochs, heads, runs and commands.

A cache file holds one view of one split in NumPy's format. Its name is a hash of everything that its content depends
on: weights, preprocessing, samples, augmentation and precision. The JSON file beside it holds the checksum of the whole
file, and tells whether the samples' files are still the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fmeco.config.run_config import Choice
from fmeco.core.augment import Augment
from fmeco.core.data import Data, Inputs, InputSpec, Samples, View, Wrapped
from fmeco.core.model import STORED, Backbone
from fmeco.core.random import uniform
from fmeco.data import disk_cache as cache
from fmeco.data.loader import evaluation_batches
from fmeco.data.reading import choose_reading
from fmeco.distributed.ranks import ALONE, Ranks
from fmeco.errors import DiskError
from fmeco.features.split_network import Cut, Vector
from fmeco.files import replacing
from fmeco.log import say
from fmeco.nn.precision import autocast

BATCH = 64
# Share of the free memory that stored values may take: their users copy them, to stack views or to solve a head.
MEMORY = 1 / 4


class Stored(Wrapped):
    """Hold a split as precomputed outputs (N, V, ...) of a frozen part, for V views of each sample."""

    def __init__(self, samples: Samples, values: Tensor) -> None:
        super().__init__(samples)
        self.values = values
        self.tensors, self.in_memory = {STORED: values}, True
        self.content, self.lengths = "", None  # they describe the inputs, not these values

    def __getitem__(self, index: int) -> Inputs:
        return {STORED: self.values[index]}


def on_stored(data: Data, train: Tensor, val: Tensor | None = None) -> Data:
    """Replace the inputs of a dataset by stored values (N, V, ...) of V views. val: of the validation split, if it is used."""
    return dataclasses.replace(
        data,
        spec=dataclasses.replace(data.spec, inputs={STORED: InputSpec(tuple(train.shape[1:]))}),
        train=Stored(data.split("train"), train),
        val=Stored(data.split("val"), val) if val is not None else None,
        collate=None,
    )


class OneOf(Augment):
    """Pick one of a sample's stored views at random: (B, V, ...) -> (B, 1, ...)."""

    def batch(self, inputs: Inputs, keys: Tensor) -> Inputs:
        """Draw a view for each sample. keys: random keys (B,)."""
        x = inputs[STORED]
        chosen = (uniform(keys, 0) * x.shape[1]).long().to(x.device)
        return {STORED: x[torch.arange(len(x), device=x.device), chosen][:, None]}


@dataclasses.dataclass
class Extractor:
    """Compute the outputs of a backbone, or of its part below a cut, or load them from the cache.

    data: describes how samples are collated and prepared.
    chosen: the backbone's section; part of the cache key, as options need not show in the layers.
    source: where the weights come from, for `fmeco cache`.
    place: where the backbone is cut; None to run all of it.
    """

    backbone: Backbone
    data: Data
    device: torch.device
    precision: str
    channels_last: bool
    ranks: Ranks = ALONE
    chosen: Choice | None = None
    place: Cut | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        self.lower = Vector(self.backbone) if self.place is None else self.place.lower
        self.shape = (self.backbone.width,) if self.place is None else self.place.shape
        self.dtype = torch.float32 if self.place is None else self.place.dtype
        self.weights = fingerprint(self.lower)

    def size(self, count: int) -> float:
        """Return the bytes that the values of `count` samples, or views of samples, take."""
        return float(math.prod(self.shape)) * self.dtype.itemsize * count

    def fits(self, count: int) -> bool:
        """Tell whether the values of `count` samples, or views of samples, fit into the memory of every rank."""
        return not self.ranks.most(float(self.size(count) > MEMORY * cache.free_memory()))[0]

    def values(
        self, samples: Samples, what: str, view: tuple[Augment, Choice | None, int] | None = None
    ) -> Tensor | None:
        """Compute or load the values (N, *shape) of a split. Returns None if a sample cannot be read.

        what: the split's name, for the progress bar.
        view: augmentation, its section and the view's number; None for samples that are not augmented.
        """
        path = self._path(samples, view)
        cached = _load_cached(path, samples, (len(samples), *self.shape), self.dtype) if path is not None else None
        if not self.ranks.most(float(cached is None))[0]:  # if one rank has to compute, all do
            return cached
        values = self._compute(samples, what, view)
        if values is not None and path is not None and self.ranks.first:
            _save_cached(path, values, samples, self._model())
        return values

    def _model(self) -> str:
        """Describe what computes the values, for `fmeco cache`."""
        name = self.chosen.spelled if self.chosen is not None else type(self.backbone).__name__
        return ("" if self.place is None else "part of ") + name + (f" from {self.source}" if self.source else "")

    def _compute(self, samples: Samples, what: str, view: tuple[Augment, Choice | None, int] | None) -> Tensor | None:
        """Run the network over a split. Returns None if a sample cannot be read."""
        augment, views = (view[0], (View(),)) if view is not None else (Augment(), (View(augment=False),))
        reading = choose_reading("auto", self.data, samples, self.device, views=views, augment=augment, once=True)
        batches = evaluation_batches(
            self.data,
            samples,
            batch_size=BATCH,
            reading=reading,
            device=self.device,
            channels_last=self.channels_last,
            rank=self.ranks.rank,
            world=self.ranks.world,
            view=(view[0], view[2]) if view is not None else None,
        )
        parts: dict[str, list[Tensor]] = {"values": [], "index": []}
        skipped: list[str] = []
        training = self.backbone.training
        self.backbone.eval()
        steps = -(-len(samples) // (BATCH * self.ranks.world))
        with torch.inference_mode(), autocast(self.device, self.precision):
            for batch in tqdm(batches, desc=f"features of {what}", total=steps, disable=None, leave=False):
                skipped += batch.skipped
                if skipped:
                    break
                if len(batch):
                    parts["values"].append(self.lower(batch.views[0]).cpu())
                    parts["index"].append(batch.index)
        self.backbone.train(training)
        rows, skipped = self.ranks.gather_rows({k: torch.cat(v) for k, v in parts.items() if v}, skipped)
        if skipped or not rows:
            return None
        ordered = torch.empty(rows["values"].shape, dtype=rows["values"].dtype)
        ordered[rows["index"]] = rows["values"]
        return ordered

    def _path(self, samples: Samples, view: tuple[Augment, Choice | None, int] | None) -> Path | None:
        """Return the cache file of a split; None if its content cannot be identified, or there is no cache."""
        content, source_code = samples.content or _content(samples), _source_hash(self.backbone)
        augment, section = (view[0], view[1]) if view is not None else (None, None)
        if not content or not source_code:
            return None
        key = [
            2,  # the first entries had no checksum
            source_code,
            _version(self.backbone),
            self.chosen.to_dict() if self.chosen is not None else None,
            _source_hash(augment) if augment is not None else None,
            self.weights,
            content,
            self.data.spec.preprocessing_only().to_json(),
            [section.to_dict(), view[2]] if section is not None and view is not None else None,
            [self.precision, self.device.type, torch.__version__],
        ]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        try:
            return cache.folder() / "features" / f"{digest[:32]}.npy"
        except DiskError:
            return None


def fingerprint(module: torch.nn.Module) -> str:
    """Identify a module by its layers and a hash of its tensors with their names, unsaved buffers included.

    The code of a traced graph counts, too.
    """
    return str(module) + _hash({**dict(module.named_buffers()), **module.state_dict()})


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _source_hash(plugin: Backbone | Augment) -> str:
    """Hash the source files of an object's class and of its base classes; "" if one cannot be read."""
    classes = [cls for cls in type(plugin).__mro__ if issubclass(cls, Backbone | Augment)]
    try:
        return hashlib.sha256(b"".join(Path(inspect.getfile(cls)).read_bytes() for cls in classes)).hexdigest()
    except (OSError, TypeError):
        return ""


def _version(backbone: Backbone) -> str:
    """Return the name and version of the library that the backbone's layers come from."""
    package = type(backbone.library).__module__.partition(".")[0]
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _content(samples: Samples) -> str:
    """Hash a split that is in memory; "" for a split whose samples would have to be read."""
    return "" if samples.tensors is None else _hash(samples.tensors)


def _load_cached(path: Path, samples: Samples, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """Load a cache file; None if it is missing, damaged, of other files, or has another shape or type."""
    about = cache.described_as(path)
    if not path.exists() or (about and not _same_files(path, about, samples)):
        return None
    try:
        if about.get("checksum") != _checksum(path):
            raise ValueError("the checksum is another one")
        values = torch.from_numpy(np.load(path, mmap_mode="c"))
    except (OSError, ValueError, EOFError, TypeError):
        say(f"the cached features {path} are damaged: computing them anew")
        cache.remove(path)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # mark as used: `prune` removes the least recently used files
    values = values if values.dtype != torch.int16 else values.view(torch.bfloat16)
    return values if values.shape == shape and values.dtype == dtype else None


def _same_files(path: Path, about: Mapping[str, Any], samples: Samples) -> bool:
    """Whether a cache file was computed from these samples: from the same files, or from others of the same bytes."""
    stamps = _stamps(samples)
    if about.get("stamps") == stamps:
        return True
    if not about.get("bytes") or about["bytes"] != _bytes(samples, stored=False):
        return False
    cache.describe(path, {**about, "data": samples.origin, "stamps": stamps})  # touched, moved or copied
    return True


def _stamps(samples: Samples) -> str:
    return "" if samples.stamps is None else _hash({"stamps": samples.stamps})


def _bytes(samples: Samples, stored: bool) -> str:
    """Hash the bytes of the samples' files; "" if they are not known. stored: read no file for it."""
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(samples)):
        one = samples.digest(index, stored=stored)
        if one is None:
            return ""
        digest.update(one)
    return digest.hexdigest()


def _checksum(path: Path) -> str:
    """Hash a whole cache file. Raises OSError, and ValueError for an empty file."""
    return hashlib.blake2b(np.memmap(path, mode="r").data, digest_size=16).hexdigest()


def _save_cached(path: Path, values: Tensor, samples: Samples, model: str) -> None:
    """Write a cache file and its description, complete or not at all.

    A full disk is no error: the values are computed again the next time.
    """
    about: dict[str, Any] = {"data": samples.origin, "model": model, "samples": len(samples)}
    about |= {"stamps": _stamps(samples), "bytes": _bytes(samples, stored=True)}
    with contextlib.suppress(OSError, DiskError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            with open(temporary, "wb") as file:  # numpy has no bfloat16
                np.save(file, (values if values.dtype != torch.bfloat16 else values.view(torch.int16)).numpy())
            cache.describe(path, {**about, "checksum": _checksum(temporary)})
        cache.prune(path.parent, "*.npy", cache.room(path.parent))
