"""Read samples into batches: from the device, with threads, or with worker processes, and the choice between them."""

from __future__ import annotations

import functools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fmeco.core.augment import Augment
from fmeco.core.data import Batch, Data, DataSpec, Inputs, Samples, View
from fmeco.core.geometry import fit, pad
from fmeco.core.target import known
from fmeco.data.device_cache import Held
from fmeco.data.disk_cache import free_memory
from fmeco.errors import STOPPING, DataError, FmecoError, clean, listing

WORKER_TIMEOUT = 300  # seconds without a batch before a worker counts as hung

MEASURED_SECONDS = 0.5  # longest time to measure the speed of reading


class Reading(NamedTuple):
    """Describe how a split is read.

    workers: loader processes; 0 = the main process reads between training steps.
    threads: threads of the main process that read, if workers is 0.
    held: the split on the device; None = it is not held there.
    """

    workers: int
    threads: int
    held: Held | None


def per_view(augment: Augment, views: Sequence[View]) -> list[Augment]:
    """Return the augmentation for each view. Raises ConfigError for a view that the augmentation cannot make."""
    return [augment.for_view(view) if view.augment else Augment() for view in views]


def unreadable(batch: Batch) -> DataError:
    """Make the error for the batch's first unreadable sample."""
    return DataError(batch.skipped[0], "repair or remove the sample, or train with --set train.on_bad_sample=skip")


def check_classes(spec: DataSpec, samples: Samples, read: Tensor, where: str) -> None:
    """Check that every class of a split has a sample that can be read: without them, the other classes seem too easy.

    read: positions (M,) of the samples that could be read. where: name of the split, for the message. Raises DataError that names the classes.
    """
    for name, target in spec.targets.items():
        values = samples.targets.get(name)
        if not target.traits.one_class or not isinstance(values, Tensor):
            continue
        labelled = known(values)
        lost = set(values[labelled].tolist()) - set(values[read].tolist())
        if lost:
            counts = [f"'{clean(target.classes[c])}' ({int((values == c).sum())} samples)" for c in sorted(lost)]
            raise DataError(
                f"no {where} sample of {listing(counts)} can be read",
                "repair the files, or leave the class out with dataset.classes; bad_samples.txt and `fmeco check` list them",
            )


