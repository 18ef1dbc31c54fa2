"""The same training by fmeco and by its peers, on a CPU: images per second, processor time, first step, memory. Linux.

    python scripts/bench/images.py setup --work W           # an environment for each peer; torch is shared with this one
    python scripts/bench/images.py run --work W --rounds 5  # once more = more rounds
    python scripts/bench/images.py table W/images.json

Run it with the Python that has fmeco. The job: torchvision's resnet18 with 10 classes, 224 pixels, batches of 32, random
resized crop and flip, SGD with momentum, cross-entropy, on 1,000 JPEGs of 400 x 533 pixels that are made here. Every
contender is a process of its own under steps.py; a round has all of them, and each round begins with another one.

`bare` is the limit that all are divided by, round by round: a loop in bfloat16 over a batch that lies in memory. A peer is as
it comes but for the job; its `best` has the fastest settings that we know for a CPU: bfloat16, channels_last, one worker.
fmeco has no flags, and adds a change of colour to the augmentation. lightly-train has AdamW, and no way to change that.

timm's train.py is not in its package: take it from its repository, and give its path by --timm-train.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
WARM_UP = 3  # steps that are not counted
EPOCHS = 2  # that fmeco runs in full; --steps more follow. The others run --steps of their first epoch.
CLASSES = 10
PACKAGES = {
    "timm": ["timm"],
    "lightning": ["lightning"],
    "transformers": ["transformers", "accelerate"],
    "fastai": ["fastai"],
    "lightly-train": ["lightly-train"],
}
# No GPU, and nobody waits for a network.
VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
}


@dataclass(frozen=True)
class Job:
    images: int
    size: int
    batch: int
    steps: int

    @property
    def epoch(self) -> int:
        """The steps of an epoch."""
        return -(-self.images // self.batch)


Command = Callable[[Job, Path, Path], list[str]]  # the job, its images, an empty folder -> what steps.py runs


@dataclass(frozen=True)
class Contender:
    name: str
    peer: str | None  # whose environment; None is this one
    command: Command


def script(name: str, *flags: str) -> Command:
    def command(job: Job, data: Path, folder: Path) -> list[str]:
        return [str(HERE / "peers" / name), str(data), "--size", str(job.size), "--batch", str(job.batch), *flags]

    return command


def fmeco(job: Job, data: Path, folder: Path) -> list[str]:
    config = {
        "dataset": {"name": "image_folder", "path": str(data), "image_size": job.size},
        "backbone": "resnet18",
        "optimizer": {"name": "sgd", "lr": 0.05},
        "train": {"epochs": EPOCHS + 1, "batch_size": job.batch},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    return ["-m", "fmeco", "pretrain", "config.yaml", "--out", "run"]


def timm(train: Path, *flags: str) -> Command:
    def command(job: Job, data: Path, folder: Path) -> list[str]:
        files = ["--data-dir", str(data), "--val-split", "val", "--output", str(folder)]
        model = ["--device", "cpu", "--model", "resnet18", "--num-classes", str(CLASSES), "--img-size", str(job.size)]
        training = ["--batch-size", str(job.batch), "--opt", "sgd", "--lr", "0.05", "--color-jitter", "0"]
        return [str(train), *files, *model, *training, *flags]

    return command


def contenders(timm_train: Path | None) -> list[Contender]:
    """All; timm only with its script."""
    found = [
        Contender("bare", None, script("bare.py")),
        Contender("bare retained", None, script("bare.py", "--retained")),
        Contender("fmeco", None, fmeco),
    ]
    if timm_train is not None:
        best = ("--amp", "--amp-dtype", "bfloat16", "--channels-last", "--workers", "1")
        found += [
            Contender("timm", "timm", timm(timm_train.resolve())),
            Contender("timm best", "timm", timm(timm_train.resolve(), *best)),
        ]
    for peer in ("lightning", "transformers", "fastai", "lightly-train"):
        name = f"with_{peer.removesuffix('-train')}.py"
        found += [Contender(peer, peer, script(name)), Contender(f"{peer} best", peer, script(name, "--best"))]
    return found


# --- environments ---


def python_of(work: Path, peer: str | None) -> Path:
    return work / "environments" / peer / "bin" / "python" if peer else Path(sys.executable)


def setup(work: Path, peers: Iterable[str]) -> None:
    """A virtual environment per peer, which finds torch among the packages of this one and has the rest of its own."""
    for peer in peers:
        print(f"setting up {peer}", flush=True)
        folder = work / "environments" / peer
        venv.create(folder, clear=True, with_pip=True)
        packages = next(folder.glob("lib/python*/site-packages"))
        here = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
        (packages / "shared.pth").write_text("".join(f"{path}\n" for path in here))
        subprocess.run([python_of(work, peer), "-m", "pip", "install", "--quiet", *PACKAGES[peer]], check=True)
        if (packages / "torch").exists():
            print(f"{peer} does not accept the torch that is there, and has another of its own", flush=True)


def versions(python: Path) -> dict[str, str]:
    """Every package that this interpreter finds; of two, the one that it would import."""
    code = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    found = dict(reversed(json.loads(done.stdout)))
    return {"python": platform.python_version(), **{name: found[name] for name in sorted(found, key=str.lower)}}


# --- data ---


def make_data(work: Path, images: int) -> Path:
    """JPEGs like photographs in weight and in work: soft colours, some structure, fine grain; about 35 kB each."""
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


def run(work: Path, out: Path, job: Job, chosen: list[Contender], rounds: int, limit: float) -> int:
    """Some rounds more. What a process has measured is in `out` as soon as it has ended. Returns the number of failures."""
    results: dict[str, Any] = {"job": asdict(job), "sessions": [], "runs": []}
    if out.exists():
        results = json.loads(out.read_text())
    if results["job"] != asdict(job):
        sys.exit(f"{out} is of another job, {results['job']}: name another --out")
    data = make_data(work, job.images)
    found = {peer or "fmeco": versions(python_of(work, peer)) for peer in {one.peer: None for one in chosen}}
    results["sessions"].append({"start": time.strftime("%F %T"), "machine": machine(), "versions": found})
    first, failures = 1 + max((one["round"] for one in results["runs"]), default=-1), 0
    for number in range(first, first + rounds):
        turn = number % len(chosen)
        for contender in chosen[turn:] + chosen[:turn]:
            record = {"round": number, "name": contender.name, **measure(work, job, data, contender, limit)}
            results["runs"].append(record)
            part = out.with_suffix(".part")
            part.write_text(json.dumps(results))
            part.replace(out)
            failures += "error" in record
            print(f"round {number}, {contender.name}: {summary(record, job)}", flush=True)
    return failures


def measure(work: Path, job: Job, data: Path, contender: Contender, limit: float) -> dict[str, Any]:
    """The record of steps.py of one contender, and the machine's load before; `error` says that it did not get through."""
    folder = work / "runs" / contender.name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    most = EPOCHS * job.epoch + job.steps if contender.name == "fmeco" else job.steps
    command = [str(python_of(work, contender.peer)), str(HERE / "steps.py"), "steps.json", str(most)]
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
                os.killpg(process.pid, signal.SIGKILL)  # and what it may have left behind
            process.wait()
    file = folder / "steps.json"
    record = json.loads(file.read_text()) if file.exists() else {"wall": []}
    if len(record["wall"]) < most:
        record["error"] = f"{len(record['wall'])} of {most} steps, see {folder / 'log.txt'}"
    return {**record, "load": load}


