"""Run another program unmodified, and write down the time of each of its optimizer steps.

    python steps.py OUT.json MAX_STEPS (SCRIPT | -m MODULE) ARGS...

OUT.json gets {"start", "wall", "cpu", "peak_mb"}: `wall` and `cpu` hold one number per step, taken when torch's optimizer
has made it; `wall` and `start` are time.perf_counter(), and `cpu` is the processor time so far, loader workers included.
`start` is when the process was started, if the parent says so in STEPS_START (its own time.perf_counter(), the same clock on
Linux), so that imports are charged. After MAX_STEPS the whole process ends at once.

STEPS_CPU=0 leaves out `cpu`, which takes longer to read than a small step.

Of several optimizers only the one counts that was the last to make its first step: a program that first tries steps on a
throw-away one is timed from the real one, and an optimizer that calls another is one.
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
    """The living processes below this one. Empty where there is no /proc."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, file.read_text().split()):
                found += [child, *descendants(child)]
    return found


def cpu_seconds() -> float:
    """User and system time of this process and of all below it, dead or alive."""
    total = sum(os.times()[:4])
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / TICK  # utime, stime, cutime, cstime: `man 5 proc`
    return total


class Steps:
    """The record, and the hook that fills it."""

    def __init__(self, out: Path, most: int) -> None:
        self.out, self.most = out, most
        self.start = float(os.environ.get("STEPS_START", time.perf_counter()))
        self.counts = os.environ.get("STEPS_CPU", "1") == "1"
        self.owner = os.getpid()
        self.optimizers: list[object] = []
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def step(self, optimizer: object, *_: object) -> None:
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
        if len(self.wall) == self.most:
            self.end()

    def end(self) -> None:
        self.write()
        for pid in descendants(self.owner):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def write(self) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux
        record = {"start": self.start, "wall": self.wall, "cpu": self.cpu, "peak_mb": peak}
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(record))
        part.replace(self.out)


class Watch(MetaPathFinder):
    """Waits for the program to import torch's optimizers, and hangs the hook on them."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
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
    if len(sys.argv) < 4 or (sys.argv[3] == "-m" and len(sys.argv) < 5):
        sys.exit(__doc__)
    out, most, program, arguments = Path(sys.argv[1]).resolve(), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    steps = Steps(out, most)
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
