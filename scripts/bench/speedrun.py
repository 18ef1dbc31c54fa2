"""Compare the recipe of configs/speedrun/cifar10.yaml with plain SGD, for the same network, images and time.

    python scripts/bench/speedrun.py FOLDER OUT [--seeds 3] [--budget 2m]

FOLDER holds train/CLASS/* and test/CLASS/*, such as CIFAR-10's images, all or a part. Plain SGD is that of a tutorial:
Nesterov momentum, batches of 128, learning rate 0.1 with a cosine schedule, weight decay 5e-4, flips and shifts, and
torch's initialisation. Accuracy is on test/, with each run's best checkpoint. Both take turns for each seed. Images are
decoded beforehand, so that neither side pays for it. Results are written to OUT.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "speedrun" / "cifar10.yaml"
PLAIN = (
    "optimizer={name: sgd, lr: 0.1, nesterov: true, weight_decay: 5e-4}",
    "schedule=cosine",
    "objective=classification",
    "augment=light",
    "backbone.identity=false",
    "backbone.whiten=false",
    "train.batch_size=128",
)


def fmeco(*arguments: str) -> dict[str, Any]:
    """Run a command of fmeco. Returns its JSON result."""
    process = subprocess.run([sys.executable, "-m", "fmeco", *arguments, "--json"], stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="2m")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    dataset = f"dataset={{name: image_folder, path: {args.folder}, image_size: 32, val_fraction: 0.04}}"
    fmeco("check", str(CONFIG), "--set", dataset)
    results: dict[str, list[dict[str, float]]] = {"recipe": [], "plain SGD": []}
    for seed in range(args.seeds):
        for name, changes in (("recipe", ()), ("plain SGD", PLAIN)):
            sets = [dataset, f"train.budget={args.budget}", f"seed={seed}", *changes]
            run = args.out / f"{name.replace(' ', '-')}-{seed}"
            options = [word for item in sets for word in ("--set", item)]
            trained = fmeco("pretrain", str(CONFIG), "--out", str(run), "--force", *options)
            metrics = fmeco("evaluate", str(run), "--split", "test")["metrics"]
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            figures = {
                "accuracy": metrics["test_accuracy"],
                "seconds": trained["seconds"],
                "epochs": lines[-1]["epoch"],
            }
            results[name].append(figures)
            (args.out / "speedrun.json").write_text(json.dumps(results, indent=1))
            print(f"seed {seed}, {name}: {figures}", flush=True)
    print("\n".join(rows(results)))


def rows(results: dict[str, list[dict[str, float]]]) -> list[str]:
    """Format a markdown table of both methods."""
    table = ["| | test accuracy | std | each seed | epochs | seconds |", "|---|---|---|---|---|---|"]
    for name, runs in results.items():
        scores = [figures["accuracy"] for figures in runs]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        each = " ".join(f"{score:.3f}" for score in scores)
        epochs, seconds = (statistics.mean(figures[key] for figures in runs) for key in ("epochs", "seconds"))
        table.append(
            f"| {name} | {statistics.mean(scores):.3f} | {spread:.3f} | {each} | {epochs:.1f} | {seconds:.0f} |"
        )
    return table


if __name__ == "__main__":
    main()
