"""Finetune with fmeco or a peer, each in a process of its own, for results_foundation.py."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.foundation_tasks import LITE0, MINILM, MODEL, RATE, SIZE, TASKS
from bench.images import VARIABLES, python_of

HERE = Path(__file__).resolve().parent
OWN = ("auto", "probe", "full", "lora", "lp_ft")
PEERS = {  # method -> its environment, its script, and its tasks
    "logreg": (None, "foundation_logreg.py", TASKS),
    "trainer": ("transformers", "foundation_trainer.py", ("sst2",)),
    "trainer_filled": ("transformers", "foundation_trainer.py", ("sst2",)),
    "fastai": ("fastai", "finetune_fastai.py", ("cifar",)),
    "timm": ("timm", "finetune_timm.py", ("cifar",)),
}
TRIAL = {"trainer_filled": 20, "fastai": 2, "timm": 3}  # epochs of the calibration

Record = dict[str, Any]


def empty(folder: Path) -> Path:
    """Empty a folder, or create it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def started(command: list[str], folder: Path, cwd: Path, watched: Path | None = None) -> tuple[float, float | None]:
    """Run a command with a thread for each core of this process. Returns its wall seconds, and those until a watched path existed."""
    threads = str(len(os.sched_getaffinity(0)))
    variables = {**os.environ, **VARIABLES, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    variables["XDG_CACHE_HOME"] = str(folder / "cache")
    began, first = time.perf_counter(), None
    with open(folder / "log.txt", "ab") as log, open(folder / "out.json", "wb") as out:
        process = subprocess.Popen(command, cwd=cwd, env=variables, stdin=subprocess.DEVNULL, stdout=out, stderr=log)
        while process.poll() is None:
            if first is None and watched is not None and watched.exists():
                first = time.perf_counter() - began
            time.sleep(0.05)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - began, first


def dataset_of(task: Record) -> Record:
    """Return the section `dataset` of a config."""
    keys: dict[str, Record] = {
        "cifar": {"name": "image_folder", "image_size": SIZE},
        "sst2": {"name": "text"},
        "digits": {"name": "audio", "sample_rate": RATE},
    }
    return {"path": task["task"], **keys[task["kind"]]}


def fmeco(work: Path, task: Record, method: str, minutes: float, folder: Path) -> Record:
    """Finetune with fmeco, and predict the test samples."""
    config: Record = {"dataset": dataset_of(task), "train": {"budget": f"{60 * minutes:g}s"}, "seed": task["seed"]}
    transfer: Record = {} if method == "auto" else {"strategy": method}
    if task["kind"] != "sst2":
        config["backbone"] = f"timm/{MODEL}"
        transfer["match"] = "order"
    if task["kind"] == "digits":
        transfer["cross_modality"] = True
    if transfer:
        config["transfer"] = transfer
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    ref = f"hf/./{Path(MINILM).parent}@DEFAULT" if task["kind"] == "sst2" else LITE0
    run, answers, command = folder / "run", folder / "predictions.csv", [sys.executable, "-m", "fmeco"]
    options = ["--from", ref, "--out", str(run), "--json"]
    wall, first = started(
        [*command, "finetune", str(folder / "config.yaml"), *options],
        folder,
        work / "weights",
        run / "checkpoints" / "best",
    )
    result = json.loads((folder / "out.json").read_text())
    test = Path(task["task"]) / ("test.csv" if task["kind"] == "sst2" else "test")
    started([*command, "predict", str(run), str(test), "--output", str(answers)], folder, work / "weights")
    with open(answers, newline="") as file:
        rows = list(csv.DictReader(file))
    if task["kind"] == "sst2":
        with open(test, newline="") as file:
            truth = [row["label"] for row in csv.DictReader(file)]
        correct = [int(row["prediction"] == label) for row, label in zip(rows, truth, strict=True)]
    else:
        rows.sort(key=lambda row: row["input"])
        correct = [int(row["prediction"] == Path(row["input"]).parent.name) for row in rows]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "correct": correct,
        "val": result["metrics"]["val_accuracy"],
        "seconds": result["seconds"],
        "wall": wall,
        "first": first,
        "epochs": metrics[-1]["epoch"],
    }


def peer(work: Path, task: Record, method: str, epochs: int, train: Path | None, folder: Path) -> Record:
    """Train and test a peer. Returns its record."""
    environment, script, _ = PEERS[method]
    weights = Path(MINILM).parent if task["kind"] == "sst2" else f"{MODEL}.safetensors"
    job = {
        **task,
        "dataset": dataset_of(task),
        "weights": str(work / "weights" / weights),
        "model": MODEL,
        "timm": True,
        "timm_seed": task["seed"],
        "size": SIZE,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "batch": min(128, task["samples"]["train"]),
        "epochs": epochs,
        "train": str(train),
        "folder": str(folder),
    }
    (folder / "job.json").write_text(json.dumps(job))
    path = str(HERE / "peers" / script)
    wall, _ = started([str(python_of(work, environment)), path, str(folder / "job.json")], folder, folder)
    return {"epochs": epochs, **json.loads((folder / "result.json").read_text()), "wall": wall}
