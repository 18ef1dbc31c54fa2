"""Compute what FCOS needs beside its network: locations, targets, losses and detections. All functions are pure.

FCOS predicts at each location of each feature map the class of the box that the location lies in, the distances to its
four sides, and its centerness. https://arxiv.org/abs/1904.01355, with the improvements of https://arxiv.org/abs/2006.09214.

Boxes are rows of x0, y0, x1, y1 in pixels of the network's input, distances are l, t, r, b in the same pixels. Letters in
shape comments: B images, L locations of all levels, C classes, n boxes per image, P positive locations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fmeco.nn.libraries import import_torchvision

REACH = 8  # largest distance of a level from a location to a side of its box, as a multiple of the stride
TINY = 1e-7  # added to divisors
PAIRS = 1_000_000  # of locations and boxes to compare at once, unless one image has more: 70 MB


class Locations(NamedTuple):
    """Hold the locations of all levels, level by level and row by row, as `Tensor.flatten(2)` orders the cells of a map.

    centres: (L, 2) x, y of the cells in pixels.
    strides: (L,) pixels between neighbours.
    ranges: (L, 2) smallest and largest value of max(l, t, r, b) that the location's level is responsible for.
    counts: locations per level.
    """

    centres: Tensor
    strides: Tensor
    ranges: Tensor
    counts: tuple[int, ...]


class Detections(NamedTuple):
    """Hold the detections of an image, by falling score.

    boxes: (k, 4).
    scores: (k,), 0..1.
    labels: (k,) classes 0..C-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def locations(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    ranges: Sequence[tuple[float, float]] | None = None,
    device: torch.device | None = None,
) -> Locations:
    """Compute the locations of feature maps.

    sizes: height and width of the map of each level, finest first.
    strides: of each level.
    ranges: smallest and largest value of max(l, t, r, b) for each level; None = the largest is 8 strides, where the next
        level begins, as in the paper: 0, 64, 128, 256, 512, infinity for strides 8 to 128.
    """
    if ranges is None:
        ends = [0.0, *(float(REACH * stride) for stride in strides[:-1]), float("inf")]
        ranges = list(zip(ends[:-1], ends[1:], strict=True))
    centres, pixels, limits, counts = [], [], [], []
    for (height, width), stride, limit in zip(sizes, strides, ranges, strict=True):
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) * stride
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) * stride
        count = height * width
        centres.append(torch.stack([x.repeat(height), y.repeat_interleave(width)], 1))
        pixels.append(torch.full((count,), float(stride), device=device))
        limits.append(torch.stack([torch.full((count,), float(end), device=device) for end in limit], 1))
        counts.append(count)
    return Locations(torch.cat(centres), torch.cat(pixels), torch.cat(limits), tuple(counts))


# ---------------------------------------------------------------- targets and losses


