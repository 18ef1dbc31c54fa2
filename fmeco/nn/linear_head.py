"""Fit a linear head to features: by ridge regression in closed form, or by L-BFGS to convergence. All functions are pure.

The head minimises the mean loss plus penalty / 2 times the squared weights, without the bias, on features that are
shifted to mean 0 and divided by one number, the root of their mean square, so that a penalty means the same for all
backbones. Features keep their relative sizes: those that vary little are penalised more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core.random import mix

LossName = Literal["softmax", "sigmoid", "squares"]  # cross-entropy, binary cross-entropy per label, squared error

PENALTIES: tuple[float, ...] = tuple(10.0 ** (n / 2) for n in range(4, -11, -1))  # to choose from, strongest first
FOLDS, FEWER_FOLDS, MANY = 5, 3, 1000  # of the cross-validation, up to MANY samples and above
# Limits of size, as samples times features times outputs: of the samples that the penalty is chosen on, of a fit by L-BFGS,
# and of the smaller of samples and features in ridge regression.
CHOOSING, FITTING, SQUARE = 2e8, 2e10, 2048
FEWEST, MOST = 500, 10_000  # samples that the penalty is chosen on, within this limit


class Examples(NamedTuple):
    """Hold what a head is fitted to.

    x: features (N, D).
    y: wanted answers (N, C): probabilities of classes, labels 0 or 1, or numbers.
    weight: of each term of the loss, (N, 1) or (N, C).
    loss: that the head minimises.
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    loss: LossName


