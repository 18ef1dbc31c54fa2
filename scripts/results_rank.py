"""Test whether `fmeco rank` picks the source that finetunes best, on sources of different quality.

    python scripts/results_rank.py FOLDER OUT [--seeds 2] [--labels 100]

FOLDER holds train/CLASS/* and test/CLASS/* of CIFAR-10's classes. Seven sources are trained, on the five classes of
configs/cifar10/pretrain.yaml unless SOURCES says otherwise. They are ranked for the other five classes, and finetuned on
them with default settings; a twentieth of the images is for validation. Kendall's tau compares the two orders. The
regret is the accuracy that the ranking's pick loses against the best source. Prints a part of docs/results.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import fmeco
from fmeco.config.parser import peek
from fmeco.data import disk_cache as cache
from fmeco.evaluation import probe as probing

HERE = Path(__file__).resolve().parent.parent / "configs" / "cifar10"
SOURCES: dict[str, dict[str, Any]] = {
    "resnet18, 15 epochs": {},
    "resnet18, 4 epochs": {"train": {"epochs": 4}},
    "resnet18, 1 epoch": {"train": {"epochs": 1}},
    "resnet18, 250 images": {"dataset": {"limit_per_class": 50}, "train": {"epochs": 10, "batch_size": 32}},
    "resnet18, digits": {"dataset": {"name": "digits", "image_size": 32, "color": "rgb"}, "train": {"epochs": 4}},
    "shufflenet, 4 epochs": {"backbone": "shufflenet_v2_x1_0", "train": {"epochs": 4}},
    "cnn, 4 epochs": {"backbone": "cnn", "train": {"epochs": 4}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--labels", type=int, default=100)
    args = parser.parse_args()
    from scipy.stats import kendalltau

    dataset_keys = {"name": "image_folder", "path": str(args.folder)}
    pretraining, finetuning = peek(HERE / "pretrain.yaml"), peek(HERE / "finetune.yaml")
    pretraining["dataset"] |= dataset_keys
    runs: dict[str, Path] = {}
    for name, changes in SOURCES.items():
        data = changes.get("dataset", {})
        config = {**pretraining, **changes, "train": {**pretraining["train"], **changes.get("train", {})}}
        config["dataset"] = data if "name" in data else {**pretraining["dataset"], **data}
        runs[name] = args.out / name.replace(", ", "-").replace(" ", "-")
        if not (runs[name] / "report.html").exists():
            fmeco.pretrain(config, out=runs[name], force=True)
    for seed in range(args.seeds):
        section = {**finetuning["dataset"], **dataset_keys, "limit_per_class": args.labels}
        section |= {"limit_seed": seed, "val_fraction": 0.05}
        overrides = [f"dataset={section}".replace("'", '"'), f"seed={seed}"]
        cache.clear()  # so that the ranking time includes computing features
        began = time.monotonic()
        ranked = probing.rank([str(run) for run in runs.values()], dataset=None, overrides=overrides)
        ranking_seconds = time.monotonic() - began
        metrics = {row["source"]: row["metrics"] for row in ranked["ranking"] if "metrics" in row}
        tuned: dict[str, float] = {}
        began = time.monotonic()
        for name, run in runs.items():
            task = {**finetuning, "seed": seed, "dataset": section}
            result = fmeco.finetune(task, ref=run, out=args.out / f"tuned-{run.name}-{seed}", force=True)
            tuned[name] = fmeco.evaluate(result.run)["metrics"]["test_accuracy"]
        tuning_seconds = time.monotonic() - began
        print(
            f"\nseed {seed}: ranking took {ranking_seconds:.0f} s, finetuning all {tuning_seconds:.0f} s ({ranking_seconds / tuning_seconds:.3f})\n"
        )
        print("| source | linear head | k-NN | LogME | finetuned |\n|---|---|---|---|---|")
        for name in sorted(tuned, key=tuned.__getitem__, reverse=True):
            scores = metrics[str(runs[name])]
            print(
                f"| {name} | {scores['accuracy']:.3f} | {scores['knn']:.3f} | {scores['logme']:.3f} | {tuned[name]:.3f} |"
            )
        for score in ("accuracy", "knn", "logme"):
            values = [metrics[str(run)][score] for run in runs.values()]
            tau = kendalltau(values, list(tuned.values())).statistic
            pick = max(runs, key=lambda name: metrics[str(runs[name])][score])
            regret = max(tuned.values()) - tuned[pick]
            print(f"{score}: tau {tau:.2f}, picks {pick}, regret {regret:.3f}")
        mean = statistics.mean(tuned.values())
        print(f"a random source: regret {max(tuned.values()) - mean:.3f}", flush=True)
    print(f"\n{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
