"""Samples that were read once and need not be read again: held on the device, or decoded on the disk.

Both keep what the canonical decode gave and nothing else, so that cold, warm and no cache give the same bits.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmeco.core.data import Inputs, Samples, Wrapped

_RECORD = struct.Struct("<QII")  # of a sample: where it begins (0: nowhere), how long it is, its CRC-32
_MAGIC = b"fmeco-1\n"


def folder() -> Path:
    """Where caches live: fmeco's folder in the user's cache folder, as https://specifications.freedesktop.org/basedir
    has it."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "fmeco"


class Decoded(Wrapped):
    """Samples whose decoded tensors are kept in a file, shared by threads, loader workers, ranks and later runs.

    `KEY.data` holds the samples in the order they were read, `KEY.index` one record for each position. A sample is
    appended first and entered into the index after, so that a process that dies leaves nothing half-written to be
    read; its checksum is compared the first time a process reads it, and a record that does not hold is read anew from
    the source. Every process writes the same bytes for a sample, so nobody waits for anybody.
    """

    def __init__(self, samples: Samples, home: Path, limit: float) -> None:
        """limit: bytes of `KEY.data`; what does not fit is read from the source each time. Raises OSError."""
        super().__init__(samples)
        self.limit = limit
        home.mkdir(parents=True, exist_ok=True)
        self.paths = (home / f"{samples.content}.index", home / f"{samples.content}.data")
        self.checked = np.zeros(len(samples), dtype=np.bool_)
        self.handles: tuple[int, int, int] = (0, 0, 0)  # of this process: its id, the index, the data
        self._open()
        os.utime(self.paths[1])  # used now, for `prune`

    def __getitem__(self, index: int) -> Inputs:
        found = self._get(index)
        if found is None:
            found = self.samples[index]
            with contextlib.suppress(OSError):  # a full disk costs time, not the run
                self._put(index, found)
        return found

    def _open(self) -> tuple[int, int]:
        """Handles of this process: one that came from before a fork would share its position with the parent's."""
        if self.handles[0] != os.getpid():
            index, data = (os.open(path, os.O_RDWR | os.O_CREAT, 0o666) for path in self.paths)
            fcntl.flock(data, fcntl.LOCK_SH)  # `prune` leaves what is in use
            if os.fstat(data).st_size == 0:
                os.pwrite(data, _MAGIC, 0)
            self.handles = (os.getpid(), index, data)
        return self.handles[1:]

    def __del__(self) -> None:
        if getattr(self, "handles", (0,))[0] == os.getpid():
            for handle in self.handles[1:]:
                os.close(handle)

    def _get(self, index: int) -> Inputs | None:
        entries, data = self._open()
        record = os.pread(entries, _RECORD.size, index * _RECORD.size)
        if len(record) < _RECORD.size:
            return None
        begin, length, checksum = _RECORD.unpack(record)
        if begin == 0:
            return None
        body = np.empty(length, dtype=np.uint8)
        if os.preadv(data, [body.data], begin) != length:
            return None
        if not self.checked[index]:
            if zlib.crc32(body.data) != checksum:
                return None
            self.checked[index] = True
        return _unpack(body)

    def _put(self, index: int, inputs: Inputs) -> None:
        entries, data = self._open()
        parts = _pack(inputs)
        length, checksum = sum(len(part) for part in parts), 0
        if os.fstat(data).st_size + length > self.limit:
            return
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        # A handle of its own: with O_APPEND the kernel chooses the place, and only the handle's position tells which.
        own = os.open(self.paths[1], os.O_WRONLY | os.O_APPEND)
        try:
            if os.writev(own, parts) == length:
                begin = os.lseek(own, 0, os.SEEK_CUR) - length
                os.pwrite(entries, _RECORD.pack(begin, length, checksum), index * _RECORD.size)
        finally:
            os.close(own)


