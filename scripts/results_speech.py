"""Digit strings of a speaker that training did not hear: from scratch, and from a classifier of single spoken digits.

    python scripts/results_speech.py FOLDER OUT [--seeds 0 1 2] [--shares 1 0.1]     FOLDER/DIGIT/DIGIT_SPEAKER_N.wav

A string is 3 to 5 recordings of one speaker, one after the other with short pauses, and its transcript the digits as
words; OUT/strings holds them. Each seed tests another of four speakers or more and validates on the next; the classifier
and the recogniser are trained on the others, and of one round no recording is in two strings. Shares are of the training
strings, of which fewer are seen more often. What is in OUT already is not trained again. There is no plain baseline beside
them: methods without a network that read strings of words are no plain ones. Prints a table of docs/results.md; the
interval of a gain is a bootstrap over test strings.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import platform
import random
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

import fmeco
from fmeco.core import Objective
from fmeco.evaluation.measure import measure
from fmeco.nn.intervals import bootstrap

DRAWS = 1000
ROUNDS = 6  # strings are made of all recordings of a speaker so many times, in another order each time
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MORE = 4  # times as many epochs, at most, where there are fewer strings
SECONDS = 3.0  # strings that are longer are left out
# A step of 40 ms; positions that are rotations fit recordings of any length.
BACKBONE = {"name": "transformer", "width": 96, "depth": 4, "patch": [32, 4], "positions": "rotary"}
SOUNDS = {"name": "audio", "sample_rate": 8000, "mels": 32, "split_column": "split", "group_split": "speaker"}
MASKS = {"name": "specaugment", "time": 0.03}  # a share of 3 s: a mask must not hide a word


class Tried(NamedTuple):
    objective: Objective
    rows: dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.1])
    parser.add_argument("--epochs", type=float, default=15)
    given = parser.parse_args()
    strings = compose(given.data, given.out / "strings")
    found: dict[tuple[float, str], list[Tried]] = {}
    for seed, share in itertools.product(given.seeds, given.shares):
        for name, tried in recognisers(given.data, given.out, strings, seed, share, given.epochs).items():
            found.setdefault((share, name), []).append(tried)
            metrics = {key: round(value, 3) for key, value in tried.objective.metrics(tried.rows).items()}
            print(f"seed {seed}, {share:.0%} of the strings, {name}: {metrics}", flush=True)
    machine = platform.processor() or platform.machine()
    print(f"\n{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print("| strings | | test WER | CER | each seed's WER | WER less than from scratch, 95% interval |")
    print("|---|---|---|---|---|---|")
    for (share, name), tried in sorted(found.items(), key=lambda one: (-one[0][0], one[0][1] != "scratch")):
        each = [one.objective.metrics(one.rows) for one in tried]
        wer, cer = (statistics.mean(one[key] for one in each) for key in ("wer", "cer"))
        gain = "" if name == "scratch" else fewer(tried, found[share, "scratch"])
        seeds = ", ".join(f"{one['wer']:.3f}" for one in each)
        print(f"| {share:.0%} | {name} | {wer:.3f} | {cer:.3f} | {seeds} | {gain} |")


def fewer(mine: list[Tried], theirs: list[Tried]) -> str:
    """How much lower the WER is over the test strings of all seeds together."""
    pooled = [
        {name: torch.cat([one.rows[name] for one in tried]) for name in tried[0].rows} for tried in (theirs, mine)
    ]

    def difference(at: Tensor) -> float:
        before, now = (mine[0].objective.metrics({name: x[at] for name, x in rows.items()})["wer"] for rows in pooled)
        return before - now

    count = len(pooled[0]["index"])
    low, high = bootstrap(count, DRAWS, 0, difference)
    return f"{difference(torch.arange(count)):+.3f} ({low:+.3f} to {high:+.3f})"


def compose(data: Path, out: Path) -> list[dict[str, str]]:
    """Strings of each speaker's recordings as WAV files, and OUT/strings.csv with their transcripts."""
    by_speaker: dict[str, list[Path]] = {}
    for path in sorted(data.rglob("*.wav")):
        by_speaker.setdefault(path.stem.split("_")[1], []).append(path)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for speaker, files in by_speaker.items():
        draw = random.Random(speaker)
        for _ in range(ROUNDS):
            left = draw.sample(files, len(files))
            while len(left) >= 3:
                taken, left = left[: (size := draw.randint(3, 5))], left[size:]
                if len(taken) >= 3:
                    name = f"{speaker}_{len(rows):04}.wav"
                    said = " ".join(WORDS[int(path.stem.split("_")[0])] for path in taken)
                    if _join(taken, out / name, draw) <= SECONDS:
                        rows.append({"path": name, "label": said, "speaker": speaker})
    with open(out / "strings.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "speaker"])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def _join(files: list[Path], out: Path, draw: random.Random) -> float:
    """Recordings at one loudness, one after the other, 50 to 150 ms apart. Returns the seconds."""
    waves = []
    for path in files:
        wave, rate = soundfile.read(path)
        pause = np.zeros(round(rate * draw.uniform(0.05, 0.15)))
        waves += [0.1 * wave / max(float(np.sqrt(np.square(wave).mean())), 1e-4), pause]
    whole = np.concatenate(waves[:-1]).clip(-1, 1)
    if len(whole) <= SECONDS * rate and not out.exists():
        soundfile.write(out, whole, rate)
    return len(whole) / rate


def table(path: Path, rows: list[dict[str, str]], tests: str, validates: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "speaker", "split"])
        writer.writeheader()
        for row in rows:
            part = {tests: "test", validates: "val"}.get(row["speaker"], "train")
            writer.writerow({**row, "split": part})
    return str(path)


