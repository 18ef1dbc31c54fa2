"""Fit boosted trees to the rows of a table: the least that a network on tables has to reach.

scikit-learn's histogram boosting with its defaults, chosen by nothing, so no competitor with tricks
(https://arxiv.org/abs/2207.08815). It follows LightGBM (https://papers.nips.cc/paper/6907). Its `early_stopping: auto` sets
10% aside above 10,000 rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmeco.core import ConfigError, Data, DataSpec, Samples, known, say

LARGEST = 254  # categories that scikit-learn's trees take in a column, beside the unknown


def classify(target: str, data: Data, samples: Samples, rows: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Tell the class of each row. Returns rows of logits (N, C) and label (N,), and how many rows it learned from."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(categorical_features=_categorical(data.spec), random_state=0)
    x, y = _training_rows(data, target)
    probability = model.fit(x, y).predict_proba(_matrix(samples, rows["index"]))
    logits = torch.full_like(rows["logits"], -30.0)  # of a class that no training row has
    logits[:, model.classes_] = torch.from_numpy(np.log(probability.clip(1e-13))).float()
    return {"logits": logits, "label": rows["label"]}, len(y)


def regress(target: str, data: Data, samples: Samples, rows: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Tell the number of each row. Returns rows of predicted (N,) and value (N,), and how many rows it learned from."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(categorical_features=_categorical(data.spec), random_state=0)
    x, y = _training_rows(data, target)
    predicted = model.fit(x, y).predict(_matrix(samples, rows["index"]))
    return {"predicted": torch.from_numpy(predicted).float(), "value": rows["value"]}, len(y)


def _categorical(spec: DataSpec) -> NDArray[np.bool_]:
    """Say which columns of `_matrix` are categories. Raises ConfigError for data that is no table."""
    if spec.modality != "table":
        raise ConfigError(f"--baseline gbdt is for tables, and this checkpoint is for {spec.modality} data")
    sizes = [len(one["categories"]) for one in spec.preprocessing["categorical"]]
    if large := sum(size > LARGEST for size in sizes):
        say(f"gbdt: {large} columns with more than {LARGEST} categories are taken as numbers")
    numbers = spec.inputs["columns"].shape[0] if "columns" in spec.inputs else 0
    return np.array([False] * numbers + [size <= LARGEST for size in sizes])


def _training_rows(data: Data, target: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the training rows that have a value of the target (N, F + K), and these values (N,)."""
    train = data.split("train")
    values = train.targets[target]
    assert isinstance(values, Tensor)
    at = known(values).nonzero()[:, 0]
    return _matrix(train, at), values[at].numpy()


def _matrix(samples: Samples, at: Tensor) -> NDArray[np.float64]:
    """Give the inputs of samples at `at` (N,) as the network gets them, (N, F + K): numbers, then the codes of
    categories."""
    inputs = samples.tensors
    if inputs is None:  # some rows cannot be read, and are not in `at`
        each = [samples[i] for i in at.tolist()]
        inputs = {name: torch.stack([one[name] for one in each]) for name in each[0]}
        at = torch.arange(len(each))
    return np.concatenate(
        [inputs[name][at].double().numpy() for name in ("columns", "categories") if name in inputs], axis=1
    )
