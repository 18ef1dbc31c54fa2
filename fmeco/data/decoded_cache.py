"""Cache decoded samples on disk.

A cache holds exactly the output of `Samples.__getitem__`, so a cold cache, a warm cache and no cache give the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fmeco.core.data import Inputs, Samples, Wrapped
from fmeco.data import disk_cache
from fmeco.errors import DiskError, clean
from fmeco.files import lock
from fmeco.log import say

_MAGIC = b"fmeco-2\n"
_FIELDS, _CHECK = struct.Struct("<QQQq16s"), struct.Struct("<Q")
_RECORD = _FIELDS.size + _CHECK.size
_NO_DIGEST = bytes(16)


class Record(NamedTuple):
    """Locate and identify a stored sample.

    begin, length: its place in NAME.data.
    checksum: CRC-32 of its bytes there.
    stamp: `Samples.stamps` of its file.
    digest: `Samples.digest` of its file; zeros = not known.
    """

    begin: int
    length: int
    checksum: int
    stamp: int
    digest: bytes

    def pack(self) -> bytes:
        """Return the record as it is stored: its fields, and their CRC-32."""
        fields = _FIELDS.pack(*self)
        return fields + _CHECK.pack(zlib.crc32(fields))

    @staticmethod
    def unpack(raw: bytes) -> Record | None:
        """Read a record as it is stored; None if it is damaged, or none was stored."""
        fields, check = raw[: _FIELDS.size], raw[_FIELDS.size :]
        if len(check) < _CHECK.size or _CHECK.unpack(check) != (zlib.crc32(fields),):
            return None
        return Record._make(_FIELDS.unpack(fields))


class Decoded(Wrapped):
    """Cache decoded samples in a file that threads, loader workers, ranks and later runs share.

    `NAME.data` holds the samples in the order in which they were read, `NAME.index` one record per position. A sample is
    appended before its record is written, so a process that dies leaves no readable record of a partial sample. Each
    process checks a sample's CRC-32 at its first access, and a record's at every one; a sample that fails is read from
    the source again. So is a sample whose file changed, unless the file's bytes are the same as before. Appended bytes
    never change, so writers need no lock.
    """

    def __init__(self, samples: Samples, home: Path, limit: float) -> None:
        """Open or create the cache in folder `home`. Raises OSError.

        limit: largest size of `NAME.data` in bytes; samples that do not fit are read from the source every time.
        """
        super().__init__(samples)
        self.limit = limit
        home.mkdir(parents=True, exist_ok=True)
        name = hashlib.blake2b(_MAGIC + samples.content.encode(), digest_size=16).hexdigest()
        self.paths = (home / f"{name}.index", home / f"{name}.data")
        self.numbers = None if samples.stamps is None else samples.stamps.numpy()
        self.checked = np.zeros(len(samples), dtype=np.bool_)
        self.handles: tuple[int, int, int] = (0, 0, 0)  # process id, file descriptors of the index and the data
        # Of files that were not those of the index. Machines with copies of the data may share a cache: each hashes once.
        self.digests: dict[int, bytes | None] = {}
        self.full = False  # whether a sample did not fit into the limit
        self.told = False  # whether damage was reported
        self._inspect()
        self._open()
        os.utime(self.paths[1])  # time of last use, for `prune`
        disk_cache.describe(self.paths[1], {"data": samples.origin, "samples": len(samples)})

    def __getitem__(self, index: int) -> Inputs:
        try:
            inputs = self._get(index)
        except OSError:  # a network file system lost the file
            inputs = None
        if inputs is not None:
            return inputs
        if self.full:
            return self.samples[index]
        digest = self.samples.digest(index)  # before decoding: a file that is replaced just now must not match it later
        inputs = self.samples[index]
        with contextlib.suppress(OSError):  # a full disk makes the run slower, but must not stop it
            self._put(index, inputs, digest or _NO_DIGEST)
        return inputs

    def digest(self, index: int, *, stored: bool = False) -> bytes | None:
        """Return the digest that is stored with the sample, so that its file need not be read again."""
        with contextlib.suppress(OSError):
            record = self._record(index)
            if record is not None and record.stamp == self._stamp(index):
                return record.digest if record.digest != _NO_DIGEST else None
        return self.samples.digest(index, stored=stored)

    def _inspect(self) -> None:
        """Look through the index: report damaged records, and begin anew if most of the data is no longer in use."""
        try:
            raw, size = self.paths[0].read_bytes(), self.paths[1].stat().st_size
        except FileNotFoundError:
            return
        stored = [raw[at : at + _RECORD] for at in range(0, len(raw), _RECORD)]
        written = [record for record in stored if any(record)]
        records = [record for record in map(Record.unpack, written) if record is not None]
        if damaged := len(written) - len(records):
            say(
                f"{self.paths[0]} is damaged: {damaged:,} of {len(written):,} cached samples are read from their files again"
            )
        if size > 4 * sum(record.length for record in records) + len(_MAGIC):
            disk_cache.remove(self.paths[1])

    def _open(self) -> tuple[int, int]:
        """Return this process's descriptors of index and data. After a fork, open new ones: inherited ones share offsets."""
        if self.handles[0] != os.getpid():
            index, data = (os.open(path, os.O_RDWR | os.O_CREAT, 0o666) for path in self.paths)
            lock(data, shared=True)  # keeps `prune` from removing a cache in use, where the file system has locks
            if os.fstat(data).st_size == 0:
                os.pwrite(data, _MAGIC, 0)
            self.handles = (os.getpid(), index, data)
        return self.handles[1:]

    def __del__(self) -> None:
        if getattr(self, "handles", (0,))[0] == os.getpid():
            for handle in self.handles[1:]:
                os.close(handle)

    def _stamp(self, index: int) -> int:
        return 0 if self.numbers is None else int(self.numbers[index])

    def _record(self, index: int) -> Record | None:
        """Read the record of a sample; None if the sample is not stored, or the record is damaged. Raises OSError."""
        return Record.unpack(os.pread(self._open()[0], _RECORD, index * _RECORD))

    def _get(self, index: int) -> Inputs | None:
        """Read a sample from the cache; None if it is not stored, damaged, or of another file. Raises OSError."""
        entries, data = self._open()
        record = self._record(index)
        if record is None:
            return None
        if record.stamp != self._stamp(index):
            first = index not in self.digests
            if first:
                self.digests[index] = self.samples.digest(index)
            if record.digest == _NO_DIGEST or record.digest != self.digests[index]:
                return None
            if first:  # touched, moved or copied: the bytes are the same
                os.pwrite(entries, record._replace(stamp=self._stamp(index)).pack(), index * _RECORD)
        body = np.empty(record.length, dtype=np.uint8)
        whole = os.preadv(data, [body.data], record.begin) == record.length
        if not self.checked[index]:
            if not whole or zlib.crc32(body.data) != record.checksum:
                self._report_damage(index)
                return None
            self.checked[index] = True
        return _unpack(body) if whole else None

    def _report_damage(self, index: int) -> None:
        """Report, once per process, that a stored sample is damaged."""
        if not self.told:
            name = clean(self.samples.name(index))
            say(f"{self.paths[1]} is damaged: {name} and others like it are read from their files again")
        self.told = True

    def _put(self, index: int, inputs: Inputs, digest: bytes) -> None:
        """Append a sample to the data and record it in the index, unless it would exceed the limit. Raises OSError."""
        entries, data = self._open()
        parts = _pack(inputs)
        length, checksum = sum(len(part) for part in parts), 0
        self.full = os.fstat(data).st_size + length > self.limit
        if self.full:
            return
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        # With O_APPEND the kernel chooses the offset; only the position of a private descriptor then tells which it was.
        private = os.open(self.paths[1], os.O_WRONLY | os.O_APPEND)
        try:
            # The name may lead to another file by now, if another process removed this one.
            if os.path.sameopenfile(private, data) and os.writev(private, parts) == length:
                begin = os.lseek(private, 0, os.SEEK_CUR) - length
                record = Record(begin, length, checksum, self._stamp(index), digest)
                os.pwrite(entries, record.pack(), index * _RECORD)
        finally:
            os.close(private)


def decoded(samples: Samples, wanted: str | float) -> Samples:
    """Wrap samples in a disk cache, unless it is off, useless for them or not writable.

    wanted: "off", "auto" (size limit from `room`) or a size limit in bytes.
    """
    if wanted == "off" or not samples.content or samples.in_memory:
        return samples
    try:
        home = disk_cache.folder() / "decoded"
        home.mkdir(parents=True, exist_ok=True)
        limit = disk_cache.room(home) if wanted == "auto" else float(wanted)
        cache = Decoded(samples, home, limit)
        disk_cache.prune(home, "*.data", limit)
        return cache
    except (OSError, DiskError):
        return samples  # there is no folder for caches, or it cannot be written


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
