"""Where a run reports: the terminal (stderr), run.log, metrics.jsonl and, if it is installed, TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

logger = logging.getLogger("fmeco")


def say(message: str) -> None:
    """A line for the user: on the terminal above any progress bar, and in run.log."""
    logger.info(message)


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def to_terminal(quiet: bool = False) -> None:
    """Send `say` to stderr. Called by the command line; as a library fmeco is silent."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in [h for h in logger.handlers if isinstance(h, _Terminal)]:
        logger.removeHandler(handler)
    if not quiet:
        logger.addHandler(_Terminal())


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within, nothing is said on the terminal; run.log still gets every line."""
    terminals = [handler for handler in logger.handlers if isinstance(handler, _Terminal)]
    for handler in terminals:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler in terminals:
            handler.setLevel(logging.NOTSET)
