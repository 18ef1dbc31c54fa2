"""Measure the overhead of each part of fmeco over the bare work, on this machine. Needs Linux.

The parts are: the loop around a tiny model, a probe from cached features, the scan of a folder, the pause for a
checkpoint, memory over epochs and for many samples, and the time until a command answers.

    python scripts/bench/parts.py run --work W [--only loop ...] [--rounds 5]     # writes W/parts.json
    python scripts/bench/parts.py table W/parts.json

Every measurement runs in its own process. Contenders take turns, round by round, and are compared by ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COMMANDS = (["--help"], ["list", "backbones"], ["schema"], ["pretrain", "typo.yaml"])


def process(arguments: list[str], folder: Path, **variables: str) -> float:
    """Run this Python interpreter. Returns the seconds that it took. Raises CalledProcessError."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **variables},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def part(name: str, folder: Path, *arguments: str, **variables: str) -> Any:
    """Run a function of this file in its own process. Returns its result, which it writes as JSON."""
    process([str(HERE / "parts.py"), "part", name, *arguments], folder, **variables)
    return json.loads((folder / "part.json").read_text())


# --- the loop: an 8x8 MLP, batches of 32, SGD with momentum, one thread ---

MLP = {
    "dataset": {"name": "digits", "image_size": 8},
    "backbone": {"name": "mlp", "hidden": [64], "batch_norm": False},
    "optimizer": "sgd",
    "augment": "none",
    "train": {"epochs": 200, "batch_size": 32},
    "evaluate": {"every": 200},  # once, at the end, so that only training and its logs are compared
}
LOOP_TURN, LOOP_WARM_UP = 100, 3  # steps per turn; turns for warm-up


