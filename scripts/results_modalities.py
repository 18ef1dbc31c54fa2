"""Measure transfer on text, speech and tables: from scratch, from a pretrained source, and with a plain method.

    python scripts/results_modalities.py text FOLDER OUT      FOLDER: SST-2 as train.tsv, dev.tsv, test.tsv (text, label)
    python scripts/results_modalities.py speech FOLDER OUT --images IMAGES
                                                              FOLDER/DIGIT/DIGIT_SPEAKER_N.wav; IMAGES/train/CLASS/*
    python scripts/results_modalities.py credit FILE OUT      UCI default of credit card clients, with the target Y

A seed ([--seeds 0 1 2]) determines a run's training, its labels and, for speech, the speaker that is tested. Runs that
exist in OUT are not trained again. Prints a table of docs/results.md. The interval of a gain is from a bootstrap over
test samples, of the mean over seeds.
"""

from __future__ import annotations

import argparse
import csv
import functools
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fmeco
from fmeco.config.parser import peek
from fmeco.core import Objective, Samples
from fmeco.evaluation.baselines import fit_baseline
from fmeco.evaluation.measure import measure
from fmeco.inference import model as use
from fmeco.inference.data_for import data_for
from fmeco.nn.intervals import bootstrap

DRAWS = 300
ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}
COSINE = {"name": "cosine", "warmup": 0.05}
IMAGES = Path(__file__).resolve().parent.parent / "configs" / "cifar10" / "pretrain.yaml"
Config = dict[str, Any]


class TestResult(NamedTuple):
    """Hold a model's outputs on the test samples.

    rows: outputs (N, ...) that metrics are computed from.
    """

    objective: Objective
    rows: dict[str, Tensor]


