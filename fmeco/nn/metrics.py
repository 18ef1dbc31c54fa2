"""Compute metrics as pure functions of scores, labels and vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07  # as in https://arxiv.org/abs/2104.14294, appendix F


def votes(similarity: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Sum weighted votes (n, C) of the 20 nearest samples (weighted k-nearest neighbours).

    similarity: (n, N) cosine similarities s to N samples; a neighbour's vote has the weight exp(s / 0.07), up to a factor.
    labels: (N,) classes of the N samples.
    classes: C.

    https://arxiv.org/abs/1805.01978 section 3.4.
    """
    near, at = similarity.topk(min(NEIGHBOURS, similarity.shape[1]), 1)  # (n, k)
    weight = ((near - 1) / TEMPERATURE).exp()
    return torch.zeros(len(similarity), classes).scatter_add_(1, labels[at], weight)


def roc_auc(scores: Tensor, positive: Tensor) -> float:
    """Compute the area under the ROC curve of scores (N,) for bool labels (N,); nan without positives or negatives.

    It is the share of (positive, negative) pairs in the right order; ties count half (Mann-Whitney U).
    """
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
    """Compute the average precision of scores (N,) for bool labels (N,); nan without positives.

    It is the sum over thresholds of the precision times the increase in recall.
    """
    n_pos = int(positive.sum())
    if n_pos == 0:
        return float("nan")
    hits, chosen = _at_each_threshold(scores, positive)
    return float((hits.cumsum(0) / chosen.cumsum(0) * hits).sum() / n_pos)


def recall_at_precision(scores: Tensor, positive: Tensor, precision: float) -> float:
    """Compute the highest recall of all thresholds on scores (N,) that have at least this precision for bool labels (N,).

    Returns 0 if no threshold has it, nan without positives.
    """
    n_pos = int(positive.sum())
    if n_pos == 0:
        return float("nan")
    hits, chosen = (x.cumsum(0) for x in _at_each_threshold(scores, positive))
    return float(torch.where(hits >= precision * chosen, hits, 0.0).max() / n_pos)


def _at_each_threshold(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Count (positives, samples) at each of the L distinct scores, two tensors (L,), highest score first."""
    _, inverse = scores.double().unique(return_inverse=True)
    empty = torch.zeros(int(inverse.max()) + 1, dtype=torch.float64)
    ones = torch.ones(len(scores), dtype=torch.float64)
    return empty.index_add(0, inverse, positive.double()).flip(0), empty.index_add(0, inverse, ones).flip(0)


def calibration_error(probability: Tensor, right: Tensor, bins: int = 15) -> float:
    """Compute the expected calibration error of predicted probabilities.

    It is the sum over bins of equal width of |accuracy - mean probability|, weighted by each bin's share of the samples.

    probability: (N,) probability of each predicted answer.
    right: (N,) bool, whether the answer is correct.

    https://arxiv.org/abs/1706.04599 (Guo et al. 2017), equation 3.
    """
    at = ((probability * bins).ceil().long() - 1).clamp(0, bins - 1)  # (N,): bin m holds ((m - 1) / bins, m / bins]
    gap = torch.zeros(bins, dtype=torch.float64).index_add(0, at, right.double() - probability.double())
    return float(gap.abs().sum() / len(at))


def spread(z: Tensor) -> float:
    """Measure how much the directions of vectors (N, D) differ: 0 = all the same (collapse), 1 = spread evenly.

    It is the mean standard deviation per dimension of the normalised vectors, times sqrt(D).
    https://arxiv.org/abs/2011.10566 section 4.1.
    """
    return float(F.normalize(z.double(), dim=1).std(0, correction=0).mean() * math.sqrt(z.shape[1]))


def effective_rank(x: Tensor) -> float:
    """Measure in how many directions vectors (N, D) vary: exp of the entropy of their normalised singular values.

    https://arxiv.org/abs/2210.02885 (RankMe), equation (1), here with centred vectors, so that their mean does not count.
    """
    sizes = torch.linalg.svdvals((x - x.mean(0)).double())
    shares = sizes / sizes.sum().clamp_min(1e-12)
    return float((-(shares * shares.clamp_min(1e-12).log()).sum()).exp())


def neighbours_agree(x: Tensor, labels: Tensor) -> float:
    """Compute the leave-one-out accuracy of `votes` on vectors (N, D) with classes (N,)."""
    x = F.normalize(x, dim=1)
    similarity = (x @ x.T).fill_diagonal_(-math.inf)  # a sample's vote for itself gets the weight exp(-inf) = 0
    predicted = votes(similarity, labels, int(labels.max()) + 1).argmax(1)
    return float((predicted == labels).double().mean())


def alignment(one: Tensor, other: Tensor) -> float:
    """Compute the mean squared distance, 0..4, between the normalised vectors (N, D) of two views of each sample.

    https://arxiv.org/abs/2005.10242 section 4.1, with alpha = 2.
    """
    return float((F.normalize(one.double(), dim=1) - F.normalize(other.double(), dim=1)).square().sum(1).mean())


def uniformity(x: Tensor) -> float:
    """Measure how evenly normalised vectors (N, D) cover the sphere: 0 = all the same, lower = more even.

    It is the logarithm of the mean of exp(-2 d^2) over all pairs, with d their distance.
    https://arxiv.org/abs/2005.10242 section 4.1, with t = 2.
    """
    return float(F.pdist(F.normalize(x.double(), dim=1)).square().mul(-2).exp().mean().log())


def retrieved(one: Tensor, other: Tensor) -> float:
    """Compute the share of samples whose nearest vector in `other` (N, D) to their vector in `one` (N, D) is their own."""
    similarity = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T
    return float((similarity.argmax(1) == torch.arange(len(one))).double().mean())
