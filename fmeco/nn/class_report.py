"""Describe answers that are classes for a report: per class, as a confusion matrix, by confidence, and the worst of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fmeco.core.page import SHOWN, Cases, Curves, Matrix, Part, Table
from fmeco.nn.intervals import wilson
from fmeco.nn.metrics import calibration_error

MOST, FREQUENT = 100, 20  # classes of a confusion matrix; of more, so many of the most frequent mistakes are listed
BINS = 10  # of confidences; those with fewer samples than MEANT are left out
MEANT = 5


def class_report(
    probability: Tensor, predicted: Tensor, label: Tensor, names: tuple[str, ...], margin: Tensor | None = None
) -> list[Part]:
    """Describe the answers to samples of which each has one class.

    probability: (N, C).
    predicted, label: (N,) classes 0..C-1.
    margin: (N,) how far each answer is from being another one; None = the distance of the two highest probabilities.
    """
    size = len(names)
    if margin is None:
        two = probability.topk(min(2, size), dim=1).values
        margin = two[:, 0] - two[:, -1]
    hits = label[predicted == label].bincount(minlength=size)
    support, claimed = label.bincount(minlength=size), predicted.bincount(minlength=size)
    return [
        per_class(names, hits.tolist(), support.tolist(), claimed.tolist()),
        _confusion(predicted, label, names),
        *_calibration(probability, probability.argmax(1) == label),
        *_cases(probability, predicted, label, names, margin),
    ]


def per_class(
    names: Sequence[str], hits: Sequence[int], support: Sequence[int], claimed: Sequence[int], of: str = "samples"
) -> Table:
    """Make a table of precision, recall and F1 with Wilson intervals, the lowest F1 first; classes without samples last.

    hits, support, claimed: right answers, samples and answers of each class.
    of: what is counted.
    """
    rows = []
    for name, right, present, said in zip(names, hits, support, claimed, strict=True):
        f1 = 2 * right / (present + said) if present + said else None
        rows.append((name, present, *_share(right, said), *_share(right, present), f1))
    rows.sort(key=lambda row: (row[-1] is None or not row[1], row[-1] or 0.0))
    columns = ("class", of, "precision", "95% interval", "recall", "95% interval", "F1")
    return Table("Classes", columns, tuple(rows), "The lowest F1 first. Intervals are Wilson's.")


def _share(right: int, total: int) -> tuple[float | None, str]:
    if not total:
        return None, ""
    low, high = wilson(right, total)
    return right / total, f"{low:.2f} to {high:.2f}"


def _confusion(predicted: Tensor, label: Tensor, names: tuple[str, ...]) -> Part:
    """Count which class was taken for which."""
    size = len(names)
    wrong = predicted != label
    pairs, counts = (label[wrong] * size + predicted[wrong]).unique(return_counts=True)
    often = counts.argsort(descending=True, stable=True)[:FREQUENT].tolist()
    mistakes = [(names[int(pairs[at]) // size], names[int(pairs[at]) % size], int(counts[at])) for at in often]
    if size <= MOST:
        told = [f"{truth} as {answer} ({count})" for truth, answer, count in mistakes[:3]]
        note = f"Most often: {', '.join(told)}." if told else "No sample was taken for another class."
        table = (label * size + predicted).bincount(minlength=size * size).view(size, size)
        return Matrix("Confusion", names, tuple(map(tuple, table.tolist())), note)
    return Table("Most frequent mistakes", ("class", "taken for", "samples"), tuple(mistakes))


def _calibration(probability: Tensor, right: Tensor) -> list[Part]:
    """Draw the share of right answers over the confidence: a calibrated model lies on the diagonal. [] with fewer than two points."""
    sure = probability.max(1).values
    at = (sure * BINS).long().clamp_max(BINS - 1)
    points = []
    for group in range(BINS):
        chosen = at == group
        if int(chosen.sum()) >= MEANT:
            points.append((float(sure[chosen].mean()), float(right[chosen].double().mean())))
    if len(points) < 2:
        return []
    error = calibration_error(sure, right)
    said = "too sure" if float(sure.mean()) > float(right.double().mean()) else "not sure enough"
    note = (
        f"Below the diagonal, answers are right less often than their confidence says. Expected calibration error {error:.3f}; "
        f"mean confidence {float(sure.mean()):.3f} with {float(right.double().mean()):.3f} right"
        + (f": {said}." if error > 0.05 else ".")
    )
    return [
        Curves("Calibration", "confidence", "share of right answers", {"": tuple(points)}, diagonal=True, note=note)
    ]


def _cases(probability: Tensor, predicted: Tensor, label: Tensor, names: tuple[str, ...], margin: Tensor) -> list[Part]:
    best = probability.gather(1, predicted[:, None])[:, 0]
    of_label = probability.gather(1, label[:, None])[:, 0]

    def told(at: int) -> str:
        answer, truth = names[int(predicted[at])], names[int(label[at])]
        if answer == truth:
            return f"{truth}: right, with {best[at]:.2f}"
        return f"{truth}: taken for {answer} with {best[at]:.2f}, {of_label[at]:.2f} for the truth"

    wrong = (predicted != label).nonzero()[:, 0]
    surest = wrong[(best - of_label)[wrong].argsort(descending=True, stable=True)][:SHOWN].tolist()
    parts: list[Part] = []
    if surest:
        parts.append(Cases("Surest mistakes", tuple(surest), tuple(map(told, surest)), "Check their labels first."))
    if probability.shape[1] > 1:
        seen = torch.tensor(surest, dtype=torch.int64)
        order = margin.argsort(stable=True)
        doubtful = order[~torch.isin(order, seen)][:SHOWN].tolist()
        if doubtful:
            parts.append(Cases("Most doubtful", tuple(doubtful), tuple(map(told, doubtful))))
    return parts
