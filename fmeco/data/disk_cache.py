"""Manage the folder of caches: decoded samples, and features of frozen networks.

An entry is a file `NAME.data` or `NAME.npy`, and `NAME.json`, which describes it. `NAME.index` belongs to decoded samples.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fmeco.errors import ConfigError, DiskError, clean, listing
from fmeco.files import TEMPORARY, lock, replacing

KINDS = {"decoded": "*.data", "features": "*.npy"}  # subfolder -> pattern of its cache files
ABANDONED = 86400.0  # seconds after which a file that is still not complete belongs to a process that is gone


def folder() -> Path:
    """Return fmeco's folder in the user's cache folder (https://specifications.freedesktop.org/basedir).

    Raises DiskError for a user without a home, as in some containers.
    """
    base = os.environ.get("XDG_CACHE_HOME") or ""
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "fmeco"
    except RuntimeError:
        raise DiskError("there is no folder for caches: this user has no home", "set HOME or XDG_CACHE_HOME") from None


def room(home: Path) -> float:
    """Choose the size limit of a cache folder in bytes: half of the free memory, at most a quarter of the free disk.

    The system keeps files of that size in memory (page cache); a larger cache would be read from the disk.
    """
    return min(free_memory() / 2, shutil.disk_usage(home).free / 4)


def describe(path: Path, about: Mapping[str, Any]) -> None:
    """Write NAME.json beside a cache file. A full disk is no error: the entry is then not described."""
    described = path.with_suffix(".json")
    if described_as(path) != about:
        with contextlib.suppress(DiskError), replacing(described) as temporary:
            temporary.write_text(json.dumps(about), "utf-8")


def described_as(path: Path) -> dict[str, Any]:
    """Read NAME.json of a cache file; {} if it is missing or damaged."""
    try:
        about = json.loads(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def prune(home: Path, pattern: str, limit: float) -> None:
    """Remove the least recently used caches until the rest takes at most `limit` bytes. Caches in use stay."""
    for used, _, path in _used(home.glob(f"{TEMPORARY}*")):
        if time.time() - used > ABANDONED:
            path.unlink(missing_ok=True)
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
        if lock(handle) is False:
            return 0
        size = path.stat().st_size
        for suffix in (".index", ".json"):
            path.with_suffix(suffix).unlink(missing_ok=True)
        path.unlink()
        return size
    except FileNotFoundError:  # another process removed it at the same time
        return 0
    finally:
        os.close(handle)


def entries() -> list[dict[str, Any]]:
    """List all caches, least recently used first.

    name: of the entry, for `find`.
    kind: "decoded" or "features".
    data: where the samples come from; "" = not known.
    model: what computed the features; "" = not known, or decoded samples.
    samples: number of samples; None = not known.
    file: path of the cache.
    bytes: its size.
    used: time of last use, seconds since 1970.
    """
    caches = []
    for kind, pattern in KINDS.items():
        for used, size, path in _used((folder() / kind).glob(pattern)):
            about = described_as(path)
            known = {key: about.get(key) for key in ("data", "model")}
            caches.append(
                {
                    "name": path.stem,
                    "kind": kind,
                    **{key: value if isinstance(value, str) else "" for key, value in known.items()},
                    "samples": about["samples"] if isinstance(about.get("samples"), int) else None,
                    "file": str(path),
                    "bytes": size,
                    "used": used,
                }
            )
    return sorted(caches, key=lambda cache: cache["used"])


def find(name: str) -> dict[str, Any]:
    """Return the entry whose name begins with `name`. Raises ConfigError if there is none, or more than one."""
    found = [entry for entry in entries() if name and entry["name"].startswith(name)]
    if len(found) != 1:
        many = f"{clean(name)} is the beginning of {len(found)} names: {listing(entry['name'] for entry in found)}"
        raise ConfigError(
            many if found else f"no cache is named {clean(name)}",
            "`fmeco cache` lists the names; a beginning is enough",
        )
    return found[0]


def clear(name: str | None = None, older_than: float = 0.0) -> tuple[int, int]:
    """Remove one entry, or all, that was not used for `older_than` seconds and is not in use.

    Returns (files, bytes) removed. Raises ConfigError for an unknown name.
    """
    caches = entries() if name is None else [find(name)]
    freed = [remove(Path(cache["file"])) for cache in caches if time.time() - cache["used"] >= older_than]
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
