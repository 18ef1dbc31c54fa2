"""Repeat `fmeco demo` with other numbers of threads and in other precisions, which round differently, as other machines do.

    python scripts/demo_holds.py OUT [--seeds 0 1 2 3 4] [--threads 1 2 4] [--precisions fp32 bf16]

Each combination is a process of its own with OMP_NUM_THREADS. Its answer is saved in OUT, and a combination whose answer exists
is not run again. Prints a table in Markdown. Seconds are of the processor, in all threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PRECISIONS = ("fp32", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument(
        "--one", action="store_true", help="run in this process, and save the answer as OUT/answer.json"
    )
    args = parser.parse_args()
    if len(set(args.seeds)) < 2 or min(args.seeds) < 0:
        parser.error("--seeds: an interval needs two or more different seeds, none negative")
    if min(args.threads) < 1:
        parser.error("--threads: expected numbers of at least 1")
    if args.one:
        one(args.out, args.seeds, args.precisions[0])
        return
    print(
        "| threads | precision | scratch | transfer | gain, points (95% t-interval) | gain of each seed | processor seconds |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for precision in args.precisions:
        for threads in args.threads:
            print(row(threads, precision, answer(args.out, args.seeds, threads, precision)), flush=True)


def answer(out: Path, seeds: list[int], threads: int, precision: str) -> dict[str, Any]:
    """Return the answer of a combination, from OUT or by running it."""
    folder = out / f"{precision}-{threads}-seeds-{'-'.join(map(str, seeds))}"
    path = folder / "answer.json"
    if not path.exists():
        command = [
            sys.executable,
            __file__,
            str(folder),
            "--one",
            "--precisions",
            precision,
            "--seeds",
            *map(str, seeds),
        ]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def one(folder: Path, seeds: list[int], precision: str) -> None:
    """Run the demo on these seeds in this precision, and save its answer."""
    from fmeco.cli import demo

    result = demo.run(folder / "runs", seeds, lambda: False, [f"train.precision={precision}"])
    (folder / "answer.json").write_text(json.dumps({**result, "seconds": time.process_time()}))


def row(threads: int, precision: str, result: dict[str, Any]) -> str:
    """Format an answer as a row of the table."""
    from fmeco.nn.intervals import t_interval

    points = [100 * gain for gain in result["gains"]]
    low, high = t_interval(points)
    shown = [
        f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
        for values in (result["accuracy"]["scratch"], result["accuracy"]["transfer"])
    ]
    each = ", ".join(f"{point:+.1f}" for point in points)
    gain = f"{statistics.mean(points):+.1f} ({low:+.1f} to {high:+.1f})"
    return f"| {threads} | {precision} | {shown[0]} | {shown[1]} | {gain} | {each} | {result['seconds']:.0f} |"


if __name__ == "__main__":
    main()
