"""Compare the same training by fmeco and by its peers on a CPU: speed, processor time, first step, memory. Needs Linux.

    python scripts/bench/images.py setup --work W           # creates an environment per peer; all share torch
    python scripts/bench/images.py run --work W --rounds 5  # adds rounds to earlier ones
    python scripts/bench/images.py table W/images.json

Run it with the Python that has fmeco. The job: torchvision's resnet18 with 10 classes, 224 pixels, batches of 32, random
resized crop and flip, SGD with momentum, cross-entropy, on 1,000 generated JPEGs of 400 x 533 pixels. Every contender runs
in its own process under steps.py. A round runs all of them, and each round starts with another one.

`bare` is the limit that speeds are divided by, round by round: a loop over one batch in memory, in the faster precision of
this CPU, which is measured before the first round. A peer runs with its default settings for the job. Its `best` has the
fastest settings that we know for a CPU: that precision, channels_last, one worker. fmeco has no flags, and adds colour jitter to the augmentation. lightly-train uses AdamW, which cannot be
changed.

timm's train.py is not in its package: download it from its repository, and pass its path as --timm-train.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WARM_UP = 3  # first steps, which are not counted
EPOCHS = 2  # fmeco runs this many epochs and --steps more; the peers run --steps of their first epoch
CLASSES = 10
PACKAGES = {
    "timm": ["timm"],
    "lightning": ["lightning"],
    "transformers": ["transformers", "accelerate"],
    "fastai": ["fastai"],
    "lightly-train": ["lightly-train"],
    "smp": ["segmentation-models-pytorch"],
}
# Use no GPU, and wait for no network.
VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
}


@dataclass(frozen=True)
class Job:
    """Define the training.

    images: in the training set.
    size: of the input images, in pixels.
    batch: images per step.
    steps: that are timed.
    """

    images: int
    size: int
    batch: int
    steps: int

    @property
    def epoch(self) -> int:
        """Steps per epoch."""
        return -(-self.images // self.batch)


Command = Callable[[Job, Path, Path], list[str]]  # (job, images, empty folder) -> program and arguments for steps.py


@dataclass(frozen=True)
class Contender:
    """Name a contender, and how to run it.

    peer: whose environment to use; None for this one.
    command: builds the program and arguments for steps.py.
    """

    name: str
    peer: str | None
    command: Command


def script(name: str, *flags: str) -> Command:
    """Build the command of a script in peers/."""

    def command(job: Job, data: Path, folder: Path) -> list[str]:
        return [str(HERE / "peers" / name), str(data), "--size", str(job.size), "--batch", str(job.batch), *flags]

    return command


def fmeco(job: Job, data: Path, folder: Path) -> list[str]:
    """Build fmeco's command, and write its config."""
    config = {
        "dataset": {"name": "image_folder", "path": str(data), "image_size": job.size},
        "backbone": "resnet18",
        "optimizer": {"name": "sgd", "lr": 0.05},
        "train": {"epochs": EPOCHS + 1, "batch_size": job.batch},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    return ["-m", "fmeco", "pretrain", "config.yaml", "--out", "run"]


def timm(train: Path, *flags: str) -> Command:
    """Build the command of timm's train.py."""

    def command(job: Job, data: Path, folder: Path) -> list[str]:
        files = ["--data-dir", str(data), "--val-split", "val", "--output", str(folder)]
        model = ["--device", "cpu", "--model", "resnet18", "--num-classes", str(CLASSES), "--img-size", str(job.size)]
        training = ["--batch-size", str(job.batch), "--opt", "sgd", "--lr", "0.05", "--color-jitter", "0"]
        return [str(train), *files, *model, *training, *flags]

    return command


def contenders(timm_train: Path | None, precision: str) -> list[Contender]:
    """List all contenders; timm only with the path of its train.py.

    precision: the faster one on this CPU, bf16 or fp32.
    """
    listed = [
        Contender("bare", None, script("bare.py", "--precision", precision)),
        Contender("bare retained", None, script("bare.py", "--precision", precision, "--retained")),
        Contender("fmeco", None, fmeco),
    ]
    if timm_train is not None:
        amp = ("--amp", "--amp-dtype", "bfloat16") if precision == "bf16" else ()
        best = (*amp, "--channels-last", "--workers", "1")
        listed += [
            Contender("timm", "timm", timm(timm_train.resolve())),
            Contender("timm best", "timm", timm(timm_train.resolve(), *best)),
        ]
    for peer in ("lightning", "transformers", "fastai", "lightly-train"):
        name = f"with_{peer.removesuffix('-train')}.py"
        listed += [
            Contender(peer, peer, script(name)),
            Contender(f"{peer} best", peer, script(name, "--best", "--precision", precision)),
        ]
    return listed


def faster_precision(job: Job) -> dict[str, Any]:
    """Measure which precision this CPU is faster in, in a process of its own. Returns what peers/precision.py prints."""
    command = [sys.executable, str(HERE / "peers" / "precision.py"), "--size", str(job.size), "--batch", str(job.batch)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"precision: {found['precision']} (a step takes {found['bf16']} s in bf16, {found['fp32']} s in fp32)",
        flush=True,
    )
    return found


def precision_of(session: dict[str, Any]) -> str:
    """Return the precision of `bare` and `best` in a session. Sessions that do not say it were all in bf16."""
    return str(session.get("precision", {"precision": "bf16"})["precision"])


# --- environments ---


def python_of(work: Path, peer: str | None) -> Path:
    """Return the Python interpreter of a peer's environment; None for this one."""
    return work / "environments" / peer / "bin" / "python" if peer else Path(sys.executable)


def setup(work: Path, peers: Iterable[str]) -> None:
    """Create a virtual environment for each peer, which finds torch in this one, and installs the rest."""
    for peer in peers:
        print(f"setting up {peer}", flush=True)
        folder = work / "environments" / peer
        venv.create(folder, clear=True, with_pip=True)
        packages = next(folder.glob("lib/python*/site-packages"))
        site_packages = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
        (packages / "shared.pth").write_text("".join(f"{path}\n" for path in site_packages))
        subprocess.run([python_of(work, peer), "-m", "pip", "install", "--quiet", *PACKAGES[peer]], check=True)
        if (packages / "torch").exists():
            print(f"{peer} does not accept the shared torch, and has installed its own", flush=True)


def versions(python: Path) -> dict[str, str]:
    """List the versions of all packages of an interpreter; of duplicates, the one that it would import."""
    code = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    process = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    packages = dict(reversed(json.loads(process.stdout)))
    return {"python": platform.python_version(), **{name: packages[name] for name in sorted(packages, key=str.lower)}}


# --- data ---


def make_data(work: Path, images: int) -> Path:
    """Generate JPEGs that decode like photographs: soft colours, some structure and fine grain; about 35 kB each."""
    folder = work / f"photos-{images}"
    if not folder.exists():
        print(f"making {images} photos", flush=True)
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        for split, count in (("train", images), ("val", 4 * CLASSES)):
            for number in range(count):
                draw(part / split / f"class{number % CLASSES}" / f"{number:05}.jpg", [number, split == "val"])
        part.rename(folder)
    return folder


def draw(file: Path, seed: list[int], width: int = 400, height: int = 533) -> None:
    """Generate one image."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    photo = np.full((height, width, 3), 128.0)
    for cells, strength in ((4, 45), (16, 20), (64, 7), (200, 4)):
        for channel in range(3):
            noise = Image.fromarray(rng.normal(0, strength, (cells * height // width, cells)).astype(np.float32))
            photo[..., channel] += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(file, quality=85)


# --- run ---


def run(
    work: Path, out: Path, job: Job, chosen: list[Contender], precision: dict[str, Any], rounds: int, limit: float
) -> int:
    """Run some more rounds. Returns the number of failures.

    precision: as `faster_precision` returned it.
    Each result is written to `out` as soon as its process ends.
    """
    results: dict[str, Any] = {"job": asdict(job), "sessions": [], "runs": []}
    if out.exists():
        results = json.loads(out.read_text())
    if results["job"] != asdict(job):
        sys.exit(f"{out} holds results of another job, {results['job']}: choose another --out")
    if others := {precision_of(session) for session in results["sessions"]} - {precision["precision"]}:
        sys.exit(
            f"{out} holds results in {others.pop()}, and this CPU is faster in {precision['precision']}: choose another --out"
        )
    data = make_data(work, job.images)
    packages = {
        peer or "fmeco": versions(python_of(work, peer)) for peer in {contender.peer: None for contender in chosen}
    }
    results["sessions"].append(
        {"start": time.strftime("%F %T"), "machine": machine(), "precision": precision, "versions": packages}
    )
    first, failures = 1 + max((contender["round"] for contender in results["runs"]), default=-1), 0
    for number in range(first, first + rounds):
        offset = number % len(chosen)
        for contender in chosen[offset:] + chosen[:offset]:
            record = {"round": number, "name": contender.name, **measure(work, job, data, contender, limit)}
            results["runs"].append(record)
            part = out.with_suffix(".part")
            part.write_text(json.dumps(results))
            part.replace(out)
            failures += "error" in record
            print(f"round {number}, {contender.name}: {summary(record, job)}", flush=True)
    return failures


def measure(work: Path, job: Job, data: Path, contender: Contender, limit: float) -> dict[str, Any]:
    """Run a contender. Returns the record of steps.py, and the machine's load before.

    If the process does not reach the last step, the record has a key `error`.
    """
    folder = work / "runs" / contender.name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    step_count = EPOCHS * job.epoch + job.steps if contender.name == "fmeco" else job.steps
    command = [str(python_of(work, contender.peer)), str(HERE / "steps.py"), "steps.json", str(step_count)]
    command += contender.command(job, data, folder)
    variables = {**os.environ, **VARIABLES, "LIGHTLY_TRAIN_CACHE_DIR": str(folder)}
    load = os.getloadavg()[0]
    with open(folder / "log.txt", "wb") as log:
        variables["STEPS_START"] = str(time.perf_counter())
        process = subprocess.Popen(
            command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # together with processes that it left behind
            process.wait()
    file = folder / "steps.json"
    record = json.loads(file.read_text()) if file.exists() else {"wall": []}
    if (config := folder / "run" / "config.yaml").exists() and contender.name == "fmeco":
        record["precision"] = re.search(r"^ +precision: (\w+)$", config.read_text(), re.MULTILINE)[1]
    if len(record["wall"]) < step_count:
        record["error"] = f"{len(record['wall'])} of {step_count} steps, see {folder / 'log.txt'}"
    return {**record, "load": load}


def machine() -> dict[str, Any]:
    """Describe this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": platform.platform(),
        "variables": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "MKL_", "MALLOC_", "LD_PRELOAD"))},
    }


