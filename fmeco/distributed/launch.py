"""Launch a job of several processes on this machine (`--nproc N`), and find out which rank this process is.

This module does not import torch: the parent process only waits, and does not need it.
"""

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

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # options of mallopt, from glibc's malloc.h
GRACE = 30.0  # seconds that the other ranks have to exit by themselves after one has failed


def keep_memory() -> None:
    """Make glibc keep freed memory for the next step, instead of returning it and faulting it in again page by page.

    Call it before torch allocates. Without glibc it does nothing.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)


class Place(NamedTuple):
    """Locate a process in its job, as torchrun's environment variables do.

    rank: number of the process in the job.
    world: processes in the job.
    local: number of the process on its machine.
    local_world: processes of the job on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1


def place() -> Place:
    """Read this process's place from the environment. A process that was started alone is rank 0 of 1."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return Place()
    return Place(*(int(os.environ[name]) for name in names))


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `fmeco ARGUMENTS` in `count` processes, connected as torchrun would connect them.

    Returns the exit code of the first process to fail, since the others fail only because it is gone; 6 if a signal
    killed it; 0 if all succeed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: object) -> None:
        # A terminal sends Ctrl-C to the children as well; other signals reach this process alone.
        if number != signal.SIGINT:
            _send(children, number)

    for number in STOPPING:
        signal.signal(number, forward)
    for rank in range(count):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in (ranks | rendezvous).items()}
        children.append(subprocess.Popen([sys.executable, "-m", "fmeco", *arguments], env=environment))
    failed, failed_at = 0, 0.0
    while any(child.poll() is None for child in children):
        time.sleep(0.05)
        codes = [child.poll() for child in children]
        if not failed and (bad := [code for code in codes if code]):
            failed, failed_at = bad[0], time.monotonic()
        if failed and time.monotonic() - failed_at > GRACE:
            _send(children, signal.SIGKILL)
    failed = failed or next((child.returncode for child in children if child.returncode), 0)
    if failed < 0:
        name = signal.Signals(-failed).name
        print(
            f"error: a rank was killed by {name}\n  hint: `fmeco resume RUN` continues from the last checkpoint",
            file=sys.stderr,
        )
        return 6
    return failed


def _send(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)
