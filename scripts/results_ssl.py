"""Compare objectives for pretraining without labels, by their frozen features, and then by finetuning with few labels.

    python scripts/results_ssl.py FOLDER OUT [--epochs 16] [--seeds 0 1] [--objectives simclr vicreg ...] [--labels 20]
    python scripts/results_ssl.py FOLDER OUT --objectives mask classification_of_patches --labels 0 --epochs 24

FOLDER holds train/CLASS/* and test/CLASS/*. Every objective trains for the same number of epochs. The backbone is a small
cnn; for mask and classification_of_patches it is a transformer, with its own row of untrained weights.

Objectives without labels see the training images alone. supcon and `classification` also see the classes, to show what
labels would give. distill has the seed's `classification` run as its teacher. k-NN and the linear head are fitted to all
labels of the training images, and measured on the test images. Finetuning starts from the best source of each seed that
saw no labels, and from random weights. Runs that exist in OUT are not trained again.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

from results_cifar10 import row, trained  # in the folder of this script

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
    parser.add_argument("--labels", type=int, default=20, help="per class, to finetune with; 0 = no finetuning")
    args = parser.parse_args()
    print("| | seed | epochs | linear head | 95% interval | k-NN |\n|---|---|---|---|---|---|", flush=True)
    best: dict[int, Path] = {}
    for seed in args.seeds:
        runs = {name: args.out / f"{name}-{seed}" for name in args.objectives}
        healthy = [run for name, run in runs.items() if pretrained(run, name, seed, args.folder, args.epochs)]
        ranking = probing.rank([str(run) for run in healthy], dataset=str(args.folder))
        for source_row in ranking["ranking"]:
            run = Path(source_row["source"])
            lines = (run / "metrics.jsonl").read_text().splitlines() if run.is_dir() else []
            epochs = f"{json.loads(lines[-1])['epoch']:.1f}" if lines else ""
            low, high = source_row["interval"]
            name = run.name.rpartition("-")[0] or source_row["source"]
            if run.is_dir() and name not in (*LABELLED, "distill"):  # distill's teacher had labels
                best.setdefault(seed, run)
            print(f"| {name} | {seed} | {epochs} | {source_row['metrics']['accuracy']:.3f} | {low:.3f} to {high:.3f} | {source_row['metrics']['knn']:.3f} |", flush=True)  # fmt: skip
    if args.labels and best:
        finetuned(best, args)


def pretrained(run: Path, name: str, seed: int, folder: Path, epochs: float) -> bool:
    """Pretrain with an objective, unless the run exists. Returns whether it ran to its end.

    A run that collapsed is reported in the table.
    """
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


def finetuned(best: dict[int, Path], args: argparse.Namespace) -> None:
    """Finetune from each seed's best source, and from random weights. The seed also draws the labels."""
    scores: dict[str, list[Any]] = {"scratch": [], "full": [], "lp_ft": [], "probe": []}
    for seed, source in best.items():
        for strategy, values in scores.items():
            task = {
                "dataset": {
                    "name": "image_folder",
                    "path": str(args.folder),
                    "limit_per_class": args.labels,
                    "limit_seed": seed,
                },
                "transfer": strategy,
                "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05},
                "train": {"epochs": 40, "batch_size": 32, "precision": "fp32"},
                "evaluate": {"every": 10},
                "seed": seed,
            }
            out = args.out / f"{strategy}-{args.labels}-{seed}"
            values.append(trained(out, functools.partial(fmeco.finetune, task, ref=source, out=out, force=True)))
    print(f"\nfinetuned from {', '.join(run.name for run in best.values())}\n")
    print(
        "| labels per class | strategy | test accuracy | each seed | gain over scratch, points |\n|---|---|---|---|---|"
    )
    for strategy, values in scores.items():
        control = scores["scratch"] if strategy != "scratch" else None
        print(row(str(args.labels), strategy, values, control), flush=True)


if __name__ == "__main__":
    main()