# --- table ---


@dataclass(frozen=True)
class Measured:
    """Hold the figures of a contender in one round.

    speed: images per second in the median step.
    cpu: processor seconds per 1,000 images.
    first: seconds from the start of the process to the end of its first step.
    peak: MB of the main process.
    """

    speed: float
    cpu: float
    first: float
    peak: float


def measured(record: dict[str, Any], job: Job) -> dict[str, Measured]:
    """Compute a run's figures, by the label of its row. A run of fmeco has two rows: the first epoch, and later ones.

    A step takes the time since the step before it. The first step of a later epoch is not counted, as an evaluation
    comes before it.
    """
    wall, cpu, name = record["wall"], record["cpu"], record["name"]
    if name == "fmeco":
        images = job.images / job.epoch  # fmeco divides an epoch into equal batches
        parts = {"fmeco, epoch 1": range(WARM_UP, job.epoch), "fmeco, epoch 2 on": range(job.epoch, len(wall))}
    else:
        images = job.batch
        parts = {name: range(WARM_UP, len(wall))}
    figures = {}
    for label, steps in parts.items():
        counted = [step for step in steps if step % job.epoch]
        figures[label] = Measured(
            speed=images / statistics.median(wall[step] - wall[step - 1] for step in counted),
            cpu=1000 / images * statistics.mean(cpu[step] - cpu[step - 1] for step in counted),
            first=wall[0] - record["start"],
            peak=record["peak_mb"],
        )
    return figures


