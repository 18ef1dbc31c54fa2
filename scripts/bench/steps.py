"""Run another program unmodified, and record the time of each of its optimizer steps.

    python steps.py OUT.json MAX_STEPS (SCRIPT | -m MODULE) ARGS...

Writes OUT.json with these keys:
start: time.perf_counter() at the start of the process.
wall: time.perf_counter() after each step of torch's optimizer.
cpu: processor seconds so far after each step, loader workers included.
peak_mb: peak memory of the main process.

The parent passes `start` in STEPS_START, so that imports are charged; on Linux, all processes share this clock. After
MAX_STEPS steps the process ends at once. STEPS_CPU=0 leaves `cpu` empty, as reading it takes longer than a small step.

Of several optimizers, only the last one to take a first step counts. So a program that first tries a temporary optimizer
is timed from the real one, and an optimizer that calls another counts once.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import signal
import sys
import time
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

TICK = os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """List the ids of all living processes below this one; [] without /proc."""
    ids: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, file.read_text().split()):
                ids += [child, *descendants(child)]
    return ids


def cpu_seconds() -> float:
    """Sum the user and system time of this process and all its descendants, dead or alive."""
    total = sum(os.times()[:4])
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / TICK  # utime, stime, cutime, cstime: `man 5 proc`
    return total


class Steps:
    """Record steps, by a hook on optimizers."""

    def __init__(self, out: Path, limit: int) -> None:
        self.out, self.limit = out, limit
        self.start = float(os.environ.get("STEPS_START", time.perf_counter()))
        self.counts = os.environ.get("STEPS_CPU", "1") == "1"
        self.owner = os.getpid()
        self.optimizers: list[object] = []
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def step(self, optimizer: object, *_: object) -> None:
        """Record a step; after the last one, end the process."""
        if os.getpid() != self.owner:
            return
        if all(optimizer is not known for known in self.optimizers):
            self.optimizers.append(optimizer)
            self.wall, self.cpu = [], []
        if optimizer is not self.optimizers[-1]:
            return
        self.wall.append(time.perf_counter())
        if self.counts:
            self.cpu.append(cpu_seconds())
        if len(self.wall) == self.limit:
            self.end()

    def end(self) -> None:
        """Write the record, and kill this process and its descendants."""
        self.write()
        for pid in descendants(self.owner):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def write(self) -> None:
        """Write the record as JSON."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux
        record = {"start": self.start, "wall": self.wall, "cpu": self.cpu, "peak_mb": peak}
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(record))
        part.replace(self.out)


class Watch(MetaPathFinder):
    """Hook torch's optimizers as soon as the program imports them."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of torch.optim.optimizer with a loader that adds the hook; None for other modules."""
        if name != "torch.optim.optimizer":
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            module.register_optimizer_step_post_hook(self.steps.step)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def main() -> None:
    """Run the program with the hook, and write the record at its end."""
    if len(sys.argv) < 4 or (sys.argv[3] == "-m" and len(sys.argv) < 5):
        sys.exit(__doc__)
    out, limit, program, arguments = Path(sys.argv[1]).resolve(), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    steps = Steps(out, limit)
    sys.meta_path.insert(0, Watch(steps))
    try:
        if program == "-m":
            sys.argv, sys.path[0] = arguments, ""
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = [program, *arguments], str(Path(program).resolve().parent)
            runpy.run_path(program, run_name="__main__")
    finally:
        if os.getpid() == steps.owner:  # the program ended by itself
            steps.write()


if __name__ == "__main__":
    main()
