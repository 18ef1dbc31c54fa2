"""How good the backbone's vectors are while a run trains: what evaluations measure beside the objective's own metrics.

`knn` and `linear` ask how well vectors tell the classes of the validation split: by the nearest others, and by a linear head.
Without classes, `retrieval` asks whether a view of a sample finds its other view. Two views also give `alignment` and
`uniformity`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fmeco.assembly.data import classes_of
from fmeco.assembly.measures import UNLABELLED
from fmeco.assembly.stages import Training
from fmeco.core.data import Samples, View
from fmeco.core.random import mix
from fmeco.core.target import Target, known
from fmeco.data.loader import evaluation_batches
from fmeco.data.reading import choose_reading
from fmeco.data.subset import Part
from fmeco.features import forward
from fmeco.nn.metrics import alignment, neighbours_agree, retrieved, uniformity
from fmeco.nn.probes import Split, linear, score

WATCHED, VIEWED = 4096, 1024  # samples of the split, evenly spread; those that two views are made of
SHARES = ("knn", "linear", UNLABELLED)  # of samples
PENALTY = 1e-3  # of the linear head, on standardised vectors


def watcher(training: Training) -> Callable[[Mapping[str, Tensor]], dict[str, float]] | None:
    """What measures `training.measures.probes` on the validation split, and how well two views agree, beside an evaluation's rows (N, ...);
    None where nothing is asked for."""
    if not training.measures.probes:
        return None
    samples, name = training.data.split("val"), classes_of(training.data)
    places = _evenly(samples, WATCHED)
    vectors = functools.cache(lambda: _reader(training, Part(samples, places), None))  # where they are asked for
    few = Part(samples, _evenly(samples, VIEWED)) if training.model.augment.varies else None
    pair = [] if few is None else [_reader(training, few, number) for number in (0, 1)]

    def measure(rows: Mapping[str, Tensor]) -> dict[str, float]:
        out: dict[str, float] = {}
        if name is not None:
            if "vector" in rows:  # the objective looks at them itself
                here = torch.isin(rows["index"], places)
                x, at = rows["vector"][here], rows["index"][here]
            else:
                x, at = vectors()()
                at = places[at]
            labels = samples.targets[name][at]
            assert isinstance(labels, Tensor)
            x, labels = x[known(labels)], labels[known(labels)]
            if "knn" in training.measures.probes:
                out["knn"] = neighbours_agree(x, labels)
            if "linear" in training.measures.probes:
                out["linear"] = _linear(x, labels, training.data.spec.targets[name])
        if pair:
            (one, _), (other, _) = (read() for read in pair)
            if name is None:
                out[UNLABELLED] = retrieved(one, other)
            out |= {"alignment": alignment(one, other), "uniformity": uniformity(one)}
        return out

    return measure


def _evenly(samples: Samples, most: int) -> Tensor:
    """The places of at most so many samples (n,)."""
    return torch.arange(0, len(samples), -(-len(samples) // most))


def _reader(training: Training, samples: Samples, number: int | None) -> Callable[[], tuple[Tensor, Tensor]]:
    """What gives vectors (N, D) and their places (N,): of the samples as they are, or of the n-th view of each."""
    view = None if number is None else (training.model.augment, number)
    views = (View(augment=view is not None),)
    reading = choose_reading(
        training.config.train.workers,
        training.data,
        samples,
        training.device,
        views=views,
        augment=training.model.augment,
    )

    def read() -> tuple[Tensor, Tensor]:
        batches = evaluation_batches(
            training.data,
            samples,
            batch_size=training.config.evaluate.batch_size or 2 * training.loader.micro_batch,
            reading=reading,
            device=training.device,
            channels_last=training.loader.channels_last,
            rank=training.ranks.rank,
            world=training.ranks.world,
            view=view,
        )
        rows = forward.rows_of(
            training.objective,
            batches,
            "vector",
            training.device,
            training.config.train.precision,
            bad=[],
            ranks=training.ranks,
        )
        return rows["vector"], rows["index"]

    return read


def _linear(x: Tensor, labels: Tensor, target: Target) -> float:
    """Accuracy of a linear head on vectors (N, D) that it was not fitted to: each half by the other half's."""
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    halves = mix(0x68616C66, torch.arange(len(x))).argsort(stable=True).chunk(2)
    right = 0.0
    for fitted, tested in (halves, halves[::-1]):
        weights = linear(Split(x[fitted], labels[fitted]), target, PENALTY)
        right += score(x[tested] @ weights[:-1] + weights[-1], labels[tested], target) * len(tested)
    return right / len(x)