def rows(results: dict[str, Any]) -> list[str]:
    """Format a markdown table, fastest first: medians and ranges over the rounds.

    Ratios are to `bare` of the same round.
    """
    by_label: dict[str, dict[int, Measured]] = {}
    precisions: dict[str, set[str]] = {}
    for record in results["runs"]:
        if "error" not in record:
            for label, figures in measured(record, Job(**results["job"])).items():
                by_label.setdefault(label, {})[record["round"]] = figures
                precisions.setdefault(label, set()).add(record_precision(record, results))
    bare = by_label.get("bare", {})
    table = []
    for label, by_round in by_label.items():
        rounds = list(by_round.values())
        speeds = [figures.speed for figures in rounds]
        cells = [
            label,
            " or ".join(sorted(precisions[label])),
            spread(speeds, ".1f"),
            spread(
                [figures.speed / bare[number].speed for number, figures in by_round.items() if number in bare], ".2f"
            ),
            spread([figures.cpu for figures in rounds], ".1f"),
            spread([figures.first for figures in rounds], ".1f"),
            f"{statistics.median(figures.peak for figures in rounds):.0f}",
            str(len(rounds)),
        ]
        table.append((statistics.median(speeds), f"| {' | '.join(cells)} |"))
    return [
        "| contender | precision | images/s | share of the limit | CPU s per 1,000 images | first step, s | peak MB | n |",
        "|---|---|---|---|---|---|---|---|",
        *(row for _, row in sorted(table, reverse=True)),
    ]


