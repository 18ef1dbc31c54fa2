"""Compare fmeco with other libraries on masks and boxes, over the same EfficientNet-Lite0, in the same time.

    python scripts/results_dense.py setup --work W    # the weights, and an environment with segmentation-models-pytorch
    python scripts/results_dense.py run --work W --nuclei FOLDER --cards FOLDER --minutes 5 --seeds 0 1 2
    python scripts/results_dense.py table W/dense.json ...

Run it with the Python that has fmeco with its extra timm. Needs Linux.

| task | data | samples |
|---|---|---|
| nuclei10, nuclei | masks of cell nuclei; --nuclei holds {train,test}/{images,masks}/ID.png | 10, and all |
| cards | boxes of playing cards of six classes; --cards holds {train,test}/ID.jpg and .xml | all |

A seed draws the samples, and the fifth of them that validates, and seeds all training. All contenders get the same training samples, at the
same size (the long side), and the same time from their first step on. Only fmeco uses the validation samples.

- auto: `fmeco finetune` from ImageNet's weights, with a budget and no other key. ssl: the same, from `fmeco pretrain` with the
  objective simclr on the training images without their annotations, from new weights, once for all seeds, in as many minutes. scratch: `fmeco
  pretrain`.
- lraspp, unet, fcos, fcos_sgd: bench/peers/dense.py says what they are.

All answers are written for the test files in their own size, and all are judged here, alike: the mean IoU of the classes and the Dice
coefficient of the nuclei over all pixels; COCO's mAP and mAP50. Intervals are a paired bootstrap over test images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.foundation_methods import empty, started
from bench.foundation_tasks import MODEL, download
from bench.images import machine, python_of, setup, versions

HERE = Path(__file__).resolve().parent
SIZE = 192
OWN, MASKS, BOXES = ("auto", "ssl", "scratch"), ("lraspp", "unet"), ("fcos", "fcos_sgd")
TASKS = {"nuclei10": ("nuclei", 10, MASKS), "nuclei": ("nuclei", None, MASKS), "cards": ("cards", None, BOXES)}
CLASSES = {"nuclei": ["background", "nucleus"], "cards": ["ace", "jack", "king", "nine", "queen", "ten"]}
PACKAGES = ("fmeco", "torch", "torchvision", "timm", "segmentation-models-pytorch")
DRAWS = 1000

Record = dict[str, Any]


# --- run ---


def make_task(name: str, source: Path, work: Path, seed: int) -> Path:
    """Write train/, val/ and test/ of a task and seed on first use. Returns their folder."""
    folder = work / "tasks" / f"{name}-{seed}"
    if folder.exists():
        return folder
    kind, count, _ = TASKS[name]
    part = empty(folder.with_suffix(".part"))
    pattern = "images/*" if kind == "nuclei" else "*.[jJ]*"
    drawn = sorted((source / "train").glob(pattern))
    random.Random(seed).shuffle(drawn)
    drawn = drawn[:count]
    held = len(drawn) // 5
    for split, files in (("val", drawn[:held]), ("train", drawn[held:]), ("test", (source / "test").glob(pattern))):
        for file in files:
            other = file.with_suffix(".xml") if kind == "cards" else file.parent.parent / "masks" / f"{file.stem}.png"
            for one in (file, other):
                target = part / split / one.relative_to(source / ("test" if split == "test" else "train"))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(one, target)
    part.rename(folder)
    return folder


def weights(work: Path) -> Path:
    """Return the file of EfficientNet-Lite0's weights, under timm's names."""
    return work / "weights" / f"{MODEL}.safetensors"


def dataset_of(name: str, task: Path) -> Record:
    if TASKS[name][0] == "nuclei":
        return {"name": "masks", "path": str(task), "image_size": SIZE, "classes": CLASSES["nuclei"]}
    return {"name": "boxes", "path": str(task), "image_size": SIZE}


def fmeco(command: list[str], config: Record, folder: Path) -> float:
    """Run a training command of fmeco into folder/run. Returns its wall seconds."""
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    words = [sys.executable, "-m", "fmeco", command[0], "config.yaml", *command[1:], "--out", str(folder / "run")]
    return started([*words, "--json"], folder, folder)[0]


def self_supervised(work: Path, kind: str, task: Path, minutes: float) -> Path:
    """Pretrain Lite0 on the images of a task without annotations, on first use. Returns the run."""
    place = work / "sources" / f"{kind}-{minutes:g}"
    if not (place / "out.json").exists() or not (place / "out.json").stat().st_size:  # written at the end
        images = task / "train" / "images" if kind == "nuclei" else task / "train"
        config = {
            "dataset": {"name": "images", "path": str(images), "image_size": SIZE // 2},
            "backbone": f"timm/{MODEL}",
            "objective": "simclr",
            "train": {"budget": f"{60 * minutes:g}s"},
        }
        fmeco(["pretrain"], config, empty(place))
    return place / "run"


def train_own(args: argparse.Namespace, name: str, task: Path, method: str, seed: int, place: Path) -> Record:
    """Train with fmeco, and answer for the test images."""
    config = {
        "dataset": dataset_of(name, task),
        "backbone": f"timm/{MODEL}",
        "train": {"budget": f"{60 * args.minutes:g}s"},
        "seed": seed,
    }
    if method == "scratch":
        wall = fmeco(["pretrain"], config, place)
    elif method == "ssl":
        kind = TASKS[name][0]
        whole = make_task(kind, getattr(args, kind).resolve(), args.work, 0)
        source = self_supervised(args.work, kind, whole, args.minutes)
        wall = fmeco(["finetune", "--from", str(source)], config, place)
    else:
        wall = fmeco(["finetune", "--from", str(weights(args.work))], config, place)
    result = json.loads((place / "out.json").read_text())
    boxes = TASKS[name][0] == "cards"
    words = [
        sys.executable,
        "-m",
        "fmeco",
        "predict",
        str(place / "run"),
        str(task / "test" / ("" if boxes else "images")),
    ]
    words += ["--output", str(place / ("answers.json" if boxes else "answers"))]
    words += ["--set", "objective.score=0.05"] if boxes else []
    started(words, place, place)
    return {"seconds": result["seconds"], "wall": wall}


def train_peer(args: argparse.Namespace, name: str, task: Path, method: str, seed: int, place: Path) -> Record:
    """Train with a peer, which answers for the test images."""
    boxes = TASKS[name][0] == "cards"
    job = {
        "model": method,
        "task": str(task),
        "weights": str(weights(args.work)),
        "size": SIZE,
        "seconds": 60 * args.minutes,
        "seed": seed,
        "classes": CLASSES[TASKS[name][0]],
        "answers": str(place / ("answers.json" if boxes else "answers")),
    }
    (place / "job.json").write_text(json.dumps(job))
    python = python_of(args.work, "smp" if method == "unet" else None)
    wall, _ = started([str(python), str(HERE / "bench/peers/dense.py"), str(place / "job.json")], place, place)
    return {**json.loads((place / "out.json").read_text()), "wall": wall}


# --- judge ---


def judge_masks(task: Path, answers: Path) -> Record:
    """Count the pixels of each test image by their class and the predicted one: a 2 x 2 table, row by row."""
    import numpy as np
    from PIL import Image

    tables = []
    for path in sorted((task / "test" / "masks").iterdir()):
        truth, found = (np.array(Image.open(folder / path.name)) for folder in (path.parent, answers))
        tables.append(np.bincount(2 * truth.ravel().astype(int) + found.ravel(), minlength=4).tolist())
    return {"tables": tables}


def mask_scores(tables: Any) -> dict[str, float]:
    """Compute the mean IoU of both classes and the Dice coefficient of the nuclei from tables (N, 4)."""
    right, false, missed, found = tables.sum(0)
    return {
        "miou": (right / (right + false + missed) + found / (found + false + missed)) / 2,
        "dice": 2 * found / (2 * found + false + missed),
    }


def judge_boxes(task: Path, answers: Path, peer: bool) -> Record:
    """Match the answers for each test image with its boxes; COCO's own matches are equal, as average_precision_like.py shows."""
    import torch
    from bench.peers.dense import photographs, read_voc

    from fmeco.nn.detection.average_precision import match

    classes, given = CLASSES["cards"], json.loads(answers.read_text())
    if not peer:
        given = from_coco(given)
    rows = []
    for path in photographs(task / "test"):
        _, boxes, labels = read_voc(path, classes)
        one = given.get(path.name, {"boxes": [], "scores": [], "labels": []})
        found = torch.tensor(one["boxes"]).reshape(-1, 4)
        scores, named = torch.tensor(one["scores"]), torch.tensor(one["labels"], dtype=torch.int64)
        matched = match(found, scores, named, boxes, labels, len(classes))
        rows.append({name: value.tolist() for name, value in matched.items()})
    return {"matches": rows}