def recognisers(
    data: Path, out: Path, strings: list[dict[str, str]], seed: int, share: float, epochs: float
) -> dict[str, Tried]:
    """A recogniser from scratch and from a classifier, all tested on the seed's speaker."""
    speakers = sorted({row["speaker"] for row in strings})
    roles = speakers[seed % len(speakers)], speakers[(seed + 1) % len(speakers)]
    own = out / str(seed)
    single = [
        {"path": str(path.relative_to(data)), "label": path.parent.name, "speaker": path.stem.split("_")[1]}
        for path in sorted(data.rglob("*.wav"))
    ]
    digits = {**SOUNDS, "path": table(own / "digits.csv", single, *roles), "root": str(data), "task": "class"}
    spoken = {**SOUNDS, "path": table(own / "strings.csv", strings, *roles), "root": str(out / "strings")}
    spoken |= {"task": "text", "seconds": SECONDS}
    shared: dict[str, Any] = {
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup": 0.1},
        "seed": seed,
    }
    source = own / "classifier"
    if not (source / "report.html").exists():
        raw = {**shared, "dataset": {**digits, "seconds": 0.72}, "backbone": BACKBONE}
        fmeco.pretrain({**raw, "train": {"epochs": 20, "batch_size": 32}}, out=source, force=True)
    epochs *= min(1 / share, MORE)
    run = {**shared, "dataset": spoken, "augment": MASKS, "evaluate": {"every": epochs / 3}}
    run["train"] = {"epochs": epochs, "batch_size": 16, "clip_norm": 1.0, "label_fraction": share}
    found = {}
    for name, strategy in (("scratch", "scratch"), ("from a digit classifier", "full")):
        trained = own / (strategy if share == 1 else f"{strategy}-{share:g}")
        if not (trained / "report.html").exists():
            fmeco.finetune({**run, "transfer": strategy}, ref=source, out=trained, force=True)
        measured = measure(trained, None, "test", ())
        found[name] = Tried(measured.model.objective, measured.rows)
    return found


if __name__ == "__main__":
    main()
