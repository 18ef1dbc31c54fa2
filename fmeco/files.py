"""Open regular files, read JSON, write files durably, lock them, and describe failed writes to the user."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmeco.errors import DiskError

# What the system reports for a disk that takes no more bytes, or none at all.
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
TEMPORARY = ".writing-"  # start of the name of a file or folder that is not complete


def temporary_beside(path: Path) -> Path:
    """Return a new hidden name beside `path`, with its suffix, for a file or folder that is renamed once it is complete."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}{path.suffix}")


def regular(path: str, flags: int) -> int:
    """Open a regular file, as the `opener` of `open`. Raises OSError for pipes, devices and sockets, which may block for ever."""
    handle = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, _irregular(mode), path)


def read_json(path: Path, limit: int) -> Any:
    """Parse a JSON file that may come from a stranger: a regular one of at most `limit` bytes.

    Raises OSError, and ValueError for a file that is larger, nested too deeply, or no JSON.
    """
    with open(path, "rb", opener=regular) as file:
        body = file.read(limit + 1)
    if len(body) > limit:
        raise ValueError(f"larger than {limit >> 20} MB")
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def absence(path: Path | str) -> str:
    """Say why there is no regular file at `path`: "no such file", or what is there instead."""
    try:
        return _irregular(os.stat(path).st_mode)
    except OSError:
        return "no such file"


def disguise(head: bytes) -> str:
    """Say what a file is in place of what its name promises, by its first bytes; "" if nothing is known."""
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "it is a web page"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run `git lfs pull`"
    return ""


def _irregular(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return f"it is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a regular file"


def write_durably(path: Path, body: bytes) -> None:
    """Write a new file and wait until it is on the disk (fsync). Its mode follows the umask. Raises OSError."""
    with open(path, "xb", buffering=0) as file:
        write_all(file, body)
        _sync(file.fileno())


def write_all(file: io.FileIO, body: bytes) -> None:
    """Write all of `body` to a file without a buffer, which may take only a part at a time. Raises OSError."""
    view = memoryview(body)
    while view:
        view = view[file.write(view) :]


@contextlib.contextmanager
def replacing(path: Path, *, resumable: bool = False) -> Iterator[Path]:
    """Write a file complete or not at all: yield a temporary name, and give the file its own name at the end.

    If the block fails, nothing is left of its file, and an earlier file of that name stays.
    resumable: whether the file belongs to a run that `fmeco resume` can continue.

    Raises DiskError if the disk is full or not writable.
    """
    final = Path(os.path.realpath(path))  # a link stays a link to the new file
    temporary = temporary_beside(final)
    try:
        yield temporary
        os.replace(temporary, final)
    except OSError as error:
        raise disk_error(error, path, resumable=resumable) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
    """Wait until a folder's entries (new names, renames) are on the disk, if its file system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # network and cloud file systems may not open folders
        return
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    """Wait until a file or folder is on the disk (fsync). Raises OSError if the disk fails.

    A file system that has no fsync is no failure: the data was written, and only a power cut can lose it.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in (*DISK_ERRNOS, errno.EIO):
            raise


def lock(handle: int, *, shared: bool = False) -> bool | None:
    """Lock an open file, without waiting, until it is closed.

    Returns False if another process holds it, and None if the file system has no locks (some network file systems).
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def free_bytes(folder: Path) -> float:
    """Return the free bytes of the disk that holds `folder`, or inf if they cannot be read."""
    try:
        return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    except (OSError, StopIteration):
        return math.inf
