"""Compare ways to finetune published weights with few labels: those of fmeco, logistic regression, and other libraries.

    python scripts/results_foundation.py setup --work W        # weights from the package index, environments of the peers
    python scripts/results_foundation.py run --work W --cifar FOLDER --sst2 FOLDER --digits FOLDER --timm-train TRAIN.PY
    python scripts/results_foundation.py run ... --minutes 5 --labels 200 --methods auto probe logreg
    python scripts/results_foundation.py table W/foundation.json ...

Run it with the Python that has fmeco with its extras timm, hf and audio. Needs Linux and the package index for `setup`.
timm's train.py is not in its package, but in its repository; without --timm-train it is left out. `run` skips what is in
W/foundation.json, runs the most telling methods first, and starts with one seed of everything.

| task | data | weights | test |
|---|---|---|---|
| cifar | CIFAR-10, --cifar holds train/CLASS/* and test/CLASS/*; 96 pixels | EfficientNet-Lite0, ImageNet | test/ |
| sst2 | SST-2, --sst2 holds train.tsv.gz and dev.tsv.gz: text, 0 or 1 | all-MiniLM-L6-v2 | dev |
| digits | --digits holds DIGIT/DIGIT_SPEAKER_N.wav | EfficientNet-Lite0, ImageNet | a speaker not heard in training |

A seed draws the labels, of each class the same number, and the order of training. Of each class a fifth of the drawn
samples, and at least one, is for validation. All methods get the same samples. The seeds of `digits` test different
speakers.

- auto, probe, full, lora, lp_ft: `fmeco finetune` with train.budget and, except for auto, transfer.strategy. Other keys
  only name data and weights: image_size, sample_rate, cross_modality, and match: order for weights with other names.
- logreg: features of timm or transformers. Its penalty is chosen by cross-validation with five folds: a fifth of the
  samples validates, but all are trained on in the end. It has no budget.
- trainer: transformers' Trainer at its defaults, 3 epochs. trainer_filled: as many epochs as fit in the budget.
- fastai: fine_tune with its default augmentations. timm: train.py, which keeps the best epoch; batches of 128, or of all
  samples if they are fewer. Both have as many epochs as fit in the budget.

Epochs that fit are calibrated by a short training on 10 labels per class, and then by the method's last run with as many
labels; a budget without room for one epoch gets one. Measure on an idle machine: beside other work, two threads of torch
are slower than one. Each run is a process of its own on two cores, or one under `taskset -c 0`, one after the other, with an empty cache. `trained` is what
the method itself measured, from its first step; fmeco's and logreg's include the features. `first` is the time from the
start of the process until fmeco had a checkpoint. `wall` is the time of the training process with all imports; for
peers it includes the test, and for fmeco it does not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.foundation_methods import OWN, PEERS, TRIAL, empty, fmeco, peer
from bench.foundation_tasks import TASKS, download, make_task
from bench.images import machine, python_of, setup, versions

STAGES = (("auto", "probe", "full", "logreg"), ("trainer", "trainer_filled", "fastai", "timm"), ("lora", "lp_ft"))
METHODS = tuple(itertools.chain(*STAGES))
PACKAGES = ("fmeco", "torch", "torchvision", "timm", "transformers", "accelerate", "fastai", "scikit-learn")
DRAWS = 10_000

Record = dict[str, Any]


# --- run ---


class Runs:
    """Run methods, and keep their records in a file."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.work, self.args = args.work.resolve(), args
        self.train = args.timm_train.resolve() if args.timm_train else None
        self.file = self.work / "foundation.json"
        self.results: Record = {"runs": [], "calibrated": {}}
        if self.file.exists():
            self.results = json.loads(self.file.read_text())
        self.versions: dict[str | None, Record] = {}

    def save(self) -> None:
        """Write all records."""
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.results))
        part.replace(self.file)

    def packages(self, method: str) -> Record:
        """List the versions of the packages that a method uses."""
        environment = PEERS[method][0] if method in PEERS else None
        if environment not in self.versions:
            found = versions(python_of(self.work, environment))
            self.versions[environment] = {name: found[name] for name in ("python", *PACKAGES) if name in found}
        return self.versions[environment]

    def missing(self, method: str, task: str) -> str:
        """Say why a method cannot run; "" if it can."""
        if not getattr(self.args, task):
            return f"--{task} is not given"
        if method in PEERS:
            if not python_of(self.work, PEERS[method][0]).exists():
                return "it has no environment; `setup` creates one"
            if method == "timm" and self.train is None:
                return "--timm-train is not given"
        return ""

    def task(self, kind: str, labels: int, seed: int) -> Record:
        """Return a task, which is written on first use."""
        return make_task(kind, getattr(self.args, kind).resolve(), self.work, labels, seed)

    def epochs(self, method: str, task: Record, minutes: float) -> int:
        """Return the most epochs that fit in the budget, and at least one."""
        if method not in TRIAL:
            return 3  # the Trainer's default; logreg has none
        calibrated, key = self.results["calibrated"], f"{method} {task['drawn']}"
        if key not in calibrated:
            trial = empty(self.work / "runs" / f"calibration-{method}")
            small = self.task(task["kind"], 10, 0)
            found = peer(self.work, small, method, TRIAL[method], self.train, trial)
            more = 1 if small["drawn"] == task["drawn"] else task["samples"]["train"] / found["seen"]
            calibrated[key] = statistics.median(found["epoch_wall"][1:]) * more
        epochs = int(60 * minutes / calibrated[key])
        return max(1, epochs - 1 if method == "fastai" else epochs)  # fastai does not count its frozen epoch

    def one(self, kind: str, labels: int, method: str, seed: int, minutes: float) -> Record:
        """Run one method on one draw of labels. Returns its record."""
        task = self.task(kind, labels, seed)
        place = empty(self.work / "runs" / f"{kind}-{labels}-{seed}-{minutes:g}-{method}")
        record: Record = {"task": kind, "labels": labels, "method": method, "seed": seed, "minutes": minutes}
        record |= {"load": os.getloadavg()[0], "start": time.strftime("%F %T")}
        if method in OWN:
            record |= fmeco(self.work, task, method, minutes, place)
        else:
            record |= peer(self.work, task, method, self.epochs(method, task, minutes), self.train, place)
            if method in TRIAL:
                walls = record["epoch_wall"]
                later = walls[1:] or walls  # the first epoch also warms up
                self.results["calibrated"][f"{method} {task['drawn']}"] = statistics.median(later)
        if len(record["correct"]) != task["samples"]["test"]:
            raise ValueError(f"{len(record['correct'])} answers for {task['samples']['test']} test samples")
        record["accuracy"] = statistics.mean(record["correct"])
        record["correct"] = "".join(map(str, record["correct"]))
        record |= {key: task[key] for key in ("samples", "drawn", "tested")}
        for heavy in (place / "cache", place / "run" / "checkpoints"):
            shutil.rmtree(heavy, ignore_errors=True)
        return {**record, "versions": self.packages(method), "machine": machine()}


