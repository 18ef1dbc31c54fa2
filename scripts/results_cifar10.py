"""Transfer on CIFAR-10 images: pretrain on five classes, finetune on the other five with each strategy, and from scratch.

    python scripts/results_cifar10.py FOLDER OUT [--seeds 3] [--labels 20 100 1000] [--strategies scratch probe ...]

FOLDER holds train/CLASS/* and test/CLASS/*. All strategies have the same config, steps and labels; scratch is the control,
with random weights. Accuracy is on the test images of the five classes; the best checkpoint is chosen on a validation
split of the training images. Prints the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import fmeco
from fmeco import config, use
from fmeco.nn import bootstrap

STEPS = 300  # a finetuning takes the config's epochs, or as many as make about these steps
HERE = Path(__file__).resolve().parent.parent / "configs" / "cifar10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, nargs="+", default=[20, 100, 1000])
    parser.add_argument("--strategies", nargs="+", default=["scratch", "probe", "lp_ft", "llrd", "full"])
    given = parser.parse_args()
    on = {"name": "image_folder", "path": str(given.folder)}
    first, second = config.peek(HERE / "pretrain.yaml"), config.peek(HERE / "finetune.yaml")
    first["dataset"] = {**first["dataset"], **on}
    found: dict[tuple[int, str], list[Tried]] = {}
    source: list[Tried] = []
    for seed in range(given.seeds):
        run = fmeco.pretrain({**first, "seed": seed}, out=given.out / f"pretrain-{seed}", force=True)
        source.append(Tried(*tested(run.run), run.seconds))
        for labels in given.labels:
            section = {**second["dataset"], **on, "limit_per_class": labels, "limit_seed": seed}
            per_epoch = max(1, 5 * labels / second["train"]["batch_size"])
            train = {**second["train"], "epochs": min(second["train"]["epochs"], round(STEPS / per_epoch))}
            for name in given.strategies:
                out = given.out / f"{name}-{labels}-{seed}"
                task = {**second, "seed": seed, "dataset": section, "train": train, "transfer": name}
                done = fmeco.finetune(task, ref=run.run, out=out, force=True)
                tried = Tried(*tested(done.run), done.seconds)
                found.setdefault((labels, name), []).append(tried)
                print(
                    f"seed {seed}, {labels} labels per class, {name}: {tried.accuracy:.3f} in {tried.seconds:.0f} s",
                    flush=True,
                )
    print(
        f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}, {given.seeds} seeds\n"
    )
    print(
        "| labels per class | strategy | test accuracy | each seed | gain over scratch, 95% interval |\n|---|---|---|---|---|"
    )
    print(row("all", "source task (the five pretraining classes)", source, None))
    for (labels, name), values in found.items():
        print(row(str(labels), name, values, found.get((labels, "scratch")) if name != "scratch" else None))


class Tried(NamedTuple):
    accuracy: float
    right: Tensor  # (N,): which test images were answered right
    seconds: float


def tested(run: Path) -> tuple[float, Tensor]:
    found = use.measure(run, None, "test", ())
    right = found.model.objective.correct(found.rows)
    assert right is not None
    return found.metrics["accuracy"], right


def row(labels: str, name: str, values: list[Tried], control: list[Tried] | None) -> str:
    """The interval is a bootstrap over test images, which all seeds share; other seeds can differ by more."""
    scores = [one.accuracy for one in values]
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    gain = ""
    if control is not None:
        each = torch.stack([a.right.double() - b.right.double() for a, b in zip(values, control, strict=True)]).mean(0)
        low, high = bootstrap(len(each), 2000, 0, lambda at: float(each[at].mean()))
        gain = f"{100 * float(each.mean()):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    listed = ", ".join(f"{score:.3f}" for score in scores)
    return f"| {labels} | {name} | {statistics.mean(scores):.3f} ± {spread:.3f} | {listed} | {gain} |"


if __name__ == "__main__":
    main()