def machine() -> dict[str, Any]:
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
    speed: float  # images per second in the median step
    cpu: float  # processor seconds for 1,000 images
    first: float  # seconds from the start of the process to the end of its first step
    peak: float  # MB, of the main process


def measured(record: dict[str, Any], job: Job) -> dict[str, Measured]:
    """A run's figures by the label of its row. A run of fmeco has two rows: its first epoch, and those after it.

    A step takes the time since the step before it; the first of a later epoch is not counted, as an evaluation lies between.
    """
    wall, cpu, name = record["wall"], record["cpu"], record["name"]
    if name == "fmeco":
        images = job.images / job.epoch  # it cuts an epoch into equal batches
        parts = {"fmeco, epoch 1": range(WARM_UP, job.epoch), "fmeco, epoch 2 on": range(job.epoch, len(wall))}
    else:
        images = job.batch
        parts = {name: range(WARM_UP, len(wall))}
    found = {}
    for label, steps in parts.items():
        counted = [step for step in steps if step % job.epoch]
        found[label] = Measured(
            speed=images / statistics.median(wall[step] - wall[step - 1] for step in counted),
            cpu=1000 / images * statistics.mean(cpu[step] - cpu[step - 1] for step in counted),
            first=wall[0] - record["start"],
            peak=record["peak_mb"],
        )
    return found


