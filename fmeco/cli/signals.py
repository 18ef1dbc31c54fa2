"""Stop on signals: at once before training, and after saving during it. Imports nothing slow, so that it is ready first."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from fmeco.errors import STOPPING

INTERRUPTED = 130  # exit code
AGAIN = 0.005  # seconds between attempts to interrupt an import
SETTING_UP = ("fmeco.training.api", "train")  # module and name of the function that sets up a run


class Signals:
    """Stop training on SIGINT, SIGTERM or SIGUSR1: after saving on the first signal, at once on the second.

    received: whether a signal asked to stop.
    training: whether the loop has begun; before that, a signal interrupts the command.
    answered: whether a command began, which then prints its own answer.
    delayed: whether a signal waits for the end of an import, so that the run that needs it removes its files.
    """

    def __init__(self) -> None:
        self.received = False
        self.training = False
        self.answered = False
        self.delayed = False

    def install(self) -> None:
        """Handle the signals from now on."""
        for number in STOPPING:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.training and not self.received:
            self.received = True
            with contextlib.suppress(OSError):
                print("\nStopping after this step (press Ctrl-C again to quit immediately)", file=sys.stderr)
        elif not self.answered or self.delayed:
            _quit()
        elif not _importing(frame):
            raise KeyboardInterrupt
        elif _setting_up(frame):
            self.delayed = True
            threading.Timer(AGAIN, self._send_again, (number,)).start()
        else:
            _quit()

    def _send_again(self, number: int) -> None:
        self.delayed = False
        os.kill(os.getpid(), number)

    def stop(self) -> bool:
        """Whether to stop. The loop polls this before each step."""
        self.training = True
        return self.received


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported. Libraries lose or wrap an exception that is raised there."""
    return any(one.f_code.co_filename.startswith("<frozen importlib") for one in _stack(frame))


def _setting_up(frame: FrameType | None) -> bool:
    """Whether a run is being set up, which removes its files if it is interrupted."""
    return any((one.f_globals.get("__name__"), one.f_code.co_name) == SETTING_UP for one in _stack(frame))


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _quit() -> None:
    """End the process as an interrupted command ends, but without an exception."""
    error = {"error": {"code": "interrupted", "message": "interrupted", "hints": []}}
    with contextlib.suppress(OSError):
        if "--json" in sys.argv:
            os.write(1, (json.dumps(error) + "\n").encode())
        os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED)


signals = Signals()
