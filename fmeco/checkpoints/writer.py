"""Write checkpoints atomically in a thread beside training, and remove old ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import torch as safetensors
from torch import Tensor

from fmeco.checkpoints.format import FORMAT, MANIFEST, META, step_folder, steps
from fmeco.checkpoints.pointers import NAMES, discard, marked, point
from fmeco.checkpoints.tensors import nonfinite
from fmeco.errors import DiskError, Diverged, listing
from fmeco.files import TEMPORARY, disk_error, sync_folder, temporary_beside, write_durably


def write(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    trainer: Mapping[str, Any] | None,
    parents: Sequence[str],
    card: str,
) -> Path:
    """Write the checkpoint `folder`/step-N atomically. Returns its path.

    tensors: file stem -> named tensors. Tensors that share memory are stored once; meta.json lists their aliases.
    meta: contents of meta.json.
    trainer: contents of trainer.json; None = the checkpoint cannot be resumed.
    parents: ids of the checkpoints that it was trained from.
    card: text of README.md.

    Raises Diverged for weights that are not finite, and DiskError if the disk is full or not writable. Existing
    checkpoints stay intact.
    """
    weights = {name: x for stem, named in tensors.items() if stem != "trainer" for name, x in named.items()}
    if bad := nonfinite(weights):
        raise Diverged(
            f"step {step}: the weights are not finite: {listing(bad, 5)}; no checkpoint of this step was saved",
            "lower optimizer.lr, or set train.clip_norm: 1.0",
        )
    target = step_folder(folder, step)
    temporary = temporary_beside(target)
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
        if target.exists():  # a run that resumed from an earlier step reaches this step again
            discard(target)
        os.rename(temporary, target)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(len(body) for body in files.values())
        raise disk_error(error, target, needed, resumable=True) from None
    return target


def snapshot(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU, so that training can go on. Tensors that share memory share it in the copy, too."""
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
    """Run one job at a time in a thread beside training.

    The next `start` or `wait` waits for the job and raises its error; so does the end of a `with` block.
    """

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Wait for the last job, then start `work` in the thread. Raises the last job's error."""

        def run() -> None:
            try:
                work()
            except BaseException as error:  # any error must be raised in the thread that waits
                self.error = error

        self.wait()
        self.thread = threading.Thread(target=run, name="checkpoint")
        self.thread.start()

    def wait(self) -> None:
        """Wait until the job is done. Raises its error."""
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
            if kind is None:  # otherwise keep the exception that is already being raised
                raise


def rehearse(folder: Path) -> Path:
    """Do on a small scale what a save does, so that a disk that cannot do it ends a run before its first step.

    Returns the folder. Raises DiskError.
    """
    trial = temporary_beside(folder / "trial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.mkdir()
        for number in (1, 2):
            target = step_folder(trial, number)
            temporary = temporary_beside(target)
            temporary.mkdir()
            write_durably(temporary / MANIFEST, b"{}")
            sync_folder(temporary)
            os.rename(temporary, target)
            point(trial, "last", target)  # the second time it replaces a mark
        discard(step_folder(trial, 1))
    except OSError as error:
        raise disk_error(error, folder) from None
    except DiskError as error:
        raise DiskError(error.message.replace(str(trial), str(folder))) from None
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    return folder


def tidy(folder: Path, keep: int, source: int | None = None) -> None:
    """Remove old checkpoints, and partial files that a killed process left.

    keep: number of newest checkpoints to keep; those that `best` and `last` mark stay as well.
    source: step to keep as well, which training has to beat.
    """
    for stray in folder.glob(f"{TEMPORARY}*"):
        if stray.is_dir() and not stray.is_symlink():
            shutil.rmtree(stray, ignore_errors=True)
        else:
            stray.unlink(missing_ok=True)
    kept = {marked(folder, name) for name in NAMES}
    for old in steps(folder)[:-keep]:
        if old.resolve() not in kept and (source is None or old != step_folder(folder, source)):
            discard(old)


def _pack(stem: str, named: Mapping[str, Tensor], aliases: dict[str, str]) -> bytes:
    """Serialise tensors to safetensors. Stores tensors that share memory once, and adds the others to `aliases`."""
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
    """Return a key that is equal for tensors with the same memory and shape."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
