"""Manage a run's directory: create or replace it, lock it, and write its config and what was loaded."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fmeco.assembly.stages import Training
from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints.transplant import Report
from fmeco.core.model import Objective
from fmeco.errors import ConfigError, DiskError, clean
from fmeco.files import TEMPORARY, disk_error, lock, replacing, temporary_beside
from fmeco.log import say
from fmeco.reports.findings import find, kept_rows, own_metric, write
from fmeco.reports.pictures import draw_augmented

REPLACED = ".replaced"  # where --force keeps the earlier run until the new one is ready to train
LOCK, OWNER = ".lock", ".lock-owner"  # the locked file; the file that stands in where there are no locks
REFRESHED, STALE = 60.0, 600.0  # seconds: how often a running process touches OWNER, and after which it counts as gone
PATIENCE = 3.0  # seconds that the interval of the result may take at the end of a run
OWN_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "run.log",
    "report.html",
    "transplant.json",
    "bad_samples.txt",
    "gain.json",
    "findings",
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
        _clear(out)
        for path in old.iterdir():
            os.replace(path, out / path.name)
    shutil.rmtree(old)


def abandon(out: Path) -> None:
    """Remove a run that failed before it measured or saved anything: nothing of it is worth keeping or resuming."""
    metrics = out / "metrics.jsonl"
    with contextlib.suppress(OSError):
        if not checkpoint.steps(out / "checkpoints") and not (metrics.exists() and metrics.stat().st_size):
            _clear(out)
            if not (out / REPLACED).exists():
                for name in (LOCK, OWNER):
                    (out / name).unlink(missing_ok=True)
                out.rmdir()  # fails if it holds files of others


def _clear(out: Path) -> None:
    """Remove the files of a run, but not its lock."""
    for path in (*(out / name for name in OWN_FILES), *out.glob(f"{TEMPORARY}*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _never_saved(out: Path) -> bool:
    """Whether the folder holds only a run that ended before its first checkpoint, such as by an error."""
    names = {path.name for path in out.iterdir() if not path.name.startswith(TEMPORARY)}
    other_files = names - {*OWN_FILES, LOCK, OWNER, ".config.yaml"}  # the last one is of earlier versions
    return (out / "run.log").exists() and not other_files and not checkpoint.steps(out / "checkpoints")


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Lock the run against other processes within the context. The lock ends with the process.

    Raises ConfigError if another process has it, and DiskError.
    """
    try:
        handle = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise disk_error(error, run) from None
    try:
        held = lock(handle)
        if held is False:
            raise ConfigError(f"{run} is in use by another process")
        with contextlib.nullcontext() if held else _owned(run / OWNER):
            yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _owned(path: Path) -> Iterator[None]:
    """Stand in for a lock, on a file system that has none: hold a file with this process's host and id.

    Raises ConfigError if the file belongs to a process that is running, and DiskError.
    """
    host = socket.gethostname()
    try:
        with contextlib.suppress(FileNotFoundError):
            owner, age = path.read_text("utf-8", "replace"), _now(path.parent) - path.stat().st_mtime
            if age < STALE and not _gone(owner, host):
                raise ConfigError(
                    f"{path.parent} is in use by process {clean(owner, 100)}",
                    f"if that process has ended: wait {STALE / 60:.0f} minutes, or delete {path}",
                )
            path.unlink()
        with open(path, "x", encoding="utf-8") as file:  # fails if another process was faster
            file.write(f"{os.getpid()} on {host}")
    except FileExistsError:
        raise ConfigError(f"{path.parent} is in use by another process") from None
    except OSError as error:
        raise disk_error(error, path) from None
    say(f"{path.parent}: this file system has no locks; the file {path.name} keeps other processes out instead")
    ended = threading.Event()
    refresher = threading.Thread(target=_refresh, args=(path, ended), daemon=True)
    refresher.start()
    try:
        yield
    finally:
        ended.set()
        refresher.join()
        path.unlink(missing_ok=True)


def _now(folder: Path) -> float:
    """Return the time by the clock of the folder's file system, which may differ from this machine's."""
    probe = temporary_beside(folder / OWNER)
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _gone(owner: str, host: str) -> bool:
    """Whether an owner, "ID on HOST", is a process of this machine that has ended."""
    number, _, where = owner.partition(" on ")
    if where != host or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def _refresh(path: Path, ended: threading.Event) -> None:
    """Touch the file again and again, so that other machines see that its process runs."""
    while not ended.wait(REFRESHED):
        with contextlib.suppress(OSError):
            os.utime(path)


def write_transplant(run: Path, report: Report) -> None:
    """Log what was loaded from the source, and write the full report to transplant.json."""
    file = run / "transplant.json"
    for line in report.lines(str(file)):
        say(line)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(report.to_json(), indent=1) + "\n", "utf-8")


def write_config(run: Path, text: str) -> None:
    """Write the run's config.yaml, complete or not at all."""
    with replacing(run / "config.yaml") as temporary:
        temporary.write_text(text, "utf-8")


def describe_result(training: Training, run: Path, best: int) -> None:
    """Write what the report shows: the best evaluation on the validation split, and augmented training samples.

    best: step of the best checkpoint. Raises DiskError. A plug-in that fails here loses nothing but its part of the page.
    """
    rows, data = kept_rows(run, best), training.data
    try:
        if rows is not None and data.val is not None:
            measures, objective = training.measures, training.objective
            metric = own_metric(objective, measures.best)
            found = find(objective, data.spec, data.val, rows, split="val", metric=metric, step=best, patience=PATIENCE)
            write(run, found)
        elif data.val is not None and type(training.objective).page is not Objective.page:
            say(f"report.html lacks the samples of the validation split: `fmeco report {run}` adds them")
        draw_augmented(run, data, training.loader)
    except DiskError:
        raise
    except Exception as error:
        say(
            f"report.html lacks the samples: {type(error).__name__}: {clean(error)}; `fmeco report {run} --debug` shows where"
        )
