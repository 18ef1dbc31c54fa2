"""Text, speech and tables: from scratch, from a pretrained source, and the plain method that each must beat.

    python scripts/results_modalities.py text FOLDER OUT      FOLDER: SST-2 as train.tsv, dev.tsv, test.tsv (text, label)
    python scripts/results_modalities.py speech FOLDER OUT --images IMAGES
                                                              FOLDER/DIGIT/DIGIT_SPEAKER_N.wav; IMAGES/train/CLASS/*
    python scripts/results_modalities.py credit FILE OUT      UCI default of credit card clients, with the target Y

A seed ([--seeds 0 1 2]) decides a run's training, the labels it is given and, of speech, which speaker is tested. What is in
OUT already is not trained again. Prints a table of docs/results.md; the interval of a gain is a bootstrap over test
samples of the mean over seeds.
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


class Tried(NamedTuple):
    objective: Objective
    rows: dict[str, Tensor]  # of each test sample, what metrics are computed from


Tell = Callable[[str, str, Tried], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["text", "speech", "credit"])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    metric = "average_precision" if given.task == "credit" else "accuracy"
    found: dict[tuple[str, str], list[Tried]] = {}

    def tell(labels: str, name: str, tried: Tried) -> None:
        found.setdefault((labels, name), []).append(tried)
        print(f"{labels} labels, {name}: {tried.objective.metrics(tried.rows)[metric]:.3f}", flush=True)

    against = {"text": text, "speech": speech, "credit": credit}[given.task](given, tell)
    machine = platform.processor() or platform.machine()
    print(f"\n{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print(f"| labels | | test {metric} | each seed | gain, 95% interval |\n|---|---|---|---|---|")
    for (labels, name), tried in found.items():
        scores = [one.objective.metrics(one.rows)[metric] for one in tried]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        control = found.get((labels, against.get(name, "")))
        gain = f"{gained(tried, control, metric)} over {against[name]}" if control is not None else ""
        each = ", ".join(f"{score:.3f}" for score in scores)
        print(f"| {labels} | {name} | {statistics.mean(scores):.3f} ± {spread:.3f} | {each} | {gain} |")


def gained(mine: list[Tried], theirs: list[Tried], metric: str) -> str:
    def difference(at: Tensor) -> float:
        each = [
            one.objective.metrics({name: x[at] for name, x in one.rows.items()})[metric] for one in (*mine, *theirs)
        ]
        return statistics.mean(each[: len(mine)]) - statistics.mean(each[len(mine) :])

    count = len(mine[0].rows["index"])
    low, high = bootstrap(count, DRAWS, 0, difference)
    return f"{100 * difference(torch.arange(count)):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def source(run: Path, **raw: Any) -> Path:
    if not (run / "report.html").exists():
        fmeco.pretrain(raw, out=run, force=True)
    return run


def tuned(run: Path, start: Path, raw: Config) -> Tried:
    if not (run / "report.html").exists():
        fmeco.finetune(raw, ref=start, out=run, force=True)
    return tested(run)


def tested(run: Path) -> Tried:
    found = measure(run, None, "test", ())
    return Tried(found.model.objective, found.rows)


def samples(run: Path, part: str) -> Samples:
    """What a run was trained or tested on."""
    return data_for(use.load(run), run, None, ())[0].split(part)


def plain(run: Path, features: Callable[[Samples], Any]) -> Tried:
    """Logistic regression on the training samples of a run, each as `features` describe it."""
    from sklearn.linear_model import LogisticRegression

    mine, train, test = tested(run), samples(run, "train"), samples(run, "test")
    label = train.targets["label"]
    assert isinstance(label, Tensor)
    fitted = LogisticRegression(max_iter=1000).fit(features(train), label.numpy())
    logits = torch.from_numpy(fitted.predict_log_proba(features(test))).float()
    return Tried(mine.objective, {**mine.rows, "logits": logits[mine.rows["index"]]})


def text(given: argparse.Namespace, tell: Tell) -> Mapping[str, str]:
    """SST-2: a transformer from scratch, one that first filled in masked words of the training sentences, and TF-IDF with
    logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    files = {
        part: str(given.data / f"{name}.tsv") for part, name in (("train", "train"), ("val", "dev"), ("test", "test"))
    }
    words = {"name": "text", "columns": ["text", "label"]}
    start = source(
        given.out / "source",
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
    for seed in given.seeds:
        for labels in ("100 per class", "all"):
            few = {"limit_per_class": 100, "limit_seed": seed} if labels != "all" else {}
            out = given.out / f"{labels.split()[0]}-{seed}"
            raw: Config = {
                "dataset": {**words, **files, **few},
                "optimizer": {**ADAMW, "lr": 5e-4},
                "schedule": COSINE,
                "train": {"epochs": 20 if few else 5, "batch_size": 32},
                "evaluate": {"every": 4 if few else 1},
                "seed": seed,
            }
            tell(labels, "masked pretraining", tuned(out / "mask", start, raw))
            tell(labels, "scratch", tuned(out / "scratch", start, {**raw, "transfer": "scratch"}))
            own = samples(out / "scratch", "train")
            vectors = TfidfVectorizer().fit(sentences(lines, own))
            tell(labels, "TF-IDF", plain(out / "scratch", functools.partial(tf_idf, vectors, lines)))
    return {"masked pretraining": "scratch", "scratch": "TF-IDF"}


def sentences(lines: Mapping[str, str], some: Samples) -> list[str]:
    return [lines[some.name(i)] for i in range(len(some))]


def tf_idf(vectors: Any, lines: Mapping[str, str], some: Samples) -> Any:
    return vectors.transform(sentences(lines, some))


def speech(given: argparse.Namespace, tell: Tell) -> Mapping[str, str]:
    """Spoken digits of a speaker that training did not hear, from 20 recordings of each digit: a convolutional network from
    scratch and from images, a transformer from scratch and after filling in masked patches of the training
    speakers' recordings, and logistic regression on averages over tenths of the time."""
    raw = peek(IMAGES)
    raw["dataset"] = {**raw["dataset"], "name": "image_folder", "path": str(given.images)}
    images = source(given.out / "images", **raw)
    files = sorted(path.relative_to(given.data) for path in given.data.rglob("*.wav"))
    spoken = {str(file): re.findall("_([a-z]+)_", file.name)[0] for file in files}
    speakers = sorted(set(spoken.values()))
    for seed in given.seeds:
        out = given.out / str(seed)
        out.mkdir(parents=True, exist_ok=True)
        tests, validates = speakers[seed % len(speakers)], speakers[(seed + 1) % len(speakers)]
        with open(out / "digits.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label", "speaker", "split"])
            for name, who in spoken.items():
                part = "test" if who == tests else "val" if who == validates else "train"
                rows.writerow([name, Path(name).parts[0], who, part])
        sounds = {"name": "audio", "path": str(out / "digits.csv"), "root": str(given.data)}
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
            anew = {**settings, "transfer": {**settings.get("transfer", {}), "strategy": "scratch"}}
            tell("20 per class", name, tuned(out / kind, start, settings))
            tell("20 per class", f"{kind}, scratch", tuned(out / f"{kind}-scratch", start, anew))
        tell("20 per class", "logistic regression", plain(out / "resnet18-scratch", averages))
    return {
        "transformer, masked pretraining": "transformer, scratch",
        "resnet18, from images": "resnet18, scratch",
        "resnet18, scratch": "logistic regression",
    }