def choose_reading(
    wanted: int | Literal["auto"],
    data: Data,
    samples: Samples,
    device: torch.device,
    *,
    views: Sequence[View] = (View(augment=False),),
    augment: Augment | None = None,
    step_seconds: Callable[[], float] | None = None,
    once: bool = False,
    world: int = 1,
) -> Reading:
    """Choose how a split is read.

    wanted: number of worker processes, or auto. auto: keep the split on the device if it fits; otherwise, on a CPU, read
        with threads between training steps (no core is free during a step), and with a GPU use as many worker
        processes as keep up with it, up to the number of cores. The time to read a sample is measured.
    step_seconds: function that measures the training time per sample in seconds; None = unknown.
    once: the split is read only once, so holding it on the device would not help.
    world: number of ranks that share this machine.
    """
    augment = augment or Augment()
    cores = max(1, (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1) // world)
    if wanted != "auto":
        return Reading(wanted, cores, None)
    varied = any(part.per_sample for part in per_view(augment, views))
    room = _room(device) / world / 4 if not once else 0.0
    alike = not data.spec.windows and not any(described.ragged for described in data.spec.inputs.values())
    holdable = not varied and data.collate is None and alike
    if holdable and Held.size(samples, data.spec) <= room:
        tensors = None if samples.tensors is None else fit(samples.tensors, data.spec, leading=1)
        return Reading(0, cores, Held(samples, data.spec, device, tensors))
    if samples.in_memory or len(samples) < 64 or (once and device.type == "cpu"):
        return Reading(0, cores, None)
    if once:  # measuring would read some samples twice
        return Reading(max(1, min(8, cores // 2)), cores, None)
    seconds, busy = _reading_seconds(Reader(data, samples, views, augment), len(samples))
    if device.type == "cpu":
        # A thread that waits for a disk or network uses no core: start more threads than cores.
        return Reading(0, min(16 * cores, math.ceil(cores * seconds / max(busy, 1e-6) - 0.25)), None)
    needed = cores if step_seconds is None else math.ceil(1.3 * seconds / step_seconds())
    return Reading(max(1, min(needed, cores, 16)), cores, None)


def _reading_seconds(reader: Reader, size: int) -> tuple[float, float]:
    """Measure the time to read a sample, on some of the `size` samples. Returns wall seconds, and those of a core.

    One torch thread reads, as in worker processes and in the thread pool.
    """
    before, count = torch.get_num_threads(), 0
    torch.set_num_threads(1)
    began, busy = time.monotonic(), time.thread_time()
    try:
        for position in range(0, size, max(1, size // 256)):
            reader.one(position, (0,) * len(reader.views))
            count += 1
            if time.monotonic() - began > MEASURED_SECONDS:
                break
    finally:
        torch.set_num_threads(before)
    return (time.monotonic() - began) / count, (time.thread_time() - busy) / count


def _room(device: torch.device) -> float:
    """Return the free bytes of the device's memory."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


class Chunk(NamedTuple):
    """Name the samples of a micro-batch.

    positions: (B,) positions in the split.
    keys: (V, B) int64, one random key per view and sample.
    """

    positions: Tensor
    keys: Tensor


Row = list[Inputs] | FmecoError  # one sample, once per view; errors are values, because DataLoader rewrites exceptions


class Reader(Dataset[Any]):
    """Read a Chunk into a Batch, in the main process or in a loader worker."""

    def __init__(
        self, data: Data, samples: Samples, views: Sequence[View], augment: Augment, *, whole: bool = False
    ) -> None:
        self.spec, self.samples, self.views, self.whole = data.spec, samples, views, whole
        self.augments = per_view(augment, views)
        self.stack = data.collate or functools.partial(
            _stack, ragged={n for n, x in data.spec.inputs.items() if x.ragged}
        )

    def one(self, index: int, keys: Sequence[int]) -> Row:
        """Read one sample and make its views. Returns the error if it cannot be read. keys: one per view."""
        try:
            read = self.samples[index]
            views = [augment.sample(read, key) for augment, key in zip(self.augments, keys, strict=True)]
            # A view with its own size has that size already, which is not the spec's.
            return [
                fit(x, self.spec, whole=self.whole) if view.size == 1 else x
                for view, x in zip(self.views, views, strict=True)
            ]
        except FmecoError as error:
            return error

    def __getitems__(self, arrays: tuple[Any, Any]) -> Batch:
        """Read a Chunk in a loader worker. arrays: its fields in numpy, since tensors would go through shared memory."""
        chunk = Chunk(*map(torch.from_numpy, arrays))
        rows = [self.one(i, keys) for i, keys in zip(chunk.positions.tolist(), chunk.keys.T.tolist(), strict=True)]
        return self.batch(chunk, rows)

    def batch(self, chunk: Chunk, rows: Sequence[Row]) -> Batch:
        """Join the rows of a Chunk to a Batch; rows that are errors go to `skipped`."""
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
    """Stack samples to a batch, and pad the inputs named in `ragged` to the longest sample.

    Images that are channels_last in memory, as decoders return them, stay so.
    """
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
    *,
    whole: bool = False,
) -> Iterator[Batch]:
    """Yield the Batch of each Chunk in `plan`, on the device. Samples that cannot be read are in `skipped`.

    whole: as for `fit`; a Chunk then holds one sample.
    """
    reader = Reader(data, samples, views, augment, whole=whole)
    if reading.workers == 0:
        with Threads(reading.threads) as threads:
            for chunk in plan:
                if reading.held is not None:
                    yield cut_from_device(reader, reading.held, chunk, threads)
                else:
                    rows = threads.map(reader.one, chunk.positions.tolist(), chunk.keys.T.tolist())
                    yield reader.batch(chunk, rows).to(device)
        return
    # fork shares imported plug-in files and packed arrays without copying; other platforms use their default.
    context = "fork" if sys.platform == "linux" else None
    loader = DataLoader(
        reader,
        batch_sampler=_Arrays(plan),  # type: ignore[arg-type]  # arrays instead of lists of indices, for __getitems__
        collate_fn=_unchanged,
        num_workers=reading.workers,
        worker_init_fn=_start_worker,
        timeout=WORKER_TIMEOUT,
        pin_memory=device.type == "cuda",
        multiprocessing_context=context,
        # DataLoader would draw from the global generator in the middle of a step, after the step was seeded.
        generator=torch.Generator().manual_seed(0),
    )
    # Block signals until the workers ignore them: torch's own handler would end a worker on a signal meant for the run.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for batch in batches:
        yield batch.to(device, non_blocking=True)


def cut_from_device(reader: Reader, held: Held, chunk: Chunk, threads: Threads) -> Batch:
    """Cut a batch from the split held on the device; read samples that it does not hold yet."""
    readable, skipped = chunk, []
    if held.missing is not None:

        def read(positions: Sequence[int]) -> list[Inputs | FmecoError]:
            rows = threads.map(reader.one, positions, [(0,) * len(reader.views)] * len(positions))
            return [row if isinstance(row, FmecoError) else row[0] for row in rows]

        held.fill(chunk.positions, read)
        if held.bad:
            kept = torch.tensor([i not in held.bad for i in chunk.positions.tolist()])
            skipped = [held.bad[i].message for i in chunk.positions[~kept].tolist()]
            readable = Chunk(chunk.positions[kept], chunk.keys[:, kept])
    at = readable.positions.to(held.device, non_blocking=True)
    view = {name: x.index_select(0, at) for name, x in held.inputs.items()}
    return Batch([view] * len(reader.views), _targets(held.targets, at), *readable, skipped)


def _unchanged(batch: Any) -> Any:
    return batch


class _Arrays:
    """Iterate over Chunks as numpy arrays, which are sent to workers faster than tensors."""

    def __init__(self, plan: Iterable[Chunk]) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return ((chunk.positions.numpy(), chunk.keys.numpy()) for chunk in self.plan)


class Threads:
    """Run a function in a thread pool while the main thread waits. With a count of 1, the main thread runs it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool: ThreadPoolExecutor | None = None
        self.ids: list[int] = []  # of the pool's threads, as the system numbers them

    def map(self, function: Any, *columns: Sequence[Any]) -> list[Any]:
        """Call the function on each row of the columns, like the built-in `map`. Starts the pool when it is first needed."""
        if self.count == 1 or len(columns[0]) == 1:
            return list(map(function, *columns))
        if self.pool is None:
            self.pool = self._start()
        return list(self.pool.map(function, *columns))

    def _start(self) -> ThreadPoolExecutor:
        """Start the pool with one torch thread per pool thread, so that pool threads do not compete for cores.

        torch keeps this number per thread, but new threads inherit the last value set anywhere; so it is restored at the end.
        """
        pool, before, barrier = ThreadPoolExecutor(self.count), torch.get_num_threads(), threading.Barrier(self.count)

        def use_one_thread(_: int) -> None:
            torch.set_num_threads(1)
            self.ids.append(threading.get_native_id())
            barrier.wait()  # so that every thread of the pool runs this once

        list(pool.map(use_one_thread, range(self.count)))
        torch.set_num_threads(before)
        return pool

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
            _wait_for_end(self.ids)


def _wait_for_end(ids: Sequence[int]) -> None:
    """Wait until the system has ended threads, for at most a second; Python's own wait ends a moment before.

    In that moment a thread frees its memory of MKL, and holds a lock. A worker forked meanwhile would get a copy of the lock
    that nobody opens, and spin in its first Fourier transform.
    """
    until = time.monotonic() + 1
    while time.monotonic() < until and any(os.path.exists(f"/proc/self/task/{number}") for number in ids):
        time.sleep(0.0005)


def _start_worker(worker: int) -> None:
    """Set up a loader worker: one torch thread, and no reaction to the signals that stop a run."""
    torch.set_num_threads(1)
    # A scheduler signals the whole process group. The main process decides when to stop, and needs its workers until then.
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
