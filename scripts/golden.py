"""Write the golden files: finished checkpoints and stopped runs that every later version must read with equal results.

    python scripts/golden.py [FOLDER]      FOLDER: default tests/golden/format1

    FOLDER/finished/NAME/   checkpoint/, a few inputs/, and predictions.json with the model's predictions for them
    FOLDER/stopped/NAME/    run/, stopped in the middle, and its data if it is a file
                            expected.safetensors: tensors of the last checkpoint after a copy of the run was resumed
                            expected.json: metrics of its best checkpoint, its log, and the machine

tests/checkpoints/test_golden.py loads and resumes them. Existing entries are never rewritten, as their value is that old code made
them: add entries, and use a new folder for a new format. The data is generated, or scikit-learn's digits. The script
uses only the public API, config keys and file formats, so that it survives changes of the internals.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import fmeco

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden" / "format1"
LIMIT = 200_000  # largest size of an entry, in bytes
LOCAL = ("run.log", "report.html", "tensorboard", ".lock", "*.tmp")  # files of a run that resuming does not need
SAVED_AND_LEFT = 75  # exit code of a run that was stopped after saving
COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40), "white": (220, 220, 220)}
Config = dict[str, Any]
Stop = Callable[[], bool]


def machine() -> dict[str, Any]:
    """Describe what the bits of a run depend on.

    A processor's name may be that of a whole family, so its model numbers are included.
    """
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text("utf-8")
        keys = ("vendor_id", "model name", "cpu family", "model", "stepping")
        matches = [re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE) for key in keys]
        cpu = ", ".join(match[1] for match in matches if match) or cpu
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
    }


def last_tensors(run: Path) -> dict[str, Tensor]:
    """Read the weights of a run's last checkpoint, named backbone/NAME and objective/NAME."""
    parts = {part: load_file(run / f"checkpoints/last/{part}.safetensors") for part in ("backbone", "objective")}
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def logged(run: Path) -> list[Config]:
    """Read a run's metrics.jsonl, without values that depend on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    timed = ("samples_per_second", "compute_share", "data_share", "evaluate_share", "save_share")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


# ---------------------------------------------------------------- data


def picture(path: str, colour: str, seed: int, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> str:
    """Write an image of mostly one colour, with noise in blocks of 4 pixels, which compresses well. Returns the path.

    A JPEG is stored rotated, with an EXIF orientation.
    """
    rng = np.random.default_rng(seed)
    blocks = rng.integers(-50, 50, (-(-size[1] // 4), -(-size[0] // 4), 3)).repeat(4, 0).repeat(4, 1)
    pixels = (np.array(COLOURS[colour]) + blocks[: size[1], : size[0]]).clip(0, 255)
    image = Image.fromarray(pixels.astype("uint8"))
    if mode in ("RGBA", "P"):
        image.putalpha(Image.fromarray(pixels[..., 2].astype("uint8")))
    if mode == "P":
        image = image.quantize(8)
    elif mode == "I;16":
        image = Image.fromarray((pixels.mean(2) * 255 + blocks[: size[1], : size[0], 0] * 3 + 150).astype("uint16"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"exif": exif} if path.endswith(".jpg") else {}))
    return path


def photos(folder: str, *classes: str, each: int = 12) -> str:
    """Write `each` images of every class into class folders. Returns the folder."""
    for c, name in enumerate(classes):
        for i in range(each):
            picture(f"{folder}/{name}/{i:02}.png", name, seed=100 * c + i, size=(24 + i, 30 - i))
    return folder


def table(path: str, rows: int, seed: int, targets: bool = True) -> str:
    """Write a table of numbers and a category, with all spellings of missing values and of splits. Returns the path.

    targets: also write two targets, which some rows lack.
    """
    rng = np.random.default_rng(seed)
    gaps, parts = ("", "na", "N/A", "NaN", "null", "None", "?"), ("train", "Train", "valid", "TRAIN", "VAL", "test")
    lines = ["width,height,shape,ripe,weight,part" if targets else "width,height,shape"]
    for i in range(rows):
        width, height, shape = rng.uniform(1, 9), rng.integers(10, 99), ("round", "oval", "flat")[rng.integers(3)]
        ripe = "yes" if width + height / 20 + (shape == "oval") > 8 else "no"
        spelled = gaps[i % 7] if i % 9 == 4 else (f"{width:.3f}", f" {width:.2e}", f"+{width:.1f}")[i % 3]
        cells = [spelled, gaps[(i + 3) % 7] if i % 11 == 5 else str(height), "" if i % 13 == 6 else shape]
        if targets:
            weight = f"{width * height / 10 + rng.normal():.2f}"
            cells += ["" if i % 10 == 7 else ripe, "na" if i % 10 == 3 else weight, parts[rng.integers(6)]]
        lines.append(",".join(cells))
    Path(path).write_text("\n".join(lines) + "\n", "utf-8")
    return path


def texts(path: str, each: int, labels: bool = True) -> str:
    """Write `each` short texts of two classes as JSON lines. Returns the path."""
    words = {"animal": ["cat", "dog", "cow", "hen", "owl"], "tool": ["saw", "axe", "drill", "file", "rasp"]}
    rows = [
        {"text": " ".join(words[label][(i * i + j * (i + 1)) % 5] for j in range(2 + i % 12)) + f" {i}"}
        | ({"label": label} if labels else {})
        for i in range(each)
        for label in words
    ]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def tone(path: str, pitch: float, seed: int, rate: int = 8000, channels: int = 1) -> str:
    """Write a noisy sine wave of random length. Returns the path. pitch, rate: Hz."""
    import soundfile

    rng = np.random.default_rng(seed)
    t = np.arange(int(rate * rng.uniform(0.15, 0.4))) / rate
    wave = 0.3 * np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * t) + 0.01 * rng.standard_normal(len(t))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack([wave] * channels, 1), rate)
    return path


def events(path: str, users: int, each: int) -> str:
    """Write events of users who go through 12 items in a circle, each from another start. Returns the path."""
    rows = [f"u{u},i{(5 * u + k) % 12},{1000 * k + u}" for k in range(each) for u in range(users)]
    Path(path).write_text("\n".join(["user,item,time", *rows]) + "\n", "utf-8")
    return path


def hours(path: str, rows: int) -> str:
    """Write two hourly series with a period of 24 hours. Returns the path."""
    rng = np.random.default_rng(0)
    lines = ["time,a,b"]
    for i in range(rows):
        a, b = (10 * c + (c + 1) * math.sin(math.tau * (i + 5 * c) / 24) + 0.1 * rng.normal() for c in range(2))
        lines.append(f"2024-{1 + i // 720:02}-{1 + i // 24 % 30:02} {i % 24:02}:00:00,{a:.4f},{b:.4f}")
    Path(path).write_text("\n".join(lines) + "\n", "utf-8")
    return path


# ---------------------------------------------------------------- configs

TRANSFORMER = {"name": "transformer", "width": 8, "depth": 1, "heads": 2}
CNN = {"name": "cnn", "widths": [4, 8]}
MLP = {"name": "mlp", "hidden": [16, 16], "batch_norm": False, "dropout": 0.2}
DIGITS = {"name": "digits", "classes": [0, 1, 2], "image_size": 8, "limit_per_class": 20}
TASK = {"name": "digits", "classes": [1, 5, 7], "limit_per_class": 20}


def config(dataset: Config, backbone: Config | None = None, steps: int = 24, **sections: Any) -> Config:
    """Build the config of a short run on the CPU in fp32. Without a backbone, it is for finetuning."""
    train = {"steps": steps, "batch_size": 12, "device": "cpu", "precision": "fp32", "workers": 0, "keep": 1}
    train |= {"tensorboard": False, "log_every": 5, **sections.pop("train", {})}
    optimizer = sections.pop("optimizer", {"name": "adamw", "lr": 5e-3})
    body = {"backbone": backbone} if backbone else {}
    return {"dataset": dataset, **body, "optimizer": optimizer, "train": train, "evaluate": {"every": 1000}, **sections}


# ---------------------------------------------------------------- finished checkpoints
# Each function works in an empty folder. It returns a checkpoint and inputs to predict: texts, or files of inputs/.


def image() -> tuple[Path, list[str]]:
    fmeco.pretrain(
        config({"name": "image_folder", "path": photos("photos", "blue", "green", "red"), "image_size": 16}, CNN),
        out="source",
    )
    tuned = fmeco.finetune(
        config({"name": "image_folder", "path": photos("others", "green", "red", "white")}), ref="source", out="tuned"
    )
    return tuned.checkpoint, [
        picture("inputs/plain.png", "green", 1),
        picture("inputs/odd.png", "red", 2, (37, 23)),
        picture("inputs/alpha.png", "white", 3, mode="RGBA"),
        picture("inputs/palette.png", "red", 4, mode="P"),
        picture("inputs/deep.png", "white", 5, mode="I;16"),
        picture("inputs/large.jpg", "green", 6, (201, 150)),
    ]


def tabular() -> tuple[Path, list[str]]:
    dataset = {"name": "csv_table", "path": table("data.csv", 90, 0), "target": "ripe", "drop": ["weight", "part"]}
    text = Path("data.csv").read_text("utf-8").splitlines()
    Path("data.csv").write_text("\n".join(line for line in text if line.split(",")[3]) + "\n", "utf-8")
    run = fmeco.pretrain(config(dataset, {**MLP, "hidden": [16], "batch_norm": True, "embedding": 3}), out="run")
    return run.checkpoint, [table("inputs/new.csv", 16, 1, targets=False)]


def text() -> tuple[Path, list[str]]:
    dataset = {"name": "text", "path": texts("data.jsonl", 20), "vocabulary": 300, "length": 12}
    fmeco.pretrain(config({**dataset, "label": None}, TRANSFORMER, objective="mask"), out="source")
    tuned = fmeco.finetune(config({"name": "text", "path": "data.jsonl"}), ref="source", out="tuned")
    return tuned.checkpoint, ["a cat and a dog", "Saw, axe: über!", texts("inputs/new.jsonl", 3, labels=False)]


def audio() -> tuple[Path, list[str]]:
    for i in range(12):
        tone(f"tones/high/{i:02}.wav", 1800, i)
        tone(f"tones/low/{i:02}.wav", 300, 100 + i)
    dataset = {"name": "audio", "path": "tones", "sample_rate": 8000, "seconds": 0.3, "mels": 16}
    run = fmeco.pretrain(config(dataset, CNN), out="run")
    return run.checkpoint, [tone("inputs/low.wav", 300, 7), tone("inputs/high.wav", 1800, 8, rate=16000, channels=2)]


def recommendation() -> tuple[Path, list[str]]:
    dataset = {"name": "events", "path": events("data.csv", 20, 9), "length": 5}
    run = fmeco.pretrain(config(dataset, {**TRANSFORMER, "causal": True}, objective="next"), out="run")
    return run.checkpoint, ["i3,i8,i1", events("inputs/new.csv", 4, 4)]


def forecast() -> tuple[Path, list[str]]:
    dataset = {"name": "series", "path": hours("data.csv", 400), "context": 48, "horizon": 0, "season": 24}
    fmeco.pretrain(config(dataset, {**TRANSFORMER, "patch": 12}, objective="mask"), out="source")
    tuned = fmeco.finetune(config({"name": "series", "path": "data.csv", "horizon": 12}), ref="source", out="tuned")
    return tuned.checkpoint, [hours("inputs/new.csv", 60)]


FINISHED: dict[str, Callable[[], tuple[Path, list[str]]]] = {
    "image": image,
    "table": tabular,
    "text": text,
    "audio": audio,
    "events": recommendation,
    "series": forecast,
}


def finish(name: str, out: Path) -> None:
    """Make a finished checkpoint in the current folder, and copy it with its predictions to `out`."""
    Path("inputs").mkdir()
    checkpoint, inputs = FINISHED[name]()
    shutil.copytree(checkpoint, out / "checkpoint")
    shutil.copytree("inputs", out / "inputs")
    with contextlib.chdir(out):
        rows = fmeco.load("checkpoint").predict(inputs)
        Path("predictions.json").write_text(json.dumps({"inputs": inputs, "rows": rows}, indent=1) + "\n", "utf-8")


# ---------------------------------------------------------------- stopped runs
# Each function works in an empty folder, and trains into run/ until `stop` returns True.


def adamw(stop: Stop) -> None:
    fmeco.pretrain(config(DIGITS, MLP), out="run", stop=stop)


def muon(stop: Stop) -> None:
    """Train with Muon for convolutions and AdamW for the rest, with batch norms and random image shifts."""
    optimizer = {"name": "muon", "lr": 1e-3}
    fmeco.pretrain(config(DIGITS, CNN, optimizer=optimizer, augment={"name": "light", "flip": 0}), out="run", stop=stop)


def ema(stop: Stop) -> None:
    """Train with averaged weights, and with everything else that a step depends on.

    That is: the evaluations so far, mixup, micro-batches, clipping and balanced sampling.
    """
    sections: Config = {
        "objective": {"name": "classification", "mixup": 0.4},
        "optimizer": {"name": "adamw", "lr": 0.02},  # too high: the second evaluation is worse, and the rate drops
        "schedule": {"name": "plateau", "patience": 1},
        "train": {"ema": 0.9, "micro_batch": 5, "clip_norm": 0.5, "sampler": "balanced"},
        "evaluate": {"every": 1},
    }
    fmeco.pretrain(config(DIGITS, MLP, **sections), out="run", stop=stop)


def finetuned(transfer: Config) -> Callable[[Stop], None]:
    """Build a function that finetunes with a transfer strategy."""

    def begin(stop: Stop) -> None:
        fmeco.pretrain(config(DIGITS, MLP), out="source")
        fmeco.finetune(config(TASK, transfer=transfer), ref="source", out="run", stop=stop)

    return begin


def multi_task(stop: Stop) -> None:
    """Train on a class and a number, each of which some rows lack, with a category's embedding."""
    columns = {"target": ["ripe", "weight"], "split_column": "part"}
    dataset = {"name": "csv_table", "path": table("data.csv", 90, 0), **columns}
    fmeco.pretrain(config(dataset, {**MLP, "embedding": 3}, objective=TASKS), out="run", stop=stop)