def averages(spoken: Samples) -> Any:
    """(N, 10 * mels): log-mel bands, averaged over each tenth of the time."""
    each = [spoken[i]["spectrogram"] for i in range(len(spoken))]  # (1, mels, frames)
    return torch.stack([torch.stack([x.mean(2) for x in one.chunk(10, 2)]).flatten() for one in each]).numpy()


def credit(given: argparse.Namespace, tell: Tell) -> Mapping[str, str]:
    """Who will default: an MLP, a transformer, one that first filled in masked columns of all training rows, and boosted
    trees."""
    table = {"name": "csv_table", "path": str(given.data), "target": "Y", "drop": ["ID"], "test_fraction": 0.2}
    best = {"best": "average_precision"}
    body = {"name": "transformer", "width": 64, "depth": 2}
    masked = source(
        given.out / "source",
        dataset=table,
        backbone=body,
        objective="mask",
        optimizer=ADAMW,
        schedule=COSINE,
        train={"epochs": 15, "batch_size": 256},
        evaluate={"every": 5},
    )
    for seed in given.seeds:
        for labels, share, epochs, size in (("1%", 0.01, 40, 32), ("all", 1.0, 8, 256)):
            raw: Config = {
                "dataset": table,
                "optimizer": ADAMW,
                "schedule": COSINE,
                "train": {"epochs": epochs, "batch_size": size, "label_fraction": share},
                "evaluate": {**best, "every": epochs / 4},
                "seed": seed,
            }
            out = given.out / f"{share:g}-{seed}"
            tell(labels, "transformer, masked pretraining", tuned(out / "mask", masked, raw))
            tell(labels, "transformer, scratch", tuned(out / "scratch", masked, {**raw, "transfer": "scratch"}))
            mlp = {"backbone": {"name": "mlp", "hidden": [128, 128], "dropout": 0.2}, "objective": "classification"}
            source(out / "mlp", **raw, **mlp)
            found = measure(out / "mlp", None, "test", ())
            tell(labels, "mlp", Tried(found.model.objective, found.rows))
            tell(labels, "boosted trees", Tried(found.model.objective, fit_baseline(found, "gbdt", out / "mlp")[0]))
    return {
        "transformer, masked pretraining": "transformer, scratch",
        "transformer, scratch": "boosted trees",
        "mlp": "boosted trees",
    }


if __name__ == "__main__":
    main()