def decoded(samples: Samples, wanted: str | float) -> Samples:
    """`samples`, or the same behind a cache of what they decode to. wanted: off, auto, or bytes.

    auto: what `room` says.
    """
    if wanted == "off" or not samples.content or samples.in_memory:
        return samples
    home = folder() / "decoded"
    try:
        home.mkdir(parents=True, exist_ok=True)
        limit = room(home) if wanted == "auto" else float(wanted)
        cache = Decoded(samples, home, limit)
        prune(home, "*.data", limit)
        return cache
    except OSError:
        return samples  # no home, or a read-only one


def room(home: Path) -> float:
    """Bytes for a folder of caches: half of the free memory, as what the system cannot keep in memory would have to come
    from the disk, and no more than a quarter of the free disk."""
    return min(free_memory() / 2, shutil.disk_usage(home).free / 4)


def prune(home: Path, pattern: str, limit: float) -> None:
    """Remove the caches that were used longest ago, and are not in use, until all together take at most `limit` bytes."""
    caches = _used(home.glob(pattern))
    total = sum(size for _, size, _ in caches)
    for _, _, path in caches:
        if total <= limit:
            return
        total -= remove(path)


def _used(paths: Iterable[Path]) -> list[tuple[float, int, Path]]:
    """(last use, bytes, path) of each file that is still there, the longest unused first."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another process clears up as well
            about = path.stat()
            found.append((about.st_mtime, about.st_size, path))
    return sorted(found)


def remove(path: Path) -> int:
    """Remove one cache, unless it is in use. Returns the bytes that are free now."""
    try:
        handle = os.open(path, os.O_RDWR)
    except (FileNotFoundError, PermissionError):
        return 0
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = path.stat().st_size
        path.with_suffix(".index").unlink(missing_ok=True)
        path.unlink()
        return size
    except BlockingIOError:
        return 0
    finally:
        os.close(handle)


KINDS = {"decoded": "*.data", "features": "*.npy"}  # folder -> its files


def entries() -> list[dict[str, Any]]:
    """What is kept, the longest unused first: {"kind", "file", "bytes", "used"}, the last in seconds since 1970."""
    found = []
    for kind, pattern in KINDS.items():
        for used, size, path in _used((folder() / kind).glob(pattern)):
            found.append({"kind": kind, "file": str(path), "bytes": size, "used": used})
    return sorted(found, key=lambda one: one["used"])


def clear(older_than: float = 0.0) -> tuple[int, int]:
    """Remove what was not used for `older_than` seconds and is not in use. Returns (files, bytes)."""
    freed = [remove(Path(one["file"])) for one in entries() if time.time() - one["used"] >= older_than]
    return sum(size > 0 for size in freed), sum(freed)


def free_memory() -> float:
    """Bytes that can be had without swapping; of a container, at most what its limit leaves."""
    free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo") as file:
        free = 1024.0 * int(next(line for line in file if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free = min(free, float((group / "memory.max").read_text()) - float((group / "memory.current").read_text()))
    return free


def _pack(inputs: Inputs) -> list[Any]:
    """Tensors as buffers, each with its own order of dimensions in memory: another order could round differently later."""
    header: list[Any] = []
    bodies: list[Any] = []
    for name, x in inputs.items():
        order = sorted(range(x.ndim), key=lambda d: x.stride()[d], reverse=True)
        laid = x.permute(order).contiguous()
        header.append([name, str(x.dtype).removeprefix("torch."), list(laid.shape), order])
        body = laid.view(-1).view(torch.uint8).numpy().data
        bodies += [body, bytes(-len(body) % 16)]  # tensors begin at a multiple of 16 bytes
    described = json.dumps(header).encode()
    described += b" " * (-(len(described) + 4) % 16)
    return [struct.pack("<I", len(described)) + described, *bodies]


def _unpack(body: np.ndarray[Any, Any]) -> Inputs:
    length = struct.unpack("<I", body[:4].tobytes())[0]
    at = 4 + length
    out: Inputs = {}
    for name, dtype, shape, order in json.loads(body[4:at].tobytes()):
        kind = getattr(torch, dtype)
        size = torch.Size(shape).numel() * kind.itemsize
        laid = torch.from_numpy(body[at : at + size]).view(kind).view(shape)
        out[name] = laid.permute(*np.argsort(order).tolist()) if order else laid
        at += size + -size % 16
    return out
