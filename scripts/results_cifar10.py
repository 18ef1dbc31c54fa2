"""Transfer on CIFAR-10 images: pretrain on five classes, finetune on the other five with each strategy, and from scratch.

    python scripts/results_cifar10.py FOLDER OUT [--seeds 0 1 2] [--labels 20 100 1000] [--strategies scratch probe ...]

FOLDER holds train/CLASS/* and test/CLASS/*. One source serves all; a seed draws the labels and decides the training. All
strategies have the same config, steps and labels; scratch is the control, with random weights. Accuracy is on the test images of
the five classes; the best checkpoint is chosen on a validation split of the training images, measured four times. What is
in OUT already is not trained again. Prints the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import fmeco
from fmeco.config.parser import peek
from fmeco.evaluation.measure import measure
from fmeco.nn.intervals import bootstrap

STEPS = 200  # a finetuning takes the config's epochs, or as many as make about these steps
HERE = Path(__file__).resolve().parent.parent / "configs" / "cifar10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, nargs="+", default=[20, 100, 1000])
    parser.add_argument("--strategies", nargs="+", default=["scratch", "probe", "lp_ft", "llrd", "full"])
    given = parser.parse_args()
    on = {"name": "image_folder", "path": str(given.folder)}
    first, second = peek(HERE / "pretrain.yaml"), peek(HERE / "finetune.yaml")
    first["dataset"] = {**first["dataset"], **on}
    found: dict[tuple[int, str], list[Tried]] = {}
    source = given.out / "source"
    trained(source, functools.partial(fmeco.pretrain, first, out=source, force=True))
    for seed in given.seeds:
        for labels in given.labels:
            section = {**second["dataset"], **on, "limit_per_class": labels, "limit_seed": seed}
            per_epoch = max(1, 5 * labels / second["train"]["batch_size"])
            epochs = min(second["train"]["epochs"], max(1, round(STEPS / per_epoch)))
            same = {"train": {**second["train"], "epochs": epochs}, "evaluate": {"every": epochs / 4}, "seed": seed}
            for name in given.strategies:
                out = given.out / f"{name}-{labels}-{seed}"
                task = {**second, **same, "dataset": section, "transfer": name}
                tried = trained(out, functools.partial(fmeco.finetune, task, ref=source, out=out, force=True))
                found.setdefault((labels, name), []).append(tried)
                print(f"seed {seed}, {labels} labels per class, {name}: {tried.accuracy:.3f}", flush=True)
    print(
        f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}\n"
    )
    print(
        "| labels per class | strategy | test accuracy | each seed | gain over scratch, 95% interval |\n|---|---|---|---|---|"
    )
    for (labels, name), values in found.items():
        print(row(str(labels), name, values, found.get((labels, "scratch")) if name != "scratch" else None))


class Tried(NamedTuple):
    accuracy: float
    right: Tensor  # (N,): which test images were answered right


def trained(run: Path, train: Callable[[], object]) -> Tried:
    """What a run reaches on the test split; trains it where that is not known yet."""
    file = run / "tested.json"
    if not file.exists():
        train()
        found = measure(run, None, "test", ())
        right = found.model.objective.correct(found.rows)
        assert right is not None
        file.write_text(json.dumps({"accuracy": found.metrics["accuracy"], "right": right.int().tolist()}))
    kept = json.loads(file.read_text())
    return Tried(kept["accuracy"], torch.tensor(kept["right"]))


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
