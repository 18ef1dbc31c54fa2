"""Compute the order of samples in an epoch, as a pure function of (seed, epoch)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fmeco.core.random import mix

WINDOW = 50  # number of batches within which samples are sorted by length, if lengths differ

_ORDER = 0x6F72646572  # makes the random keys of the order independent of those of augmentation

_BATCH = 0x6261746368


@functools.lru_cache(maxsize=256)
def chunks(n: int, size: int) -> list[tuple[int, int]]:
    """Split n positions into the fewest ranges of at most `size`, whose lengths differ by at most 1.

    A short last batch would give batch norm noisy statistics, and give its samples more weight than others.
    """
    parts = -(-n // size)
    bounds = [n * i // parts for i in range(parts + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def epoch_order(n: int, seed: int, epoch: int, labels: Tensor | None = None) -> Tensor:
    """Return the positions (N,) of n samples in the order of an epoch: a random permutation.

    labels: (N,) classes, to show every class equally often. Small classes are oversampled and large ones subsampled
        across epochs; no sample repeats until its whole class has been shown.
    """
    positions = torch.arange(n)
    if labels is None:
        return epoch_orders(n, seed, range(epoch, epoch + 1))[0]
    classes = labels.unique()
    quota = -(-n // len(classes))
    drawn: list[Tensor] = []
    for label in classes.tolist():
        members = positions[labels == label]
        place = torch.arange(epoch * quota, (epoch + 1) * quota)
        rounds = place // len(members)  # how often the whole class was shown before
        for lap in rounds.unique().tolist():
            shuffled = members[mix(seed, _ORDER, label, lap, members).argsort(stable=True)]
            drawn.append(shuffled[place[rounds == lap] % len(members)])
    all_classes = torch.cat(drawn)
    return all_classes[mix(seed, _ORDER, epoch, torch.arange(len(all_classes))).argsort(stable=True)][:n]


def epoch_orders(n: int, seed: int, epochs: range, labels: Tensor | None = None) -> Tensor:
    """Return `epoch_order` of several epochs, (E, N)."""
    if labels is not None:
        return torch.stack([epoch_order(n, seed, epoch, labels) for epoch in epochs])
    return mix(seed, _ORDER, torch.tensor(epochs)[:, None], torch.arange(n)).argsort(stable=True)


def by_length(order: Tensor, lengths: Tensor, steps: Sequence[tuple[int, int]], seed: int, epoch: int) -> Tensor:
    """Reorder an epoch (N,) so that each batch holds samples of similar length and needs little padding.

    Samples are sorted by length within windows of many batches, then the batches are shuffled. A window covers at most
    a quarter of the epoch; otherwise batches would hold the same samples in every epoch.

    lengths: (N,) lengths of all samples.
    steps: range (start, end) of each batch in the order.
    """
    starts, ends = (torch.tensor(column) for column in zip(*steps, strict=True))
    window = max(1, min(WINDOW, len(steps) // 4))
    group = torch.arange(len(steps)).div(window, rounding_mode="floor").repeat_interleave(ends - starts)
    key = group * (int(lengths.max()) + 1) + lengths[order]
    order = order[key.argsort(stable=True)]
    # Batch sizes differ by one sample at most; only batches of the same size are swapped.
    sizes = ends - starts
    drawn = mix(seed, _BATCH, epoch, torch.arange(len(steps))).argsort(stable=True)
    source, place = drawn[sizes[drawn].argsort(stable=True)], sizes.argsort(stable=True)
    parts: list[Tensor] = [order] * len(steps)
    for to, at in zip(place.tolist(), source.tolist(), strict=True):
        parts[to] = order[steps[at][0] : steps[at][1]]
    return torch.cat(parts)


def share(n: int, rank: int, world: int) -> tuple[int, int]:
    """Return a rank's range (start, end) of n items. The ranks' numbers of items differ by at most 1."""
    return n * rank // world, n * (rank + 1) // world
