"""Transfer on CIFAR-10 images: pretrain on five classes, finetune on the other five with each strategy, and from scratch.

    python scripts/results_cifar10.py FOLDER OUT [--seeds 3] [--labels 20 100 1000] [--strategies scratch probe ...]

FOLDER holds train/CLASS/* and test/CLASS/*. All strategies have the same config, steps and labels; scratch is the control,
with random weights. Accuracy is on the test images of the five classes; the best checkpoint is chosen on a validation
split of the training images. Prints the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import fmeco
from fmeco import config

HERE = Path(__file__).resolve().parent.parent / "configs" / "cifar10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, nargs="+", default=[20, 100, 1000])
    parser.add_argument("--strategies", nargs="+", default=["scratch", "probe", "lp_ft", "llrd", "full"])
    given = parser.parse_args()
    import torch

    on = {"name": "image_folder", "path": str(given.folder)}
    first, second = config.peek(HERE / "pretrain.yaml"), config.peek(HERE / "finetune.yaml")
    first["dataset"] = {**first["dataset"], **on}
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    source: list[tuple[float, float]] = []
    for seed in range(given.seeds):
        run = fmeco.pretrain({**first, "seed": seed}, out=given.out / f"pretrain-{seed}", force=True)
        source.append((fmeco.evaluate(run.run)["metrics"]["test_accuracy"], run.seconds))
        for labels in given.labels:
            task = {
                **second,
                "seed": seed,
                "dataset": {**second["dataset"], **on, "limit_per_class": labels, "limit_seed": seed},
            }
            for name in given.strategies:
                out = given.out / f"{name}-{labels}-{seed}"
                done = fmeco.finetune({**task, "transfer": name}, ref=run.run, out=out, force=True)
                accuracy = fmeco.evaluate(done.run)["metrics"]["test_accuracy"]
                found.setdefault((labels, name), []).append((accuracy, done.seconds))
                print(
                    f"seed {seed}, {labels} labels per class, {name}: {accuracy:.3f} in {done.seconds:.0f} s",
                    flush=True,
                )
    print(
        f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, {given.seeds} seeds\n"
    )
    print("| labels per class | strategy | test accuracy, mean ± std | each seed | seconds |\n|---|---|---|---|---|")
    print(row("all", "source task (the five pretraining classes)", source))
    for (labels, name), values in found.items():
        print(row(str(labels), name, values))


def row(labels: str, name: str, values: list[tuple[float, float]]) -> str:
    scores = [score for score, _ in values]
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return (
        f"| {labels} | {name} | {statistics.mean(scores):.3f} ± {spread:.3f} | {', '.join(f'{score:.3f}' for score in scores)} "
        f"| {statistics.mean(seconds for _, seconds in values):.0f} |"
    )


if __name__ == "__main__":
    main()