def from_coco(document: Record) -> Record:
    """Group the boxes of a COCO document by the name of their image."""
    names = {one["id"]: Path(one["file_name"]).name for one in document["images"]}
    labels = {one["id"]: CLASSES["cards"].index(one["name"]) for one in document["categories"]}
    answers: Record = {name: {"boxes": [], "scores": [], "labels": []} for name in names.values()}
    for one in document["annotations"]:
        answer, (x, y, width, height) = answers[names[one["image_id"]]], one["bbox"]
        answer["boxes"].append([x, y, x + width, y + height])
        answer["scores"].append(one["score"])
        answer["labels"].append(labels[one["category_id"]])
    return answers


def scores_of(record: Record) -> tuple[int, Callable[[Any], dict[str, float]]]:
    """Return the number of test images, and a function from their positions to the scores."""
    import numpy as np
    import torch

    if "tables" in record:
        tables = np.array(record["tables"], dtype=float)
        return len(tables), lambda drawn: mask_scores(tables[drawn])
    from fmeco.nn.detection.average_precision import average_precisions, summary

    kinds = {"score": torch.float32, "category": torch.int32, "truth": torch.int32}
    names = record["matches"][0]
    rows = {
        name: torch.tensor([one[name] for one in record["matches"]], dtype=kinds.get(name, torch.int64))
        for name in names
    }

    def scores(drawn: Any) -> dict[str, float]:
        found = summary(average_precisions({name: x[drawn] for name, x in rows.items()}), tuple(CLASSES["cards"]))
        return {"map": found["map"], "map50": found["map50"]}

    return len(record["matches"]), scores