def assign(boxes: Tensor, at: Locations, radius: float = 1.5) -> tuple[Tensor, Tensor]:
    """Assign to each location the smallest box that it is responsible for.

    These are boxes that contain the location, whose centre is near it, and whose size suits its level. A box that
    contains no location, such as one that is smaller than the finest stride, is assigned to none.

    boxes: (B, n, 5) or (n, 5) rows of x0, y0, x1, y1, class + 1; rows of class + 1 = 0, such as zeros, are none.
    radius: distance in x and y, in strides, that a box's centre is near within.

    Returns class + 1, (B, L) int64 with 0 = background, and the distances l, t, r, b (B, L, 4), 0 for background. Both
    without B for a single image.
    """
    if boxes.ndim == 2:
        classes, distances = assign(boxes[None], at, radius)
        return classes[0], distances[0]
    boxes = F.pad(boxes.to(at.centres), (0, 0, 0, 1))  # (B, n + 1, 5), so that there is a box to point at
    images = max(1, PAIRS // (max(1, len(at.centres)) * boxes.shape[1]))
    owners = torch.cat([_owners(part, at, radius) for part in boxes.split(images)])  # (B, L)
    owned = boxes.gather(1, owners.clamp_min(0)[..., None].expand(-1, -1, 5))  # (B, L, 5)
    positive = owners >= 0
    distances = torch.cat([at.centres - owned[..., :2], owned[..., 2:4] - at.centres], 2)
    return torch.where(positive, owned[..., 4].long(), 0), torch.where(positive[..., None], distances, 0.0)


def _owners(boxes: Tensor, at: Locations, radius: float) -> Tensor:
    """Find the box of each location: positions (B, L) in boxes (B, n, 5); -1 = none."""
    x, y = at.centres[:, None].unbind(2)  # (L, 1)
    x0, y0, x1, y1, label = boxes[:, None].unbind(3)  # (B, 1, n)
    left, top, right, bottom = x - x0, y - y0, x1 - x, y1 - y  # (B, L, n)
    nearest = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
    furthest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
    low, high = at.ranges[:, None].unbind(2)  # (L, 1)
    # Center sampling, https://arxiv.org/abs/2006.09214: half the difference of two opposite distances is the distance from
    # the location to the centre of the box.
    off_centre = torch.maximum((left - right).abs(), (top - bottom).abs()) / 2
    able = (nearest > 0) & (off_centre < radius * at.strides[:, None]) & (label > 0)
    # Both ends of a range belong to it, https://arxiv.org/abs/1904.01355 section 3.2.
    able &= (furthest >= low) & (furthest <= high)
    area = torch.where(able, (x1 - x0) * (y1 - y0), float("inf"))  # (B, L, n)
    return torch.where(able.any(2), area.argmin(2), -1)  # the first of equal ones


def focal_loss(scores: Tensor, classes: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sum the focal loss of one sigmoid per class: -alpha_t (1 - p_t)^gamma log(p_t).

    scores: (..., C) before the sigmoid.
    classes: (...) class + 1; 0 = background.

    https://arxiv.org/abs/1708.02002 equation 5.
    """
    scores = scores.float()
    wanted = classes[..., None] == torch.arange(1, scores.shape[-1] + 1, device=scores.device)  # (..., C)
    signed = torch.where(wanted, scores, -scores)  # p_t = sigmoid(signed)
    alpha_t = torch.where(wanted, alpha, 1 - alpha)
    return -(alpha_t * torch.sigmoid(-signed) ** gamma * F.logsigmoid(signed)).sum()


def giou_loss(boxes: Tensor, wanted: Tensor) -> Tensor:
    """Sum 1 - GIoU of predicted boxes (P, 4) and the boxes (P, 4) that they should be.

    https://arxiv.org/abs/1902.09630 algorithm 1.
    """
    boxes, wanted = boxes.float(), wanted.float()
    low, high = torch.maximum(boxes, wanted), torch.minimum(boxes, wanted)
    both = (high[..., 2:] - low[..., :2]).clamp_min(0).prod(-1)  # (P,) area of the intersection
    hull = (low[..., 2:] - high[..., :2]).prod(-1)  # area of the smallest box around both
    union = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (wanted[..., 2:] - wanted[..., :2]).prod(-1) - both
    return (1 - both / (union + TINY) + (hull - union) / (hull + TINY)).sum()


def centerness(distances: Tensor) -> Tensor:
    """Compute the centerness (...) of locations from the distances (..., 4) to the sides of their boxes: 1 = the centre.

    https://arxiv.org/abs/1904.01355 equation 3.
    """
    across, down = distances[..., 0::2], distances[..., 1::2]  # l and r, t and b
    ratio = (across.amin(-1) * down.amin(-1)) / (across.amax(-1) * down.amax(-1)).clamp_min(TINY)
    return ratio.clamp_min(0).sqrt()


def centerness_loss(scores: Tensor, distances: Tensor) -> Tensor:
    """Sum the binary cross-entropy of predicted centerness.

    scores: (P,) before the sigmoid.
    distances: (P, 4) to the sides of the true box.
    """
    return F.binary_cross_entropy_with_logits(scores.float(), centerness(distances.float()), reduction="sum")


# ---------------------------------------------------------------- detections


def decode(distances: Tensor, centres: Tensor) -> Tensor:
    """Turn distances (..., 4) from centres (..., 2) into boxes (..., 4)."""
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], -1)


@torch.no_grad()
def select(
    scores: Tensor,
    distances: Tensor,
    centerness_scores: Tensor,
    at: Locations,
    sizes: Tensor,
    *,
    threshold: float = 0.05,
    candidates: int = 1000,
    overlap: float = 0.6,
    most: int = 100,
) -> list[Detections]:
    """Select the detections of each image, without duplicates (non-maximum suppression within each class).

    scores: (B, L, C) of classes, before the sigmoid.
    distances: (B, L, 4).
    centerness_scores: (B, L), before the sigmoid.
    sizes: (B, 2) height and width of each image without padding. Boxes are clipped to it, and dropped if nothing is left.
    threshold: score above which a detection is kept.
    candidates: detections of each level to keep before duplicates are removed.
    overlap: IoU above which the detection of the lower score is a duplicate.
    most: detections of an image to keep.
    """
    nms = import_torchvision("torchvision.ops").batched_nms
    found = []
    for logits, sides, central, size in zip(scores, distances, centerness_scores, sizes, strict=True):
        # s = sqrt(p o) of class probability p and centerness o, https://arxiv.org/abs/2006.09214
        score = (logits.float().sigmoid() * central.float().sigmoid()[:, None]).sqrt()  # (L, C)
        values, where, labels = _candidates(score, at.counts, threshold, candidates)
        limit = size.flip(0).to(at.centres)  # width, height
        boxes = decode(sides[where].float(), at.centres[where]).unflatten(1, (2, 2))  # (k, 2, 2)
        boxes = torch.minimum(boxes.clamp_min(0), limit).flatten(1)
        filled = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, values, labels = boxes[filled], values[filled], labels[filled]
        kept = nms(boxes, values, labels, overlap)[:most]
        found.append(Detections(boxes[kept], values[kept], labels[kept]))
    return found


def _candidates(score: Tensor, counts: Sequence[int], threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the highest scores (L, C) of each level above a threshold. Returns (k,) scores, locations and classes."""
    values, places, first = [], [], 0
    for level in score.split(list(counts)):
        value, place = level.flatten().topk(min(most, level.numel()))
        values.append(value)
        places.append(place + first)
        first += level.numel()
    value, place = torch.cat(values), torch.cat(places)
    kept = value > threshold
    value, place = value[kept], place[kept]
    return value, place // score.shape[1], place % score.shape[1]
