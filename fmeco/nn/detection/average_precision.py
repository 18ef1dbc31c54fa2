"""Compute COCO's average precision (AP) of detected boxes. All functions are pure.

`match` compares the detections of one image with its true boxes, and `average_precisions` computes AP from the matches of
many images. Matches have the same shape for all images, so that they can be gathered, indexed and drawn with replacement.

The rules are those of https://cocodataset.org/#detection-eval and its evaluation code, pycocotools, with which
`scripts/average_precision_like.py` compares the results. Letters in shape comments: N images, D detections, S detections
kept per image, G true boxes, C classes, T IoU thresholds, A area ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # (T,) IoU from which a detection matches
RECALLS = np.linspace(0, 1, 101)  # recall levels that precision is averaged over
AREAS = ("all", "small", "medium", "large")
# (A, 2) smallest and largest area in square pixels. Both belong to the range: a box of 32^2 is small and medium.
LIMITS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
PER_CLASS = 100  # detections of a class that count in an image, those of the highest scores

_BITS = len(THRESHOLDS) * len(AREAS)


def match(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    truth: Tensor,
    truth_labels: Tensor,
    classes: int,
    *,
    ignore: Tensor | None = None,
    areas: Tensor | None = None,
    most: int = 100,
) -> dict[str, Tensor]:
    """Match the detections of one image with its true boxes. Returns tensors on the CPU, whose shapes depend on C and S alone.

    boxes: (D, 4) detections in pixels: x0, y0, x1, y1.
    scores: (D,), compared as float32.
    labels: (D,) classes 0..C-1.
    truth: (G, 4) true boxes.
    truth_labels: (G,) classes 0..C-1.
    classes: C.
    ignore: (G,) bool, True = a crowd: detections in it, as many as there are, count neither as right nor as wrong; None = no box is.
    areas: (G,) areas of the true objects, such as of their masks, for the area ranges; None = those of their boxes.
    most: S, detections to keep of all classes together. COCO's own code keeps 100 of each class.

    Returns, in 24 S + 16 C bytes (3.7 kB for S = 100 and C = 80):

    score: (S,) float32, falling; 0 where there is no detection.
    category: (S,) int32, class of the detection; -1 where there is none.
    true_positive: (S,) int64 of which bit 4 t + a is set if the detection is right at threshold t, in area range a.
    false_positive: (S,) int64, likewise if it is wrong. A detection that is neither, is ignored.
    truth: (C, A) int32, true boxes to find of each class in each area range.
    """
    score, category = _numpy(scores.float()), _numpy(labels)
    order = _order(score, category)[:most]  # at most S of D
    score, category = score[order], category[order]
    found, true = _numpy(boxes.double())[order], _numpy(truth.double())
    true_category = _numpy(truth_labels)
    crowd = np.zeros(len(true), dtype=bool) if ignore is None else _numpy(ignore.bool())
    overlap = np.where(category[:, None] == true_category, _overlap(found, true, crowd), 0.0)  # (S, G)
    ignored = crowd[:, None] | _outside(_area(true) if areas is None else _numpy(areas.double()))  # (G, A)
    owner = _assign(overlap, ignored, crowd)  # (S, T, A), -1 = none
    matched = owner >= 0
    counted = ~_outside(_area(found))[:, None].repeat(len(THRESHOLDS), 1)  # (S, T, A), of unmatched detections
    if len(true):
        counted = np.where(matched, ~ignored[owner, np.arange(len(AREAS))], counted)
    wanted = np.zeros((classes, len(AREAS)), dtype=np.int32)
    np.add.at(wanted, true_category, ~ignored)
    empty = most - len(order)
    return {
        "score": torch.from_numpy(np.pad(score, (0, empty))),
        "category": torch.from_numpy(np.pad(category.astype(np.int32), (0, empty), constant_values=-1)),
        "true_positive": _packed(matched & counted, most),
        "false_positive": _packed(~matched & counted, most),
        "truth": torch.from_numpy(wanted),
    }


def average_precisions(rows: Mapping[str, Tensor]) -> Tensor:
    """Compute the average precision (C, T, A) of each class, at each IoU threshold, in each area range; nan without truth.

    It is the mean over 101 levels of recall of the highest precision at this recall or a higher one. Among equal scores,
    detections of earlier images come first.

    rows: results of `match` (N, ...), in the order of images.
    """
    truth = _numpy(rows["truth"]).sum(0, dtype=np.int64)  # (C, A)
    classes, category = len(truth), _numpy(rows["category"]).ravel()
    kept = np.flatnonzero(category >= 0)  # (D,)
    kept = kept[np.argsort(-_numpy(rows["score"]).ravel()[kept], kind="stable")]
    # Of the smallest type, because numpy sorts integers of 16 bits and less fast.
    kept = kept[np.argsort(category[kept].astype(np.min_scalar_type(classes)), kind="stable")]
    category = category[kept]
    wrong = np.zeros((_BITS, len(kept) + 1), dtype=np.int32)  # (T A, D + 1), false positives before each detection
    _unpacked(rows["false_positive"], kept).cumsum(1, dtype=np.int32, out=wrong[:, 1:])
    wrong_before = wrong[:, np.searchsorted(category, np.arange(classes))]  # (T A, C), of the classes before

    # Precision rises only at true positives, which are few. Those of one bit and class are a group, by falling score.
    bit, at = np.divmod(np.flatnonzero(_unpacked(rows["true_positive"], kept)), max(1, len(kept)))
    group = bit * classes + category[at]
    sizes = np.bincount(group, minlength=_BITS * classes)
    starts = sizes.cumsum() - sizes
    right = np.arange(len(group)) - starts[group] + 1
    false = wrong[bit, at] - wrong_before.ravel()[group]
    precision = np.zeros(len(group) + len(sizes))  # each group ends with a 0, for a recall that is not reached
    precision[np.arange(len(group)) + group] = right / (false + right)

    needed = np.floor(RECALLS * truth[..., None]).astype(int)  # (C, A, 101), true positives for each recall
    needed += needed / truth[..., None].clip(1) < RECALLS  # a division decides, as it does where recall is computed
    groups = (len(THRESHOLDS), len(AREAS), classes, 1)
    place = np.minimum(needed.clip(1).transpose(1, 0, 2) - 1, sizes.reshape(groups))  # (T, A, C, 101), in the group
    first = place + (starts + np.arange(len(sizes))).reshape(groups)
    highest = np.maximum.reduceat(precision, first.ravel()).reshape(first.shape)  # from one recall to the next
    highest = np.maximum.accumulate(highest[..., ::-1], -1)
    averages = highest.mean(-1).transpose(2, 0, 1)  # (C, T, A)
    return torch.from_numpy(np.where(truth[:, None] > 0, averages, np.nan))


def summary(averages: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Summarise average precisions (C, T, A) as COCO does. What has no truth is left out.

    names: of the C classes.

    Returns means over classes: map (IoU 0.50 to 0.95), map50, map75, map_small, map_medium, map_large; and ap/NAME of each
    class (IoU 0.50 to 0.95).
    """
    chosen = {"map": averages[..., 0], "map50": averages[:, 0, 0], "map75": averages[:, 5, 0]}
    chosen |= {f"map_{name}": averages[..., a] for a, name in enumerate(AREAS) if a > 0}
    chosen |= {f"ap/{name}": averages[c, :, 0] for c, name in enumerate(names)}
    return {name: float(values.nanmean()) for name, values in chosen.items() if not values.isnan().all()}


