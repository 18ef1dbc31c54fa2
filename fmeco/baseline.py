"""What a network is to be held against: a plain method on the same data, which takes seconds.

Each is a function (found, ref, overrides) of the samples that were measured, the checkpoint, and what of its dataset's section
is overridden. It is fitted to the training split of the run's own dataset, and returns its rows for the objective's metrics,
sample by sample those of `found`, and how many training samples it learned from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmeco import use
from fmeco.build import fraction
from fmeco.core import Inputs, Samples, pad
from fmeco.errors import ConfigError
from fmeco.log import say

LARGEST = 254  # categories that scikit-learn's trees take in a column, beside the unknown


def gbdt(found: use.Measured, ref: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Tensor], int]:
    """scikit-learn's histogram boosting with its defaults, chosen by nothing: no competitor with tricks, but the least that
    a network on tables has to reach (https://arxiv.org/abs/2207.08815).

    https://papers.nips.cc/paper/6907 (LightGBM), which scikit-learn follows. Its `early_stopping: auto` sets 10% aside
    above 10,000 rows.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    model, trained = found.model, found.model.checkpoint.meta["config"]
    spec = model.spec
    if spec.modality != "table":
        raise ConfigError(f"--baseline gbdt is for tables, and this checkpoint is for {spec.modality} data")
    forms: dict[str, set[str]] = {"class": {"logits", "label"}, "number": {"predicted", "value"}}
    kind = spec.targets["label"].kind if "label" in spec.targets else ""
    if set(found.rows) - {"index"} != forms.get(kind):
        raise ConfigError("--baseline gbdt is for one class or one number per row")
    data, _ = use.data_for(model, ref, None, overrides)
    train = fraction(data, trained["train"]["label_fraction"], trained["seed"]).split("train")
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


def popularity(found: use.Measured, ref: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Tensor], int]:
    """To everyone what came next most often, whatever was before."""
    pairs, ids = _followed(found, "popularity", ref, overrides)
    score = _popularity(pairs, ids)
    return _ranked(found, lambda last: score.expand(len(last), -1)), len(pairs)


def transition(found: use.Measured, ref: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Tensor], int]:
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


def _followed(found: use.Measured, name: str, ref: str | Path, overrides: Sequence[str]) -> tuple[Tensor, int]:
    """Each training step as (item, the next one) (N, 2), and how many ids there are."""
    model = found.model
    if model.spec.modality != "events" or "rank" not in found.rows:
        raise ConfigError(f"--baseline {name} is for what comes next of events")
    trained = model.checkpoint.meta["config"]
    data, _ = use.data_for(model, ref, None, overrides)
    train = fraction(data, trained["train"]["label_fraction"], trained["seed"]).split("train")
    each = [train[i]["tokens"] for i in range(len(train))]
    pairs = torch.cat([torch.stack([tokens[:-1], tokens[1:]], 1) for tokens in each])
    return pairs, int(model.spec.preprocessing["ids"])


def _popularity(pairs: Tensor, ids: int) -> Tensor:
    """A score (ids,) from 0 to ids - 1, each once: by how often an item came next, of equal ones the lower id first."""
    order = pairs[:, 1].bincount(minlength=ids).argsort(descending=True, stable=True)
    return torch.empty(ids, dtype=torch.float64).index_put_((order,), torch.arange(ids - 1, -1, -1).double())


def _ranked(found: use.Measured, score: Scoring) -> dict[str, Tensor]:
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


BASELINES: dict[str, Callable[[use.Measured, str | Path, Sequence[str]], tuple[dict[str, Tensor], int]]] = {
    "gbdt": gbdt,
    "popularity": popularity,
    "transition": transition,
}
