"""Write messages for the user to the logger `fmeco`: the terminal (stderr), and run.log while a run is active."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

from fmeco.errors import escaped

logger = logging.getLogger("fmeco")


def say(message: str) -> None:
    """Print a line for the user, above any progress bar of the terminal, and add it to run.log."""
    logger.info(escaped(message))


def duration(seconds: float) -> str:
    """Write a time for people: 40 seconds, 12 minutes, 3.2 hours."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"


def moment(seconds: float) -> str:
    """Write a time since the epoch as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if sys.stderr is not None:  # it was closed; tqdm would write to stdout
            with contextlib.suppress(OSError):  # a message that a full disk does not take must not end the run
                tqdm.write(self.format(record), file=sys.stderr)


def to_terminal(quiet: bool = False) -> None:
    """Print the lines of `say` to stderr. The command line calls this; used as a library, fmeco prints nothing."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in [h for h in logger.handlers if isinstance(h, _Terminal)]:
        logger.removeHandler(handler)
    if not quiet:
        logger.addHandler(_Terminal())


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence the terminal inside the `with` block; run.log still gets every line."""
    terminals = [handler for handler in logger.handlers if isinstance(handler, _Terminal)]
    for handler in terminals:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler in terminals:
            handler.setLevel(logging.NOTSET)
