"""Replace the data of a phase by features of the frozen part of its backbone, computed once, where that pays."""

from __future__ import annotations

import dataclasses
import math
import time

import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from fmeco.assembly.stages import Training
from fmeco.core.augment import Augment
from fmeco.core.data import Data, InputSpec
from fmeco.core.model import STORED
from fmeco.data import disk_cache as cache
from fmeco.data.loader import first_batch
from fmeco.features.extractor import Extractor, OneOf, Stored
from fmeco.features.split_network import Cut, cut
from fmeco.log import say
from fmeco.nn.precision import autocast

VIEWS = 3  # of each sample, where training augments


def stored(training: Training, epochs: float) -> tuple[Data, Augment] | None:
    """Compute features of the data with the backbone, or with the frozen part of it: (features as data, an augmentation
    that picks one of their views). None where the inputs serve for something else, or where it would not pay.

    epochs: of the phase, 0 where they are not known.
    """
    product, wanted = training.objective.product, training.config.carry.views
    product.rest = None
    frozen = [not p.requires_grad for p in product.parameters()]
    adapts = training.config.carry.batch_norm == "adapt" and any(isinstance(m, BatchNorm) for m in product.modules())
    if not any(frozen) or not training.objective.vectors_only or adapts or wanted == 0:
        return None
    augments = training.model.augment.varies
    if all(frozen):
        views, place = (wanted or VIEWS) if augments else 1, None
    else:  # layers above that train want more variety than a head: of views only as many as were asked for
        views = (wanted or 0) if augments else 1
        place = _place(training) if wanted is not None or epochs > 2 else None
        if place is None or not views:
            if place is not None:
                say("part of the backbone is frozen; transfer.views: 3, or augment: none, computes that part only once")
            return None
    found = Extractor(
        product,
        training.data,
        training.device,
        training.config.train.precision,
        training.loader.channels_last,
        training.ranks,
        training.config.backbone,
        place,
    )
    train, val = training.data.split("train"), training.data.val
    needed = float(math.prod(found.shape)) * found.dtype.itemsize * (views * len(train) + len(val or ()))
    if training.ranks.most(float(needed > cache.free_memory() / 2))[0]:
        say(f"features would take {needed / 1e9:.0f} GB of memory: they are computed anew in every epoch")
        return None
    began = time.monotonic()
    parts = [
        found.values(train, "train", (training.model.augment, training.config.augment, view) if augments else None)
        for view in range(views)
    ]
    validated = found.values(val, "val") if val is not None and len(val) else None
    if any(part is None for part in parts) or (val is not None and len(val) and validated is None):
        if training.config.train.on_bad_sample == "skip":
            say("some samples cannot be read: features are computed anew in every epoch, without them")
        return None
    whole = parts[0][:, None] if views == 1 else torch.stack(parts, 1)  # type: ignore[index,arg-type]
    took = time.monotonic() - began
    say(
        f"{'the backbone' if place is None else 'a part of the backbone'} is frozen: its features of {len(train):,} samples"
        f"{f', {views} views each,' if views > 1 else ''} took {took:.1f} s"
    )
    product.rest = place.rest if place is not None else None
    spec = dataclasses.replace(training.data.spec, inputs={STORED: InputSpec(tuple(whole.shape[1:]))})
    held = None
    if val is not None and validated is not None:
        held = Stored(val, validated[:, None].expand(-1, views, *[-1] * len(found.shape)))
    return dataclasses.replace(training.data, spec=spec, train=Stored(train, whole), val=held, collate=None), OneOf()


def _place(training: Training) -> Cut | None:
    """Where to cut a backbone that is partly frozen: not where storing values would take more than storing inputs, nor
    where values are as ragged as the samples."""
    if training.data.spec.ragged:
        return None
    example = first_batch(training.loader, 2).to(training.device).views[0]
    with autocast(training.device, training.config.train.precision):
        place = cut(training.objective.product, example)
    if place is None or math.prod(place.shape) > sum(x[0].numel() for x in example.values()):
        return None
    return place