def _numpy(x: Tensor) -> Array:
    array: Array = x.detach().cpu().numpy()
    return array


def _order(scores: Array, labels: Array) -> Array:
    """Order detections (D,) by falling score, stable, without those beyond the first PER_CLASS of their class."""
    order = np.argsort(-scores, kind="stable")
    label = labels[order]
    by_class = np.argsort(label, kind="stable")
    of_class = np.searchsorted(label[by_class], label[by_class])  # (D,), first of the class
    place = np.empty(len(order), dtype=int)
    place[by_class] = np.arange(len(order)) - of_class
    kept: Array = order[place < PER_CLASS]
    return kept


def _area(boxes: Array) -> Array:
    sides: Array = boxes[:, 2:] - boxes[:, :2]
    areas: Array = sides.prod(1)
    return areas


def _outside(areas: Array) -> Array:
    """Tell which areas (n,) lie outside each area range: (n, A) bool."""
    outside: Array = (areas[:, None] < LIMITS[:, 0]) | (areas[:, None] > LIMITS[:, 1])
    return outside


def _overlap(found: Array, true: Array, crowd: Array) -> Array:
    """Compute the IoU (S, G) of boxes; with a crowd, the share of the detection's area that lies in it."""
    low = np.maximum(found[:, None, :2], true[:, :2])  # (S, G, 2)
    high = np.minimum(found[:, None, 2:], true[:, 2:])
    both = (high - low).clip(0).prod(-1)
    area = _area(found)[:, None]
    union = np.where(crowd, area, area + _area(true) - both)
    overlap: Array = np.divide(both, union, out=np.zeros_like(both), where=both > 0)
    return overlap


def _assign(overlap: Array, ignored: Array, crowd: Array) -> Array:
    """Assign true boxes to detections, one after the other by falling score.

    A detection takes the free box with the highest IoU, the last of equal ones. It takes an ignored box only if no other
    reaches the threshold. A crowd stays free.

    overlap: (S, G). ignored: (G, A) bool. crowd: (G,) bool.

    Returns (S, T, A), the box of each detection; -1 = none.
    """
    owner = np.full((len(overlap), len(THRESHOLDS), len(AREAS)), -1)
    free = np.ones((len(THRESHOLDS), len(AREAS), len(crowd)), dtype=bool)
    reached = overlap >= THRESHOLDS[0]
    for i in np.flatnonzero(reached.any(1)):
        near = np.flatnonzero(reached[i])  # (n,)
        near = near[np.argsort(overlap[i, near], kind="stable")]
        rank = np.arange(1, len(near) + 1) + len(near) * ~ignored[near].T  # (A, n)
        able = free[..., near] & (overlap[i, near] >= THRESHOLDS[:, None, None])  # (T, A, n)
        rank = np.where(able, rank, 0)
        best = near[rank.argmax(-1)]  # (T, A)
        t, a = np.nonzero(rank.any(-1))
        owner[i, t, a] = best[t, a]
        free[t, a, best[t, a]] = crowd[best[t, a]]
    return owner


def _packed(flags: Array, most: int) -> Tensor:
    """Pack flags (S', T, A) into the bits of int64, filled up with 0 to (S,)."""
    packed = np.zeros((most, 8), dtype=np.uint8)
    packed[: len(flags), : _BITS // 8] = np.packbits(flags.reshape(-1, _BITS), axis=1, bitorder="little")
    return torch.from_numpy(packed.view("<i8")[:, 0].astype(np.int64))


def _unpacked(packed: Tensor, kept: Array) -> Array:
    """Unpack bits of int64 (N, S) at flat positions (D,): (T A, D) bool."""
    chosen = _numpy(packed).ravel()[kept].astype("<i8").view(np.uint8).reshape(-1, 8)
    bits = np.unpackbits(chosen[:, : _BITS // 8], axis=1, bitorder="little")
    return np.ascontiguousarray(bits.T).view(bool)