def record_precision(record: dict[str, Any], results: dict[str, Any]) -> str:
    """Return the precision of a run: as measured for `bare` and `best`, as chosen by fmeco, else the peer's default."""
    name = record["name"]
    if name.startswith("bare") or (name.endswith(" best") and name != "lightly-train best"):
        return precision_of(results["sessions"][-1])
    return str(record.get("precision", "not recorded")) if name == "fmeco" else "its default"


def spread(values: list[float], form: str) -> str:
    """Format the median and the range: 26.1 (25.0..27.3)."""
    if not values:
        return "-"
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}..{max(values):{form}})"


def summary(record: dict[str, Any], job: Job) -> str:
    """Format the speeds of a record, or its error."""
    if "error" in record:
        return f"FAILED, {record['error']}"
    return "; ".join(f"{label}: {figures.speed:.1f} images/s" for label, figures in measured(record, job).items())


# --- command line ---


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("setup", help="create the environments of the peers")
    verb.add_argument("--work", type=Path, required=True, help="folder for environments, images and results")
    verb.add_argument("--only", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    verb = verbs.add_parser("run", help="measure more rounds")
    verb.add_argument("--work", type=Path, required=True, help="folder for environments, images and results")
    verb.add_argument("--out", type=Path, help="results file (default: WORK/images.json)")
    verb.add_argument("--rounds", type=int, default=1)
    verb.add_argument("--only", nargs="+", choices=[contender.name for contender in contenders(Path(), "fp32")])
    verb.add_argument("--timm-train", type=Path, help="train.py of timm's repository")
    verb.add_argument("--images", type=int, default=1000)
    verb.add_argument("--size", type=int, default=224)
    verb.add_argument("--batch", type=int, default=32)
    verb.add_argument("--steps", type=int, default=12)
    verb.add_argument("--limit", type=float, default=900, help="timeout of one process, in seconds")
    verb = verbs.add_parser("table", help="print the results as a table")
    verb.add_argument("results", type=Path)
    args = parser.parse_args()
    if args.verb == "table":
        print("\n".join(rows(json.loads(args.results.read_text()))))
        return 0
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if args.verb == "setup":
        setup(work, args.only)
        return 0
    job = Job(args.images, args.size, args.batch, args.steps)
    if not WARM_UP < job.steps <= job.images // job.batch:
        parser.error(f"--steps must be more than {WARM_UP}, and fit in an epoch")
    if args.timm_train is None:
        print("skipping timm: no --timm-train", flush=True)
    precision = faster_precision(job)
    chosen = []
    for contender in contenders(args.timm_train, precision["precision"]):
        if args.only and contender.name not in args.only:
            continue
        if python_of(work, contender.peer).exists():
            chosen.append(contender)
        else:
            print(f"skipping {contender.name}: it has no environment; `setup` creates one", flush=True)
    failures = run(work, (args.out or work / "images.json").resolve(), job, chosen, precision, args.rounds, args.limit)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
