"""What a network is to be held against: a plain method on the same data, which takes seconds.

Each is a function (found, ref, overrides) of the samples that were measured, the checkpoint, and what of its dataset's section
is overridden. It is fitted to the training split of the run's own dataset, and returns its rows for the objective's metrics,
sample by sample those of `found`, and how many training samples it learned from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmeco.core import Data, Inputs, Samples, pad
from fmeco.data.subset import fraction
from fmeco.errors import ConfigError
from fmeco.evaluation.measure import Measured
from fmeco.inference.data_for import data_for
from fmeco.log import say

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, in the variance of a standardised value
TOGETHER = 4096  # windows that a linear map is fitted to at once
LARGEST = 254  # categories that scikit-learn's trees take in a column, beside the unknown


def gbdt(found: Measured, ref: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Tensor], int]:
    """scikit-learn's histogram boosting with its defaults, chosen by nothing: no competitor with tricks, but the least that
    a network on tables has to reach (https://arxiv.org/abs/2207.08815).

    https://papers.nips.cc/paper/6907 (LightGBM), which scikit-learn follows. Its `early_stopping: auto` sets 10% aside
    above 10,000 rows.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    spec = found.model.spec
    if spec.modality != "table":
        raise ConfigError(f"--baseline gbdt is for tables, and this checkpoint is for {spec.modality} data")
    forms: dict[str, set[str]] = {"class": {"logits", "label"}, "number": {"predicted", "value"}}
    kind = spec.targets["label"].kind if "label" in spec.targets else ""
    if set(found.rows) - {"index"} != forms.get(kind):
        raise ConfigError("--baseline gbdt is for one class or one number per row")
    train = _learned_from(found, ref, overrides).split("train")
    target = train.targets["label"]
    assert isinstance(target, Tensor)
    sizes = [len(one["categories"]) for one in spec.preprocessing["categorical"]]
    if large := sum(size > LARGEST for size in sizes):
        say(f"gbdt: {large} columns with more than {LARGEST} categories are taken as numbers")
    numbers = spec.inputs["columns"].shape[0] if "columns" in spec.inputs else 0
    categorical = np.array([False] * numbers + [size <= LARGEST for size in sizes])
    x, wanted = _matrix(train, torch.arange(len(train))), _matrix(found.samples, found.rows["index"])
    if kind == "number":
        regressor = HistGradientBoostingRegressor(categorical_features=categorical, random_state=0)
        predicted = regressor.fit(x, target.numpy()).predict(wanted)
        theirs = {"predicted": torch.from_numpy(predicted).float(), "value": found.rows["value"]}
    else:
        classifier = HistGradientBoostingClassifier(categorical_features=categorical, random_state=0)
        probability = classifier.fit(x, target.numpy()).predict_proba(wanted)
        logits = torch.full_like(found.rows["logits"], -30.0)  # of a class that no training row has
        logits[:, classifier.classes_] = torch.from_numpy(np.log(probability.clip(1e-13))).float()
        theirs = {"logits": logits, "label": found.rows["label"]}
    return {**theirs, "index": found.rows["index"]}, len(train)


def _learned_from(found: Measured, ref: str | Path, overrides: Sequence[str]) -> Data:
    """The run's own data, with as much of the training split as the run had."""
    trained = found.model.checkpoint.meta["config"]
    data, _ = data_for(found.model, ref, None, overrides)
    return fraction(data, trained["train"]["label_fraction"], trained["seed"])


def _matrix(samples: Samples, at: Tensor) -> NDArray[np.float64]:
    """The inputs of samples at `at` (N,) as the network gets them, (N, F + K): numbers, then the codes of categories."""
    inputs = samples.tensors
    if inputs is None:  # some rows cannot be read, and are not in `at`
        each = [samples[i] for i in at.tolist()]
        inputs = {name: torch.stack([one[name] for one in each]) for name in each[0]}
        at = torch.arange(len(each))
    return np.concatenate(
        [inputs[name][at].double().numpy() for name in ("columns", "categories") if name in inputs], axis=1
    )


# ---------------------------------------------------------------- of events


Scoring = Callable[[Tensor], Tensor]  # the last items of histories (B,) -> scores of all ids (B, ids)


def popularity(found: Measured, ref: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Tensor], int]:
    """To everyone what came next most often, whatever was before."""
    pairs, ids = _followed(found, "popularity", ref, overrides)
    score = _popularity(pairs, ids)
    return _ranked(found, lambda last: score.expand(len(last), -1)), len(pairs)


def transition(found: Measured, ref: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Tensor], int]:
    """What came most often right after the last item (a Markov chain), then the most popular."""
    pairs, ids = _followed(found, "transition", ref, overrides)
    popular = _popularity(pairs, ids)
    after: dict[int, list[tuple[int, int]]] = defaultdict(list)
    each, times = pairs.unique(dim=0, return_counts=True)
    for (before, item), count in zip(each.tolist(), times.tolist(), strict=True):
        after[before].append((item, count))

    def score(last: Tensor) -> Tensor:
        scores = popular.repeat(len(last), 1)
        for row, item in enumerate(last.tolist()):
            if item in after:
                items, counts = torch.tensor(after[item]).T
                scores[row, items] += counts * ids  # a time more outweighs any popularity
        return scores

    return _ranked(found, score), len(pairs)


