"""The recipe of configs/speedrun/cifar10.yaml against plain SGD, with the same network, images and time.

    python scripts/bench/speedrun.py FOLDER OUT [--seeds 3] [--budget 2m]

FOLDER: images in class folders, as train/ and test/, such as CIFAR-10's, whole or an excerpt. Plain SGD is what a tutorial
has: Nesterov momentum, batches of 128, learning rate 0.1 on a cosine, decay 5e-4, flips and shifts, torch's initialisation.
Accuracy is on test/, with each run's best checkpoint; both are run in turn for each seed. Images are decoded beforehand, so
that neither side pays for it. Results are kept in OUT.
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
    done = subprocess.run([sys.executable, "-m", "fmeco", *arguments, "--json"], stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="2m")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    dataset = f"dataset={{name: image_folder, path: {given.folder}, image_size: 32, val_fraction: 0.04}}"
    fmeco("check", str(CONFIG), "--set", dataset)
    found: dict[str, list[dict[str, float]]] = {"recipe": [], "plain SGD": []}
    for seed in range(given.seeds):
        for name, changes in (("recipe", ()), ("plain SGD", PLAIN)):
            sets = [dataset, f"train.budget={given.budget}", f"seed={seed}", *changes]
            run = given.out / f"{name.replace(' ', '-')}-{seed}"
            options = [word for one in sets for word in ("--set", one)]
            trained = fmeco("pretrain", str(CONFIG), "--out", str(run), "--force", *options)
            metrics = fmeco("evaluate", str(run), "--split", "test")["metrics"]
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            figures = {
                "accuracy": metrics["test_accuracy"],
                "seconds": trained["seconds"],
                "epochs": lines[-1]["epoch"],
            }
            found[name].append(figures)
            (given.out / "speedrun.json").write_text(json.dumps(found, indent=1))
            print(f"seed {seed}, {name}: {figures}", flush=True)
    print("\n".join(rows(found)))


def rows(found: dict[str, list[dict[str, float]]]) -> list[str]:
    table = ["| | test accuracy | std | each seed | epochs | seconds |", "|---|---|---|---|---|---|"]
    for name, runs in found.items():
        scores = [one["accuracy"] for one in runs]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        each = " ".join(f"{score:.3f}" for score in scores)
        epochs, seconds = (statistics.mean(one[key] for one in runs) for key in ("epochs", "seconds"))
        table.append(
            f"| {name} | {statistics.mean(scores):.3f} | {spread:.3f} | {each} | {epochs:.1f} | {seconds:.0f} |"
        )
    return table


if __name__ == "__main__":
    main()
