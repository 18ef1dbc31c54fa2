"""Measure transfer on CIFAR-10: pretrain on five classes, and finetune on the other five with each strategy.

    python scripts/results_cifar10.py FOLDER OUT [--seeds 0 1 2] [--labels 20 100 1000] [--strategies scratch probe ...]

FOLDER holds train/CLASS/* and test/CLASS/*. All runs start from one source. The seed draws the labels, and seeds the
training. All strategies have the same config, steps and labels; scratch is the control, with random weights.

Accuracy is on the test images of the five classes. The best checkpoint is selected on a validation split of the training
images, which is evaluated four times. Runs that exist in OUT are not trained again. Prints the table of docs/results.md.
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

STEPS = 200  # a finetuning runs about this many steps, but no more epochs than the config says
HERE = Path(__file__).resolve().parent.parent / "configs" / "cifar10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, nargs="+", default=[20, 100, 1000])
    parser.add_argument("--strategies", nargs="+", default=["scratch", "probe", "lp_ft", "llrd", "full"])
    args = parser.parse_args()
    dataset_keys = {"name": "image_folder", "path": str(args.folder)}
    pretraining, finetuning = peek(HERE / "pretrain.yaml"), peek(HERE / "finetune.yaml")
    pretraining["dataset"] = {**pretraining["dataset"], **dataset_keys}
    results: dict[tuple[int, str], list[TestResult]] = {}
    source = args.out / "source"
    trained(source, functools.partial(fmeco.pretrain, pretraining, out=source, force=True))
    for seed in args.seeds:
        for labels in args.labels:
            section = {**finetuning["dataset"], **dataset_keys, "limit_per_class": labels, "limit_seed": seed}
            per_epoch = max(1, 5 * labels / finetuning["train"]["batch_size"])
            epochs = min(finetuning["train"]["epochs"], max(1, round(STEPS / per_epoch)))
            sections = {
                "train": {**finetuning["train"], "epochs": epochs},
                "evaluate": {"every": epochs / 4},
                "seed": seed,
            }
            for name in args.strategies:
                out = args.out / f"{name}-{labels}-{seed}"
                task = {**finetuning, **sections, "dataset": section, "transfer": name}
                result = trained(out, functools.partial(fmeco.finetune, task, ref=source, out=out, force=True))
                results.setdefault((labels, name), []).append(result)
                print(f"seed {seed}, {labels} labels per class, {name}: {result.accuracy:.3f}", flush=True)
    print(
        f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}\n"
    )
    print(
        "| labels per class | strategy | test accuracy | each seed | gain over scratch, 95% interval |\n|---|---|---|---|---|"
    )
    for (labels, name), values in results.items():
        print(row(str(labels), name, values, results.get((labels, "scratch")) if name != "scratch" else None))


class TestResult(NamedTuple):
    """Hold the result of a run on the test split.

    accuracy: share of right answers.
    right: whether each test image was answered right, (N,).
    """

    accuracy: float
    right: Tensor


def trained(run: Path, train: Callable[[], object]) -> TestResult:
    """Train a run unless its test result exists. Returns the result."""
    file = run / "tested.json"
    if not file.exists():
        train()
        measured = measure(run, None, "test", ())
        right = measured.model.objective.correct(measured.rows)
        assert right is not None
        file.write_text(json.dumps({"accuracy": measured.metrics["accuracy"], "right": right.int().tolist()}))
    saved = json.loads(file.read_text())
    return TestResult(saved["accuracy"], torch.tensor(saved["right"]))


def row(labels: str, name: str, values: list[TestResult], control: list[TestResult] | None) -> str:
    """Format a row of the table.

    The interval is a bootstrap over test images, which all seeds share; results of other seeds may differ by more.
    """
    scores = [value.accuracy for value in values]
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    gain = ""
    if control is not None:
        differences = torch.stack(
            [a.right.double() - b.right.double() for a, b in zip(values, control, strict=True)]
        ).mean(0)
        low, high = bootstrap(len(differences), 2000, 0, lambda at: float(differences[at].mean()))
        gain = f"{100 * float(differences.mean()):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    each_seed = ", ".join(f"{score:.3f}" for score in scores)
    return f"| {labels} | {name} | {statistics.mean(scores):.3f} ± {spread:.3f} | {each_seed} | {gain} |"


if __name__ == "__main__":
    main()