def _followed(found: Measured, name: str, ref: str | Path, overrides: Sequence[str]) -> tuple[Tensor, int]:
    """Each training step as (item, the next one) (N, 2), and how many ids there are."""
    model = found.model
    if model.spec.modality != "events" or "rank" not in found.rows:
        raise ConfigError(f"--baseline {name} is for what comes next of events")
    train = _learned_from(found, ref, overrides).split("train")
    each = [train[i]["tokens"] for i in range(len(train))]
    pairs = torch.cat([torch.stack([tokens[:-1], tokens[1:]], 1) for tokens in each])
    return pairs, int(model.spec.preprocessing["ids"])


def _popularity(pairs: Tensor, ids: int) -> Tensor:
    """A score (ids,) from 0 to ids - 1, each once: by how often an item came next, of equal ones the lower id first."""
    order = pairs[:, 1].bincount(minlength=ids).argsort(descending=True, stable=True)
    return torch.empty(ids, dtype=torch.float64).index_put_((order,), torch.arange(ids - 1, -1, -1).double())


def _ranked(found: Measured, score: Scoring) -> dict[str, Tensor]:
    """The rows that the objective would have by these scores."""
    objective: Any = found.model.objective
    rows: list[dict[str, Tensor]] = []
    for at in found.rows["index"].split(64):
        each = [found.samples[i] for i in at.tolist()]
        wanted = torch.stack([one["tokens"][-1] for one in each])
        last = torch.stack([one["tokens"][-2] for one in each])
        history: Inputs = {
            name: pad([one[name][:-1] if name == "tokens" else one[name] for one in each]) for name in each[0]
        }
        rows.append(objective.catalogue.answers(score(last), history, wanted))
    return {**{name: torch.cat([one[name] for one in rows]) for name in rows[0]}, "index": found.rows["index"]}


# ---------------------------------------------------------------- of series


def seasonal_naive(found: Measured, ref: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Tensor], int]:
    """Every step will be what it was a season before. Learns from nothing."""
    future, context = _series(found, "seasonal_naive"), found.model.spec.inputs["series"].shape[0]
    season, steps = found.model.spec.preprocessing["season"], future.shape[1]
    if season > context:
        raise ConfigError(f"--baseline seasonal_naive: a season of {season} is longer than the context of {context}")
    at = context - season + torch.arange(steps) % season
    return _errors(found, lambda x: x[:, at]), 0


def dlinear(found: Measured, ref: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Tensor], int]:
    """One linear map from what is known to what comes, for all series: DLinear, fitted exactly rather than by gradients.

    DLinear (https://arxiv.org/abs/2205.13504 section 4) adds a linear map of the moving average and one of the rest. Both are
    linear in the window, so that together they are one map W, and its least squares have a closed form
    (https://arxiv.org/abs/2403.14587 section 3): W = (X'X + l I)^-1 X'Y. Windows are taken less their mean, which is
    added again; l is the best of a few on the validation split.
    """
    _series(found, "dlinear")
    data = _learned_from(found, ref, overrides)
    train = data.split("train")
    context = found.model.spec.inputs["series"].shape[0]
    square, product = torch.zeros(context, context, dtype=torch.float64), None
    for x, y in _windows(train):
        mean = x.mean(1, keepdim=True)
        square += (x - mean).T @ (x - mean)
        part = (x - mean).T @ (y - mean)
        product = part if product is None else product + part
    assert product is not None
    values, vectors = torch.linalg.eigh(square / len(train))

    def fitted(strength: float) -> Callable[[Tensor], Tensor]:
        weight = vectors @ ((vectors.T @ (product / len(train))) / (values[:, None].clamp_min(0) + strength))
        return lambda x: (x - x.mean(1, keepdim=True)) @ weight + x.mean(1, keepdim=True)

    def missed(strength: float) -> float:
        forecast = fitted(strength)
        return sum(float((forecast(x) - y).square().sum()) for x, y in _windows(data.split("val")))

    return _errors(found, fitted(min(STRENGTHS, key=missed))), len(train)


def _series(found: Measured, name: str) -> Tensor:
    """The future (N, H) of the samples. Raises ConfigError where there is none to forecast."""
    future = found.samples.targets.get("future")
    if not isinstance(future, Tensor) or not {"mse", "mae"} <= set(found.rows):
        raise ConfigError(f"--baseline {name} is for objective forecast")
    return future


def _windows(samples: Samples, at: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """What is known (n, L) and what comes (n, H) of samples, or of those at positions, some at a time, in float64."""
    inputs, future = samples.tensors, samples.targets["future"]
    assert inputs is not None and isinstance(future, Tensor)
    for part in (torch.arange(len(samples)) if at is None else at).split(TOGETHER):
        yield inputs["series"][part].double(), future[part].double()


def _errors(found: Measured, forecast: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The rows that the objective would have, had it forecast so; a baseline gives the same for all quantiles."""
    objective: Any = found.model.objective
    parts: list[dict[str, Tensor]] = []
    places = found.rows["index"].split(TOGETHER)
    for at, (x, y) in zip(places, _windows(found.samples, found.rows["index"]), strict=True):
        levels = forecast(x).unsqueeze(-1).expand(-1, -1, len(objective.levels))
        parts.append(objective.errors(levels, y, found.samples.targets["naive"][at]))
    return {**{name: torch.cat([one[name] for one in parts]) for name in parts[0]}, "index": found.rows["index"]}


BASELINES: dict[str, Callable[[Measured, str | Path, Sequence[str]], tuple[dict[str, Tensor], int]]] = {
    "gbdt": gbdt,
    "popularity": popularity,
    "transition": transition,
    "seasonal_naive": seasonal_naive,
    "dlinear": dlinear,
}
