"""Write checkpoints atomically, beside training, and keep a run's folder of them tidy."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import torch as safetensors
from torch import Tensor

from fmeco.checkpoints.format import FORMAT, MANIFEST, META, steps
from fmeco.files import disk_error, sync_folder, write_durably


def write(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    trainer: Mapping[str, Any] | None,
    parents: Sequence[str],
    card: str,
) -> Path:
    """Write `folder`/step-N: either all of it appears, or none.

    tensors: file stem -> named tensors. Tensors that share memory are stored once; their aliases go to meta.json.
    trainer: None for a checkpoint to use but not to resume from.
    Raises DiskError when the disk is full or not writable; checkpoints already there are untouched.
    """
    target = folder / f"step-{step:08d}"
    temporary = folder / f".writing-{uuid.uuid4().hex}"
    aliases: dict[str, str] = {}
    files: dict[str, bytes] = {f"{stem}.safetensors": _pack(stem, named, aliases) for stem, named in tensors.items()}
    files[META] = _json({**meta, "format": FORMAT, "step": step, "aliases": aliases})
    if trainer is not None:
        files["trainer.json"] = _json(trainer)
    manifest = {
        "format": FORMAT,
        "parents": list(parents),
        "files": {
            name: {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            for name, body in sorted(files.items())
        },
    }
    files |= {"README.md": card.encode(), MANIFEST: _json(manifest)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for name, body in files.items():
            write_durably(temporary / name, body)
        sync_folder(temporary)
        if target.exists():  # the same step, saved again by a run that was resumed before it
            discard(target)
        os.rename(temporary, target)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise disk_error(error, target, sum(len(body) for body in files.values())) from None
    return target


def snapshot(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy on the CPU that training does not change. Tensors that share memory stay shared, so that `write` sees it."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    out: dict[str, Tensor] = {}
    for name, tensor in named.items():
        tensor = tensor.detach()
        key = _identity(tensor)
        if key not in copies:
            copies[key] = tensor.to("cpu", copy=True)
        out[name] = copies[key]
    return out


class Writer:
    """Does one thing at a time in a thread beside training. Leaving it as a context waits; an error of the thread is
    raised where it is next waited for."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # whatever it is, it belongs to the thread that waits
                self.error = error

        self.wait()
        self.thread = threading.Thread(target=run, name="checkpoint")
        self.thread.start()

    def wait(self) -> None:
        """Wait for the work at hand; raises its error."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except Exception:
            if kind is None:  # else there is something worse to tell
                raise


def point(folder: Path, name: str, target: Path) -> None:
    """Make `folder`/name a relative link to `target`, replacing an old link in one step."""
    temporary = folder / f".writing-{uuid.uuid4().hex}"
    try:
        os.symlink(target.name, temporary)
        os.replace(temporary, folder / name)
        sync_folder(folder)
    except OSError as error:
        raise disk_error(error, folder / name, 0) from None


def discard(path: Path) -> None:
    """Remove a checkpoint; at no moment is half of it visible under its name."""
    grave = path.parent / f".writing-{uuid.uuid4().hex}"
    os.rename(path, grave)
    shutil.rmtree(grave, ignore_errors=True)


def tidy(folder: Path, keep: int) -> None:
    """Remove what a killed process left half-written, and all but the newest `keep` checkpoints and the best."""
    for stray in folder.glob(".writing-*"):
        if stray.is_symlink():
            stray.unlink()
        else:
            shutil.rmtree(stray, ignore_errors=True)
    pointed = {(folder / name).resolve() for name in ("best", "last") if (folder / name).exists()}
    for old in steps(folder)[:-keep]:
        if old.resolve() not in pointed:
            discard(old)


def _pack(stem: str, named: Mapping[str, Tensor], aliases: dict[str, str]) -> bytes:
    seen: dict[tuple[Any, ...], str] = {}
    out: dict[str, Tensor] = {}
    for name, tensor in named.items():
        tensor = tensor.detach()
        key = _identity(tensor)
        if tensor.numel() and key in seen:
            aliases[f"{stem}/{name}"] = f"{stem}/{seen[key]}"
            continue
        seen[key] = name
        out[name] = tensor.to("cpu").contiguous()
    body: bytes = safetensors.save(out)
    return body


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
