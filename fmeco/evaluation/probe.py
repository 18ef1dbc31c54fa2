"""How good features are for a task, without training a network: nearest neighbours, a linear head fitted to convergence,
and LogME. Seconds rather than epochs: each sample passes the backbone once, and never again (features.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fmeco.assembly.model import build_backbone
from fmeco.assembly.stages import Training
from fmeco.assembly.training import assemble, calibrate
from fmeco.config.load import read_config
from fmeco.core.data import Samples
from fmeco.core.model import Backbone
from fmeco.core.random import mix, seed_torch
from fmeco.core.target import Target
from fmeco.errors import CheckpointError, ConfigError, DataError, FmecoError, clean, known_errors
from fmeco.features.extractor import Extractor
from fmeco.nn.probes import PENALTIES, Split, interval, knn, linear, logme, score

HELD_OUT = 0.2  # of the training samples, to choose the penalty on, where there is no test split
FEW, MANY = 20, 500  # samples per class at which another strategy is advised


@known_errors()
def probe(ref: str, *, dataset: str | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Features of a dataset under the weights of `ref`, judged by nearest neighbours and by a linear head.

    The head's penalty is chosen on the validation split and the score taken on the test split; without a test split, on a
    part of the training samples and the validation split. Returns {"source", "metrics", "interval", "seconds", ...}.
    """
    training = _assembled(ref, dataset, overrides)
    return _judge(ref, training, training.objective.product)


