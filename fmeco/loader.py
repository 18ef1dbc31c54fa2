"""Data -> Iterator[Batch]: order, views, keys, workers.

The order and every random number are functions of (seed, epoch, index): neither the number of workers nor a resume
changes a bit.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fmeco.core import Augment, Batch, Data, DataSpec, Inputs, Samples, View, fit, mix, standardize
from fmeco.errors import DataError, FmecoError

WORKER_TIMEOUT = 300  # seconds without a batch before a worker is taken for hung
_ORDER = 0x6F72646572  # keeps the keys of the order apart from those of augmentation


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
        return mix(seed, _ORDER, epoch, positions).argsort(stable=True)
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


@dataclass
class Loader:
    """Training batches of one split.

    batch_size: samples per optimizer step. micro_batch: samples per forward pass. on_bad_sample: error or skip.
    """

    data: Data
    samples: Samples
    views: Sequence[View]
    augment: Augment
    batch_size: int
    micro_batch: int
    seed: int
    workers: int
    device: torch.device
    balance: Tensor | None = None  # labels (N,), to show every class equally often
    on_bad_sample: Literal["error", "skip"] = "error"
    channels_last: bool = False

    def __post_init__(self) -> None:
        self.steps = chunks(len(self.samples), self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.steps)

    def micros(self, step: int) -> list[tuple[int, int]]:
        """The micro-batches of a step, as ranges of positions in its epoch's order."""
        start, end = self.steps[step % len(self.steps)]
        return [(start + a, start + b) for a, b in chunks(end - start, self.micro_batch)]

    def samples_in(self, step: int) -> int:
        start, end = self.steps[step % len(self.steps)]
        return end - start

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """The micro-batches of steps start..stop-1, in order, on the device, augmented and standardised."""
        plan = _Plan(self, start, stop)
        for batch in _load(self.data, self.samples, self.views, self.augment, plan, self.workers, self.device):
            yield self._prepare(batch)

    def _prepare(self, batch: Batch) -> Batch:
        if batch.skipped and self.on_bad_sample == "error":
            raise unreadable(batch)
        if len(batch) == 0:
            return batch
        batch = batch.to(self.device, non_blocking=True)
        for v, view in enumerate(self.views):
            inputs = self.augment.batch(batch.views[v], batch.keys[v]) if view.augment else batch.views[v]
            batch.views[v] = _layout(standardize(inputs, self.data.spec), self.channels_last)
        return batch


def evaluation_batches(
    data: Data,
    samples: Samples,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    channels_last: bool = False,
) -> Iterator[Batch]:
    """All samples in order, one view, no augmentation. Samples that cannot be read are in `skipped`."""
    plan = [
        [(i, (0,)) for i in range(start, min(start + batch_size, len(samples)))]
        for start in range(0, len(samples), batch_size)
    ]
    for batch in _load(data, samples, (View(augment=False),), Augment(), plan, workers, device):
        if len(batch):
            batch = batch.to(device, non_blocking=True)
            batch.views = [_layout(standardize(batch.views[0], data.spec), channels_last)]
        yield batch


def unreadable(batch: Batch) -> DataError:
    """The error for a sample that could not be read, where that is not to be skipped."""
    return DataError(batch.skipped[0], "repair or remove it, or train with --set train.on_bad_sample=skip")


