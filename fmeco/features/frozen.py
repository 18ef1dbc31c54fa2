"""What a frozen backbone, or its frozen part, computes is computed once: its values (N, ...) of a split, kept on the disk
for every later epoch, head, run and command.

A file holds one view of one split as numpy writes it. Its name is a hash of all that decides what is in it:
weights, preprocessing, samples, augmentation, precision.
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
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from tqdm import tqdm

from fmeco.config.check import Choice
from fmeco.core import STORED, Augment, Backbone, Data, Inputs, InputSpec, Samples, View, uniform
from fmeco.data import disk_cache as cache
from fmeco.data.loader import choose_reading, evaluation_batches
from fmeco.distributed.ranks import ALONE, Ranks
from fmeco.features.split_network import Cut, Vector, cut
from fmeco.log import say
from fmeco.training.assemble import Plan, few
from fmeco.training.loop import autocast

VIEWS = 3  # of each sample, where training augments
BATCH = 64


class Stored(Samples):
    """A split as what a frozen part gives (N, V, ...), for each of V views."""

    in_memory = True

    def __init__(self, samples: Samples, values: Tensor) -> None:
        self.samples, self.values = samples, values
        self.targets, self.tensors = samples.targets, {STORED: values}

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Inputs:
        return {STORED: self.values[index]}

    def name(self, index: int) -> str:
        return self.samples.name(index)


class OneOf(Augment):
    """Each time another of a sample's views: (B, V, ...) -> (B, 1, ...)."""

    def batch(self, inputs: Inputs, keys: Tensor) -> Inputs:
        x = inputs[STORED]
        chosen = (uniform(keys, 0) * x.shape[1]).long().to(x.device)
        return {STORED: x[torch.arange(len(x), device=x.device), chosen][:, None]}


def stored(plan: Plan, epochs: float) -> tuple[Data, Augment] | None:
    """The data as what the plan's backbone, or the frozen part of it, makes of it, where nothing else is asked of the
    inputs and it pays in that many epochs (0 where they are not known)."""
    product, wanted = plan.objective.product, plan.settings.carry.views
    product.rest = None
    frozen = [not p.requires_grad for p in product.parameters()]
    adapts = plan.settings.carry.batch_norm == "adapt" and any(isinstance(m, BatchNorm) for m in product.modules())
    if not any(frozen) or not plan.objective.vectors_only or adapts or wanted == 0:
        return None
    augments = plan.settings.augment is not None and plan.settings.augment.name != "none"
    if all(frozen):
        views, place = (wanted or VIEWS) if augments else 1, None
    else:  # layers above that train want more variety than a head: of views only as many as were asked for
        views = (wanted or 0) if augments else 1
        place = _place(plan) if wanted is not None or epochs > 2 else None
        if place is None or not views:
            if place is not None:
                say("part of the backbone is frozen; transfer.views: 3, or augment: none, computes that part only once")
            return None
    found = Extractor(
        product,
        plan.data,
        plan.device,
        plan.precision,
        plan.loader.channels_last,
        plan.ranks,
        plan.settings.backbone,
        place,
    )
    train, val = plan.data.split("train"), plan.data.val
    needed = float(math.prod(found.shape)) * found.dtype.itemsize * (views * len(train) + len(val or ()))
    if plan.ranks.most(float(needed > cache.free_memory() / 2))[0]:
        say(f"features would take {needed / 1e9:.0f} GB of memory: they are computed anew in every epoch")
        return None
    began = time.monotonic()
    parts = [
        found.values(train, "train", (plan.augment, plan.settings.augment, view) if augments else None)
        for view in range(views)
    ]
    validated = found.values(val, "val") if val is not None and len(val) else None
    if any(part is None for part in parts) or (val is not None and len(val) and validated is None):
        if plan.settings.train.on_bad_sample == "skip":
            say("some samples cannot be read: features are computed anew in every epoch, without them")
        return None
    whole = parts[0][:, None] if views == 1 else torch.stack(parts, 1)  # type: ignore[index,arg-type]
    took = time.monotonic() - began
    say(
        f"{'the backbone' if place is None else 'a part of the backbone'} is frozen: its features of {len(train):,} samples"
        f"{f', {views} views each,' if views > 1 else ''} took {took:.1f} s"
    )
    product.rest = place.rest if place is not None else None
    spec = dataclasses.replace(plan.data.spec, inputs={STORED: InputSpec(tuple(whole.shape[1:]))})
    held = None
    if val is not None and validated is not None:
        held = Stored(val, validated[:, None].expand(-1, views, *[-1] * len(found.shape)))
    return dataclasses.replace(plan.data, spec=spec, train=Stored(train, whole), val=held, collate=None), OneOf()