def run(args: argparse.Namespace) -> int:
    """Run what is missing. Returns the number of failures. Each record is written as soon as its process ends."""
    runs, failures, told = Runs(args), 0, set()
    finished = {
        tuple(one[key] for key in ("task", "labels", "method", "seed", "minutes")) for one in runs.results["runs"]
    }
    for stage, seed, task, labels in itertools.product(STAGES, args.seeds, args.tasks, args.labels):
        for method in (name for name in stage if name in args.methods):
            if method in PEERS and task not in PEERS[method][2]:
                continue
            key = (task, labels, method, seed, args.minutes)
            if key in finished:
                continue
            if reason := runs.missing(method, task):
                if (method, task) not in told:
                    print(f"skipping {method} on {task}: {reason}", flush=True)
                told.add((method, task))
                continue
            title = f"{task}, {labels} labels, seed {seed}, {args.minutes:g} min, {method}"
            try:
                record = runs.one(task, labels, method, seed, args.minutes)
            except (subprocess.CalledProcessError, ValueError, OSError, KeyError) as error:
                failures += 1
                print(f"{title}: FAILED, {error}, see the log in {runs.work / 'runs'}", flush=True)
                continue
            runs.results["runs"].append(record)
            runs.save()
            times = f"{record['seconds']:.1f} s trained, {record['wall']:.1f} s in all"
            print(f"{title}: {record['accuracy']:.4f} after {record['epochs']:g} epochs, {times}", flush=True)
    return failures


# --- table ---


def difference(pairs: list[tuple[Record, Record]]) -> tuple[float, float, float]:
    """Return the mean difference of two methods in points, and its 95% interval. `pairs` are of the same seeds.

    A paired bootstrap over test samples. A sample that several seeds tested is drawn for all of them at once.
    """
    import numpy as np

    total: dict[str, Any] = {}
    for other, first in pairs:
        gain = [100.0 * (int(a) - int(b)) for a, b in zip(other["correct"], first["correct"], strict=True)]
        total.setdefault(first["tested"], []).append(gain)
    sums = np.concatenate([np.sum(gains, 0) for gains in total.values()])
    counts = np.concatenate([np.full(len(gains[0]), len(gains)) for gains in total.values()])
    drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), DRAWS)
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), [2.5, 97.5])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def pairs_of(one: dict[int, Record], other: dict[int, Record]) -> list[tuple[Record, Record]]:
    """Pair the records of two methods by their seeds."""
    return [(one[seed], other[seed]) for seed in sorted({*one} & {*other})]