def run(args: argparse.Namespace) -> int:
    """Run what is missing, and write each record as soon as it is there. Returns the number of failures."""
    file, failures = args.work / "dense.json", 0
    records: list[Record] = json.loads(file.read_text()) if file.exists() else []
    finished = {(one["task"], one["method"], one["seed"], one["minutes"]) for one in records}
    for seed, name in itertools.product(args.seeds, args.tasks):
        kind, _, peers = TASKS[name]
        for method in (one for one in (*OWN, *peers) if one in args.methods):
            if (name, method, seed, args.minutes) in finished or not getattr(args, kind):
                continue
            task = make_task(name, getattr(args, kind).resolve(), args.work, seed)
            place = empty(args.work / "runs" / f"{name}-{seed}-{args.minutes:g}-{method}")
            record: Record = {"task": name, "method": method, "seed": seed, "minutes": args.minutes}
            record |= {"load": os.getloadavg()[0], "start": time.strftime("%F %T")}
            try:
                train = train_own if method in OWN else train_peer
                record |= train(args, name, task, method, seed, place)
                if kind == "nuclei":
                    record |= judge_masks(task, place / "answers")
                else:
                    record |= judge_boxes(task, place / "answers.json", method not in OWN)
            except (subprocess.CalledProcessError, ValueError, OSError, KeyError) as error:
                failures += 1
                print(f"{name}, {method}, seed {seed}: FAILED, {error!r}, see the log in {place}", flush=True)
                continue
            shutil.rmtree(place / "cache", ignore_errors=True)
            python = python_of(args.work, "smp" if method == "unet" else None)
            found = versions(python)
            record |= {"machine": machine(), "versions": {one: found[one] for one in PACKAGES if one in found}}
            records.append(record)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(records))
            part.replace(file)
            count, scores = scores_of(record)
            shown = ", ".join(f"{key} {value:.4f}" for key, value in scores(list(range(count))).items())
            print(f"{name}, {method}, seed {seed}: {shown}, {record['wall']:.0f} s in all", flush=True)
    return failures