def _place(plan: Plan) -> Cut | None:
    """Where to cut a backbone that is partly frozen: not where storing values would take more than storing inputs, nor
    where values are as ragged as the samples."""
    if plan.data.spec.ragged:
        return None
    example = few(plan.loader, 2).to(plan.device).views[0]
    with autocast(plan.device, plan.precision):
        place = cut(plan.objective.product, example)
    if place is None or math.prod(place.shape) > sum(x[0].numel() for x in example.values()):
        return None
    return place


@dataclasses.dataclass
class Extractor:
    """Computes what a backbone, or its part below a cut, makes of samples, or finds it on the disk."""

    backbone: Backbone
    data: Data
    device: torch.device
    precision: str
    channels_last: bool
    ranks: Ranks = ALONE
    chosen: Choice | None = None  # the backbone's section: options need not show in its layers
    place: Cut | None = None

    def __post_init__(self) -> None:
        self.lower = Vector(self.backbone) if self.place is None else self.place.lower
        self.shape = (self.backbone.width,) if self.place is None else self.place.shape
        self.dtype = torch.float32 if self.place is None else self.place.dtype
        self.weights = fingerprint(self.lower)

    def values(
        self, samples: Samples, what: str, view: tuple[Augment, Choice | None, int] | None = None
    ) -> Tensor | None:
        """The values (N, *shape) of a split: of the plain samples, or of one augmented `view` (how, its section, its
        number). None where a sample cannot be read."""
        path = self._path(samples, view)
        kept = _kept(path, (len(samples), *self.shape), self.dtype) if path is not None else None
        if not self.ranks.most(float(kept is None))[0]:  # where one rank has to compute, all do
            return kept
        found = self._compute(samples, what, view)
        if found is not None and path is not None and self.ranks.first:
            _keep(path, found)
        return found

    def _compute(self, samples: Samples, what: str, view: tuple[Augment, Choice | None, int] | None) -> Tensor | None:
        augment, varied = (view[0], (View(),)) if view is not None else (Augment(), (View(augment=False),))
        reading = choose_reading("auto", self.data, samples, self.device, views=varied, augment=augment, once=True)
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
        found = torch.empty(rows["values"].shape, dtype=rows["values"].dtype)
        found[rows["index"]] = rows["values"]
        return found

    def _path(self, samples: Samples, view: tuple[Augment, Choice | None, int] | None) -> Path | None:
        content, code = samples.content or _content(samples), _code(self.backbone)
        augment, section = (view[0], view[1]) if view is not None else (None, None)
        if not content or not code:
            return None
        decides = [
            code,
            _version(self.backbone),
            self.chosen.to_dict() if self.chosen is not None else None,
            _code(augment) if augment is not None else None,
            self.weights,
            content,
            self.data.spec.preprocessing_only().to_json(),
            [section.to_dict(), view[2]] if section is not None and view is not None else None,
            [self.precision, self.device.type, torch.__version__],
        ]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        return cache.folder() / "features" / f"{digest[:32]}.npy"


def fingerprint(module: torch.nn.Module) -> str:
    """A module's layers, its code where that is its own, and a hash of its tensors and their names, the buffers that are
    not saved among them."""
    return str(module) + _hash({**dict(module.named_buffers()), **module.state_dict()})


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _code(thing: Backbone | Augment) -> str:
    """A hash of the file that says how it computes; "" where there is none that one could look at."""
    try:
        return hashlib.sha256(Path(inspect.getfile(type(thing))).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return ""


def _version(backbone: Backbone) -> str:
    """Of the library that the backbone's layers come from."""
    package = type(backbone.library).__module__.partition(".")[0]
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _content(samples: Samples) -> str:
    """A hash of a split in memory; "" where its samples would have to be read."""
    return "" if samples.tensors is None else _hash(samples.tensors)


def _kept(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    try:
        kept = torch.from_numpy(np.load(path, mmap_mode="c"))
    except (OSError, ValueError, EOFError, TypeError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used now, for `prune`
    kept = kept if kept.dtype != torch.int16 else kept.view(torch.bfloat16)
    return kept if kept.shape == shape and kept.dtype == dtype else None


def _keep(path: Path, values: Tensor) -> None:
    """Write a file, whole or not at all. A full disk costs time later, not the run."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:  # numpy has no bfloat16
            np.save(file, (values if values.dtype != torch.bfloat16 else values.view(torch.int16)).numpy())
        os.replace(temporary, path)
        cache.prune(path.parent, "*.npy", cache.room(path.parent))
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
