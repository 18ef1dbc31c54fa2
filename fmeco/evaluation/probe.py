"""Judge features for a task without training a network: nearest neighbours, a linear head, and LogME.

This takes seconds rather than epochs: each sample passes the backbone once, and its features are cached.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmeco.assembly.model import build_backbone
from fmeco.assembly.stages import Training
from fmeco.assembly.training import assemble, calibrate
from fmeco.config.arguments import checked
from fmeco.config.load import read_config
from fmeco.core.data import Samples
from fmeco.core.model import Backbone
from fmeco.core.random import seed_torch
from fmeco.core.target import Target
from fmeco.errors import CheckpointError, ConfigError, DataError, FmecoError, clean, known_errors
from fmeco.features.extractor import Extractor
from fmeco.nn.linear_head import choose_penalty, fit
from fmeco.nn.probes import Split, examples, interval, knn, logme, score


@known_errors()
@checked
def probe(ref: str | Path, *, dataset: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Judge the features of a dataset under the weights of `ref`, by nearest neighbours and a linear head.

    The head is the one that `transfer: probe` and `transfer: auto` solve: its penalty is chosen by cross-validation on the
    training samples. The score is computed on the test split, or on the validation split if there is no other.

    Returns {"source", "metrics", "interval", "seconds", ...}.
    """
    training = _assembled(ref, dataset, overrides)
    return _judge(str(ref), training, training.objective.product)


@known_errors()
@checked
def rank(refs: Sequence[str | Path], *, dataset: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Rank sources for a dataset before any finetuning: `probe` each of them, and random weights as the floor.

    A source that cannot be used becomes a row with its error.

    Returns {"ranking": rows, the best first, "advice": as `advice`}. Raises the first source's error if none can be
    used.
    """
    rows: list[dict[str, Any]] = []
    first_training: Training | None = None
    first_error: FmecoError | None = None
    for ref in refs:
        try:
            training = _assembled(ref, dataset, overrides)
            rows.append(_judge(str(ref), training, training.objective.product))
            first_training = first_training or training
        except FmecoError as error:
            first_error = first_error or error
            rows.append({"source": str(ref), "error": clean(error.message.splitlines()[0])})
    if first_training is None:
        assert first_error is not None
        raise first_error
    seed_torch(first_training.config.seed)
    random = build_backbone(first_training.config.backbone, first_training.data).to(first_training.device)
    if first_training.loader.channels_last:
        random.to(memory_format=torch.channels_last)
    calibrate(random, first_training.loader)
    rows.append(_judge("random weights", first_training, random))
    name = rows[-1]["metric"]
    rows.sort(key=lambda row: row["metrics"][name] if "metrics" in row else -math.inf, reverse=True)
    return {"ranking": rows, "advice": advice(rows)}


def advice(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Advise what to finetune, and how. Returns {"source", "strategy", "reason"}."""
    name = rows[0]["metric"]
    floor = next(row for row in rows if row["source"] == "random weights")
    best = next(row for row in rows if row is not floor and "metrics" in row)
    low, high = best["interval"]
    equals = [
        row["source"] for row in rows if row not in (best, floor) and "metrics" in row and row["metrics"][name] >= low
    ]
    reason = (
        f"{name} {best['metrics'][name]:.3f} ({low:.3f} to {high:.3f}), random weights {floor['metrics'][name]:.3f}"
    )
    if equals:
        reason += f"; within its interval: {', '.join(equals)}"
    if best["metrics"][name] <= floor["interval"][1]:
        return {
            "source": best["source"],
            "strategy": "full",
            "reason": f"no source is clearly better than random weights ({reason}), and the default, auto, trains gently to keep "
            "good features; --control scratch,auto compares it with both",
        }
    return {
        "source": best["source"],
        "strategy": "auto",
        "reason": f"{reason}; auto, the default, begins with this linear head as step 0, trains everything gently, and "
        "keeps step 0 unless training beats it on the validation split",
    }


def _assembled(ref: str | Path, dataset: str | Path | None, overrides: Sequence[str]) -> Training:
    # With a single step, assembly runs none of the benchmarks that only pay in a long run.
    """Assemble a finetuning of `ref` to take its backbone and data from; nothing is trained."""
    fixed = [*overrides, "train.steps=1", "augment=none", "transfer.strategy=probe"]
    return assemble(read_config(None, stage="finetune", ref=ref, dataset=dataset, overrides=fixed))


def _judge(ref: str, training: Training, backbone: Backbone) -> dict[str, Any]:
    """Compute features of all splits, and score them. Returns a row of the ranking."""
    began = time.monotonic()
    data = training.data
    name, target = _target(training)
    extractor = Extractor(
        backbone,
        data,
        training.device,
        training.config.train.precision,
        training.loader.channels_last,
        chosen=training.config.backbone,
        source=ref,
    )

    def split(part: str) -> Split:
        samples: Samples = data.split(part)
        vectors, values = extractor.values(samples, part), samples.targets[name]
        if vectors is None:
            raise DataError(f"samples of the {part} split cannot be read", "`fmeco check --dataset X` lists them")
        assert isinstance(values, Tensor)
        if not vectors.isfinite().all():
            raise CheckpointError(f"features of the {part} split under {clean(ref)} are not finite")
        return Split(vectors, values)

    train = split("train")
    score_name = "test" if data.test is not None and len(data.test) else "val"
    score_split = split(score_name)
    feature_seconds = time.monotonic() - began
    wanted = examples(train, target)
    penalty = choose_penalty(wanted)
    outputs = fit(wanted, penalty)(score_split.x)
    mean, std = train.x.mean(0), train.x.std(0).clamp_min(1e-6)
    metric = target.traits.metric
    metrics = {
        metric: score(outputs, score_split.y, target),
        "logme": logme((train.x - mean) / std, train.y, target),
    }
    if not math.isfinite(metrics[metric]):
        raise DataError(f"{metric} is not defined on the {score_name} split: its targets do not vary")
    if target.traits.one_class:
        metrics["knn"] = score(knn(train, score_split, len(target.classes)), score_split.y, target)
    return {
        "source": ref,
        "metric": metric,
        "split": score_name,
        "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        "interval": list(interval(outputs, score_split.y, target)),
        "penalty": penalty,
        "samples": {"train": len(train.x), score_name: len(score_split.x)},
        "width": int(train.x.shape[1]),
        "feature_seconds": round(feature_seconds, 3),
        "seconds": round(time.monotonic() - began, 3),
    }


def _target(training: Training) -> tuple[str, Target]:
    """Return the target to probe, and its name. Raises ConfigError if a linear head cannot predict it."""
    options = training.config.objective.options if training.config.objective is not None else {}
    name = options.get("target", "")
    if name not in training.data.spec.targets:
        several = ", ".join(training.data.spec.targets)
        hint = f"this one has {several}: name one in the dataset's section" if several else ""
        raise ConfigError("a probe needs a dataset with one target", hint)
    target = training.data.spec.targets[name]
    if target.traits.loss is None:
        raise ConfigError(
            f"the target '{clean(name)}' is a {target.kind}, which a linear head on vectors cannot predict"
        )
    return name, target
