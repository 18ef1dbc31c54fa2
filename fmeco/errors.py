"""Define the errors that a user can act on. Each class has one exit code of the command line. Does not import torch."""

from __future__ import annotations

import contextlib
import difflib
import re
import signal
from collections.abc import Iterable, Iterator


class FmecoError(Exception):
    """Report a failure that is not a bug in fmeco.

    message: one sentence or list that names the file, key or value at fault.
    hints: suggested fixes, one line each.
    """

    exit_code = 1
    code = "bug"

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.message = message
        self.hints = tuple(hint for hint in hints if hint)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions travel from loader workers to the main process; the default __reduce__ would drop the hints.
        return type(self), (self.message, *self.hints)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  hint: {hint}" for hint in self.hints)])


class ConfigError(FmecoError):
    """Report wrong usage or configuration, a missing plug-in or extra, an unknown REF, or an output that already exists."""

    exit_code, code = 2, "config"


class DataError(FmecoError):
    """Report a missing path, an empty or single class, an unreadable sample, NaN in a target, or a dead loader worker."""

    exit_code, code = 3, "data"


class CheckpointError(FmecoError):
    """Report a checkpoint that is invalid, modified, of another modality, or fits too little of the model."""

    exit_code, code = 4, "checkpoint"


class Diverged(FmecoError):
    """Report a loss or gradient that is not finite, or a collapsed representation."""

    exit_code, code = 5, "diverged"


class ResourceError(FmecoError):
    """Report that memory ran out or a download failed."""

    exit_code, code = 6, "resource"


class RankLost(ResourceError):
    """Report that another rank of a distributed job ended."""

    code = "rank"


class Elsewhere(FmecoError):
    """End this rank with the exit code of rank 0, which failed and prints the reason itself."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("rank 0 failed; its own message gives the reason")
        self.exit_code = exit_code


class DiskError(FmecoError):
    """Report a disk that is full or not writable."""

    exit_code, code = 7, "disk"


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # signals on which a run saves its state and exits


class Stopped(FmecoError):
    """Report that a signal ended the run. Its state was saved first, so `fmeco resume` can continue it."""

    exit_code, code = 75, "stopped"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest known word, or ""."""
    by_lower = {name.lower(): name for name in known}
    match = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" (did you mean '{by_lower[match[0]]}'?)" if match else ""


# C0 and C1 control characters, and the BiDi overrides that make a terminal reorder text.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[{_CONTROLS}]")
_NOT_IN_JSON = re.compile(f"[{_CONTROLS}\ud800-\udfff]")  # also halves of surrogate pairs, which UTF-8 cannot hold


def escaped(text: str) -> str:
    """Make text safe to print: escape control and BiDi characters, which could rewrite what a terminal shows."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", readable(text))


def escaped_json(text: str) -> str:
    """Make JSON safe to print: escape the same characters as JSON does, so that its values stay the same."""
    return _NOT_IN_JSON.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def clean(text: object, limit: int = 500) -> str:
    """Make text from a file safe to print: escape control and BiDi characters, cut after `limit` characters."""
    shown = escaped(str(text))
    return shown if len(shown) <= limit else shown[:limit] + "…"


def readable(name: str) -> str:
    """Turn a file name into valid text: escape the bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def listing(names: Iterable[object], limit: int = 10) -> str:
    """Join the first `limit` names for a message, and count the others: "a, b and 3 more"."""
    shown = [clean(name, 120) for name in names]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


@contextlib.contextmanager
def library_errors(
    message: str, *expected: type[Exception], kind: type[FmecoError] = DataError, hint: str = ""
) -> Iterator[None]:
    """Translate the errors of a library that reads a stranger's file into one FmecoError.

    Panics of Rust code derive from BaseException, and so do KeyboardInterrupt and SystemExit, which pass.

    message: what could not be read; the library's own words follow.
    expected: errors that the library raises for bad files; others are bugs, and pass.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, expected):
            raise
        raise kind(f"{message}: {clean(error) or type(error).__name__}", hint) from None


@contextlib.contextmanager
def known_errors() -> Iterator[None]:
    """Translate torch's errors into fmeco's: out of memory, dead loader workers, batch norm on one sample.

    Works as a context manager and as a decorator. Raises ResourceError, DataError or ConfigError in their place.
    """
    try:
        yield
    except (RuntimeError, MemoryError, ValueError, ConnectionError) as error:
        text = str(error)
        memory = ("not enough memory", "can't allocate memory")
        if (
            isinstance(error, MemoryError)
            or type(error).__name__ == "OutOfMemoryError"
            or any(words in text for words in memory)
        ):
            raise ResourceError(
                "out of memory",
                "try --set train.micro_batch=8 (or smaller): it uses less memory and gives the same gradients",
                "a smaller dataset.image_size or backbone also helps",
            ) from None
        if "DataLoader worker" in text or "DataLoader timed out" in text or isinstance(error, ConnectionError):
            raise DataError(
                f"a loader worker died or hung: {clean(text.splitlines()[0] if text else type(error).__name__)}",
                "--set train.workers=0 reads in the main process and shows the cause",
                "workers are killed when memory or /dev/shm runs out",
            ) from None
        if "Expected more than 1 value per channel" in text:
            raise ConfigError(
                "batch norm cannot train on a batch of one sample", "increase train.batch_size and train.micro_batch"
            ) from None
        raise
