"""Open regular files, write files durably, and describe failed writes to the user."""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
from pathlib import Path

from fmeco.errors import DiskError


def regular(path: str, flags: int) -> int:
    """Open a regular file, as the `opener` of `open`. Raises OSError for pipes, devices and sockets, which may block for ever."""
    handle = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, _irregular(mode), path)


def absence(path: Path | str) -> str:
    """Say why there is no regular file at `path`: "no such file", or what is there instead."""
    try:
        return _irregular(os.stat(path).st_mode)
    except OSError:
        return "no such file"


def _irregular(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return f"it is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a regular file"


def write_durably(path: Path, body: bytes) -> None:
    """Write a new file and wait until it is on the disk (fsync). Its mode follows the umask. Raises OSError."""
    with open(path, "xb", buffering=0) as file:
        view = memoryview(body)
        while view:  # a raw write may be partial when the disk is nearly full
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def disk_error(error: OSError, path: Path, needed: int = 0, *, resumable: bool = False) -> DiskError:
    """Turn the OSError of a failed write of `path` into a DiskError.

    needed: bytes to write, 0 = unknown. resumable: whether it belongs to a run that `fmeco resume` can continue.
    """
    reason = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "your disk quota is used up",
        errno.EFBIG: "the file would be larger than allowed",
        errno.EROFS: "the disk is read-only",
        errno.EACCES: "no permission to write",
        errno.EPERM: "no permission to write",
    }.get(error.errno or 0, error.strerror or str(error))
    room = ""
    try:
        place = next(parent for parent in (path, *path.parents) if parent.exists())
        room = f" ({needed / 1e6:.1f} MB needed, {shutil.disk_usage(place).free / 1e6:.1f} MB free)" if needed else ""
    except (OSError, StopIteration):
        pass
    return DiskError(
        f"cannot write {path}: {reason}{room}",
        "earlier checkpoints are intact; fix this, then `fmeco resume` continues from the last one"
        if resumable
        else "",
    )


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries (new names, renames) are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_bytes(folder: Path) -> float:
    """Return the free bytes of the disk that holds `folder`, or inf if they cannot be read."""
    try:
        return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    except (OSError, StopIteration):
        return math.inf
