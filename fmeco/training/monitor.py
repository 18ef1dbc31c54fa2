"""Measure the backbone's vectors during training, beside the objective's own metrics.

knn: how well the nearest other vectors predict the class, on the validation split.
linear: how well a linear head predicts the class, on the validation split.
retrieval: without classes, how often a view of a sample is nearest to the sample's other view.
alignment, uniformity: computed from two views of each sample, if the augmentation varies.
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
from fmeco.nn.linear_head import fit
from fmeco.nn.metrics import alignment, neighbours_agree, retrieved, uniformity
from fmeco.nn.probes import Split, examples, score

WATCHED, VIEWED = 4096, 1024  # validation samples to probe, evenly spread; those to make two views of
SHARES = ("knn", "linear", UNLABELLED)  # probes that are a share of samples
PENALTY = 1e-3  # of the linear head, on standardised vectors


def watcher(training: Training) -> Callable[[Mapping[str, Tensor]], dict[str, float]] | None:
    """Build the function that measures `training.measures.probes` on the validation split; None without probes.

    It takes the rows (N, ...) of an evaluation, and returns metrics by name.
    """
    if not training.measures.probes:
        return None
    samples, name = training.data.split("val"), classes_of(training.data)
    positions = _evenly(samples, WATCHED)
    vectors = functools.cache(lambda: _reader(training, Part(samples, positions), None))  # set up on first use
    pair_samples = Part(samples, _evenly(samples, VIEWED)) if training.model.augment.varies else None
    view_readers = [] if pair_samples is None else [_reader(training, pair_samples, number) for number in (0, 1)]

    def measure(rows: Mapping[str, Tensor]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if name is not None:
            if "vector" in rows:  # the objective's rows already hold the vectors
                probed = torch.isin(rows["index"], positions)
                x, chosen = rows["vector"][probed], rows["index"][probed]
            else:
                x, chosen = vectors()()
                chosen = positions[chosen]
            labels = samples.targets[name][chosen]
            assert isinstance(labels, Tensor)
            x, labels = x[known(labels)], labels[known(labels)]
            if "knn" in training.measures.probes:
                metrics["knn"] = neighbours_agree(x, labels)
            if "linear" in training.measures.probes:
                metrics["linear"] = _linear(x, labels, training.data.spec.targets[name])
        if view_readers:
            (first_view, _), (second_view, _) = (read() for read in view_readers)
            if name is None:
                metrics[UNLABELLED] = retrieved(first_view, second_view)
            metrics |= {"alignment": alignment(first_view, second_view), "uniformity": uniformity(first_view)}
        return metrics

    return measure


def _evenly(samples: Samples, most: int) -> Tensor:
    """Return the positions (n,) of at most `most` samples, evenly spread."""
    return torch.arange(0, len(samples), -(-len(samples) // most))


def _reader(training: Training, samples: Samples, number: int | None) -> Callable[[], tuple[Tensor, Tensor]]:
    """Build a function that computes vectors (N, D) and their positions (N,) in `samples`.

    number: of the view; None for samples that are not augmented.
    """
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
    """Compute the accuracy of a linear head on vectors (N, D), by two-fold cross-validation.

    Each half is predicted by a head that was fitted to the other half.
    """
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    halves = mix(0x68616C66, torch.arange(len(x))).argsort(stable=True).chunk(2)
    correct = 0.0
    for fitted, held_out in (halves, halves[::-1]):
        head = fit(examples(Split(x[fitted], labels[fitted]), target), PENALTY)
        correct += score(head(x[held_out]), labels[held_out], target) * len(held_out)
    return correct / len(x)