def loop(folder: Path) -> dict[str, float]:
    """Measure microseconds per step, the median over turns, and the median ratio of neighbouring turns."""
    result: dict[str, float] = part("turns", folder, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    return result


def turns() -> dict[str, float]:
    """Time fmeco and a bare loop in turns within one process.

    The state of the machine and the memory layout then affect both. fmeco calls `stop` after each step, and the bare
    loop's turn runs inside one of these calls.
    """
    import fmeco

    bare = bare_steps()

    def turn() -> list[float]:
        return [next(bare) for _ in range(LOOP_TURN + 3)]

    fmeco_times: list[float] = []
    steps: dict[str, list[float]] = {"bare": [], "fmeco": []}

    def stop() -> bool:
        fmeco_times.append(time.perf_counter())
        if len(fmeco_times) == LOOP_TURN + 3:
            for name, times in (("fmeco", fmeco_times), ("bare", turn())):
                steps[name].append((times[-1] - times[2]) / LOOP_TURN)  # the caches are cold in the first two steps
            fmeco_times.clear()
        return False

    fmeco.pretrain(MLP, out=Path("run"), force=True, stop=stop)
    pairs = list(zip(steps["fmeco"], steps["bare"], strict=True))[LOOP_WARM_UP:]
    return {
        "bare": 1e6 * statistics.median(b for _, b in pairs),
        "fmeco": 1e6 * statistics.median(a for a, _ in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def bare_steps() -> Iterator[float]:
    """Train without end, and yield the time before each step."""
    import torch
    import torch.nn.functional as F
    from sklearn.datasets import load_digits
    from torch import nn

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels[:1079], dtype=torch.float32) / 16, torch.tensor(labels[:1079])
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    while True:
        order = torch.randperm(len(x))
        for start in range(0, len(x) - 31, 32):
            yield time.perf_counter()
            chosen = order[start : start + 32]
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()


def bare_loop() -> None:
    """Train the bare loop without end; steps.py stops it."""
    for _ in bare_steps():
        pass


# --- a probe of 20 epochs from cached features, against one pass of the backbone over the same images ---

PROBE_DATA = {"name": "fake_images", "samples": 3400, "image_size": 128}


def probe(folder: Path) -> dict[str, float]:
    """Measure seconds of a probe, of one pass over the images, and their ratio."""
    result: dict[str, float] = part("time_probe", folder, XDG_CACHE_HOME=str(folder / "cache"))
    return result


def time_probe() -> dict[str, float]:
    """Time one pass of the backbone over the images, and a probe of 20 epochs."""
    import fmeco
    from fmeco.config.check import choose
    from fmeco.data import disk_cache as cache

    config = {"dataset": PROBE_DATA, "backbone": "resnet18", "train": {"steps": 1, "precision": "fp32"}}
    source = fmeco.pretrain(config, out="source", force=True).run
    model = fmeco.load(source)
    images = choose("dataset", PROBE_DATA)
    data = images.plugin.build({"known": model.spec, "whole": False, "arch": None}, images.options)
    cache.clear()
    began = time.perf_counter()
    for split in ("train", "val"):
        model.features(data.split(split))
    pass_seconds = time.perf_counter() - began
    task = {"dataset": PROBE_DATA, "transfer": "probe", "augment": "none", "train": {"epochs": 20, "precision": "fp32"}}
    run = fmeco.finetune(task, ref=source, out="probe", force=True)
    return {"one pass": pass_seconds, "probe": run.seconds, "ratio": run.seconds / pass_seconds}


# --- the scan: 50,000 files in 50 folders, with sizes ---


def scan(folder: Path) -> dict[str, float]:
    """Measure milliseconds to scan 50,000 files, which are created once."""
    many = folder.parent / "many"
    if not many.exists():
        from PIL import Image

        unfinished = folder.parent / "many.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        Image.new("RGB", (40, 40), (9, 99, 9)).save(unfinished / "one.jpg")
        for label in range(50):
            (unfinished / f"class{label:02}").mkdir()
            for number in range(1000):
                os.link(unfinished / "one.jpg", unfinished / f"class{label:02}" / f"image{number:06}.jpg")
        (unfinished / "one.jpg").unlink()
        unfinished.rename(many)
    result: dict[str, float] = part("time_scan", folder, str(many))
    return result


def time_scan(many: str) -> dict[str, float]:
    """Time fmeco's scan, its dataset with splits, and torchvision's ImageFolder."""
    from torchvision.datasets import ImageFolder

    from fmeco.datasets import _files, _images, image_folder

    def milliseconds(work: Callable[[], Any]) -> float:
        began = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - began)

    sum(1 for _ in Path(many).rglob("*"))  # warm the file system's cache
    return {
        "fmeco, with sizes and times": milliseconds(
            lambda: _files.scan(_images.ImageFiles, image_folder.SUFFIXES, Path(many), [])
        ),
        "fmeco, the dataset with its splits": milliseconds(lambda: image_folder.build(None, False, path=many)),
        "ImageFolder, names only": milliseconds(lambda: ImageFolder(many)),
    }


# --- a checkpoint: how long the loop pauses for it ---


def checkpoint(folder: Path) -> dict[str, float]:
    """Measure the milliseconds that the loop pauses for a checkpoint, and those of the whole writing.

    The checkpoint is resumable, with AdamW's moments.
    """
    results: dict[str, float] = {}
    for name in ("resnet18", "vit_b_16"):
        results |= part("time_checkpoint", folder, name)
    return results


def time_checkpoint(name: str) -> dict[str, float]:
    """Time the pause for, and the whole writing of, checkpoints of a torchvision model."""
    from fmeco.distributed.launch import keep_memory

    keep_memory()
    import torch
    import torchvision

    from fmeco.checkpoints import writer
    from fmeco.training.session import pack_optimizer

    model = torchvision.models.get_model(name)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    pauses, wholes = [], []
    for number in range(6):
        began = time.perf_counter()
        tensors = {"backbone": writer.snapshot(model.state_dict())}
        tensors["trainer"] = writer.snapshot(pack_optimizer(optimizer)[0])
        pauses.append(time.perf_counter() - began)
        writer.write(Path("checkpoints"), number, tensors, {}, {}, [], "")
        wholes.append(time.perf_counter() - began)
    shutil.rmtree("checkpoints")
    # The first checkpoint cannot reuse memory, and does not count.
    return {
        f"{name}, pause": 1e3 * statistics.median(pauses[1:]),
        f"{name}, whole": 1e3 * statistics.median(wholes[1:]),
    }


# --- memory ---


def memory(folder: Path) -> dict[str, float]:
    """Measure MB after epochs 2 and 6 over files, with two workers and with none.

    Also measure MB before and after an epoch of a million samples with two workers.
    """
    results: dict[str, float] = {}
    for workers in (0, 2):
        sizes = part("epochs", folder, str(workers))
        results[f"epoch 2, {workers} workers"], results[f"epoch 6, {workers} workers"] = sizes[1], sizes[5]
    before, after = part("million", folder)
    return results | {"a million samples, before": before, "a million samples, after": after}


def epochs(workers: str) -> list[float]:
    """Measure the memory of the process tree after each epoch, in MB."""
    from fmeco.distributed.launch import keep_memory

    keep_memory()
    import numpy as np
    from PIL import Image

    import fmeco
    from fmeco.training import loop

    rng = np.random.default_rng(0)
    for number in range(400):
        file = Path("photos") / f"class{number % 2}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (180, 240, 3), dtype=np.uint8)).save(file)
    sizes: list[float] = []
    original = loop._evaluate

    def evaluated(session: Any) -> bool:
        improved = original(session)
        sizes.append(tree_mb())
        return improved

    loop._evaluate = evaluated
    config = {
        "dataset": {"name": "image_folder", "path": "photos", "image_size": 112},
        "backbone": "mobilenet_v3_small",
        "train": {"epochs": 6, "batch_size": 32, "workers": int(workers), "tensorboard": False, "cache": "off"},
    }
    fmeco.pretrain(config, out="run", force=True)
    return sizes


def million() -> tuple[float, float]:
    """Measure memory for a million samples of two numbers, in MB.

    Returns that of the process tree with two workers started, and after an epoch.
    """
    import torch

    from fmeco.core import Augment, Data, DataSpec, Inputs, InputSpec, Samples, View
    from fmeco.data.loader import Loader
    from fmeco.data.reading import Reading
    from fmeco.datasets._files import Files

    count = 1_000_000
    files = Files.of("", [f"class{i % 10}/image-{i:07}.jpg" for i in range(count)], [1] * count, [1] * count)

    class Numbers(Samples):
        def __init__(self) -> None:
            self.targets = {"label": torch.arange(count) % 10}

        def __len__(self) -> int:
            return count

        def name(self, index: int) -> str:
            return files.name(index)

        def __getitem__(self, index: int) -> Inputs:
            return {"x": torch.tensor([float(index), float(len(self.name(index)))])}

    data = Data(DataSpec("points", {"x": InputSpec((2,))}), Numbers())
    device = torch.device("cpu")
    loader = Loader(data, data.split("train"), (View(),), Augment(), 256, 256, 0, Reading(2, 1, None), device)
    before = after = 0.0
    for number, _ in enumerate(loader.batches(0, loader.steps_per_epoch), 1):
        if number == 20:
            before = tree_mb()
        if number == loader.steps_per_epoch:  # the workers are still alive
            after = tree_mb()
    return before, after


def tree_mb() -> float:
    """Sum the proportional set size of this process and its children, in MB."""
    total = 0
    pids = [os.getpid(), *_children(os.getpid())]
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def _children(pid: int) -> list[int]:
    """List the ids of a process's children."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


# --- start ---


def start(folder: Path) -> dict[str, float]:
    """Measure seconds until a command has answered, and until the first step of a small run without torchvision."""
    (folder / "typo.yaml").write_text("datset: digits\nbackbone: resnet18\n")
    seconds = {}
    for arguments in COMMANDS:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fmeco", *arguments], cwd=folder, capture_output=True)
        seconds[" ".join(arguments[:1]) if arguments[0] != "pretrain" else "a config error"] = (
            time.perf_counter() - began
        )
    (folder / "mlp.yaml").write_text(json.dumps(MLP))
    for name, program in (
        ("first step, bare", [str(HERE / "parts.py"), "part", "bare_loop"]),
        ("first step, fmeco", ["-m", "fmeco", "pretrain", "mlp.yaml", "--out", "run", "--force"]),
    ):
        process([str(HERE / "steps.py"), "steps.json", "1", *program], folder, STEPS_START=str(time.perf_counter()))
        record = json.loads((folder / "steps.json").read_text())
        seconds[name] = record["wall"][0] - record["start"]
    return seconds


# --- run, table ---

PARTS: dict[str, tuple[Callable[[Path], dict[str, float]], str]] = {
    "loop": (loop, "us per step, and fmeco / bare"),
    "probe": (probe, "s for 20 epochs"),
    "scan": (scan, "ms for 50,000 files"),
    "checkpoint": (checkpoint, "ms"),
    "memory": (memory, "MB"),
    "start": (start, "s"),
}
ROUNDS = {"memory": 1}
INNER: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (turns, bare_loop, time_probe, time_scan, time_checkpoint, epochs, million)
}


def run(work: Path, names: list[str], rounds: int) -> None:
    """Measure the named parts in rounds, and write the results after each measurement."""
    out = work / "parts.json"
    results: dict[str, list[dict[str, float]]] = json.loads(out.read_text()) if out.exists() else {}
    for name in names:
        results[name] = []
    for number in range(rounds):
        for name in names:
            if number >= ROUNDS.get(name, rounds):
                continue
            folder = work / "parts"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            results[name].append(PARTS[name][0](folder))
            out.write_text(json.dumps(results))
            print(number, name, {key: round(value, 2) for key, value in results[name][-1].items()}, flush=True)


def rows(results: dict[str, list[dict[str, float]]]) -> list[str]:
    """Format a markdown table: the median of each figure, and its range over the rounds."""
    table = ["| part | figure | median | range | n |", "|---|---|---|---|---|"]
    for name, rounds in results.items():
        for key in rounds[0]:
            values = [figures[key] for figures in rounds]
            middle, low, high = (f"{value:.3g}" for value in (statistics.median(values), min(values), max(values)))
            table.append(f"| {name}, {PARTS[name][1]} | {key} | {middle} | {low}..{high} | {len(values)} |")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run")
    verb.add_argument("--work", type=Path, required=True)
    verb.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    verb.add_argument("--rounds", type=int, default=5)
    verb = verbs.add_parser("table")
    verb.add_argument("results", type=Path)
    verb = verbs.add_parser("part", help="for the script itself")
    verb.add_argument("name", choices=INNER)
    verb.add_argument("arguments", nargs="*")
    args = parser.parse_args()
    if args.verb == "run":
        run(args.work.resolve(), args.only, args.rounds)
    elif args.verb == "table":
        print("\n".join(rows(json.loads(args.results.read_text()))))
    else:
        Path("part.json").write_text(json.dumps(INNER[args.name](*args.arguments)))


if __name__ == "__main__":
    main()
