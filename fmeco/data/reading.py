"""Read samples into batches: from the device, with threads, or with worker processes, and the choice between them."""

from __future__ import annotations

import functools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fmeco.core.augment import Augment
from fmeco.core.data import Batch, Data, Inputs, Samples, View, fit, pad
from fmeco.data.device_cache import Held
from fmeco.data.disk_cache import free_memory
from fmeco.errors import STOPPING, DataError, FmecoError

WORKER_TIMEOUT = 300  # seconds without a batch before a worker is taken for hung

MEASURED_SECONDS = 0.5  # spent on finding out how long reading takes


class Reading(NamedTuple):
    """Who reads the samples of a split. workers: processes beside the main one, 0 = the main one, with `threads`
    threads between steps. held: the split on the device, where it is small enough."""

    workers: int
    threads: int
    held: Held | None


def per_view(augment: Augment, views: Sequence[View]) -> list[Augment]:
    """What makes each view. Raises ConfigError for a view that the augmentation cannot make."""
    return [augment.for_view(view) if view.augment else Augment() for view in views]


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
    reader, positions = Reader(data, samples, views, augment), range(0, len(samples), max(1, len(samples) // 256))
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


class Chunk(NamedTuple):
    """The samples of a micro-batch: positions (B,), and a key per view and sample (V, B)."""

    positions: Tensor
    keys: Tensor


Row = list[Inputs] | FmecoError  # a sample once per view; failures travel as values, as loaders garble exceptions


class Reader(Dataset[Any]):
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


def read_batches(
    data: Data,
    samples: Samples,
    views: Sequence[View],
    augment: Augment,
    plan: Iterable[Chunk],
    reading: Reading,
    device: torch.device,
) -> Iterator[Batch]:
    reader = Reader(data, samples, views, augment)
    if reading.workers == 0:
        with Threads(reading.threads) as threads:
            for chunk in plan:
                if reading.held is not None:
                    yield cut_from_device(reader, reading.held, chunk, threads)
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


def cut_from_device(reader: Reader, held: Held, chunk: Chunk, threads: Threads) -> Batch:
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


class Threads:
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

    def __enter__(self) -> Threads:
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
