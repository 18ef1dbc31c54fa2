"""The order of samples in an epoch: a pure function of (seed, epoch)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fmeco.core.random import mix

WINDOW = 50  # batches whose samples are sorted by length, where these differ

_ORDER = 0x6F72646572  # keeps the keys of the order apart from those of augmentation

_BATCH = 0x6261746368


@functools.lru_cache(maxsize=256)
def chunks(n: int, size: int) -> list[tuple[int, int]]:
    """Cut n positions into the fewest runs of at most `size`, all equally long but for one.

    A short last batch would be noise to batch norm, and weigh its samples more than the others.
    """
    parts = -(-n // size)
    bounds = [n * i // parts for i in range(parts + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def epoch_order(n: int, seed: int, epoch: int, labels: Tensor | None = None) -> Tensor:
    """The order of n samples in an epoch (N,): a permutation, or with `labels` (N,) one in which every class comes
    equally often: small classes repeat, large ones are shown in parts, each in full before any sample repeats."""
    positions = torch.arange(n)
    if labels is None:
        return epoch_orders(n, seed, range(epoch, epoch + 1))[0]
    present = labels.unique()
    quota = -(-n // len(present))
    drawn: list[Tensor] = []
    for label in present.tolist():
        members = positions[labels == label]
        place = torch.arange(epoch * quota, (epoch + 1) * quota)
        rounds = place // len(members)
        for lap in rounds.unique().tolist():
            shuffled = members[mix(seed, _ORDER, label, lap, members).argsort(stable=True)]
            drawn.append(shuffled[place[rounds == lap] % len(members)])
    together = torch.cat(drawn)
    return together[mix(seed, _ORDER, epoch, torch.arange(len(together))).argsort(stable=True)][:n]


def epoch_orders(n: int, seed: int, epochs: range, labels: Tensor | None = None) -> Tensor:
    """`epoch_order` of several epochs (E, N)."""
    if labels is not None:
        return torch.stack([epoch_order(n, seed, epoch, labels) for epoch in epochs])
    return mix(seed, _ORDER, torch.tensor(epochs)[:, None], torch.arange(n)).argsort(stable=True)


def by_length(order: Tensor, lengths: Tensor, steps: Sequence[tuple[int, int]], seed: int, epoch: int) -> Tensor:
    """An epoch's order (N,) with samples of like length side by side, so that a batch has little padding: samples are
    sorted within windows of many batches, which then change places. Windows are at most a quarter of the epoch, as
    batches would hold the same samples in every epoch otherwise."""
    starts, ends = (torch.tensor(column) for column in zip(*steps, strict=True))
    window = max(1, min(WINDOW, len(steps) // 4))
    group = torch.arange(len(steps)).div(window, rounding_mode="floor").repeat_interleave(ends - starts)
    key = group * (int(lengths.max()) + 1) + lengths[order]
    order = order[key.argsort(stable=True)]
    # Batches differ in size by one sample at most; only those of one size change places.
    sizes = ends - starts
    drawn = mix(seed, _BATCH, epoch, torch.arange(len(steps))).argsort(stable=True)
    source, place = drawn[sizes[drawn].argsort(stable=True)], sizes.argsort(stable=True)
    parts: list[Tensor] = [order] * len(steps)
    for to, at in zip(place.tolist(), source.tolist(), strict=True):
        parts[to] = order[steps[at][0] : steps[at][1]]
    return torch.cat(parts)


def share(n: int, rank: int, world: int) -> tuple[int, int]:
    """The part of n things in a row that is a rank's; parts differ by one at most."""
    return n * rank // world, n * (rank + 1) // world