def choose_workers(wanted: int | Literal["auto"], samples: Samples) -> int:
    """auto: none for data in memory; else leave the cores to the model but for one or a few."""
    if wanted != "auto":
        return wanted
    if samples.in_memory or len(samples) < 64:
        return 0
    return max(1, min(8, (os.cpu_count() or 1) // 2))


def _layout(inputs: Inputs, channels_last: bool) -> Inputs:
    if not channels_last:
        return inputs
    return {name: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for name, x in inputs.items()}


Plan = Sequence[list[tuple[int, tuple[int, ...]]]]  # per batch, per sample: its position and its key per view


class _Plan:
    """Lists the samples of each micro-batch, an epoch at a time."""

    def __init__(self, loader: Loader, start: int, stop: int) -> None:
        self.loader, self.start, self.stop = loader, start, stop

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        loader, epoch = self.loader, -1
        for step in range(self.start, self.stop):
            if step // loader.steps_per_epoch != epoch:
                epoch = step // loader.steps_per_epoch
                order = epoch_order(len(loader.samples), loader.seed, epoch, loader.balance)
                views = torch.arange(len(loader.views))[:, None]
                # The place in the order joins the key: a sample shown twice in a balanced epoch varies both times.
                keys = mix(loader.seed, epoch, order, torch.arange(len(order)), views)  # (V, N)
                listed = list(zip(order.tolist(), zip(*keys.tolist(), strict=True), strict=True))
            for begin, end in loader.micros(step):
                yield listed[begin:end]


class _Views(Dataset[Any]):
    """(position, keys) -> the sample once per view. Failures travel as values: the loader would garble exceptions."""

    def __init__(self, spec: DataSpec, samples: Samples, views: Sequence[View], augment: Augment) -> None:
        self.spec, self.samples, self.views, self.augment = spec, samples, views, augment

    def __getitem__(self, item: tuple[int, tuple[int, ...]]) -> tuple[int, tuple[int, ...], list[Inputs] | FmecoError]:
        index, keys = item
        try:
            read = self.samples[index]
            return (
                index,
                keys,
                [
                    fit(self.augment.sample(read, key) if view.augment else read, self.spec)
                    for view, key in zip(self.views, keys, strict=True)
                ],
            )
        except FmecoError as error:
            return index, keys, error


class _Collate:
    def __init__(self, data: Data, samples: Samples, views: int) -> None:
        self.stack = data.collate or _stack
        self.samples, self.views = samples, views

    def __call__(self, rows: list[tuple[int, tuple[int, ...], list[Inputs] | FmecoError]]) -> Batch:
        good = [(index, keys, views) for index, keys, views in rows if not isinstance(views, FmecoError)]
        skipped = [views.message for _, _, views in rows if isinstance(views, FmecoError)]
        index = torch.tensor([index for index, _, _ in good], dtype=torch.int64)
        if not good:
            return Batch(
                [{} for _ in range(self.views)],
                {},
                index,
                torch.zeros(self.views, 0, dtype=torch.int64),
                skipped,
            )
        target: dict[str, Tensor | list[Any]] = {
            name: values[index] if isinstance(values, Tensor) else [values[i] for i in index.tolist()]
            for name, values in self.samples.targets.items()
        }
        keys = torch.tensor([keys for _, keys, _ in good], dtype=torch.int64).T  # (V, B)
        return Batch(
            [self.stack([views[v] for _, _, views in good]) for v in range(self.views)],
            target,
            index,
            keys,
            skipped,
        )


def _stack(rows: Sequence[Inputs]) -> Inputs:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _load(
    data: Data,
    samples: Samples,
    views: Sequence[View],
    augment: Augment,
    plan: Any,
    workers: int,
    device: torch.device,
) -> Iterator[Batch]:
    dataset, collate = _Views(data.spec, samples, views, augment), _Collate(data, samples, len(views))
    if workers == 0:
        for rows in plan:
            yield collate([dataset[row] for row in rows])
        return
    # fork keeps plug-in files and packed arrays without copying; elsewhere the platform's default has to do.
    context = "fork" if sys.platform == "linux" else None
    loader = DataLoader(
        dataset,
        batch_sampler=plan,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_start_worker,
        timeout=WORKER_TIMEOUT,
        pin_memory=device.type == "cuda",
        multiprocessing_context=context,
        # Its own generator: the default one would be drawn from in the middle of a step, after that step was seeded.
        generator=torch.Generator().manual_seed(0),
    )
    yield from loader


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # A scheduler signals the whole process group; the main process decides when to stop, and needs its workers for that.
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)