@known_errors()
def rank(refs: Sequence[str], *, dataset: str | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Which source suits a dataset, before any finetuning: `probe` of each, of random weights as the floor, and advice.

    A source that cannot be used is a row with its error. Raises the first one's error where none can.
    """
    rows: list[dict[str, Any]] = []
    first: Training | None = None
    failed: FmecoError | None = None
    for ref in refs:
        try:
            training = _assembled(ref, dataset, overrides)
            rows.append(_judge(ref, training, training.objective.product))
            first = first or training
        except FmecoError as error:
            failed = failed or error
            rows.append({"source": ref, "error": clean(error.message.splitlines()[0])})
    if first is None:
        assert failed is not None
        raise failed
    seed_torch(first.config.seed)
    random = build_backbone(first.config.backbone, first.data).to(first.device)
    if first.loader.channels_last:
        random.to(memory_format=torch.channels_last)
    calibrate(random, first.loader)
    rows.append(_judge("random weights", first, random))
    name = rows[-1]["metric"]
    rows.sort(key=lambda row: row["metrics"][name] if "metrics" in row else -math.inf, reverse=True)
    return {"ranking": rows, "advice": advice(rows, first)}


def advice(rows: Sequence[dict[str, Any]], training: Training) -> dict[str, str]:
    """{"source", "strategy", "reason"}: what to finetune, and how."""
    name = rows[0]["metric"]
    floor = next(row for row in rows if row["source"] == "random weights")
    best = next(row for row in rows if row is not floor and "metrics" in row)
    low, high = best["interval"]
    close = [
        row["source"] for row in rows if row not in (best, floor) and "metrics" in row and row["metrics"][name] >= low
    ]
    reason = (
        f"{name} {best['metrics'][name]:.3f} ({low:.3f} to {high:.3f}), random weights {floor['metrics'][name]:.3f}"
    )
    if close:
        reason += f"; within its interval: {', '.join(close)}"
    counts = next(iter(training.data.spec.targets.values())).counts
    each = min(counts) if counts else len(training.data.split("train"))
    unit = "training samples in the smallest class" if counts else "training samples"
    if best["metrics"][name] <= floor["interval"][1]:
        return {
            "source": best["source"],
            "strategy": "full",
            "reason": f"no source is clearly better than random weights ({reason}): compare with training from scratch",
        }
    strategy = "probe" if each < FEW else "lp_ft" if each < MANY else "full"
    return {"source": best["source"], "strategy": strategy, "reason": f"{reason}; {each} {unit}"}


def _assembled(ref: str, dataset: str | None, overrides: Sequence[str]) -> Training:
    # Nothing is trained: one step, so that nothing is tried out for the sake of a long run.
    fixed = [*overrides, "train.steps=1", "augment=none", "transfer.strategy=probe"]
    return assemble(read_config(None, stage="finetune", ref=ref, dataset=dataset, overrides=fixed))


def _judge(ref: str, training: Training, backbone: Backbone) -> dict[str, Any]:
    began = time.monotonic()
    data = training.data
    name, target = _target(training)
    found = Extractor(
        backbone,
        data,
        training.device,
        training.config.train.precision,
        training.loader.channels_last,
        chosen=training.config.backbone,
    )

    def split(part: str) -> Split:
        samples: Samples = data.split(part)
        vectors, values = found.values(samples, part), samples.targets[name]
        if vectors is None:
            raise DataError(f"samples of the {part} split cannot be read", "fmeco check --dataset ... names them")
        assert isinstance(values, Tensor)
        if not vectors.isfinite().all():
            raise CheckpointError(f"features of the {part} split under {clean(ref)} are not finite")
        return Split(vectors, values)

    train = split("train")
    if data.test is not None and len(data.test):
        fitted, chosen_on, test, tested = train, split("val") if data.val else None, split("test"), "test"
    else:
        fitted, chosen_on, test, tested = train, None, split("val"), "val"
    taken = time.monotonic() - began
    mean, std = train.x.mean(0), train.x.std(0).clamp_min(1e-6)
    scaled = [None if one is None else Split((one.x - mean) / std, one.y) for one in (fitted, chosen_on, test)]
    fit_on, choose_on, final = scaled
    assert fit_on is not None and final is not None
    if choose_on is None:
        order = mix(0x70726F62, torch.arange(len(fit_on.x))).argsort(stable=True)
        cut = max(1, round(len(order) * HELD_OUT))
        choose_on = Split(fit_on.x[order[:cut]], fit_on.y[order[:cut]])
        part = Split(fit_on.x[order[cut:]], fit_on.y[order[cut:]])
    else:
        part = fit_on
    penalty = _best_penalty(part, choose_on, target)
    weights = linear(fit_on, target, penalty)
    outputs = final.x @ weights[:-1] + weights[-1]
    metric = target.traits.metric
    metrics = {metric: score(outputs, final.y, target), "logme": logme(fit_on.x, fit_on.y, target)}
    if not math.isfinite(metrics[metric]):
        raise DataError(f"{metric} is not defined on the {tested} split: its targets do not vary")
    if target.traits.one_class:
        metrics["knn"] = score(knn(train, test, len(target.classes)), test.y, target)
    return {
        "source": ref,
        "metric": metric,
        "split": tested,
        "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        "interval": list(interval(outputs, final.y, target)),
        "penalty": penalty,
        "samples": {"train": len(train.x), tested: len(test.x)},
        "width": int(train.x.shape[1]),
        "feature_seconds": round(taken, 3),
        "seconds": round(time.monotonic() - began, 3),
    }


def _best_penalty(train: Split, held_out: Split, target: Target) -> float:
    """The penalty with the best score on samples that the head was not fitted to; the strongest of equals."""
    best, penalty, weights = -math.inf, PENALTIES[0], None
    for one in PENALTIES:
        weights = linear(train, target, one, weights)
        found = score(held_out.x @ weights[:-1] + weights[-1], held_out.y, target)
        if found > best:
            best, penalty = found, one
    return penalty


def _target(training: Training) -> tuple[str, Target]:
    options = training.config.objective.options if training.config.objective is not None else {}
    name = options.get("target", "")
    if name not in training.data.spec.targets:
        several = ", ".join(training.data.spec.targets)
        hint = f"it has the targets {several}: name one in the dataset's section" if several else ""
        raise ConfigError("a probe needs a dataset with one target", hint)
    target = training.data.spec.targets[name]
    if target.traits.loss is None:
        raise ConfigError(
            f"the target '{clean(name)}' is a {target.kind}, and a linear head on vectors cannot tell one"
        )
    return name, target
