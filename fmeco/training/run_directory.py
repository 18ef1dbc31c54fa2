"""Manage a run's directory: create or replace it, lock it, and write its config."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from fmeco.checkpoints import format as checkpoint
from fmeco.errors import ConfigError
from fmeco.files import disk_error

REPLACED = ".replaced"  # where --force keeps the earlier run until the new one is ready to train
OWN_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "run.log",
    "report.html",
    "transplant.json",
    "bad_samples.txt",
    "tensorboard",
    "checkpoints",
    "controls",
)


def claim(out: Path | None, name: str, source: str | None, force: bool) -> Path:
    """Create the run's directory.

    out: the directory; None for a new one below runs/.
    name: start of the new directory's name.
    source: REF that the run starts from, which --force must not delete.
    force: replace an earlier run in `out`.

    Raises ConfigError if it is not empty, DiskError if it cannot be created.
    """
    try:
        if out is None:
            base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
            for suffix in ["", *(f"-{n}" for n in range(2, 1000))]:
                with contextlib.suppress(FileExistsError):
                    run = base.with_name(base.name + suffix)
                    run.mkdir(parents=True)
                    return run
        assert out is not None
        if out.is_dir() and any(out.iterdir()):
            if not force and not _never_saved(out):
                raise ConfigError(
                    f"{out} is not empty",
                    "--force replaces the run in it; `fmeco resume` continues it",
                )
            start = Path(source).resolve() if source is not None else None
            if start is not None and (start == out.resolve() or out.resolve() in start.parents):
                raise ConfigError(
                    f"--force would replace {out}, which holds the weights of --from", "choose another --out"
                )
            with locked(out):
                settle(out, keep_new=False)  # undo a replacement that was killed before it was ready
                (out / REPLACED).mkdir()
                for name in OWN_FILES:
                    if (out / name).exists():
                        os.replace(out / name, out / REPLACED / name)
        elif out.exists() and not out.is_dir():
            raise ConfigError(f"{out} is a file; a run needs a directory")
        out.mkdir(parents=True, exist_ok=True)
        return out
    except OSError as error:
        raise disk_error(error, out or Path("runs")) from None


def settle(out: Path, *, keep_new: bool) -> None:
    """Finish a replacement by --force, if there is one.

    keep_new: True deletes the replaced run, once the new one is ready to train; False restores it, after the new one
        failed.
    """
    old = out / REPLACED
    if not old.exists():
        return
    if not keep_new:
        for path in old.iterdir():
            fresh = out / path.name
            shutil.rmtree(fresh) if fresh.is_dir() else fresh.unlink(missing_ok=True)
            os.replace(path, fresh)
    shutil.rmtree(old)


def _never_saved(out: Path) -> bool:
    """Whether the folder holds only a run that ended before its first checkpoint, such as by an error."""
    other_files = {path.name for path in out.iterdir()} - {*OWN_FILES, ".lock", ".config.yaml"}
    return (out / "run.log").exists() and not other_files and not checkpoint.steps(out / "checkpoints")


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Lock the run against other processes within the context. The lock ends with the process."""
    try:
        handle = os.open(run / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise disk_error(error, run) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ConfigError(f"{run} is in use by another process") from None
    try:
        yield
    finally:
        os.close(handle)


def write_config(run: Path, text: str) -> None:
    """Write the run's config.yaml, complete or not at all."""
    temporary = run / ".config.yaml"
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, run / "config.yaml")
    except OSError as error:
        raise disk_error(error, run / "config.yaml") from None