# --- table ---


def table(records: list[Record]) -> list[str]:
    """Format a markdown table for each task. Differences are to `auto`, in points, over the seeds that both have."""
    import numpy as np

    lines = []
    draws = np.random.default_rng(0)
    for name in TASKS:
        methods: dict[str, dict[int, Record]] = {}
        for one in records:
            if one["task"] == name:
                methods.setdefault(one["method"], {})[one["seed"]] = one
        if not methods:
            continue
        scored = {method: {seed: scores_of(one) for seed, one in seeds.items()} for method, seeds in methods.items()}
        count = next(iter(next(iter(scored.values())).values()))[0]
        drawn = [list(range(count)), *draws.integers(0, count, (DRAWS, count)).tolist()]
        every = {
            method: {seed: [scores(one) for one in drawn] for seed, (_, scores) in seeds.items()}
            for method, seeds in scored.items()
        }
        first, second = next(iter(next(iter(every.values())).values()))[0]
        lines += [
            f"| {name} | {first} | each seed | {second} | {first}, difference to auto, points, 95% interval |",
            "|---|---|---|---|---|",
        ]
        means = {method: statistics.mean(seed[0][first] for seed in seeds.values()) for method, seeds in every.items()}
        for method in sorted(means, key=lambda one: -means[one]):
            seeds = every[method]
            each = [seeds[seed][0][first] for seed in sorted(seeds)]
            spread = f" ± {statistics.stdev(each):.3f}" if len(each) > 1 else ""
            others = statistics.mean(seed[0][second] for seed in seeds.values())
            to_auto = ""
            both = sorted({*seeds} & {*every.get("auto", {})})
            if method != "auto" and both:
                gains = [
                    100 * statistics.mean(seeds[seed][at][first] - every["auto"][seed][at][first] for seed in both)
                    for at in range(len(drawn))
                ]
                low, high = np.percentile(gains[1:], [2.5, 97.5])
                to_auto = f"{gains[0]:+.1f} ({low:+.1f} to {high:+.1f})"
            shown = ", ".join(f"{one:.3f}" for one in each)
            lines.append(f"| {method} | {means[method]:.3f}{spread} | {shown} | {others:.3f} | {to_auto} |")
        lines.append("")
    found = {name: one["versions"][name] for one in records for name in PACKAGES if name in one["versions"]}
    last = records[-1]
    known = ", ".join(f"{name} {found[name]}" for name in PACKAGES if name in found)
    return [*lines, f"{known}; {last['machine']['cores']} cores of {last['machine']['cpu']}; {last['start'][:10]}"]


# --- command line ---


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("setup", help="download the weights and create the environment of the peer")
    verb.add_argument("--work", type=Path, required=True, help="folder for weights, environments and results")
    verb = verbs.add_parser("run", help="run what is not measured yet")
    verb.add_argument("--work", type=Path, required=True, help="folder for weights, environments and results")
    verb.add_argument("--nuclei", type=Path, help="folder of the masks")
    verb.add_argument("--cards", type=Path, help="folder of the boxes")
    verb.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    verb.add_argument("--methods", nargs="+", choices=(*OWN, *MASKS, *BOXES), default=[*OWN, *MASKS, *BOXES])
    verb.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    verb.add_argument("--minutes", type=float, default=5.0)
    verb = verbs.add_parser("table", help="print the results as tables")
    verb.add_argument("results", type=Path, nargs="+")
    args = parser.parse_args()
    if args.verb == "table":
        print("\n".join(table([one for file in args.results for one in json.loads(file.read_text())])))
        return 0
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.verb == "setup":
        download(args.work)
        setup(args.work, ["smp"])
        return 0
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # child processes inherit this
    return 1 if run(args) else 0


if __name__ == "__main__":
    sys.exit(main())
