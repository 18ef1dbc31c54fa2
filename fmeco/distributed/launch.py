"""Starting a job of several processes on this machine (`--nproc N`), and knowing which of them this is. torch is not
imported here: a parent that only waits does not need it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from fmeco.errors import STOPPING

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, in glibc's malloc.h
GRACE = 30.0  # seconds that the others have to end by themselves when one has failed


def keep_memory() -> None:
    """Ask glibc to keep what is freed for the next step, instead of giving it back and faulting it in again page by page.
    To be called before torch allocates; elsewhere than on glibc it does nothing."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)


class Place(NamedTuple):
    """Where a process stands in its job, as torchrun's environment variables say it."""

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1


def place() -> Place:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return Place()
    return Place(*(int(os.environ[name]) for name in names))


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `fmeco ARGUMENTS` in `count` processes that find each other as under torchrun. Returns the job's exit code:
    that of the first process to fail, for the others only miss it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: object) -> None:
        # A terminal's Ctrl-C goes to the children as well; other signals come to this process alone.
        if number != signal.SIGINT:
            _send(children, number)

    for number in STOPPING:
        signal.signal(number, forward)
    for rank in range(count):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in (ranks | meeting).items()}
        children.append(subprocess.Popen([sys.executable, "-m", "fmeco", *arguments], env=environment))
    failed, since = 0, 0.0
    while any(child.poll() is None for child in children):
        time.sleep(0.05)
        codes = [child.poll() for child in children]
        if not failed and (bad := [code for code in codes if code]):
            failed, since = bad[0], time.monotonic()
        if failed and time.monotonic() - since > GRACE:
            _send(children, signal.SIGKILL)
    failed = failed or next((child.returncode for child in children if child.returncode), 0)
    if failed < 0:
        name = signal.Signals(-failed).name
        print(
            f"error: a rank was killed by {name}\n  hint: `fmeco resume RUN` goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 6
    return failed


def _send(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)
