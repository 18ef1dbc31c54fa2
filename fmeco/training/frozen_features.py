"""What a frozen backbone, or its frozen part, computes is computed once: its values (N, ...) of a split, kept on the disk
for every later epoch, head, run and command.

A file holds one view of one split as numpy writes it. Its name is a hash of all that decides what is in it:
weights, preprocessing, samples, augmentation, precision.
"""

from __future__ import annotations

import dataclasses
import math
import time

import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from fmeco.assembly.model import Plan, few
from fmeco.core import STORED, Augment, Data, InputSpec
from fmeco.data import disk_cache as cache
from fmeco.features.extractor import Extractor, OneOf, Stored
from fmeco.features.split_network import Cut, cut
from fmeco.log import say
from fmeco.nn.precision import autocast

VIEWS = 3  # of each sample, where training augments


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
