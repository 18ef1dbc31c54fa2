"""Mark the best and the last checkpoint of a run, and find them.

`best` and `last` are links to a checkpoint. Where the file system refuses links, they are small files with its name. A
copy of a run may have a folder in place of a link, or neither: copying tools and cloud folders differ.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from fmeco.checkpoints.format import STEP, Checkpoint, open_checkpoint, step_folder, steps, verify
from fmeco.errors import CheckpointError
from fmeco.files import disk_error, regular, sync_folder, temporary_beside, write_durably
from fmeco.log import say

NAMES = ("best", "last")
_LONGEST = 100  # characters of a small file that can be the name of a checkpoint


def point(folder: Path, name: str, target: Path) -> None:
    """Let `folder`/name mark the checkpoint `target`, and replace an old mark atomically. Raises DiskError."""
    mark = folder / name
    temporary = temporary_beside(mark)
    try:
        try:
            os.symlink(target.name, temporary)
        except OSError:  # this file system has no links; a full disk shows in the next line, too
            write_durably(temporary, target.name.encode())
        if mark.is_dir() and not mark.is_symlink():  # a copy of a checkpoint in place of the link to it
            discard(mark)
        os.replace(temporary, mark)
        sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(error, mark, resumable=True) from None


def marked(folder: Path, name: str) -> Path | None:
    """Return the checkpoint that `folder`/name marks; None if it marks none."""
    mark = folder / name
    if mark.is_dir():  # a link, or a copy of the checkpoint
        return mark.resolve()
    with contextlib.suppress(OSError, UnicodeDecodeError), open(mark, encoding="utf-8", opener=regular) as file:
        target = file.read(_LONGEST).strip()
        if STEP.fullmatch(target) and (folder / target).is_dir():
            return (folder / target).resolve()
    return None


def find(folder: Path, name: str) -> Path | None:
    """Return the best or last checkpoint of a run; None if it has none.

    If it is not marked, the last one is the newest intact one, and the best one is the newest that was the best when it
    was saved. The user is told.
    """
    found = marked(folder, name)
    if found is None and (unmarked := _unmarked(folder, name)) is not None:
        say(f"{folder} does not mark its {name} checkpoint (was it copied without links?): taking {unmarked.path.name}")
        found = unmarked.path.resolve()
    return found


def follow(path: Path) -> Path:
    """Return the checkpoint that a path to `best` or `last` marks, and any other path as it is."""
    return (marked(path.parent, path.name) if path.name in NAMES else None) or path


def restore(folder: Path) -> None:
    """Mark the best and the last checkpoint again in a copy of a run that has folders in place of links, or neither.

    Raises DiskError.
    """
    for name in NAMES:
        mark = folder / name
        try:
            if mark.is_dir() and not mark.is_symlink():
                _put_back(mark)
        except OSError as error:
            raise disk_error(error, mark) from None
        if marked(folder, name) is None and (found := find(folder, name)) is not None:
            point(folder, name, found)


def _put_back(copy: Path) -> None:
    """Turn `best` or `last`, copied as a folder, back into the checkpoint of its step, unless that is intact."""
    with contextlib.suppress(CheckpointError):
        original = step_folder(copy.parent, open_checkpoint(copy).meta["step"])
        try:
            verify(open_checkpoint(original))
        except CheckpointError:
            if original.exists():
                discard(original)
            os.rename(copy, original)
        point(copy.parent, copy.name, original)


def _unmarked(folder: Path, name: str) -> Checkpoint | None:
    """Open the newest checkpoint, or for `best` the newest that was the best when it was saved, if there is one."""
    newest: Checkpoint | None = None
    for path in reversed(steps(folder)):
        with contextlib.suppress(CheckpointError):
            saved = open_checkpoint(path)
            if name == "last" or saved.meta.get("best"):
                return saved
            newest = newest or saved
    return newest


def discard(path: Path) -> None:
    """Remove a checkpoint atomically: rename it first, so that a partial one is never visible under its name."""
    grave = temporary_beside(path)
    os.rename(path, grave)
    shutil.rmtree(grave, ignore_errors=True)
