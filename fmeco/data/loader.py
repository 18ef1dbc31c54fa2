"""Data -> Iterator[Batch]: order, views, keys, ranks, and who reads.

The order and every random number are functions of (seed, epoch, index): neither the number of workers or ranks nor a
resume changes a bit of what a sample looks like.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fmeco.core import Augment, Batch, Data, DataSpec, Inputs, Samples, View, fit, mix, pad, standardize
from fmeco.data.disk_cache import Held, free_memory
from fmeco.errors import STOPPING, DataError, FmecoError

WORKER_TIMEOUT = 300  # seconds without a batch before a worker is taken for hung
MEASURED_SECONDS = 0.5  # spent on finding out how long reading takes
DRAWN_TOGETHER = 16384  # samples; of a small split several epochs, as each call costs more than its numbers
WINDOW = 50  # batches whose samples are sorted by length, where these differ
BLOCK_BYTES = 8 << 20  # of inputs that are prepared at once, where the split is held on the device
_ORDER = 0x6F72646572  # keeps the keys of the order apart from those of augmentation
_COIN = 0x636F696E
_BATCH = 0x6261746368
_VIEW = 0x76696577


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


class Reading(NamedTuple):
    """Who reads the samples of a split. workers: processes beside the main one, 0 = the main one, with `threads`
    threads between steps. held: the split on the device, where it is small enough."""

    workers: int
    threads: int
    held: Held | None


@dataclass
class Loader:
    """Training batches of one split.

    batch_size: samples per optimizer step, over all ranks. micro_batch: samples per forward pass of a rank.
    on_bad_sample: error or skip. rank of world: the part of every step that is this process's.
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
    balance: Tensor | None = None  # labels (N,), to show every class equally often
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
        """This rank's micro-batches of a step, as ranges of positions in its epoch's order."""
        return self._micros[step % len(self.steps)]

    def _part(self, start: int, end: int) -> list[tuple[int, int]]:
        first, last = share(end - start, self.rank, self.world)
        return [(start + first + a, start + first + b) for a, b in chunks(last - first, self.micro_batch)]

    def samples_in(self, step: int) -> int:
        """Samples of a step, over all ranks."""
        start, end = self.steps[step % len(self.steps)]
        return end - start

    def orders(self, epochs: range) -> Tensor:
        """The samples of each epoch, in order (E, N)."""
        n, lengths = len(self.samples), self.samples.lengths
        orders = epoch_orders(n, self.seed, epochs, self.balance)
        if lengths is None:
            return orders
        paired = zip(orders, epochs, strict=True)
        return torch.stack([by_length(order, lengths, self.steps, self.seed, epoch) for order, epoch in paired])

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """The micro-batches of steps start..stop-1, in order, on the device, augmented and standardised."""
        plan = _Plan(self, start, stop)
        held = self.reading.held
        if held is None:
            for batch in _read(self.data, self.samples, self.views, self.augment, plan, self.reading, self.device):
                yield self._prepare(batch)
            return
        # What is done for many samples at once costs a small model little; its batches are cut from the result.
        each = sum(torch.Size(one.shape).numel() * 4 for one in self.data.spec.inputs.values())
        reader = _Reader(self.data, self.samples, self.views, self.augment)
        with _Threads(self.reading.threads) as threads:
            for chunk, sizes in _blocks(plan, held, BLOCK_BYTES // max(1, each * len(self.views))):
                batch = self._prepare(_cut(reader, held, chunk, threads))
                yield from [batch] if len(sizes) == 1 else batch.split(sizes)

    def _prepare(self, batch: Batch) -> Batch:
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
) -> Iterator[Batch]:
    """This rank's share of the samples, in order, one view, no augmentation; or `view`, the n-th that an augmentation
    makes of each, the same in every run. Samples that cannot be read are in `skipped`."""
    first, last = share(len(samples), rank, world)
    augment, number = view or (Augment(), 0)
    plan = []
    for start in range(first, last, batch_size):
        places = torch.arange(start, min(start + batch_size, last))
        plan.append(Chunk(places, mix(_VIEW, number, places)[None]))
    for batch in _read(data, samples, (View(augment=view is not None),), augment, plan, reading, device):
        if len(batch):
            inputs = augment.batch(batch.views[0], batch.keys[0]) if view is not None else batch.views[0]
            batch.views = [_layout(inputs, data.spec, channels_last)]
        yield batch


