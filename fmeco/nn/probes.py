"""Measure how well vectors suit a task, by nearest neighbours, a linear head and LogME. All functions are pure."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fmeco.core.target import Target
from fmeco.nn import linear_head
from fmeco.nn.intervals import bootstrap
from fmeco.nn.linear_head import Examples, one_hot
from fmeco.nn.metrics import average_precision, votes

# Number of bootstrap draws of a probe's score: for accuracy and R2, and for mean average precision, which takes longer.
DRAWS, FEW_DRAWS = 1000, 200


class Split(NamedTuple):
    """Hold the features and targets of a split.

    x: (N, D) features.
    y: targets: classes (N,), labels (N, C) or numbers (N,).
    """

    x: Tensor
    y: Tensor


def knn(train: Split, test: Split, classes: int) -> Tensor:
    """Compute the votes (N, C) of the nearest training samples for each test sample."""
    x = F.normalize(train.x, dim=1)
    parts = F.normalize(test.x, dim=1).split(1024)
    return torch.cat([votes(part @ x.T, train.y, classes) for part in parts])


def examples(train: Split, target: Target) -> Examples:
    """Collect what a linear head is fitted to. Numbers are wanted in standard deviations from their mean."""
    loss = target.traits.loss
    assert loss is not None, "a linear head can predict the target"
    if loss == "softmax":
        return linear_head.examples(train.x, one_hot(train.y, len(target.classes)), loss)
    y = (train.y - target.mean) / target.std if loss == "squares" else train.y
    return linear_head.examples(train.x, y, loss)


def score(outputs: Tensor, y: Tensor, target: Target) -> float:
    """Compute the metric of a head's outputs (N, C): accuracy, mean average precision or R2. Higher is better."""
    if target.traits.loss == "softmax":
        return float((outputs.argmax(1) == y).double().mean())
    if target.traits.loss == "sigmoid":
        each = [average_precision(outputs[:, c], y[:, c] > 0) for c in range(y.shape[1])]
        return float(torch.tensor([x for x in each if not math.isnan(x)], dtype=torch.float64).mean())
    error = (outputs[:, 0].double() * target.std + target.mean - y.double()).square().sum()
    return float(1 - error / (y.double() - y.double().mean()).square().sum())


def interval(outputs: Tensor, y: Tensor, target: Target) -> tuple[float, float]:
    """Compute the 95% interval of `score` by the bootstrap over samples (percentiles)."""
    right = outputs.argmax(1) == y if target.traits.loss == "softmax" else None

    def measure(at: Tensor) -> float:
        return float(right[at].double().mean()) if right is not None else score(outputs[at], y[at], target)

    return bootstrap(len(y), FEW_DRAWS if target.traits.loss == "sigmoid" else DRAWS, 0x626F6F74, measure)


def logme(x: Tensor, y: Tensor, target: Target) -> float:
    """Compute LogME: the log evidence of a Bayesian linear model of the targets on features (N, D), per sample.

    Classes and labels are 0/1 targets, one model per class; the result is the mean over classes, nan without any.

    https://arxiv.org/abs/2102.11005 (You et al. 2021), equation (2) and algorithm 1, with the features' singular values.
    """
    u, sizes, _ = torch.linalg.svd(x.double(), full_matrices=False)
    squares, (n, d) = sizes.square(), x.shape
    loss = target.traits.loss
    if loss == "softmax":
        columns = F.one_hot(y, len(target.classes)).double()
    else:
        columns = ((y.double() - target.mean) / target.std if loss == "squares" else y.double()).view(n, -1)
    evidence = []
    for column in columns.T:
        if loss != "squares" and not 0 < float(column.sum()) < n:
            continue  # a class that no sample, or every sample, has carries no information
        z2 = (u.T @ column).square()  # (min(N, D),)
        outside = float(column.square().sum() - z2.sum())
        alpha = beta = 1.0
        for _ in range(200):
            shrunk = beta * squares / (alpha + beta * squares)
            gamma = float(shrunk.sum())
            m2 = float((beta**2 * squares * z2 / (alpha + beta * squares).square()).sum())
            res2 = float(((1 - shrunk).square() * z2).sum()) + outside
            before = alpha / beta
            alpha, beta = gamma / max(m2, 1e-12), (n - gamma) / max(res2, 1e-12)
            if abs(alpha / beta - before) <= 1e-6 * before:
                break
        m2 = float((beta**2 * squares * z2 / (alpha + beta * squares).square()).sum())
        res2 = float(((1 - beta * squares / (alpha + beta * squares)).square() * z2).sum()) + outside
        rest = d - len(squares)
        evidence.append(
            (
                d * math.log(alpha)
                + n * math.log(beta)
                - float((alpha + beta * squares).log().sum())
                - rest * math.log(alpha)
                - beta * res2
                - alpha * m2
                - n * math.log(2 * math.pi)
            )
            / (2 * n)
        )
    return sum(evidence) / len(evidence) if evidence else math.nan