Record = Callable[[str, str, TestResult], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["text", "speech", "credit"])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    metric = "average_precision" if args.task == "credit" else "accuracy"
    results: dict[tuple[str, str], list[TestResult]] = {}

    def record(labels: str, name: str, result: TestResult) -> None:
        results.setdefault((labels, name), []).append(result)
        print(f"{labels} labels, {name}: {result.objective.metrics(result.rows)[metric]:.3f}", flush=True)

    against = {"text": text, "speech": speech, "credit": credit}[args.task](args, record)
    machine = platform.processor() or platform.machine()
    print(f"\n{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print(f"| labels | | test {metric} | each seed | gain, 95% interval |\n|---|---|---|---|---|")
    for (labels, name), seed_results in results.items():
        scores = [result.objective.metrics(result.rows)[metric] for result in seed_results]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        control = results.get((labels, against.get(name, "")))
        gain = f"{gained(seed_results, control, metric)} over {against[name]}" if control is not None else ""
        each = ", ".join(f"{score:.3f}" for score in scores)
        print(f"| {labels} | {name} | {statistics.mean(scores):.3f} ± {spread:.3f} | {each} | {gain} |")


def gained(mine: list[TestResult], theirs: list[TestResult], metric: str) -> str:
    """Format the gain of one method over another in points: the mean over seeds, and its 95% interval."""

    def difference(at: Tensor) -> float:
        values = [
            result.objective.metrics({name: x[at] for name, x in result.rows.items()})[metric]
            for result in (*mine, *theirs)
        ]
        return statistics.mean(values[: len(mine)]) - statistics.mean(values[len(mine) :])

    count = len(mine[0].rows["index"])
    low, high = bootstrap(count, DRAWS, 0, difference)
    return f"{100 * difference(torch.arange(count)):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def source(run: Path, **raw: Any) -> Path:
    """Pretrain a run, unless it exists. Returns its directory."""
    if not (run / "report.html").exists():
        fmeco.pretrain(raw, out=run, force=True)
    return run


def tuned(run: Path, start: Path, raw: Config) -> TestResult:
    """Finetune a run from `start`, unless it exists. Returns its test result."""
    if not (run / "report.html").exists():
        fmeco.finetune(raw, ref=start, out=run, force=True)
    return tested(run)


def tested(run: Path) -> TestResult:
    """Measure a run on the test split."""
    measured = measure(run, None, "test", ())
    return TestResult(measured.model.objective, measured.rows)


def samples(run: Path, part: str) -> Samples:
    """Return the samples that a run was trained on, or tested on."""
    return data_for(use.load(run), run, None, ())[0].split(part)


def plain(run: Path, features: Callable[[Samples], Any]) -> TestResult:
    """Fit logistic regression to the training samples of a run, and predict its test samples.

    features: (samples) -> vectors (N, D).
    """
    from sklearn.linear_model import LogisticRegression

    tested_run, train, test = tested(run), samples(run, "train"), samples(run, "test")
    label = train.targets["label"]
    assert isinstance(label, Tensor)
    fitted = LogisticRegression(max_iter=1000).fit(features(train), label.numpy())
    logits = torch.from_numpy(fitted.predict_log_proba(features(test))).float()
    return TestResult(tested_run.objective, {**tested_run.rows, "logits": logits[tested_run.rows["index"]]})


def text(args: argparse.Namespace, record: Record) -> Mapping[str, str]:
    """Measure SST-2 with a transformer from scratch, a pretrained one, and TF-IDF with logistic regression.

    Pretraining fills in masked words of the training sentences.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    files = {
        part: str(args.data / f"{name}.tsv") for part, name in (("train", "train"), ("val", "dev"), ("test", "test"))
    }
    words = {"name": "text", "columns": ["text", "label"]}
    start = source(
        args.out / "source",
        dataset={
            **{**words, "label": None, "vocabulary": 4000, "lowercase": True, "length": 64},
            **{part: files[part] for part in ("train", "val")},
        },
        backbone={"name": "transformer", "width": 128, "depth": 2},
        objective={"name": "mask", "rate": 0.3},
        optimizer={**ADAMW, "lr": 2e-3},
        schedule=COSINE,
        train={"epochs": 25, "batch_size": 32},
        evaluate={"every": 5},
    )
    lines = {
        f"{file}:{i}": line.rsplit("\t", 1)[0]
        for file in files.values()
        for i, line in enumerate(Path(file).read_text().split("\n"), 1)
    }
    for seed in args.seeds:
        for labels in ("100 per class", "all"):
            few = {"limit_per_class": 100, "limit_seed": seed} if labels != "all" else {}
            out = args.out / f"{labels.split()[0]}-{seed}"
            raw: Config = {
                "dataset": {**words, **files, **few},
                "optimizer": {**ADAMW, "lr": 5e-4},
                "schedule": COSINE,
                "train": {"epochs": 20 if few else 5, "batch_size": 32},
                "evaluate": {"every": 4 if few else 1},
                "seed": seed,
            }
            record(labels, "masked pretraining", tuned(out / "mask", start, raw))
            record(labels, "scratch", tuned(out / "scratch", start, {**raw, "transfer": "scratch"}))
            train_samples = samples(out / "scratch", "train")
            vectors = TfidfVectorizer().fit(sentences(lines, train_samples))
            record(labels, "TF-IDF", plain(out / "scratch", functools.partial(tf_idf, vectors, lines)))
    return {"masked pretraining": "scratch", "scratch": "TF-IDF"}


def sentences(lines: Mapping[str, str], chosen: Samples) -> list[str]:
    """Look up the sentences of samples by their names, FILE:LINE."""
    return [lines[chosen.name(i)] for i in range(len(chosen))]


def tf_idf(vectors: Any, lines: Mapping[str, str], chosen: Samples) -> Any:
    """Compute the TF-IDF vectors of samples."""
    return vectors.transform(sentences(lines, chosen))


def speech(args: argparse.Namespace, record: Record) -> Mapping[str, str]:
    """Measure spoken digits of a speaker that was not in training, from 20 recordings of each digit.

    The methods are a convolutional network from scratch and from images; a transformer from scratch and after filling
    in masked patches of the training speakers' recordings; and logistic regression on averages over tenths of the time.
    """
    raw = peek(IMAGES)
    raw["dataset"] = {**raw["dataset"], "name": "image_folder", "path": str(args.images)}
    images = source(args.out / "images", **raw)
    files = sorted(path.relative_to(args.data) for path in args.data.rglob("*.wav"))
    spoken = {str(file): re.findall("_([a-z]+)_", file.name)[0] for file in files}
    speakers = sorted(set(spoken.values()))
    for seed in args.seeds:
        out = args.out / str(seed)
        out.mkdir(parents=True, exist_ok=True)
        tests, validates = speakers[seed % len(speakers)], speakers[(seed + 1) % len(speakers)]
        with open(out / "digits.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label", "speaker", "split"])
            for name, speaker in spoken.items():
                part = "test" if speaker == tests else "val" if speaker == validates else "train"
                rows.writerow([name, Path(name).parts[0], speaker, part])
        sounds = {"name": "audio", "path": str(out / "digits.csv"), "root": str(args.data)}
        sounds |= {"split_column": "split", "group_split": "speaker"}
        masked = source(
            out / "source",
            dataset={**sounds, "sample_rate": 8000},
            backbone={"name": "transformer", "width": 128, "depth": 3, "patch": [16, 10]},
            objective="mask",
            optimizer=ADAMW,
            schedule=COSINE,
            train={"epochs": 20, "batch_size": 32},
            evaluate={"every": 5},
            seed=seed,
        )
        raw = {
            "dataset": {**sounds, "limit_per_class": 20, "limit_seed": seed},
            "optimizer": ADAMW,
            "schedule": COSINE,
            "train": {"epochs": 20, "batch_size": 20},
            "evaluate": {"every": 5},
            "seed": seed,
        }
        for name, start in (("transformer, masked pretraining", masked), ("resnet18, from images", images)):
            kind = name.partition(",")[0]
            settings = raw if start == masked else {
                **raw, "dataset": {**raw["dataset"], "sample_rate": 8000}, "transfer": {"strategy": "full", "cross_modality": True}
            }  # fmt: skip
            from_scratch = {**settings, "transfer": {**settings.get("transfer", {}), "strategy": "scratch"}}
            record("20 per class", name, tuned(out / kind, start, settings))
            record("20 per class", f"{kind}, scratch", tuned(out / f"{kind}-scratch", start, from_scratch))
        record("20 per class", "logistic regression", plain(out / "resnet18-scratch", averages))
    return {
        "transformer, masked pretraining": "transformer, scratch",
        "resnet18, from images": "resnet18, scratch",
        "resnet18, scratch": "logistic regression",
    }


def averages(spoken: Samples) -> Any:
    """Average log-mel bands over each tenth of the time: vectors (N, 10 * mels)."""
    spectrograms = [spoken[i]["spectrogram"] for i in range(len(spoken))]  # (1, mels, frames)
    return torch.stack(
        [torch.stack([x.mean(2) for x in spectrogram.chunk(10, 2)]).flatten() for spectrogram in spectrograms]
    ).numpy()


def credit(args: argparse.Namespace, record: Record) -> Mapping[str, str]:
    """Predict defaults of credit card clients with an MLP, a transformer, a pretrained one, and boosted trees.

    Pretraining fills in masked columns of all training rows.
    """
    table = {"name": "csv_table", "path": str(args.data), "target": "Y", "drop": ["ID"], "test_fraction": 0.2}
    best = {"best": "average_precision"}
    body = {"name": "transformer", "width": 64, "depth": 2}
    masked = source(
        args.out / "source",
        dataset=table,
        backbone=body,
        objective="mask",
        optimizer=ADAMW,
        schedule=COSINE,
        train={"epochs": 15, "batch_size": 256},
        evaluate={"every": 5},
    )
    for seed in args.seeds:
        for labels, share, epochs, size in (("1%", 0.01, 40, 32), ("all", 1.0, 8, 256)):
            raw: Config = {
                "dataset": table,
                "optimizer": ADAMW,
                "schedule": COSINE,
                "train": {"epochs": epochs, "batch_size": size, "label_fraction": share},
                "evaluate": {**best, "every": epochs / 4},
                "seed": seed,
            }
            out = args.out / f"{share:g}-{seed}"
            record(labels, "transformer, masked pretraining", tuned(out / "mask", masked, raw))
            record(labels, "transformer, scratch", tuned(out / "scratch", masked, {**raw, "transfer": "scratch"}))
            mlp = {"backbone": {"name": "mlp", "hidden": [128, 128], "dropout": 0.2}, "objective": "classification"}
            source(out / "mlp", **raw, **mlp)
            measured = measure(out / "mlp", None, "test", ())
            record(labels, "mlp", TestResult(measured.model.objective, measured.rows))
            record(
                labels,
                "boosted trees",
                TestResult(measured.model.objective, fit_baseline(measured, "gbdt", out / "mlp")[0]),
            )
    return {
        "transformer, masked pretraining": "transformer, scratch",
        "transformer, scratch": "boosted trees",
        "mlp": "boosted trees",
    }


if __name__ == "__main__":
    main()