def teacher(stop: Stop) -> None:
    """Train an objective with a teacher and statistics of its own, over views of two sizes."""
    objective = {"name": "dino", "prototypes": 24, "local": 1, "local_size": 0.75, "hidden": 16, "projection": 8}
    off = {"every": 1000, "health": "off"}
    # adamw would amplify gradients that are only noise: those of biases before a batch norm.
    sgd = {"name": "sgd", "lr": 0.05}
    fmeco.pretrain(config(DIGITS, CNN, objective=objective, optimizer=sgd, evaluate=off), out="run", stop=stop)


def folders(stop: Stop) -> None:
    """Train on image files whose folders name the splits, with random crops and erased boxes."""
    photos("data/training", "green", "red", each=12)
    photos("data/valid", "green", "red", each=3)
    dataset = {"name": "image_folder", "path": "data", "image_size": 12}
    augment = {"name": "standard", "erase": 0.5}
    fmeco.pretrain(config(dataset, CNN, augment=augment), out="run", stop=stop)


def mask(stop: Stop) -> None:
    """Train on texts with randomly masked words, in batches of similar lengths."""
    dataset = {"name": "text", "path": texts("data.jsonl", 20), "label": None, "vocabulary": 300, "length": 12}
    fmeco.pretrain(config(dataset, TRANSFORMER, objective="mask"), out="run", stop=stop)


