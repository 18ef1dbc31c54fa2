"""Load batches for training and evaluation: sample order, views, random keys and the share of each rank.

The order and every random number are functions of (seed, epoch, index). So the number of workers or ranks, or a resume,
changes no bit of a sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fmeco.core.augment import Augment
from fmeco.core.data import Batch, Data, DataSpec, Inputs, Samples, View
from fmeco.core.geometry import standardize
from fmeco.core.random import mix
from fmeco.data.device_cache import Held
from fmeco.data.order import by_length, chunks, epoch_orders, share
from fmeco.data.reading import Chunk, Reader, Reading, Threads, cut_from_device, per_view, read_batches, unreadable
from fmeco.errors import DataError

DRAWN_TOGETHER = 16384  # samples whose order is drawn in one call; several epochs of a small split, to save calls
BLOCK_BYTES = 8 << 20  # bytes of inputs that are augmented at once if the split is held on the device
_COIN = 0x636F696E
_VIEW = 0x76696577


@dataclass
class Loader:
    """Load the training batches of one split.

    data: the dataset.
    samples: the split.
    views: views of each sample.
    augment: augmentation that makes them.
    batch_size: samples per optimizer step, over all ranks.
    micro_batch: samples per forward pass of a rank.
    seed: seed of order and augmentation.
    reading: how samples are read.
    device: device of the batches.
    balance: class labels (N,), to show every class equally often; None = show every sample once per epoch.
    on_bad_sample: raise DataError for an unreadable sample, or skip it.
    channels_last: memory format of images.
    rank, world: number of this process and of all processes; each loads its share of every step.
    """

    data: Data
    samples: Samples
    views: Sequence[View]
    augment: Augment
    batch_size: int
    micro_batch: int
    seed: int
    reading: Reading
    device: torch.device
    balance: Tensor | None = None
    on_bad_sample: Literal["error", "skip"] = "error"
    channels_last: bool = False
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        self.steps = chunks(len(self.samples), self.batch_size)
        self._micros = [self._part(start, end) for start, end in self.steps]
        self._augments = per_view(self.augment, self.views)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.steps)

    def micros(self, step: int) -> list[tuple[int, int]]:
        """Return this rank's micro-batches of a step, as ranges (start, end) in the order of its epoch."""
        return self._micros[step % len(self.steps)]

    def _part(self, start: int, end: int) -> list[tuple[int, int]]:
        """Split this rank's share of the step start..end-1 into micro-batches."""
        first, last = share(end - start, self.rank, self.world)
        return [(start + first + a, start + first + b) for a, b in chunks(last - first, self.micro_batch)]

    def samples_in(self, step: int) -> int:
        """Return the number of samples in a step, over all ranks."""
        start, end = self.steps[step % len(self.steps)]
        return end - start

    def orders(self, epochs: range) -> Tensor:
        """Return the positions of the samples in the order of each epoch, (E, N)."""
        n, lengths = len(self.samples), self.samples.lengths
        orders = epoch_orders(n, self.seed, epochs, self.balance)
        if lengths is None:
            return orders
        paired = zip(orders, epochs, strict=True)
        return torch.stack([by_length(order, lengths, self.steps, self.seed, epoch) for order, epoch in paired])

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Yield the micro-batches of steps start..stop-1 in order, on the device, augmented and normalised.

        Raises DataError for an unreadable sample if `on_bad_sample` is error.
        """
        plan = _Plan(self, start, stop)
        held = self.reading.held
        if held is None:
            for batch in read_batches(
                self.data, self.samples, self.views, self.augment, plan, self.reading, self.device
            ):
                yield self._prepare(batch)
            return
        # Augmenting many samples at once costs less per sample; micro-batches are then cut from the result.
        per_sample = sum(torch.Size(x.shape).numel() * 4 for x in self.data.spec.seen.values())
        reader = Reader(self.data, self.samples, self.views, self.augment)
        with Threads(self.reading.threads) as threads:
            for chunk, sizes in _blocks(plan, held, BLOCK_BYTES // max(1, per_sample * len(self.views))):
                batch = self._prepare(cut_from_device(reader, held, chunk, threads))
                yield from [batch] if len(sizes) == 1 else batch.split(sizes)

    def _prepare(self, batch: Batch) -> Batch:
        """Augment and normalise a batch on its device. Raises DataError if it has unreadable samples not to be skipped."""
        if batch.skipped and self.on_bad_sample == "error":
            raise unreadable(batch)
        if len(batch) == 0:
            return batch
        for v, augment in enumerate(self._augments):
            inputs = augment.batch(batch.views[v], batch.keys[v])
            batch.views[v] = _layout(inputs, self.data.spec, self.channels_last)
        return batch


def evaluation_batches(
    data: Data,
    samples: Samples,
    *,
    batch_size: int,
    reading: Reading,
    device: torch.device,
    channels_last: bool = False,
    rank: int = 0,
    world: int = 1,
    view: tuple[Augment, int] | None = None,
    in_order: bool = False,
) -> Iterator[Batch]:
    """Yield this rank's share of the samples, with one view and no augmentation.

    in_order: do not put samples of like length together, the longest first, which saves padding; `Batch.index` has their places.
    view: (augmentation, n) to load the n-th augmented view of each sample instead, which is the same in every run.

    Samples that cannot be read are listed in `Batch.skipped`.
    """
    first, last = share(len(samples), rank, world)
    augment, number = view or (Augment(), 0)
    order = torch.arange(first, last)
    if samples.lengths is not None and not in_order:
        order = order[samples.lengths[first:last].argsort(stable=True, descending=True)]
    # Images of unlike sizes make no batch; the objective makes one of each image's windows.
    parts = order.split(1 if data.spec.windows else batch_size)
    plan = [Chunk(places, mix(_VIEW, number, places)[None]) for places in parts if len(places)]
    views = (View(augment=view is not None),)
    for batch in read_batches(data, samples, views, augment, plan, reading, device, whole=view is None):
        if len(batch):
            inputs = augment.batch(batch.views[0], batch.keys[0]) if view is not None else batch.views[0]
            batch.views = [_layout(inputs, data.spec, channels_last)]
        yield batch


def channels_last(wanted: bool | Literal["auto"], spec: DataSpec) -> bool:
    """Tell whether the model and its inputs use channels_last. auto: for images, since it makes convolutions faster."""
    return any(len(x.shape) == 3 for x in spec.seen.values()) if wanted == "auto" else wanted


def _layout(inputs: Inputs, spec: DataSpec, channels_last: bool) -> Inputs:
    """Set the memory format, then normalise. In this order the copy moves the stored values, which are often uint8."""
    if channels_last:
        last = torch.channels_last
        inputs = {name: x.contiguous(memory_format=last) if x.ndim == 4 else x for name, x in inputs.items()}
    return standardize(inputs, spec)


class _Plan:
    """Iterate over this rank's micro-batches of steps start..stop-1 as Chunks."""

    def __init__(self, loader: Loader, start: int, stop: int) -> None:
        self.loader, self.start, self.stop = loader, start, stop

    def __iter__(self) -> Iterator[Chunk]:
        for epoch, sizes in self.epochs():
            yield from map(Chunk, epoch.positions.split(sizes), epoch.keys.split(sizes, 1))

    def epochs(self) -> Iterator[tuple[Chunk, list[int]]]:
        """Yield the remaining samples of each epoch as one Chunk, with the sizes of its micro-batches."""
        loader, step, n = self.loader, self.start, len(self.loader.samples)
        per_epoch, places = loader.steps_per_epoch, torch.arange(n)
        views = torch.arange(len(loader.views))[:, None]
        coins = (mix(loader.seed, _COIN, places, views) & 1).bool()  # (V, N)
        together = max(1, DRAWN_TOGETHER // n)
        while step < self.stop:
            epochs = range(step // per_epoch, min(step // per_epoch + together, -(-self.stop // per_epoch)))
            orders = loader.orders(epochs)  # (E, N)
            numbers = torch.tensor(epochs)[:, None, None]
            # The key includes the place in the order, so a sample repeated in a balanced epoch is augmented differently.
            keys = mix(loader.seed, numbers, orders[:, None], places, views)  # (E, V, N)
            keys = (keys & ~1) | ((coins[:, orders].transpose(0, 1) + numbers) & 1)
            for epoch, order, key in zip(epochs, orders, keys, strict=True):
                end = min(self.stop, (epoch + 1) * per_epoch)
                ranges = [micro for number in range(step, end) for micro in loader.micros(number)]
                selected: Any = slice(ranges[0][0], ranges[-1][1])
                if loader.world > 1:
                    selected = torch.cat([torch.arange(first, last) for first, last in ranges])
                yield Chunk(order[selected], key[:, selected]), [last - first for first, last in ranges]
                step = end


def _blocks(plan: _Plan, held: Held, most: int) -> Iterator[tuple[Chunk, list[int]]]:
    """Join consecutive micro-batches to Chunks of at most `most` samples, and yield each with the micro-batches' sizes.

    Until the whole split is held on the device, each Chunk is one micro-batch.
    """
    for epoch, sizes in plan.epochs():
        at = done = 0
        while done < len(sizes):
            taken, samples = 1, sizes[done]
            while held.missing is None and done + taken < len(sizes) and samples + sizes[done + taken] <= most:
                samples += sizes[done + taken]
                taken += 1
            part = slice(at, at + samples)
            yield Chunk(epoch.positions[part], epoch.keys[:, part]), sizes[done : done + taken]
            at, done = at + samples, done + taken


def first_batch(loader: Loader, count: int) -> Batch:
    """Load one batch of at most `count` training samples, skipping batches without any readable sample.

    Raises DataError if no sample can be read.
    """
    size = min(max(count, loader.batch_size), len(loader.samples))
    alone = Reading(0, 1, None)
    short = dataclasses.replace(loader, batch_size=size, micro_batch=min(count, size), reading=alone, rank=0, world=1)
    batch = next((batch for batch in short.batches(0, short.steps_per_epoch) if len(batch)), None)
    if batch is None:
        raise DataError("no training sample can be read")
    return batch
