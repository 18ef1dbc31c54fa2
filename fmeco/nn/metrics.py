"""Metrics: pure functions of scores, labels and vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07  # as in https://arxiv.org/abs/2104.14294, appendix F


def votes(alike: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Votes (n, C) of the nearest of N samples with classes (N,), by cosine similarities s (n, N): each weighs exp(s / 0.07).

    https://arxiv.org/abs/1805.01978 section 3.4.
    """
    near, at = alike.topk(min(NEIGHBOURS, alike.shape[1]), 1)  # (n, k)
    weight = ((near - 1) / TEMPERATURE).exp()
    return torch.zeros(len(alike), classes).scatter_add_(1, labels[at], weight)


def roc_auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve of scores (N,) for bool labels (N,): the share of (positive, negative) pairs ranked
    right, ties counting half (Mann-Whitney). nan when one side is empty."""
    n_pos = int(positive.sum())
    n_neg = len(positive) - n_pos
    if n_pos == 0 or n_neg == 0:
        return float("nan")
    _values, inverse, counts = scores.double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    mean_rank = last - (counts.double() - 1) / 2  # ranks from 1; ties share their mean
    rank_sum = mean_rank[inverse][positive].sum()
    return float((rank_sum - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Average precision of scores (N,) for bool labels (N,): sum over thresholds of precision times the recall gained.
    nan without positives."""
    n_pos = int(positive.sum())
    if n_pos == 0:
        return float("nan")
    hits, chosen = _at_each_threshold(scores, positive)
    return float((hits.cumsum(0) / chosen.cumsum(0) * hits).sum() / n_pos)


def recall_at_precision(scores: Tensor, positive: Tensor, precision: float) -> float:
    """The highest recall of any threshold on scores (N,) whose precision is at least `precision`, for bool labels (N,);
    0 where there is none, nan without positives."""
    n_pos = int(positive.sum())
    if n_pos == 0:
        return float("nan")
    hits, chosen = (x.cumsum(0) for x in _at_each_threshold(scores, positive))
    return float(torch.where(hits >= precision * chosen, hits, 0.0).max() / n_pos)


def _at_each_threshold(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """(positives, samples) at each distinct score (L,), the highest first."""
    _, inverse = scores.double().unique(return_inverse=True)
    empty = torch.zeros(int(inverse.max()) + 1, dtype=torch.float64)
    ones = torch.ones(len(scores), dtype=torch.float64)
    return empty.index_add(0, inverse, positive.double()).flip(0), empty.index_add(0, inverse, ones).flip(0)


def calibration_error(probability: Tensor, right: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the probabilities (N,) that answers were given, of which some were `right` (N,):
    sum over bins of equal width of |share right - mean probability|, weighted by the bins' shares of the samples.

    https://arxiv.org/abs/1706.04599 (Guo et al. 2017), equation 3.
    """
    at = ((probability * bins).ceil().long() - 1).clamp(0, bins - 1)  # (N,): bin m holds ((m - 1) / bins, m / bins]
    gap = torch.zeros(bins, dtype=torch.float64).index_add(0, at, right.double() - probability.double())
    return float(gap.abs().sum() / len(at))


def spread(z: Tensor) -> float:
    """How far the directions of vectors (N, D) differ: the deviation of their normalised values times the square root of D.
    1 = everywhere, 0 = all the same. https://arxiv.org/abs/2011.10566 section 4.1."""
    return float(F.normalize(z.double(), dim=1).std(0, correction=0).mean() * math.sqrt(z.shape[1]))


def effective_rank(x: Tensor) -> float:
    """In how many directions vectors (N, D) vary: exp of the entropy of their singular values' shares.
    https://arxiv.org/abs/2210.02885 (RankMe), equation (1); of centred vectors, so that a common part is no direction."""
    sizes = torch.linalg.svdvals((x - x.mean(0)).double())
    shares = sizes / sizes.sum().clamp_min(1e-12)
    return float((-(shares * shares.clamp_min(1e-12).log()).sum()).exp())


def neighbours_agree(x: Tensor, labels: Tensor) -> float:
    """Share of samples (N, D) whose class the others' votes name."""
    x = F.normalize(x, dim=1)
    alike = (x @ x.T).fill_diagonal_(-math.inf)  # a vote for itself would weigh exp(-inf)
    found = votes(alike, labels, int(labels.max()) + 1)
    return float((found.argmax(1) == labels).double().mean())


def alignment(one: Tensor, other: Tensor) -> float:
    """How far apart two views of a sample are: the mean squared distance of normalised vectors (N, D), 0..4.
    https://arxiv.org/abs/2005.10242 section 4.1, with alpha = 2."""
    return float((F.normalize(one.double(), dim=1) - F.normalize(other.double(), dim=1)).square().sum(1).mean())


def uniformity(x: Tensor) -> float:
    """How evenly vectors (N, D), normalised, cover the sphere: the logarithm of the mean of exp(-2 d^2) over all pairs, which
    are d apart; 0 = all the same, lower is more even. https://arxiv.org/abs/2005.10242 section 4.1, with t = 2."""
    return float(F.pdist(F.normalize(x.double(), dim=1)).square().mul(-2).exp().mean().log())


def retrieved(one: Tensor, other: Tensor) -> float:
    """Share of samples whose view in `one` (N, D) is nearer to its own other view in `other` (N, D) than to anyone else's."""
    alike = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T
    return float((alike.argmax(1) == torch.arange(len(one))).double().mean())