TASKS = {"name": "multi_task", "tasks": {"ripe": "classification", "weight": "regression"}, "weights": {"weight": 0.5}}
# Name -> (function, number of times that `stop` returns False, about once a step, phase in which the run then stops).
STOPPED: dict[str, tuple[Callable[[Stop], None], int, int]] = {
    "adamw": (adamw, 14, 0),
    "muon": (muon, 14, 0),
    "ema": (ema, 16, 0),
    "lora": (finetuned({"strategy": "lora", "rank": 2, "lr": 2}), 14, 0),
    "lp_ft": (finetuned({"strategy": "lp_ft", "probe_lr": 2, "backbone_lr": 0.5}), 16, 1),
    "l2sp": (finetuned({"strategy": "l2sp", "alpha": 0.1}), 14, 0),
    "multi_task": (multi_task, 14, 0),
    "teacher": (teacher, 14, 0),
    "folders": (folders, 14, 0),
    "mask": (mask, 14, 0),
}


def begun(name: str, out: Path) -> None:
    """Stop a run in the current folder, copy it to `out`, and add the results of resuming another copy."""
    begin, polls, phase = STOPPED[name]
    answers = itertools.count()
    try:
        begin(lambda: next(answers) >= polls)
    except fmeco.FmecoError as error:
        if error.exit_code != SAVED_AND_LEFT:
            raise
    shutil.copytree("run", out / "run", symlinks=True, ignore=shutil.ignore_patterns(*LOCAL))
    settings = out / "run" / "config.yaml"
    settings.write_text(settings.read_text("utf-8").replace(f"{os.getcwd()}/", ""), "utf-8")
    for data in Path().glob("data*"):
        (shutil.copytree if data.is_dir() else shutil.copy)(data, out / data.name)
    state = json.loads((out / "run/checkpoints/last/trainer.json").read_text("utf-8"))["state"]
    assert 0 < state["step"] < state["total"] and state["phase"] == phase, (name, state)

    shutil.copytree(out, "copy", symlinks=True)
    out = out.resolve()
    with contextlib.chdir("copy"):
        result = fmeco.resume("run", overrides=moved(Path()))
        save_file(last_tensors(Path("run")), out / "expected.safetensors")
        expected = {"metrics": result.metrics, "log": logged(Path("run")), "machine": machine()}
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")


