"""Measure recognition of spoken digit strings, from scratch and from a classifier of single digits.

    python scripts/results_speech.py FOLDER OUT [--seeds 0 1 2] [--shares 1 0.1]     FOLDER/DIGIT/DIGIT_SPEAKER_N.wav

A string is 3 to 5 recordings of one speaker in a row, with short pauses; its transcript is the digits as words. Strings
are written to OUT/strings; in one round, no recording is in two of them. FOLDER needs four speakers or more. Each seed
tests one speaker, validates on another, and trains classifier and recogniser on the rest. --shares are of the training
strings; fewer strings are seen in more epochs. Runs that exist in OUT are not trained again. There is no baseline without
a network: no simple method reads strings of words. Prints a table of docs/results.md. The interval of a gain is from a
bootstrap over test strings.
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
ROUNDS = 6  # times that all recordings of a speaker are joined to strings, each time in another order
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MORE = 4  # a smaller share trains at most this many times as many epochs
SECONDS = 3.0  # longer strings are left out
# A patch is 40 ms; rotary positions fit recordings of any length.
BACKBONE = {"name": "transformer", "width": 96, "depth": 4, "patch": [32, 4], "positions": "rotary"}
SOUNDS = {"name": "audio", "sample_rate": 8000, "mels": 32, "split_column": "split", "group_split": "speaker"}
MASKS = {"name": "specaugment", "time": 0.03}  # a share of 3 s: a mask must not hide a word


class TestResult(NamedTuple):
    """Hold a model's outputs on the test strings.

    rows: outputs (N, ...) that metrics are computed from.
    """

    objective: Objective
    rows: dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.1])
    parser.add_argument("--epochs", type=float, default=15)
    args = parser.parse_args()
    strings = compose(args.data, args.out / "strings")
    results: dict[tuple[float, str], list[TestResult]] = {}
    for seed, share in itertools.product(args.seeds, args.shares):
        for name, result in recognisers(args.data, args.out, strings, seed, share, args.epochs).items():
            results.setdefault((share, name), []).append(result)
            metrics = {key: round(value, 3) for key, value in result.objective.metrics(result.rows).items()}
            print(f"seed {seed}, {share:.0%} of the strings, {name}: {metrics}", flush=True)
    machine = platform.processor() or platform.machine()
    print(f"\n{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print("| strings | | test WER | CER | each seed's WER | WER less than from scratch, 95% interval |")
    print("|---|---|---|---|---|---|")
    for (share, name), seed_results in sorted(results.items(), key=lambda item: (-item[0][0], item[0][1] != "scratch")):
        metrics_of_seeds = [result.objective.metrics(result.rows) for result in seed_results]
        wer, cer = (statistics.mean(metrics[key] for metrics in metrics_of_seeds) for key in ("wer", "cer"))
        gain = "" if name == "scratch" else fewer(seed_results, results[share, "scratch"])
        seeds = ", ".join(f"{metrics['wer']:.3f}" for metrics in metrics_of_seeds)
        print(f"| {share:.0%} | {name} | {wer:.3f} | {cer:.3f} | {seeds} | {gain} |")


def fewer(mine: list[TestResult], theirs: list[TestResult]) -> str:
    """Format how much lower the WER is, over the test strings of all seeds, with its 95% interval."""
    pooled = [
        {name: torch.cat([result.rows[name] for result in results]) for name in results[0].rows}
        for results in (theirs, mine)
    ]

    def difference(at: Tensor) -> float:
        before, now = (mine[0].objective.metrics({name: x[at] for name, x in rows.items()})["wer"] for rows in pooled)
        return before - now

    count = len(pooled[0]["index"])
    low, high = bootstrap(count, DRAWS, 0, difference)
    return f"{difference(torch.arange(count)):+.3f} ({low:+.3f} to {high:+.3f})"


def compose(data: Path, out: Path) -> list[dict[str, str]]:
    """Join each speaker's recordings to strings: WAV files, and OUT/strings.csv with their transcripts."""
    by_speaker: dict[str, list[Path]] = {}
    for path in sorted(data.rglob("*.wav")):
        by_speaker.setdefault(path.stem.split("_")[1], []).append(path)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for speaker, files in by_speaker.items():
        rng = random.Random(speaker)
        for _ in range(ROUNDS):
            left = rng.sample(files, len(files))
            while len(left) >= 3:
                taken, left = left[: (size := rng.randint(3, 5))], left[size:]
                if len(taken) >= 3:
                    name = f"{speaker}_{len(rows):04}.wav"
                    transcript = " ".join(WORDS[int(path.stem.split("_")[0])] for path in taken)
                    if _join(taken, out / name, rng) <= SECONDS:
                        rows.append({"path": name, "label": transcript, "speaker": speaker})
    with open(out / "strings.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "speaker"])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def _join(files: list[Path], out: Path, rng: random.Random) -> float:
    """Join recordings at equal loudness, 50 to 150 ms apart. Returns the seconds; a long string is not written."""
    waves = []
    for path in files:
        wave, rate = soundfile.read(path)
        pause = np.zeros(round(rate * rng.uniform(0.05, 0.15)))
        waves += [0.1 * wave / max(float(np.sqrt(np.square(wave).mean())), 1e-4), pause]
    joined = np.concatenate(waves[:-1]).clip(-1, 1)
    if len(joined) <= SECONDS * rate and not out.exists():
        soundfile.write(out, joined, rate)
    return len(joined) / rate


def table(path: Path, rows: list[dict[str, str]], tests: str, validates: str) -> str:
    """Write a table of recordings with their splits by speaker. Returns its path."""
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
) -> dict[str, TestResult]:
    """Train a recogniser from scratch and from a classifier. Returns their results on the seed's test speaker."""
    speakers = sorted({row["speaker"] for row in strings})
    roles = speakers[seed % len(speakers)], speakers[(seed + 1) % len(speakers)]
    folder = out / str(seed)
    single = [
        {"path": str(path.relative_to(data)), "label": path.parent.name, "speaker": path.stem.split("_")[1]}
        for path in sorted(data.rglob("*.wav"))
    ]
    digits = {**SOUNDS, "path": table(folder / "digits.csv", single, *roles), "root": str(data), "task": "class"}
    spoken = {**SOUNDS, "path": table(folder / "strings.csv", strings, *roles), "root": str(out / "strings")}
    spoken |= {"task": "text", "seconds": SECONDS}
    shared: dict[str, Any] = {
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup": 0.1},
        "seed": seed,
    }
    source = folder / "classifier"
    if not (source / "report.html").exists():
        raw = {**shared, "dataset": {**digits, "seconds": 0.72}, "backbone": BACKBONE}
        fmeco.pretrain({**raw, "train": {"epochs": 20, "batch_size": 32}}, out=source, force=True)
    epochs *= min(1 / share, MORE)
    run = {**shared, "dataset": spoken, "augment": MASKS, "evaluate": {"every": epochs / 3}}
    run["train"] = {"epochs": epochs, "batch_size": 16, "clip_norm": 1.0, "label_fraction": share}
    results = {}
    for name, strategy in (("scratch", "scratch"), ("from a digit classifier", "full")):
        trained = folder / (strategy if share == 1 else f"{strategy}-{share:g}")
        if not (trained / "report.html").exists():
            fmeco.finetune({**run, "transfer": strategy}, ref=source, out=trained, force=True)
        measured = measure(trained, None, "test", ())
        results[name] = TestResult(measured.model.objective, measured.rows)
    return results


if __name__ == "__main__":
    main()
