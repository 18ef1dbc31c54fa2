"""Compare the default finetune with those of peers: accuracy from the same weights, after the same minutes of one core.

    python scripts/bench/images.py setup --work W --only timm fastai    # creates an environment for each peer
    python scripts/bench/finetune.py run FOLDER SOURCE --work W --seeds 3 --minutes 1 5 --timm-train TRAIN.PY
    python scripts/bench/finetune.py table W/finetune.json

Needs Linux. Run it with the Python that has fmeco. FOLDER holds train/CLASS/*.jpg and test/CLASS/*.jpg of CIFAR-10. SOURCE
is a run of fmeco: resnet18, pretrained on the five classes that are not in the task. A seed draws 20 images per class to
train on, and 20 others to validate on; all test images are used. `run` continues where it was stopped: it skips results
that are in W/finetune.json. timm's train.py is not in its package, but in its repository.

Every contender runs in its own process on one core, with one thread, and reads the images in that process.

- fmeco: `fmeco finetune --from SOURCE --dataset TASK --set train.budget=1m --out DIRECTORY`, and no other settings.
- fastai: vision_learner with the source's weights instead of its own pretrained ones, Resize, aug_transforms(), the
  source's normalisation, and fine_tune(epochs). It keeps the last weights. It has no default seed, and gets that of the
  task; the two others always use their default seed.
- timm: train.py with resnet18, --pretrained-path, the image size and the source's normalisation. Its default batch of 128
  is larger than the training set, and train.py drops incomplete batches, so it gets --batch-size 100. It keeps the best
  epoch.

The scripts of both peers check that every tensor of the source was loaded. Peers have no time budget. They get the most
epochs that fit in it, in processor seconds: as calibrated by 8 epochs before a seed's first run, and then by that seed's
last run. fmeco's budget is wall time, so a busy machine is to its disadvantage.

The budget covers training from the start of the first epoch, including validation and checkpoints. Imports, reading the
source and fmeco's benchmark of precisions (at most 2%) come before it, and testing comes after it. `trained` is this
time in wall seconds. `cpu` is the processor seconds from the start of the process to the end of training.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from images import HERE, VARIABLES, machine, python_of, versions

CLASSES = ("dog", "frog", "horse", "ship", "truck")
LABELS = 20  # images per class to train on, and as many to validate on
CALIBRATION = 8  # epochs
PEERS = ("fastai", "timm")
CONTENDERS = ("fmeco", *PEERS)
COLUMNS = (("seconds", ".1f"), ("cpu", ".1f"), ("epochs", ".1f"))  # columns of the table that hold means

Record = dict[str, Any]


# --- the task ---


def make_task(folder: Path, work: Path, seed: int) -> Path:
    """Create train/, val/ and test/ as hard links to the files of FOLDER, which take no disk space."""
    task = work / "tasks" / str(seed)
    if not task.exists():
        part = task.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        rng = random.Random(seed)
        for name in CLASSES:
            chosen = rng.sample(sorted((folder / "train" / name).iterdir()), 2 * LABELS)
            test = sorted((folder / "test" / name).iterdir())
            for split, files in (("train", chosen[:LABELS]), ("val", chosen[LABELS:]), ("test", test)):
                (part / split / name).mkdir(parents=True)
                for file in files:
                    (part / split / name / file.name).hardlink_to(file)
        part.rename(task)
    return task


def read_source(source: Path) -> Record:
    """Read the weights, image size and normalisation of SOURCE's best checkpoint, for the peers."""
    best = (source / "checkpoints" / "best").resolve()
    spec = json.loads((best / "meta.json").read_text())["spec"]
    weights, image = best / "backbone.safetensors", spec["inputs"]["image"]
    if shared_classes := set(CLASSES) & set(spec["targets"]["label"]["classes"]):
        sys.exit(f"{source} was trained on classes of the task: {', '.join(sorted(shared_classes))}")
    return {
        "model": "resnet18",
        "timm": False,
        "batch": len(CLASSES) * LABELS,  # of timm
        "timm_seed": 42,  # its default
        "weights": str(weights),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "size": image["shape"][-1],
        "mean": image["mean"],
        "std": image["std"],
    }


# --- contenders ---