def block(methods: dict[str, dict[int, Record]]) -> tuple[list[str], str]:
    """Format the rows of a task with a number of labels, best first, and a verdict on `auto` if it is behind."""
    means = {name: statistics.mean(one["accuracy"] for one in seeds.values()) for name, seeds in methods.items()}
    order = sorted(means, key=lambda name: -means[name])
    auto, verdict = methods.get("auto", {}), ""
    rows = []
    if auto and order[0] != "auto" and (pairs := pairs_of(methods[order[0]], auto)):
        gain, low, high = difference(pairs)
        if low > 0:
            verdict = f"auto is {gain:.1f} points behind {order[0]} ({low:.1f} to {high:.1f})"
    for name in order:
        records = [methods[name][seed] for seed in sorted(methods[name])]
        scores = [one["accuracy"] for one in records]
        to_auto = ""
        if name != "auto" and (pairs := pairs_of(methods[name], auto)):
            to_auto = "{:+.1f} ({:+.1f} to {:+.1f})".format(*difference(pairs))
        firsts = [one["first"] for one in records if one.get("first") is not None]
        mean = f"{means[name]:.3f}" + (f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else "")
        cells = [
            f"{records[0]['task']}, {records[0]['drawn']}",
            f"{records[0]['minutes']:g}",
            f"{name} (behind)" if name == "auto" and verdict else name,
            f"**{mean}**" if name == order[0] else mean,
            ", ".join(f"{score:.3f}" for score in scores),
            to_auto,
            f"{statistics.mean(firsts):.0f}" if firsts else "",
            *(f"{statistics.mean(one[key] for one in records):.0f}" for key in ("seconds", "wall", "epochs")),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows, verdict


def table(runs: list[Record]) -> list[str]:
    """Format a markdown table. Differences are to `auto` in points, over the seeds that both have."""
    lines = [
        "| task, labels per class | min | method | test accuracy | each seed | difference to auto, 95% interval "
        "| first, s | trained, s | wall, s | epochs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[int, int, float], dict[str, dict[int, Record]]] = {}
    for one in runs:
        key = (TASKS.index(one["task"]), one["labels"], one["minutes"])
        groups.setdefault(key, {}).setdefault(one["method"], {})[one["seed"]] = one
    verdicts = []
    for key in sorted(groups):
        rows, verdict = block(groups[key])
        lines += rows
        if verdict:
            drawn = groups[key]["auto"][min(groups[key]["auto"])]["drawn"]
            verdicts.append(f"- {TASKS[key[0]]}, {drawn} labels, {key[2]:g} min: {verdict}")
    measured = sum("auto" in methods for methods in groups.values())
    behind = [
        f"auto is neither first nor within the first's interval in {len(verdicts)} of {measured} blocks",
        *verdicts,
    ]
    found = {name: one["versions"][name] for one in runs for name in PACKAGES if name in one["versions"]}
    last = runs[-1]
    known = ", ".join(f"{name} {found[name]}" for name in PACKAGES if name in found)
    cores = f"{last['machine']['cores']} cores of {last['machine']['cpu']}"
    loads = statistics.median(one["load"] for one in runs)
    return [*lines, "", *behind, "", f"{known}; {cores}, median load before a run {loads:.1f}; {last['start'][:10]}"]


# --- command line ---


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("setup", help="download the weights and create the environments of the peers")
    verb.add_argument("--work", type=Path, required=True, help="folder for weights, environments and results")
    verb.add_argument("--only", nargs="*", choices=("timm", "transformers", "fastai"), help="environments to create")
    verb = verbs.add_parser("run", help="run what is not measured yet")
    verb.add_argument("--work", type=Path, required=True, help="folder for weights, environments and results")
    for task in TASKS:
        verb.add_argument(f"--{task}", type=Path, help=f"folder of the data of {task}")
    verb.add_argument("--timm-train", type=Path, help="train.py of timm's repository")
    verb.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    verb.add_argument("--labels", type=int, nargs="+", default=[10, 200], help="per class, validation included")
    verb.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    verb.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    verb.add_argument("--minutes", type=float, default=1.0)
    verb = verbs.add_parser("table", help="print the results as a table")
    verb.add_argument("results", type=Path, nargs="+")
    args = parser.parse_args()
    if args.verb == "table":
        print("\n".join(table([one for file in args.results for one in json.loads(file.read_text())["runs"]])))
        return 0
    args.work.mkdir(parents=True, exist_ok=True)
    if args.verb == "setup":
        download(args.work.resolve())
        setup(args.work.resolve(), ("timm", "transformers", "fastai") if args.only is None else args.only)
        return 0
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # child processes inherit this
    return 1 if run(args) else 0


if __name__ == "__main__":
    sys.exit(main())
