"""Write a run's metrics as TensorBoard events.

TensorBoard's own writer needs a thread, which slows down the training of small models, and prints a traceback when the
disk is full.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmeco.files import write_all


class Board:
    """Append events to a new file in a folder, which TensorBoard reads together with those of earlier runs."""

    def __init__(self, folder: Path, resume_at: int | None) -> None:
        """Open the file. Raises ImportError if TensorBoard is not installed, and OSError.

        resume_at: step that a resumed run continues from: later events of earlier files are hidden; None hides none.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._records = Event, Summary, RecordWriter
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.iterdir()))  # two runs of one process may begin within one second
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.{number}"
        self.file = open(folder / name, "xb", buffering=0)  # noqa: SIM115  closed by close()
        events = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if resume_at is not None:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=time.time(), step=resume_at + 1, session_log=start))
        self._append(events)

    def write(self, rows: list[tuple[int, Mapping[str, float]]]) -> None:
        """Append one event per row of (step, values by tag). Raises OSError."""
        events = []
        for step, values in rows:
            parts = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            events.append(self._event(wall_time=time.time(), step=step, summary=self._summary(value=parts)))
        self._append(events)

    def _append(self, events: list[Any]) -> None:
        packed = io.BytesIO()
        records = self._records(packed)
        for event in events:
            records.write(event.SerializeToString())
        write_all(self.file, packed.getvalue())

    def close(self) -> None:
        """Close the file."""
        self.file.close()