def moved(entry: Path) -> list[str]:
    """Return the overrides that point a stopped run to the data of its entry."""
    return [f"dataset.path={data}" for data in entry.glob("data*")]


# ---------------------------------------------------------------- all of them


def check(entry: Path, name: str) -> None:
    """Refuse an entry that is too large, or that contains paths of this machine."""
    files = [path for path in entry.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    places = {os.getcwd(), tempfile.gettempdir(), str(Path.home()), str(FOLDER.parents[2])}
    with_paths = [path for path in files for place in places if place != "/" and place.encode() in path.read_bytes()]
    if size > LIMIT or with_paths:
        raise SystemExit(f"{name}: {size:,} bytes; files that contain paths of this machine: {with_paths}")
    print(f"{name}: {len(files)} files, {size:,} bytes", flush=True)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else FOLDER).resolve()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"HOME": home, "XDG_CACHE_HOME": home}
        for kind, names, make in (("finished", FINISHED, finish), ("stopped", STOPPED, begun)):
            for name in names:
                entry = folder / kind / name
                if entry.exists():
                    continue
                with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
                    Path("work").mkdir()
                    Path("out").mkdir()
                    with contextlib.chdir("work"):
                        make(name, Path("../out"))
                    check(Path("out").resolve(), f"{kind}/{name}")
                    shutil.copytree("out", entry, symlinks=True)


if __name__ == "__main__":
    main()