def rows(results: dict[str, Any]) -> list[str]:
    """A markdown table, fastest first: medians (and ranges) over the rounds. A ratio is to `bare` of the same round."""
    found: dict[str, dict[int, Measured]] = {}
    for record in results["runs"]:
        if "error" not in record:
            for label, one in measured(record, Job(**results["job"])).items():
                found.setdefault(label, {})[record["round"]] = one
    bare = found.get("bare", {})
    table = []
    for label, by_round in found.items():
        every = list(by_round.values())
        speeds = [one.speed for one in every]
        cells = [
            label,
            spread(speeds, ".1f"),
            spread([one.speed / bare[number].speed for number, one in by_round.items() if number in bare], ".2f"),
            spread([one.cpu for one in every], ".1f"),
            spread([one.first for one in every], ".1f"),
            f"{statistics.median(one.peak for one in every):.0f}",
            str(len(every)),
        ]
        table.append((statistics.median(speeds), f"| {' | '.join(cells)} |"))
    return [
        "| contender | images/s | share of the limit | CPU s per 1,000 images | first step, s | peak MB | n |",
        "|---|---|---|---|---|---|---|",
        *(row for _, row in sorted(table, reverse=True)),
    ]


def spread(values: list[float], form: str) -> str:
    """The median and the range: 26.1 (25.0..27.3)."""
    if not values:
        return "-"
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}..{max(values):{form}})"


def summary(record: dict[str, Any], job: Job) -> str:
    if "error" in record:
        return f"FAILED, {record['error']}"
    return "; ".join(f"{label}: {one.speed:.1f} images/s" for label, one in measured(record, job).items())


# --- command line ---


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("setup", help="make the peers' environments")
    verb.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    verb.add_argument("--only", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    verb = verbs.add_parser("run", help="measure, in addition to what was measured before")
    verb.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    verb.add_argument("--out", type=Path, help="default: WORK/images.json")
    verb.add_argument("--rounds", type=int, default=1)
    verb.add_argument("--only", nargs="+", choices=[one.name for one in contenders(Path())])
    verb.add_argument("--timm-train", type=Path, help="train.py of timm's repository")
    verb.add_argument("--images", type=int, default=1000)
    verb.add_argument("--size", type=int, default=224)
    verb.add_argument("--batch", type=int, default=32)
    verb.add_argument("--steps", type=int, default=12)
    verb.add_argument("--limit", type=float, default=900, help="seconds for one process")
    verb = verbs.add_parser("table", help="print what was measured")
    verb.add_argument("results", type=Path)
    given = parser.parse_args()
    if given.verb == "table":
        print("\n".join(rows(json.loads(given.results.read_text()))))
        return 0
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if given.verb == "setup":
        setup(work, given.only)
        return 0
    job = Job(given.images, given.size, given.batch, given.steps)
    if not WARM_UP < job.steps <= job.images // job.batch:
        parser.error(f"--steps must be over {WARM_UP} and fit in an epoch")
    if given.timm_train is None:
        print("without timm: no --timm-train", flush=True)
    chosen = []
    for one in contenders(given.timm_train):
        if given.only and one.name not in given.only:
            continue
        if python_of(work, one.peer).exists():
            chosen.append(one)
        else:
            print(f"without {one.name}: no environment, `setup` makes it", flush=True)
    failures = run(work, (given.out or work / "images.json").resolve(), job, chosen, given.rounds, given.limit)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
