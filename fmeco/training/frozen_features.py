"""Replace the data of a phase by precomputed features of the frozen part of its backbone, if that pays."""

from __future__ import annotations

import math
import time

import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from fmeco.assembly.solved_head import extractor_of
from fmeco.assembly.stages import Training
from fmeco.core.augment import Augment
from fmeco.core.data import Data
from fmeco.data.loader import first_batch
from fmeco.features.extractor import OneOf, on_stored
from fmeco.features.split_network import Cut, cut
from fmeco.log import say
from fmeco.nn.precision import autocast

VIEWS = 3  # per sample, if training augments


def stored(training: Training, epochs: float) -> tuple[Data, Augment] | None:
    """Precompute outputs of the backbone, or of its frozen part.

    Returns them as data, and an augmentation that picks a view; None if that is impossible, or would not pay.
    epochs: of the phase; 0 if not known.
    """
    product, configured = training.objective.product, training.config.carry.views
    product.rest = None
    frozen = [not p.requires_grad for p in product.parameters()]
    adapts = training.config.carry.batch_norm == "adapt" and any(isinstance(m, BatchNorm) for m in product.modules())
    if not any(frozen) or not training.objective.vectors_only or adapts or configured == 0:
        return None
    # A head that could not be solved begins where a solved one would: at one view of each sample, as it is.
    augments = training.model.augment.varies and (configured is not None or training.model.transfer.penalties is None)
    if all(frozen):
        views, place = (configured or VIEWS) if augments else 1, None
    else:  # trainable layers need more variety than a head: store only as many views as the config says
        views = (configured or 0) if augments else 1
        place = _place(training) if configured is not None or epochs > 2 else None
        if place is None or not views:
            if place is not None:
                say("part of the backbone is frozen; to compute it only once, set transfer.views=3 or augment=none")
            return None
    extractor = extractor_of(training, place)
    train, val = training.data.split("train"), training.data.val
    count = views * len(train) + len(val or ())
    if not extractor.fits(count):
        say(
            f"precomputed features would need {extractor.size(count) / 1e9:.0f} GB of memory: "
            "computing them in every epoch instead"
        )
        return None
    began = time.monotonic()
    solved_on = training.train_vectors if place is None and not augments else None
    views_values = [
        solved_on
        if solved_on is not None
        else extractor.values(
            train, "train", (training.model.augment, training.config.augment, view) if augments else None
        )
        for view in range(views)
    ]
    validated = extractor.values(val, "val") if val is not None and len(val) else None
    if any(part is None for part in views_values) or (val is not None and len(val) and validated is None):
        if training.config.train.on_bad_sample == "skip":
            say("some samples cannot be read: features are computed in every epoch, without them")
        return None
    values = views_values[0][:, None] if views == 1 else torch.stack(views_values, 1)  # type: ignore[index,arg-type]
    seconds = time.monotonic() - began
    done = f"{len(val or ()):,} validation" if solved_on is not None else f"{len(train):,}"
    say(
        f"{'the backbone' if place is None else 'part of the backbone'} is frozen: computed its features of {done} samples"
        f"{f', {views} views each,' if views > 1 else ''} in {seconds:.1f} s"
    )
    product.rest = place.rest if place is not None else None
    if validated is not None:
        validated = validated[:, None].expand(-1, views, *[-1] * len(extractor.shape))
    return on_stored(training.data, values, validated), OneOf()


def _place(training: Training) -> Cut | None:
    """Find where to cut a partly frozen backbone.

    Returns None if stored values would take more memory than inputs, or if samples have different lengths.
    """
    if training.data.spec.ragged:
        return None
    example = first_batch(training.loader, 2).to(training.device).views[0]
    with autocast(training.device, training.config.train.precision):
        place = cut(training.objective.product, example)
    if place is None or math.prod(place.shape) > sum(x[0].numel() for x in example.values()):
        return None
    return place
