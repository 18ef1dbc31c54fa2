"""Pretraining without labels: each objective for as many epochs, judged by what its frozen features are good for; then
finetuning with few labels from each seed's best, against new weights.

    python scripts/results_ssl.py FOLDER OUT [--epochs 16] [--seeds 0 1] [--objectives simclr vicreg ...] [--labels 20]
    python scripts/results_ssl.py FOLDER OUT --objectives mask classification_of_patches --labels 0 --epochs 24

FOLDER holds train/CLASS/* and test/CLASS/*. The backbone is a small cnn; for the latter two a transformer, whose untrained weights are
another floor. Objectives without labels see the training images alone; supcon and `classification`, the measure of what labels
would give, their classes as well; distill has the seed's `classification` as its teacher. k-NN and linear head are fitted to
all labels of the training images and measured on the test images. What is in OUT already is not trained again.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

from results_cifar10 import row, trained  # scripts/ is where this one lies

import fmeco
from fmeco.errors import Diverged
from fmeco.evaluation import probe as probing

LABELLED = ("supcon", "classification", "classification_of_patches")
CNN = {"name": "cnn", "widths": [32, 64, 128]}
TRANSFORMER = {"name": "transformer", "width": 64, "depth": 3, "patch": 4, "dropout": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=float, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--objectives", nargs="+", default=["simclr", "vicreg", "simsiam", "supcon", "classification"])
    parser.add_argument("--labels", type=int, default=20, help="per class, to finetune with; 0 = not at all")
    given = parser.parse_args()
    print("| | seed | epochs | linear head | 95% interval | k-NN |\n|---|---|---|---|---|---|", flush=True)
    best: dict[int, Path] = {}
    for seed in given.seeds:
        runs = {name: given.out / f"{name}-{seed}" for name in given.objectives}
        healthy = [run for name, run in runs.items() if pretrained(run, name, seed, given.folder, given.epochs)]
        found = probing.rank([str(run) for run in healthy], dataset=str(given.folder))
        for one in found["ranking"]:
            run = Path(one["source"])
            lines = (run / "metrics.jsonl").read_text().splitlines() if run.is_dir() else []
            epochs = f"{json.loads(lines[-1])['epoch']:.1f}" if lines else ""
            low, high = one["interval"]
            name = run.name.rpartition("-")[0] or one["source"]
            if run.is_dir() and name not in (*LABELLED, "distill"):  # whose teacher had labels
                best.setdefault(seed, run)
            print(f"| {name} | {seed} | {epochs} | {one['metrics']['accuracy']:.3f} | {low:.3f} to {high:.3f} | {one['metrics']['knn']:.3f} |", flush=True)  # fmt: skip
    if given.labels and best:
        finetuned(best, given)


def pretrained(run: Path, name: str, seed: int, folder: Path, epochs: float) -> bool:
    """Whether it ran to its end; one that collapsed says so in the table."""
    stopped = run / "stopped.txt"
    if (run / "report.html").exists():
        return True
    if stopped.exists():
        print(f"| {name} | {seed} | {stopped.read_text()} |", flush=True)
        return False
    kind = "image_folder" if name in LABELLED else "images"
    raw: dict[str, Any] = {
        "dataset": {"name": kind, "path": str(folder / "train"), "val_fraction": 0.05, "image_size": 32},
        "backbone": TRANSFORMER if name in ("mask", "classification_of_patches") else CNN,
        "objective": {
            "mask": {"name": "mask", "decoder": 1},
            "classification_of_patches": "classification",
            "distill": {"name": "distill", "teacher": str(run.parent / f"classification-{seed}")},
        }.get(name, name),
        "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05},
        "train": {"epochs": epochs, "batch_size": 256, "precision": "fp32"},
        "evaluate": {"every": 2},
        "seed": seed,
    }
    try:
        fmeco.pretrain(raw, out=run, force=True)
    except Diverged as error:
        stopped.write_text(error.message)
        print(f"| {name} | {seed} | {error.message} |", flush=True)
        return False
    return True


def finetuned(best: dict[int, Path], given: argparse.Namespace) -> None:
    """From each seed's best source without labels, and from new weights; a seed also draws the labels."""
    tried: dict[str, list[Any]] = {"scratch": [], "full": [], "lp_ft": [], "probe": []}
    for seed, source in best.items():
        for strategy, values in tried.items():
            task = {
                "dataset": {
                    "name": "image_folder",
                    "path": str(given.folder),
                    "limit_per_class": given.labels,
                    "limit_seed": seed,
                },
                "transfer": strategy,
                "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05},
                "train": {"epochs": 40, "batch_size": 32, "precision": "fp32"},
                "evaluate": {"every": 10},
                "seed": seed,
            }
            out = given.out / f"{strategy}-{given.labels}-{seed}"
            values.append(trained(out, functools.partial(fmeco.finetune, task, ref=source, out=out, force=True)))
    print(f"\nfinetuned from {', '.join(run.name for run in best.values())}\n")
    print(
        "| labels per class | strategy | test accuracy | each seed | gain over scratch, points |\n|---|---|---|---|---|"
    )
    for strategy, values in tried.items():
        control = tried["scratch"] if strategy != "scratch" else None
        print(row(str(given.labels), strategy, values, control), flush=True)


if __name__ == "__main__":
    main()
