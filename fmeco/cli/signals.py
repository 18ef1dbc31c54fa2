"""Stop on signals: at once before training, and after saving during it. Imports nothing slow."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from types import FrameType

from fmeco.errors import STOPPING

INTERRUPTED = 130  # exit code


class Signals:
    """Stop training on SIGINT, SIGTERM or SIGUSR1: after saving on the first signal, at once on the second.

    received: whether a signal asked to stop.
    training: whether the loop has begun; before that, a signal interrupts at once.
    answered: whether a command began, which then prints its own answer.
    """

    def __init__(self) -> None:
        self.received = False
        self.training = False
        self.answered = False

    def install(self) -> None:
        """Handle the signals from now on."""
        for number in STOPPING:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.training and not self.received:
            self.received = True
            with contextlib.suppress(OSError):
                print("\nStopping after this step (press Ctrl-C again to quit immediately)", file=sys.stderr)
        elif self.answered and not _importing(frame):
            raise KeyboardInterrupt
        else:
            _quit()

    def stop(self) -> bool:
        """Whether to stop. The loop polls this before each step."""
        self.training = True
        return self.received


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported. Libraries lose or wrap an exception that is raised there."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _quit() -> None:
    """End the process as an interrupted command ends, but without an exception."""
    error = {"error": {"code": "interrupted", "message": "interrupted", "hints": []}}
    with contextlib.suppress(OSError):
        if "--json" in sys.argv:
            os.write(1, (json.dumps(error) + "\n").encode())
        os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED)


signals = Signals()