class Head(NamedTuple):
    """Hold a linear head: outputs (N, C) = x @ weight.T + bias.

    weight: (C, D).
    bias: (C,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


def examples(x: Tensor, y: Tensor, loss: LossName, weight: Tensor | None = None) -> Examples:
    """Collect what a head is fitted to; features that have one value for all samples carry nothing.

    y: (N,) or (N, C). weight: (N,), (N, 1) or (N, C); None = equal.
    """
    y = (y if y.ndim > 1 else y[:, None]).float()
    weight = torch.ones(len(x), 1) if weight is None else (weight if weight.ndim > 1 else weight[:, None]).float()
    return Examples(x.float(), y, weight, loss)


def fits(data: Examples) -> bool:
    """Tell whether a head can be fitted in a reasonable time."""
    samples, features = data.x.shape
    if data.loss == "squares":
        return min(samples, features) <= SQUARE
    return float(samples) * features * data.y.shape[1] <= FITTING


@torch.no_grad()
def solve(layer: nn.Linear, data: Examples, target: str, penalties: Mapping[str, float]) -> dict[str, float]:
    """Fit a linear layer to the examples of a target, and write its weights, as `Objective.solve` does.

    Returns {target: penalty}, chosen if `penalties` has none for it; {} if the fit would take too long.
    """
    if not fits(data):
        return {}
    penalty = penalties[target] if target in penalties else choose_penalty(data)
    head = fit(data, penalty)
    layer.weight.copy_(head.weight)
    layer.bias.copy_(head.bias)
    return {target: penalty}


def fit(data: Examples, penalty: float) -> Head:
    """Fit a head with a given penalty."""
    return _Solver(data).head(penalty)


def choose_penalty(data: Examples, *, in_order: bool = False) -> float:
    """Choose the penalty by cross-validation: the strongest whose loss is within one standard error of the lowest.

    The one-standard-error rule is of https://doi.org/10.1007/978-0-387-84858-7 section 7.10; the error is that of the
    paired difference. Of many samples, some that are evenly spread decide.

    in_order: neighbouring samples are alike, such as the windows of a series: folds are then blocks of neighbours.
    """
    most = min(MOST, max(FEWEST, int(CHOOSING / (data.x.shape[1] * data.y.shape[1]))))
    every = -(-len(data.x) // most)
    data = Examples(data.x[::every], data.y[::every], data.weight[::every], data.loss)
    folds = _folds(data, in_order)
    if len(folds) < 2:
        return PENALTIES[0]
    solvers = [_Solver(_part(data, ~held_out)) for held_out in folds]
    losses: list[Tensor] = []
    for penalty in PENALTIES:
        each = torch.zeros(len(data.x), dtype=torch.float64)
        for solver, held_out in zip(solvers, folds, strict=True):
            part = _part(data, held_out)
            each[held_out] = _each(solver.head(penalty)(part.x), part).sum(1)
        losses.append(each)
        means = [float(loss.mean()) for loss in losses]
        if len(means) > 2 and not means[-1] <= means[-2] <= means[-3]:
            break  # weaker penalties only fit the training samples better
    best = min(range(len(means)), key=lambda at: means[at])
    within = (
        at
        for at in range(best + 1)
        if means[at] - means[best] <= float((losses[at] - losses[best]).std(correction=0)) / math.sqrt(len(data.x))
    )
    # With more samples, each of them has a smaller part in the mean loss, and the best penalty is smaller.
    return PENALTIES[next(within)] / every


def held_out_outputs(data: Examples, penalty: float, *, in_order: bool = False) -> Tensor:
    """Compute the outputs (N, C) of heads that were fitted without the sample, by cross-validation as in `choose_penalty`."""
    outputs = torch.empty_like(data.y)
    for held_out in _folds(data, in_order):
        outputs[held_out] = fit(_part(data, ~held_out), penalty)(data.x[held_out])
    return outputs


def _folds(data: Examples, in_order: bool) -> list[Tensor]:
    """Split samples into folds, of equal shares of each class. Returns a bool mask (N,) per fold."""
    count = len(data.x)
    folds = min(FOLDS if count <= MANY else FEWER_FOLDS, count)
    if in_order:
        number = torch.arange(count) * folds // count
    else:
        order = mix(0x666F6C64, torch.arange(count)).argsort(stable=True)
        if data.loss == "softmax":
            order = order[data.y[order].argmax(1).argsort(stable=True)]
        number = torch.empty(count, dtype=torch.int64)
        number[order] = torch.arange(count) % folds
    return [number == fold for fold in range(folds)]


def _part(data: Examples, chosen: Tensor) -> Examples:
    return Examples(data.x[chosen], data.y[chosen], data.weight[chosen], data.loss)


def _each(outputs: Tensor, data: Examples) -> Tensor:
    """Compute the weighted loss of each sample: (N, 1) or (N, C)."""
    outputs, y = outputs.double(), data.y.double()
    if data.loss == "softmax":
        each = -(outputs.log_softmax(1) * y).sum(1, keepdim=True)
    elif data.loss == "sigmoid":
        each = F.binary_cross_entropy_with_logits(outputs, y, reduction="none")
    else:
        each = (outputs - y).square()
    return each * data.weight


class _Solver:
    """Fit heads of several penalties to the same samples, in coordinates in which this is quick.

    Features are shifted, scaled and, if there are fewer samples than features, rotated into the space that the samples
    span, which holds the solution.
    """

    def __init__(self, data: Examples) -> None:
        self.mean = data.x.mean(0)
        x = data.x - self.mean
        self.scale = float(x.square().mean().sqrt()) or 1.0
        x = x / self.scale
        self.rotation: Tensor | None = None  # (D, N)
        if len(x) < x.shape[1]:
            u, sizes, v = torch.linalg.svd(x, full_matrices=False)
            x, self.rotation = u * sizes, v.T
        self.data = data._replace(x=x)
        self.start = np.zeros((x.shape[1] + 1) * data.y.shape[1])
        self.ridge = _ridge(self.data) if data.loss == "squares" else None

    def head(self, penalty: float) -> Head:
        """Fit a head. One of a similar penalty that was fitted before makes this quicker."""
        if self.ridge is not None:
            weight, bias = self.ridge(penalty)
        else:
            solved = _minimise(self.data, penalty, self.start)
            self.start = solved.ravel()
            weight, bias = torch.from_numpy(solved[:-1].T).float(), torch.from_numpy(solved[-1]).float()
        if self.rotation is not None:
            weight = weight @ self.rotation.T
        weight = weight / self.scale
        return Head(weight, bias - weight @ self.mean)


def _ridge(data: Examples) -> Callable[[float], tuple[Tensor, Tensor]]:
    """Prepare ridge regression. Returns a function of the penalty that returns weight (C, D) and bias (C,).

    Samples have one weight for all outputs.
    """
    weight = (data.weight.mean(1, keepdim=True) / data.weight.mean(1).sum()).double()  # (N, 1), of sum 1
    x, y = data.x.double(), data.y.double()
    x_mean, y_mean = (weight * x).sum(0), (weight * y).sum(0)
    x, y = x - x_mean, y - y_mean
    values, vectors = torch.linalg.eigh(x.T @ (weight * x))
    wanted = vectors.T @ (x.T @ (weight * y))  # (D, C)
    values = values.clamp_min(0.0)
    tiny = float(values.max()) * len(values) * torch.finfo(torch.float64).eps

    def solve(penalty: float) -> tuple[Tensor, Tensor]:
        solution = vectors @ (wanted / (values + max(penalty, tiny))[:, None])  # (D, C)
        return solution.T.float(), (y_mean - x_mean @ solution).float()

    return solve


def _minimise(data: Examples, penalty: float, start: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Minimise the loss of a classifier by L-BFGS. Returns weights (D + 1, C), the last row of which is the bias."""
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    x = torch.cat([data.x, torch.ones(len(data.x), 1)], 1)
    wanted, shape = data.y.numpy(), (x.shape[1], data.y.shape[1])
    terms = data.weight.expand(-1, 1 if data.loss == "softmax" else shape[1])
    share = (terms / terms.sum()).numpy()  # (N, 1) or (N, C)
    decayed = penalty * np.append(np.ones(shape[0] - 1), 0.0)[:, None]

    def loss(flat: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        """Compute the objective and its gradient, whose data term is x.T @ (weight * (probabilities - wanted))."""
        weights = flat.reshape(shape).astype(np.float32)
        scores = (x @ torch.from_numpy(weights)).numpy()
        if data.loss == "softmax":
            scores -= scores.max(1, keepdims=True)
            answers = np.exp(scores)
            sums = answers.sum(1, keepdims=True)
            answers /= sums
            each = np.log(sums) - (scores * wanted).sum(1, keepdims=True)
        else:
            answers = 1 / (1 + np.exp(-scores))
            each = np.logaddexp(0, scores) - scores * wanted
        gradient = (x.T @ torch.from_numpy(share * (answers - wanted))).numpy() + decayed * weights
        return float(
            (share * each).sum(dtype=float) + (decayed * np.square(weights)).sum() / 2
        ), gradient.ravel().astype(float)

    options = {"maxiter": 500, "ftol": 1e-6, "gtol": 1e-5}
    with threadpool_limits(1, "blas"):  # idle BLAS threads of scipy slow down torch's threads fivefold
        solved = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(solved.x).reshape(shape)


def one_hot(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Turn labels (N,) into wanted probabilities (N, classes). Smoothing as in https://arxiv.org/abs/1512.00567 section 7."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
