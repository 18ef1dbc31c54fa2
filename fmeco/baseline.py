"""What a network is to be held against: a plain method on the same data, which takes seconds.

Each is a function (found, ref, overrides) of the samples that were measured, the checkpoint, and what of its dataset's section
is overridden. It is fitted to the training split of the run's own dataset, and returns its rows for the objective's metrics,
sample by sample those of `found`, and how many training samples it learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmeco import use
from fmeco.build import fraction
from fmeco.core import Samples
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


BASELINES: dict[str, Callable[[use.Measured, str | Path, Sequence[str]], tuple[dict[str, Tensor], int]]] = {
    "gbdt": gbdt,
}