def per_view(augment: Augment, views: Sequence[View]) -> list[Augment]:
    """What makes each view. Raises ConfigError for a view that the augmentation cannot make."""
    return [augment.for_view(view) if view.augment else Augment() for view in views]


def share(n: int, rank: int, world: int) -> tuple[int, int]:
    """The part of n things in a row that is a rank's; parts differ by one at most."""
    return n * rank // world, n * (rank + 1) // world


def unreadable(batch: Batch) -> DataError:
    """The error for a sample that could not be read, where that is not to be skipped."""
    return DataError(batch.skipped[0], "repair or remove it, or train with --set train.on_bad_sample=skip")


def choose_reading(
    wanted: int | Literal["auto"],
    data: Data,
    samples: Samples,
    device: torch.device,
    *,
    views: Sequence[View] = (View(augment=False),),
    augment: Augment | None = None,
    step_seconds: float | None = None,
    once: bool = False,
    world: int = 1,
) -> Reading:
    """Who reads a split. auto: nobody where it fits on the device; else threads between the steps of a CPU, which has no
    core to spare during a step; beside a GPU as many processes as it takes, and there are cores for.

    step_seconds: how long training takes for a sample, where it is known. The time of reading is measured. once: the
    split is gone through once, and holding it would be for nothing.
    """
    augment = augment or Augment()
    cores = max(1, (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1) // world)
    if wanted != "auto":
        return Reading(wanted, cores, None)
    varied = any(one.per_sample for one in per_view(augment, views))
    room = _room(device) / world / 4 if not once else 0.0
    whole = not varied and data.collate is None and not data.spec.ragged
    if whole and Held.size(samples, data.spec) <= room:
        return Reading(0, cores, Held(samples, data.spec, device))
    if samples.in_memory or len(samples) < 64 or (once and device.type == "cpu"):
        return Reading(0, cores, None)
    if once:  # reading some of it to measure would be reading them twice
        return Reading(max(1, min(8, cores // 2)), cores, None)
    reader, positions = _Reader(data, samples, views, augment), range(0, len(samples), max(1, len(samples) // 256))
    began, busy, count = time.monotonic(), time.thread_time(), 0
    for position in positions:
        reader.one(position, tuple([0] * len(views)))
        count += 1
        if time.monotonic() - began > MEASURED_SECONDS:
            break
    seconds, busy = (time.monotonic() - began) / count, (time.thread_time() - busy) / count
    if device.type == "cpu":
        # While a disk or a network is waited for, a core can serve another thread.
        return Reading(0, min(16 * cores, math.ceil(cores * seconds / max(busy, 1e-6) - 0.25)), None)
    needed = cores if step_seconds is None else math.ceil(1.3 * seconds / step_seconds)
    return Reading(max(1, min(needed, cores, 16)), cores, None)


def _room(device: torch.device) -> float:
    """Bytes free for data."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


def channels_last(wanted: bool | Literal["auto"], spec: DataSpec) -> bool:
    """The memory format of a model and its inputs. auto: for images, whose convolutions it makes faster."""
    return any(len(one.shape) == 3 for one in spec.inputs.values()) if wanted == "auto" else wanted


def _layout(inputs: Inputs, spec: DataSpec, channels_last: bool) -> Inputs:
    """The model's inputs. The memory format is changed while values are small, before they are standardised."""
    if channels_last:
        last = torch.channels_last
        inputs = {name: x.contiguous(memory_format=last) if x.ndim == 4 else x for name, x in inputs.items()}
    return standardize(inputs, spec)


class Chunk(NamedTuple):
    """The samples of a micro-batch: positions (B,), and a key per view and sample (V, B)."""

    positions: Tensor
    keys: Tensor


class _Plan:
    """The samples of each micro-batch of this rank."""

    def __init__(self, loader: Loader, start: int, stop: int) -> None:
        self.loader, self.start, self.stop = loader, start, stop

    def __iter__(self) -> Iterator[Chunk]:
        for epoch, sizes in self.epochs():
            yield from map(Chunk, epoch.positions.split(sizes), epoch.keys.split(sizes, 1))

    def epochs(self) -> Iterator[tuple[Chunk, list[int]]]:
        """What is left of each epoch: its micro-batches side by side, and their sizes."""
        loader, step, n = self.loader, self.start, len(self.loader.samples)
        per_epoch, places = loader.steps_per_epoch, torch.arange(n)
        views = torch.arange(len(loader.views))[:, None]
        coins = (mix(loader.seed, _COIN, places, views) & 1).bool()  # (V, N)
        together = max(1, DRAWN_TOGETHER // n)
        while step < self.stop:
            epochs = range(step // per_epoch, min(step // per_epoch + together, -(-self.stop // per_epoch)))
            orders = loader.orders(epochs)  # (E, N)
            numbers = torch.tensor(epochs)[:, None, None]
            # The place in the order joins the key: a sample shown twice in a balanced epoch varies both times.
            keys = mix(loader.seed, numbers, orders[:, None], places, views)  # (E, V, N)
            keys = (keys & ~1) | ((coins[:, orders].transpose(0, 1) + numbers) & 1)
            for epoch, order, key in zip(epochs, orders, keys, strict=True):
                end = min(self.stop, (epoch + 1) * per_epoch)
                ranges = [micro for one in range(step, end) for micro in loader.micros(one)]
                mine: Any = slice(ranges[0][0], ranges[-1][1])
                if loader.world > 1:
                    mine = torch.cat([torch.arange(first, last) for first, last in ranges])
                yield Chunk(order[mine], key[:, mine]), [last - first for first, last in ranges]
                step = end


def _blocks(plan: _Plan, held: Held, most: int) -> Iterator[tuple[Chunk, list[int]]]:
    """Micro-batches side by side, at most `most` samples, with their sizes; one by one until all of the split is held."""
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


Row = list[Inputs] | FmecoError  # a sample once per view; failures travel as values, as loaders garble exceptions


class _Reader(Dataset[Any]):
    """Chunk -> Batch, whoever reads."""

    def __init__(self, data: Data, samples: Samples, views: Sequence[View], augment: Augment) -> None:
        self.spec, self.samples, self.views = data.spec, samples, views
        self.augments = per_view(augment, views)
        self.stack = data.collate or functools.partial(
            _stack, ragged={n for n, x in data.spec.inputs.items() if x.ragged}
        )

    def one(self, index: int, keys: Sequence[int]) -> Row:
        try:
            read = self.samples[index]
            made = [augment.sample(read, key) for augment, key in zip(self.augments, keys, strict=True)]
            # What has a size of its own was made in it.
            return [fit(one, self.spec) if view.size == 1 else one for view, one in zip(self.views, made, strict=True)]
        except FmecoError as error:
            return error

    def __getitems__(self, arrays: tuple[Any, Any]) -> Batch:
        """In a loader's worker; arrays: those of a Chunk, as tensors would travel through shared memory."""
        chunk = Chunk(*map(torch.from_numpy, arrays))
        rows = [self.one(i, keys) for i, keys in zip(chunk.positions.tolist(), chunk.keys.T.tolist(), strict=True)]
        return self.batch(chunk, rows)

    def batch(self, chunk: Chunk, rows: Sequence[Row]) -> Batch:
        skipped = [row.message for row in rows if isinstance(row, FmecoError)]
        good = [row for row in rows if not isinstance(row, FmecoError)]
        if skipped:
            kept = torch.tensor([not isinstance(row, FmecoError) for row in rows])
            chunk = Chunk(chunk.positions[kept], chunk.keys[:, kept])
        views = [self.stack([row[v] for row in good]) if good else {} for v in range(len(self.views))]
        return Batch(views, _targets(self.samples.targets, chunk.positions), *chunk, skipped)


def _targets(targets: Any, positions: Tensor) -> dict[str, Tensor | list[Any]]:
    return {
        name: values.index_select(0, positions)
        if isinstance(values, Tensor)
        else [values[i] for i in positions.tolist()]
        for name, values in targets.items()
    }


def _stack(rows: Sequence[Inputs], ragged: Collection[str]) -> Inputs:
    """Samples side by side; the inputs named `ragged` are padded to the longest. Images that lie in memory pixel by pixel,
    as decoders leave them, stay so."""
    out: Inputs = {}
    for name, first in rows[0].items():
        parts = [row[name] for row in rows]
        if name in ragged:
            out[name] = pad(parts)
        elif first.ndim == 3 and all(part.stride(0) == 1 for part in parts):
            out[name] = torch.stack([part.permute(1, 2, 0) for part in parts]).permute(0, 3, 1, 2)
        else:
            out[name] = torch.stack(parts)
    return out


def _read(
    data: Data,
    samples: Samples,
    views: Sequence[View],
    augment: Augment,
    plan: Iterable[Chunk],
    reading: Reading,
    device: torch.device,
) -> Iterator[Batch]:
    reader = _Reader(data, samples, views, augment)
    if reading.workers == 0:
        with _Threads(reading.threads) as threads:
            for chunk in plan:
                if reading.held is not None:
                    yield _cut(reader, reading.held, chunk, threads)
                else:
                    rows = threads.map(reader.one, chunk.positions.tolist(), chunk.keys.T.tolist())
                    yield reader.batch(chunk, rows).to(device)
        return
    # fork keeps plug-in files and packed arrays without copying; elsewhere the platform's default has to do.
    context = "fork" if sys.platform == "linux" else None
    loader = DataLoader(
        reader,
        batch_sampler=_Arrays(plan),  # type: ignore[arg-type]  # not lists of numbers: they go to __getitems__ whole
        collate_fn=_same,
        num_workers=reading.workers,
        worker_init_fn=_start_worker,
        timeout=WORKER_TIMEOUT,
        pin_memory=device.type == "cuda",
        multiprocessing_context=context,
        # Its own generator: the default one would be drawn from in the middle of a step, after that step was seeded.
        generator=torch.Generator().manual_seed(0),
    )
    # Until a worker ignores them, signals wait: torch's own handler would have it die of one that the main process answers.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for batch in batches:
        yield batch.to(device, non_blocking=True)


def _cut(reader: _Reader, held: Held, chunk: Chunk, threads: _Threads) -> Batch:
    """A batch from what the device holds."""
    whole, skipped = chunk, []
    if held.missing is not None:

        def read(positions: Sequence[int]) -> list[Inputs | FmecoError]:
            rows = threads.map(reader.one, positions, [(0,) * len(reader.views)] * len(positions))
            return [row if isinstance(row, FmecoError) else row[0] for row in rows]

        held.fill(chunk.positions, read)
        if held.bad:
            kept = torch.tensor([i not in held.bad for i in chunk.positions.tolist()])
            skipped = [held.bad[i].message for i in chunk.positions[~kept].tolist()]
            whole = Chunk(chunk.positions[kept], chunk.keys[:, kept])
    at = whole.positions.to(held.device, non_blocking=True)
    view = {name: x.index_select(0, at) for name, x in held.inputs.items()}
    return Batch([view] * len(reader.views), _targets(held.targets, at), *whole, skipped)


def _same(batch: Any) -> Any:
    return batch


class _Arrays:
    def __init__(self, plan: Iterable[Chunk]) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return ((chunk.positions.numpy(), chunk.keys.numpy()) for chunk in self.plan)


class _Threads:
    """A few threads that read while the main one waits. With one, the main one reads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool: ThreadPoolExecutor | None = None

    def map(self, function: Any, *columns: Sequence[Any]) -> list[Any]:
        if self.count == 1 or len(columns[0]) == 1:
            return list(map(function, *columns))
        if self.pool is None:
            self.pool = self._start()
        return list(self.pool.map(function, *columns))

    def _start(self) -> ThreadPoolExecutor:
        """Each thread of the pool works alone; what torch itself divides among cores would only get in the others' way.
        torch keeps that number per thread, but new threads take over the last one that was set: set it back."""
        pool, number, together = ThreadPoolExecutor(self.count), torch.get_num_threads(), threading.Barrier(self.count)

        def alone(_: int) -> None:
            torch.set_num_threads(1)
            together.wait()

        list(pool.map(alone, range(self.count)))
        torch.set_num_threads(number)
        return pool

    def __enter__(self) -> _Threads:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # A scheduler signals the whole process group; the main process decides when to stop, and needs its workers for that.
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
