"""Cache decoded samples on disk, and manage the folder of caches.

A cache holds exactly the output of `Samples.__getitem__`, so a cold cache, a warm cache and no cache give the same bits.
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

_RECORD = struct.Struct("<QII")  # index record of a sample: offset in KEY.data (0 = not stored), length, CRC-32
_MAGIC = b"fmeco-1\n"


def folder() -> Path:
    """Return fmeco's folder in the user's cache folder (https://specifications.freedesktop.org/basedir)."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "fmeco"


class Decoded(Wrapped):
    """Cache decoded samples in a file that threads, loader workers, ranks and later runs share.

    `KEY.data` holds the samples in the order in which they were read, `KEY.index` one record per position. A sample is
    appended before its record is written, so a process that dies leaves no readable record of a partial sample. Each
    process checks a sample's CRC-32 at its first access; a sample that fails is read from the source again. All
    processes write the same bytes for a sample, so writers need no lock.
    """

    def __init__(self, samples: Samples, home: Path, limit: float) -> None:
        """Open or create the cache in folder `home`. Raises OSError.

        limit: largest size of `KEY.data` in bytes; samples that do not fit are read from the source every time.
        """
        super().__init__(samples)
        self.limit = limit
        home.mkdir(parents=True, exist_ok=True)
        self.paths = (home / f"{samples.content}.index", home / f"{samples.content}.data")
        self.checked = np.zeros(len(samples), dtype=np.bool_)
        self.handles: tuple[int, int, int] = (0, 0, 0)  # process id, file descriptors of the index and the data
        self._open()
        os.utime(self.paths[1])  # time of last use, for `prune`

    def __getitem__(self, index: int) -> Inputs:
        inputs = self._get(index)
        if inputs is None:
            inputs = self.samples[index]
            with contextlib.suppress(OSError):  # a full disk makes the run slower, but must not stop it
                self._put(index, inputs)
        return inputs

    def _open(self) -> tuple[int, int]:
        """Return this process's descriptors of index and data. After a fork, open new ones: inherited ones share offsets."""
        if self.handles[0] != os.getpid():
            index, data = (os.open(path, os.O_RDWR | os.O_CREAT, 0o666) for path in self.paths)
            fcntl.flock(data, fcntl.LOCK_SH)  # keeps `prune` from removing a cache in use
            if os.fstat(data).st_size == 0:
                os.pwrite(data, _MAGIC, 0)
            self.handles = (os.getpid(), index, data)
        return self.handles[1:]

    def __del__(self) -> None:
        if getattr(self, "handles", (0,))[0] == os.getpid():
            for handle in self.handles[1:]:
                os.close(handle)

    def _get(self, index: int) -> Inputs | None:
        """Read a sample from the cache; None if it is not stored or its checksum is wrong."""
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
        """Append a sample to the data and record it in the index, unless it would exceed the limit. Raises OSError."""
        entries, data = self._open()
        parts = _pack(inputs)
        length, checksum = sum(len(part) for part in parts), 0
        if os.fstat(data).st_size + length > self.limit:
            return
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        # With O_APPEND the kernel chooses the offset; only the position of a private descriptor then tells which it was.
        private = os.open(self.paths[1], os.O_WRONLY | os.O_APPEND)
        try:
            if os.writev(private, parts) == length:
                begin = os.lseek(private, 0, os.SEEK_CUR) - length
                os.pwrite(entries, _RECORD.pack(begin, length, checksum), index * _RECORD.size)
        finally:
            os.close(private)


def decoded(samples: Samples, wanted: str | float) -> Samples:
    """Wrap samples in a disk cache, unless it is off, useless for them or not writable.

    wanted: "off", "auto" (size limit from `room`) or a size limit in bytes.
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
        return samples  # the cache folder cannot be created or written


def room(home: Path) -> float:
    """Choose the size limit of a cache folder in bytes: half of the free memory, at most a quarter of the free disk.

    The system keeps files of that size in memory (page cache); a larger cache would be read from the disk.
    """
    return min(free_memory() / 2, shutil.disk_usage(home).free / 4)


def prune(home: Path, pattern: str, limit: float) -> None:
    """Remove the least recently used caches until the rest takes at most `limit` bytes. Caches in use stay."""
    caches = _used(home.glob(pattern))
    total = sum(size for _, size, _ in caches)
    for _, _, path in caches:
        if total <= limit:
            return
        total -= remove(path)


def _used(paths: Iterable[Path]) -> list[tuple[float, int, Path]]:
    """List the existing files as (last use, bytes, path), least recently used first. Last use: seconds since 1970."""
    files = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another process may remove files at the same time
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
    return sorted(files)


def remove(path: Path) -> int:
    """Remove one cache, unless it is in use. Returns the bytes that this freed."""
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


KINDS = {"decoded": "*.data", "features": "*.npy"}  # subfolder -> pattern of its cache files


def entries() -> list[dict[str, Any]]:
    """List all caches, least recently used first.

    kind: "decoded" or "features".
    file: path of the cache.
    bytes: its size.
    used: time of last use, seconds since 1970.
    """
    caches = []
    for kind, pattern in KINDS.items():
        for used, size, path in _used((folder() / kind).glob(pattern)):
            caches.append({"kind": kind, "file": str(path), "bytes": size, "used": used})
    return sorted(caches, key=lambda cache: cache["used"])


def clear(older_than: float = 0.0) -> tuple[int, int]:
    """Remove caches that were not used for `older_than` seconds and are not in use. Returns (files, bytes) removed."""
    freed = [remove(Path(cache["file"])) for cache in entries() if time.time() - cache["used"] >= older_than]
    return sum(size > 0 for size in freed), sum(freed)


def free_memory() -> float:
    """Return the bytes of memory available without swapping, in a container at most the rest of its limit."""
    free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo") as file:
        free = 1024.0 * int(next(line for line in file if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free = min(free, float((group / "memory.max").read_text()) - float((group / "memory.current").read_text()))
    return free


def _pack(inputs: Inputs) -> list[Any]:
    """Turn tensors into buffers. Keeps each tensor's memory layout, since another layout could change later rounding."""
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
    """Rebuild the tensors from the bytes of `_pack`, without copying."""
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
