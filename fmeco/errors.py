"""Errors that a user can act on. Each class is one exit code of the command line; torch is not imported here."""

from __future__ import annotations

import contextlib
import difflib
import re
import signal
from collections.abc import Iterable, Iterator


class FmecoError(Exception):
    """A failure that is not a bug in fmeco.

    Attributes:
        message: one sentence or list that names the file, key or value at fault.
        hints: what to do, one line each.
    """

    exit_code = 1
    code = "bug"

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.message = message
        self.hints = tuple(hint for hint in hints if hint)

    def __reduce__(self) -> tuple[object, ...]:
        # Loader workers send exceptions between processes; the default would drop the hints.
        return type(self), (self.message, *self.hints)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  hint: {hint}" for hint in self.hints)])


class ConfigError(FmecoError):
    """Usage, configuration, a missing plug-in or extra, a REF that is not found, an output that is in the way."""

    exit_code, code = 2, "config"


class DataError(FmecoError):
    """Missing path, empty or single class, unreadable sample, NaN in a target, dead loader worker."""

    exit_code, code = 3, "data"


class CheckpointError(FmecoError):
    """A checkpoint that is invalid, changed, of another modality, or fits too little of the model."""

    exit_code, code = 4, "checkpoint"


class Diverged(FmecoError):
    """The loss or a gradient is not finite, or the representation collapsed."""

    exit_code, code = 5, "diverged"


class ResourceError(FmecoError):
    """Out of memory, or a download that failed."""

    exit_code, code = 6, "resource"


class RankLost(ResourceError):
    """Another process of a job with several ranks ended."""

    code = "rank"


class Elsewhere(FmecoError):
    """Rank 0 failed, and says why; this rank ends with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("rank 0 could not go on")
        self.exit_code = exit_code


class DiskError(FmecoError):
    """The disk is full or not writable."""

    exit_code, code = 7, "disk"


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # what asks a run to save and leave


class Stopped(FmecoError):
    """A signal ended the run after its state was saved: `fmeco resume` goes on from there."""

    exit_code, code = 75, "stopped"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest known word, or ""."""
    by_lower = {name.lower(): name for name in known}
    match = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" (did you mean '{by_lower[match[0]]}'?)" if match else ""


# C0 and C1 controls, and the BiDi overrides that make a terminal show text in another order than it is stored.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean(text: object, limit: int = 500) -> str:
    """Make text from a file safe to print: control and BiDi characters are escaped, long text is cut."""
    shown = _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", readable(str(text)))
    return shown if len(shown) <= limit else shown[:limit] + "…"


def readable(name: str) -> str:
    """A file's name as valid text: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def listing(names: Iterable[object], limit: int = 10) -> str:
    """Join names for a message, the first `limit` of them, and say how many more there are."""
    shown = [clean(name, 120) for name in names]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


@contextlib.contextmanager
def known_errors() -> Iterator[None]:
    """Turn what torch raises for memory, loader workers and lone samples into one sentence. Also a decorator."""
    try:
        yield
    except (RuntimeError, MemoryError, ValueError, ConnectionError) as error:
        said = str(error)
        memory = ("not enough memory", "can't allocate memory")
        if (
            isinstance(error, MemoryError)
            or type(error).__name__ == "OutOfMemoryError"
            or any(words in said for words in memory)
        ):
            raise ResourceError(
                "out of memory",
                "--set train.micro_batch=8 (or smaller) needs less and learns the same",
                "a smaller dataset.image_size or backbone also helps",
            ) from None
        if "DataLoader worker" in said or "DataLoader timed out" in said or isinstance(error, ConnectionError):
            raise DataError(
                f"a loader worker died or hung: {clean(said.splitlines()[0] if said else type(error).__name__)}",
                "--set train.workers=0 reads in the main process and shows the cause",
                "workers are killed when memory, or /dev/shm, runs out",
            ) from None
        if "Expected more than 1 value per channel" in said:
            raise ConfigError(
                "batch norm cannot train on a batch of one sample", "train.batch_size, and micro_batch, must be larger"
            ) from None
        raise
