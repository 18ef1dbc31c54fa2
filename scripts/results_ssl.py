"""Pretraining without labels: each objective for as many epochs, judged by what its frozen features are good for.

    python scripts/results_ssl.py FOLDER OUT [--epochs 8] [--seeds 0 1] [--objectives simclr vicreg ...]

FOLDER holds train/CLASS/* and test/CLASS/*. The backbone is a small cnn. Objectives without labels see the training images alone;
supcon and `classification`, the measure of what labels would give, their classes as well. k-NN and linear head are fitted to
all labels of the training images and measured on the test images. What is in OUT already is not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import fmeco
from fmeco import probing

LABELLED = ("supcon", "classification")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--objectives", nargs="+", default=["simclr", "vicreg", "simsiam", "supcon", "classification"])
    given = parser.parse_args()
    print("| | seed | epochs | linear head | 95% interval | k-NN |\n|---|---|---|---|---|---|", flush=True)
    for seed in given.seeds:
        for name in given.objectives:
            run = given.out / f"{name}-{seed}"
            if not (run / "report.html").exists():
                kind = "image_folder" if name in LABELLED else "images"
                raw: dict[str, Any] = {
                    "dataset": {
                        "name": kind,
                        "path": str(given.folder / "train"),
                        "val_fraction": 0.05,
                        "image_size": 32,
                    },
                    "backbone": {"name": "cnn", "widths": [16, 32, 64]},
                    "objective": name,
                    "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05},
                    "train": {"epochs": given.epochs, "batch_size": 256, "precision": "fp32"},
                    "evaluate": {"every": 2},
                    "seed": seed,
                }
                fmeco.pretrain(raw, out=run, force=True)
        found = probing.rank(
            [str(given.out / f"{name}-{seed}") for name in given.objectives], dataset=str(given.folder)
        )
        for row in found["ranking"]:
            run = Path(row["source"])
            lines = (run / "metrics.jsonl").read_text().splitlines() if run.is_dir() else []
            epochs = f"{json.loads(lines[-1])['epoch']:.1f}" if lines else ""
            low, high = row["interval"]
            name = run.name.rpartition("-")[0] or row["source"]
            print(f"| {name} | {seed} | {epochs} | {row['metrics']['accuracy']:.3f} | {low:.3f} to {high:.3f} | {row['metrics']['knn']:.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
