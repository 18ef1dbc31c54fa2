"""Fit boosted trees to the rows of a table: the baseline that a network on tables has to beat.

scikit-learn's histogram gradient boosting, which follows LightGBM (https://papers.nips.cc/paper/6907), with default settings
and no tuning. Even so, trees are hard to beat on tables (https://arxiv.org/abs/2207.08815). With more than 10,000 rows, its
`early_stopping: auto` holds out 10% of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmeco.core import ConfigError, Data, DataSpec, Samples, known, say

LARGEST = 254  # most categories per column that scikit-learn's trees accept, besides "unknown"


def classify(target: str, data: Data, samples: Samples, rows: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Fit a classifier to the training split and classify `rows`.

    Returns (rows with logits (N, C) and label (N,), number of training rows). Raises ConfigError unless the data is a table.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(categorical_features=_categorical(data.spec), random_state=0)
    x, y = _training_rows(data, target)
    probability = model.fit(x, y).predict_proba(_matrix(samples, rows["index"]))
    logits = torch.full_like(rows["logits"], -30.0)  # for classes without a training row
    logits[:, model.classes_] = torch.from_numpy(np.log(probability.clip(1e-13))).float()
    return {"logits": logits, "label": rows["label"]}, len(y)


def regress(target: str, data: Data, samples: Samples, rows: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Fit a regressor to the training split and predict `rows`.

    Returns (rows with predicted (N,) and value (N,), number of training rows). Raises ConfigError unless the data is a table.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(categorical_features=_categorical(data.spec), random_state=0)
    x, y = _training_rows(data, target)
    predicted = model.fit(x, y).predict(_matrix(samples, rows["index"]))
    return {"predicted": torch.from_numpy(predicted).to(rows["value"].dtype), "value": rows["value"]}, len(y)


def _categorical(spec: DataSpec) -> NDArray[np.bool_]:
    """Return which columns of `_matrix` are categories. Raises ConfigError unless the data is a table."""
    if spec.modality != "table":
        raise ConfigError(f"--baseline gbdt is for tables, and this checkpoint is for {spec.modality} data")
    sizes = [len(column["categories"]) for column in spec.preprocessing["categorical"]]
    if large := sum(size > LARGEST for size in sizes):
        say(f"gbdt: {large} columns with more than {LARGEST} categories are treated as numbers")
    numbers = spec.inputs["columns"].shape[0] if "columns" in spec.inputs else 0
    return np.array([False] * numbers + [size <= LARGEST for size in sizes])


def _training_rows(data: Data, target: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the training rows that have a value of the target (N, F + K), and these values (N,)."""
    train = data.split("train")
    values = train.targets[target]
    assert isinstance(values, Tensor)
    at = known(values).nonzero()[:, 0]
    return _matrix(train, at), values[at].numpy()


def _matrix(samples: Samples, at: Tensor) -> NDArray[np.float64]:
    """Return the inputs of the samples at positions `at` (N,), as the network gets them.

    Returns (N, F + K): the numbers, then the codes of the categories.
    """
    inputs = samples.tensors
    if inputs is None:  # some rows cannot be read; these are not in `at`
        read = [samples[i] for i in at.tolist()]
        inputs = {name: torch.stack([sample[name] for sample in read]) for name in read[0]}
        at = torch.arange(len(read))
    return np.concatenate(
        [inputs[name][at].double().numpy() for name in ("columns", "categories") if name in inputs], axis=1
    )
