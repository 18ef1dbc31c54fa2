"""What several plug-ins share."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import DataSpec, Inputs, mix
from fmeco.errors import ConfigError

NEIGHBOURS, TEMPERATURE = 20, 0.07  # as in https://arxiv.org/abs/2104.14294, appendix F


def import_torchvision(module: str = "torchvision") -> Any:
    """torchvision, imported late: it takes two seconds. A pair that does not match torch is one clear sentence."""
    try:
        return importlib.import_module(module)
    except (RuntimeError, ImportError, AttributeError, OSError) as error:
        raise ConfigError(
            f"torchvision cannot be used with this torch ({torch.__version__}): {str(error).splitlines()[0]}",
            "install torch and torchvision together, from the same index: pip install --upgrade torch torchvision",
        ) from None


def mlp(widths: list[int], *, batch_norm: bool, dropout: float) -> nn.Sequential:
    """Linear, batch norm, ReLU, dropout for each step of `widths`: (B, widths[0]) -> (B, widths[-1])."""
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers.append(nn.Linear(before, after))
        if batch_norm:
            layers.append(nn.BatchNorm1d(after))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


@contextlib.contextmanager
def trial(backbone: nn.Module) -> Iterator[None]:
    """Within, a network can be tried on zeros: in evaluation mode, without gradients, and as it was afterwards."""
    training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()
            yield
    finally:
        backbone.train(training)


class Head(nn.Linear):
    """The linear head of an objective, (B, width) -> (B, outputs), with dropout before it; starts at zero so that the
    first predictions are the same for every class and a pretrained backbone gets no random gradient."""

    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__(width, outputs)
        self.dropout = dropout
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        if self.dropout:
            features = F.dropout(features, self.dropout, self.training)
        return F.linear(features, self.weight, self.bias)


def by_instance(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of series (B, L), each less its mean and divided by its deviation; and these (B, 1) each."""
    variance, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
    std = (variance + 1e-5).sqrt()
    return (x - mean) / std, mean, std


def image_input(spec: DataSpec, whose: str) -> tuple[str, tuple[int, int, int]]:
    """The name and shape (C, H, W) of the one input that a convolutional network can take: an image, a spectrogram.
    Raises ConfigError where there is none, or more than one. whose: the backbone that asks."""
    found = [(name, one.shape) for name, one in spec.inputs.items() if len(one.shape) == 3]
    if len(found) != 1:
        raise ConfigError(
            f"the backbone {whose} takes images or spectrograms, one of each sample; this dataset has {', '.join(spec.inputs)}",
            "hf/ encoders of speech take waveforms" if "waveform" in spec.inputs else "backbone: mlp takes tables",
        )
    name, (channels, height, width) = found[0]
    return name, (channels, height, width)


def channels_as(weight: Tensor, channels: int) -> Tensor:
    """(O, I, h, w) -> (O, channels, h, w): an image whose channels are all equal gives the same response."""
    gray = weight.sum(1, keepdim=True)
    return gray.expand(-1, channels, -1, -1) / channels


def fit_channels(state: Mapping[str, Tensor], own: Mapping[str, Tensor], first: Iterable[str]) -> dict[str, Tensor]:
    """The first convolutions (their names) of `state` for the number of channels that `own` has, where that is well
    defined: summed to one channel, or spread from one."""
    changed = {}
    for name in first:
        theirs, mine = state.get(name), own.get(name)
        if theirs is None or mine is None or theirs.ndim != 4 or mine.ndim != 4 or theirs.shape[1] == mine.shape[1]:
            continue
        if 1 in (theirs.shape[1], mine.shape[1]):
            changed[name] = channels_as(theirs, mine.shape[1])
    return changed


def mirrored(inputs: Inputs) -> Inputs:
    """The same batch with its images (B, C, H, W) mirrored."""
    return {name: x.flip(-1) if x.ndim == 4 else x for name, x in inputs.items()}


# ---------------------------------------------------------------- intervals


def bootstrap(
    n: int, draws: int, stream: int, measure: Callable[[Tensor], float], block: int = 1
) -> tuple[float, float]:
    """The 95% interval of a figure by the bootstrap over n samples (percentiles). measure: positions (n,), drawn with
    replacement -> the figure, not finite where it is not defined on them; nan where it never is.

    https://doi.org/10.1201/9780429246593 (Efron and Tibshirani 1993), chapter 13. block: so many in a row are drawn
    together, where each is like the next (Politis and Romano 1992, the circular block bootstrap).
    """
    block = min(block, n)
    inside = torch.arange(block)

    def positions(draw: int) -> Tensor:
        first = (mix(stream, draw, torch.arange(-(-n // block))) >> 1) % n
        return ((first[:, None] + inside) % n).flatten()[:n]

    found = [measure(positions(draw)) for draw in range(draws)]
    defined = torch.tensor([one for one in found if math.isfinite(one)], dtype=torch.float64)
    if not len(defined):
        return math.nan, math.nan
    low, high = defined.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


# ---------------------------------------------------------------- metrics of ranked scores


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


# ---------------------------------------------------------------- what a representation is like


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
