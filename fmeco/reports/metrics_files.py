"""Write a run's metrics and messages: metrics.jsonl, run.log and, if it is installed, TensorBoard."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import json
import logging
import math
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmeco.errors import ConfigError, FmecoError, escaped
from fmeco.files import disk_error, write_all
from fmeco.log import logger, quietly
from fmeco.reports.tensorboard import Board

FORMAT = logging.Formatter("%(asctime)s %(message)s")  # of run.log
Line = tuple[str, int, float, dict[str, float]]  # kind, step, epoch and values, as for `Log.write`


class _RunLog(logging.FileHandler):
    """Write messages to run.log. On a full disk, they are lost: the run's other files report it, as an error."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def added_to_log(run: Path) -> Iterator[None]:
    """Add what is said inside the `with` block to the run.log of a finished run, and not to the terminal."""
    handler = _RunLog(run / "run.log", encoding="utf-8")
    handler.setFormatter(FORMAT)
    logger.addHandler(handler)
    try:
        with quietly():
            yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class Log:
    """Write the log files of one run, on rank 0 only.

    Numbers that are not finite become null: metrics.jsonl is strict JSON.
    """

    def __init__(
        self,
        run: Path,
        *,
        tensorboard: bool | str,
        resume_at: int | None = None,
        size: int | None = None,
        first: bool = True,
    ) -> None:
        """Open the files. Raises DiskError, and ConfigError if TensorBoard is required but not installed.

        tensorboard: True, False, or "auto" (if it is installed).
        resume_at: the step that a resumed run continues from; None for a new run.
        size: bytes of metrics.jsonl to keep on resuming; None keeps only the range test, which is before the first
            step.
        first: whether this is rank 0; the other ranks open nothing.
        """
        self.file: io.FileIO | None = None
        self.lines: list[Line] = []
        self.flushed = 0.0
        self.handler: logging.Handler = logging.NullHandler()
        self.board: Board | None = None
        if not first:
            return
        try:
            run.mkdir(parents=True, exist_ok=True)
            self.file = open(run / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115  closed by close()
            if resume_at is not None:  # drop lines that a killed run wrote after its last checkpoint
                self.file.truncate(_before_steps(run) if size is None else min(size, self.file.seek(0, os.SEEK_END)))
                self.file.seek(0, os.SEEK_END)
            if tensorboard is True or (tensorboard == "auto" and importlib.util.find_spec("tensorboard")):
                self.board = Board(run / "tensorboard", resume_at)
            self.handler = _RunLog(run / "run.log", encoding="utf-8")
        except ImportError:
            raise ConfigError(
                "train.tensorboard is true, but tensorboard is not installed",
                "pip install 'fmeco[tensorboard]'",
            ) from None
        except OSError as error:
            raise disk_error(error, Path(error.filename or run)) from None
        self.handler.setFormatter(FORMAT)
        logger.setLevel(logging.INFO)
        logger.addHandler(self.handler)

    def write(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl.

        It is {"kind": "range" | "train" | "val" | "time", "step": step, "epoch": epoch, ...values}.
        """
        if self.file is None:
            return
        self.lines.append((kind, step, epoch, values))
        if (
            kind != "train" or time.monotonic() - self.flushed > 1.0
        ):  # a reader following the file sees it within a second
            self.flush()

    def flush(self) -> None:
        """Write the buffered lines, many at a time. Raises DiskError."""
        if self.file is None:
            return
        lines, self.lines = self.lines, []  # lines that a full disk refuses are not tried again at the end of the run
        text = ""
        for kind, step, epoch, values in lines:
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            line = {"kind": kind, "step": step, "epoch": round(epoch, 6), **finite}
            text += json.dumps(line, ensure_ascii=False) + "\n"
        try:
            write_all(self.file, text.encode())
            if self.board is not None:
                self.board.write([(step, _tagged(kind, values)) for kind, step, _, values in lines])
        except OSError as error:
            raise disk_error(error, Path(self.file.name), resumable=True) from None
        self.flushed = time.monotonic()

    def size(self) -> int:
        """Return the bytes of metrics.jsonl so far; checkpoints store this number."""
        self.flush()
        return self.file.tell() if self.file is not None else 0

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Write a failure to run.log, which the terminal's error message does not reach, and close."""
        if isinstance(error, FmecoError):
            text = str(error)
        else:
            text = "".join(traceback.format_exception(error)) if isinstance(error, Exception) else ""
        for line in escaped(text).splitlines():
            self.handler.emit(logging.LogRecord(logger.name, logging.ERROR, "", 0, line, None, None))
        self.close()

    def close(self) -> None:
        """Write the buffered lines, and close all files. Raises DiskError, once all are closed."""
        try:
            self.flush()
        finally:
            if self.file is not None:
                self.file.close()
            logger.removeHandler(self.handler)
            self.handler.close()
            if self.board is not None:
                self.board.close()


def _tagged(kind: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{kind}/{name}": value for name, value in values.items()}


def _before_steps(run: Path) -> int:
    """Return the bytes of metrics.jsonl that the range test wrote, before the first step."""
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    return sum(map(len, itertools.takewhile(lambda line: line.startswith(b'{"kind": "range"'), lines)))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics.jsonl, without damaged ones; [] if there is no such file."""
    path = run / "metrics.jsonl"
    logged: list[dict[str, Any]] = []
    for text in path.read_text("utf-8", "replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and {"kind", "step", "epoch"} <= line.keys():
                logged.append(line)
    return logged