def started(command: list[str], folder: Path) -> float:
    """Run a command with one thread and an empty cache. Returns its processor seconds."""
    variables = {**os.environ, **VARIABLES, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    variables["XDG_CACHE_HOME"] = str(folder / "cache")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(folder / "log.txt", "ab") as log, open(folder / "out.json", "wb") as out:
        subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, stdout=out, stderr=log, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def empty(folder: Path) -> Path:
    """Empty a folder, or create it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def fmeco(source: Path, task: Path, minutes: float, folder: Path) -> Record:
    """Finetune, evaluate and predict the test images with fmeco. Returns its record."""
    run, answers = folder / "run", folder / "predictions.csv"
    command = [sys.executable, "-m", "fmeco"]
    budget = f"{minutes:g}m" if minutes == int(minutes) else f"{60 * minutes:g}s"
    options = [
        "--from",
        str(source),
        "--dataset",
        str(task),
        "--set",
        f"train.budget={budget}",
        "--out",
        str(run),
        "--json",
    ]
    cpu = started([*command, "finetune", *options], folder)
    result = json.loads((folder / "out.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    started([*command, "evaluate", str(run), "--json"], folder)
    accuracy = json.loads((folder / "out.json").read_text())["metrics"]["test_accuracy"]
    started([*command, "predict", str(run), str(task / "test"), "--output", str(answers)], folder)
    with open(answers, newline="") as file:
        rows = {row["input"]: row["prediction"] == Path(row["input"]).parent.name for row in csv.DictReader(file)}
    return {
        "accuracy": accuracy,
        "correct": [int(rows[name]) for name in sorted(rows)],
        "val": result["metrics"]["val_accuracy"],
        "seconds": result["seconds"],
        "cpu": cpu,
        "epochs": lines[-1]["epoch"],
    }


def peer(name: str, work: Path, source: Record, task: Path, seed: int, epochs: int, folder: Path) -> Record:
    """Train and test a peer. Returns its record.

    `epoch_cpu` holds the processor seconds of each epoch; for fastai, the first of them is its frozen epoch.
    """
    job = {**source, "task": str(task), "seed": seed, "epochs": epochs, "folder": str(folder)}
    (folder / "job.json").write_text(json.dumps(job))
    started([str(python_of(work, name)), str(HERE / "peers" / f"finetune_{name}.py"), str(folder / "job.json")], folder)
    result = json.loads((folder / "result.json").read_text())
    return {**result, "epochs": epochs}


def fitting(name: str, epoch_cpu: list[float], budget: float) -> int:
    """Return the most epochs that fit in a budget of processor seconds.

    The first epoch is counted separately: it warms up, and fastai does not count its frozen one.
    """
    further = int((budget - epoch_cpu[0]) / statistics.median(epoch_cpu[1:]))
    return max(1, further if name == "fastai" else further + 1)


# --- run ---


def run(work: Path, folder: Path, source: Path, args: argparse.Namespace) -> int:
    """Run what is missing. Returns the number of failures.

    Each result is written as soon as its process ends.
    """
    out, weights = work / "finetune.json", read_source(source)
    job = {"source": weights["sha256"], "labels": LABELS, "size": weights["size"]}
    results: Record = {"job": job, "sessions": [], "runs": []}
    if out.exists():
        results = json.loads(out.read_text())
    if results["job"] != job:
        sys.exit(f"{out} holds results of another job, {results['job']}: choose another --work")
    weights["train"] = str(args.timm_train.resolve())
    package_versions = {name: versions(python_of(work, name if name in PEERS else None)) for name in args.only}
    results["sessions"].append(
        {
            "start": time.strftime("%F %T"),
            "machine": machine(),
            "versions": package_versions,
            "timm train.py": hashlib.sha256(args.timm_train.read_bytes()).hexdigest(),
        }
    )
    finished = {(one["seed"], one["minutes"], one["name"]) for one in results["runs"]}
    failures = 0
    for seed in range(args.seeds):
        task = make_task(folder, work, seed)
        calibrated: dict[str, list[float]] = {}
        for minutes in args.minutes:
            for name in args.only:
                if (seed, minutes, name) in finished:
                    continue
                record: Record = {"seed": seed, "minutes": minutes, "name": name, "load": os.getloadavg()[0]}
                place = work / "finetune" / f"{seed}-{minutes:g}-{name}"
                try:
                    if name == "fmeco":
                        record |= fmeco(source, task, minutes, empty(place))
                    else:
                        if name not in calibrated:
                            trial = empty(work / "finetune" / f"{seed}-calibration-{name}")
                            calibrated[name] = peer(name, work, weights, task, seed, CALIBRATION, trial)["epoch_cpu"]
                        epochs = fitting(name, calibrated[name], 60 * minutes)
                        record["calibration"] = calibrated[name]
                        record |= peer(name, work, weights, task, seed, epochs, empty(place))
                        if epochs > CALIBRATION:
                            calibrated[name] = record["epoch_cpu"]
                    if abs(statistics.mean(record["correct"]) - record["accuracy"]) > 0.0021:
                        raise ValueError("the reported accuracy differs from that of the predictions")
                except (subprocess.CalledProcessError, ValueError, OSError) as error:
                    failures += 1
                    print(
                        f"seed {seed}, {minutes:g} min, {name}: FAILED, {error}, see the logs in {place.parent}",
                        flush=True,
                    )
                    continue
                results["runs"].append(record)
                part = out.with_suffix(".part")
                part.write_text(json.dumps(results))
                part.replace(out)
                print(
                    f"seed {seed}, {minutes:g} min, {name}: {record['accuracy']:.3f} after {record['epochs']:g} epochs, "
                    f"{record['seconds']:.1f} s, {record['cpu']:.1f} CPU s",
                    flush=True,
                )
    return failures


# --- table ---


def rows(results: Record) -> list[str]:
    """Format a markdown table. Differences are to the first contender, over the seeds that both have."""
    table = [
        "| budget | contender | test accuracy | each seed | difference, 95% interval | trained, s | CPU s | epochs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    runs: dict[tuple[float, str], dict[int, Record]] = {}
    for record in results["runs"]:
        runs.setdefault((record["minutes"], record["name"]), {})[record["seed"]] = record
    for minutes in sorted({minutes for minutes, _ in runs}):
        for name in CONTENDERS:
            if not (by_seed := runs.get((minutes, name))):
                continue
            first = runs.get((minutes, CONTENDERS[0]), {})
            both = [(first[seed]["correct"], by_seed[seed]["correct"]) for seed in sorted({*by_seed} & {*first})]
            records = [by_seed[seed] for seed in sorted(by_seed)]
            scores = [record["accuracy"] for record in records]
            spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
            cells = [
                f"{minutes:g} min",
                name,
                f"{statistics.mean(scores):.3f}{spread}",
                ", ".join(f"{score:.3f}" for score in scores),
                "-" if name == CONTENDERS[0] or not both else difference(both),
                *(f"{statistics.mean(record[key] for record in records):{form}}" for key, form in COLUMNS),
            ]
            table.append(f"| {' | '.join(cells)} |")
    packages = ("fmeco", "torch", "torchvision", "fastai", "timm")
    last = results["sessions"][-1]
    known = {
        name: packages_found[name]
        for packages_found in last["versions"].values()
        for name in packages
        if name in packages_found
    }
    listed_versions = ", ".join(f"{name} {known[name]}" for name in packages if name in known)
    return [*table, "", f"{listed_versions}; {last['machine']['cpu']}; {last['start'][:10]}"]


def difference(both: list[tuple[list[int], list[int]]], draws: int = 10_000) -> str:
    """Format the difference in points, and its 95% interval by a paired bootstrap.

    The bootstrap draws seeds and, independently, test images, which all seeds share. With few seeds the interval is too
    narrow, as with any bootstrap; with one seed it says nothing about other seeds.
    """
    import numpy as np

    gain = 100.0 * np.array([np.subtract(other, first) for first, other in both])  # seeds x images
    rng = np.random.default_rng(0)
    seeds, images = gain.shape
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    of_images = rng.multinomial(images, np.full(images, 1 / images), draws) / images
    low, high = np.percentile(((of_seeds @ gain) * of_images).sum(1), [2.5, 97.5])
    return f"{gain.mean():+.1f} ({low:+.1f} to {high:+.1f})"


# --- command line ---


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run", help="run what is not measured yet")
    verb.add_argument("folder", type=Path, help="train/CLASS/* and test/CLASS/* of CIFAR-10")
    verb.add_argument("source", type=Path, help="a run of fmeco, pretrained on the other five classes")
    verb.add_argument("--work", type=Path, required=True, help="folder for all results, on FOLDER's file system")
    verb.add_argument("--seeds", type=int, default=1)
    verb.add_argument("--minutes", type=float, nargs="+", default=[1, 5])
    verb.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    verb.add_argument("--timm-train", type=Path, required=True, help="train.py of timm's repository")
    verb.add_argument(
        "--core", type=int, default=max(os.sched_getaffinity(0)), help="the core that all processes are pinned to"
    )
    verb = verbs.add_parser("table", help="print the results as a table")
    verb.add_argument("results", type=Path)
    args = parser.parse_args()
    if args.verb == "table":
        print("\n".join(rows(json.loads(args.results.read_text()))))
        return 0
    os.sched_setaffinity(0, {args.core})  # child processes inherit this
    return 1 if run(args.work.resolve(), args.folder.resolve(), args.source.resolve(), args) else 0


if __name__ == "__main__":
    sys.exit(main())
