"""Compare average precisions with those of pycocotools, on random boxes. Prints the largest difference and both times.

    python scripts/average_precision_like.py [--seeds 20] [--images 60] [--classes 5]

pycocotools must be on the path: pip install --target FOLDER --no-deps pycocotools, and PYTHONPATH=FOLDER.

The boxes are true ones that were moved, and others. There are crowds, equal scores, boxes of exactly 32^2 and 96^2 pixels,
coordinates of integers and of fractions, areas of other than the boxes, classes without truth, and images without truth or
without detections. In one case each, an image has more than 100 detections of one class, and of all classes together.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmeco.nn.detection.average_precision import AREAS, average_precisions, match, summary

Image = dict[str, Tensor]
# Case -> wrong detections per class and image at most, and detections kept per image of all classes; 0 = all.
CASES = {"few": (6, 100), "many of a class": (150, 0), "100 of all classes": (60, 100)}


def corners(rng: np.random.Generator, n: int, whole: bool) -> Tensor:
    """Make n boxes, x0, y0, x1, y1, of sides that are often on the border between two area ranges."""
    low = rng.uniform(0, 300, (n, 2))
    side = np.exp(rng.uniform(np.log(4), np.log(250), (n, 2)))
    square = rng.random(n) < 0.2
    side[square] = rng.choice([32.0, 96.0], (int(square.sum()), 1))
    low[square] = low[square].round()
    boxes = np.concatenate([low, low + side], 1)
    return torch.from_numpy(boxes.round() if whole else boxes)


def image(rng: np.random.Generator, classes: int, per_class: int, whole: bool) -> Image:
    n_true = int(rng.integers(0, 12)) * int(rng.random() > 0.15)
    truth, truth_labels = corners(rng, n_true, whole), rng.integers(0, classes - 1, n_true)  # none of the last class
    near = np.repeat(np.arange(n_true), rng.integers(0, 4, n_true))
    sides = truth[:, 2:] - truth[:, :2]
    moved = truth[near] + sides[near].repeat(1, 2) * torch.from_numpy(rng.normal(0, 0.07, (len(near), 4)))
    other = corners(rng, int(rng.integers(0, per_class * classes)), whole)
    labels = np.concatenate([truth_labels[near], rng.integers(0, classes, len(other))])
    boxes = torch.cat([moved.round() if whole else moved, other])
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    kept = rng.permutation(len(boxes))[: 0 if rng.random() < 0.15 else None]
    scores = rng.random(len(boxes)) ** np.where(np.arange(len(boxes)) < len(near), 1, 3)
    scores = scores.round(int(rng.integers(1, 4)))  # with ties
    return {
        "boxes": boxes[kept],
        "scores": torch.from_numpy(scores).float()[kept],
        "labels": torch.from_numpy(labels)[kept],
        "truth": truth,
        "truth_labels": torch.from_numpy(truth_labels),
        "ignore": torch.from_numpy(rng.random(n_true) < 0.15),
        "areas": sides.prod(1) * torch.from_numpy(rng.choice([1.0, 0.7], n_true)),
    }


def theirs(images: list[Image], classes: int) -> tuple[Tensor, list[float]]:
    """Compute pycocotools' average precisions (C, T, A), and its six means."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def sides(boxes: Tensor) -> list[list[float]]:
        return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()

    true: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, one in enumerate(images):
        columns = (sides(one["truth"]), one["truth_labels"].tolist(), one["ignore"].tolist(), one["areas"].tolist())
        for box, label, crowd, area in zip(*columns, strict=True):
            about = {"id": len(true) + 1, "image_id": number, "category_id": label}
            true.append({**about, "bbox": box, "iscrowd": int(crowd), "area": area})
        for box, label, score in zip(sides(one["boxes"]), one["labels"].tolist(), one["scores"].tolist(), strict=True):
            found.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": number} for number in range(len(images))],
        "annotations": true,
        "categories": [{"id": c} for c in range(classes)],
    }
    truth.createIndex()
    judge = COCOeval(truth, truth.loadRes(found), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    averages = judge.eval["precision"][:, :, :, :, -1].mean(1)  # (T, C, A), -1 without truth
    return torch.from_numpy(np.where(averages < 0, np.nan, averages)).permute(1, 0, 2), list(judge.stats[:6])


def best(one: Image, most: int) -> Image:
    """Keep the detections of the highest scores, as `match` does; most: 0 = all."""
    kept = one["scores"].sort(descending=True, stable=True)[1][: most or None]
    return {**one, **{name: one[name][kept] for name in ("boxes", "scores", "labels")}}


def compare(seed: int, case: str, count: int, classes: int) -> tuple[float, float, float]:
    """Compare one set of images. Returns the largest difference, our seconds and theirs."""
    rng = np.random.default_rng([seed, *case.encode()])
    per_class, most = CASES[case]
    images = [image(rng, classes, per_class, bool(seed % 2)) for _ in range(count)]
    began = time.perf_counter()
    matches = [match(**one, classes=classes, most=most or 100 * classes) for one in images]
    mine = average_precisions({name: torch.stack([one[name] for one in matches]) for name in matches[0]})
    middle = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        wanted, means = theirs([best(one, most) for one in images], classes)
    ended = time.perf_counter()
    if not torch.equal(mine.isnan(), wanted.isnan()):
        raise SystemExit(f"{case}, seed {seed}: they disagree about which classes have truth")
    summed = summary(mine, [str(c) for c in range(classes)])
    names = ("map", "map50", "map75", *(f"map_{name}" for name in AREAS[1:]))
    means_differ = max(abs(summed.get(name, -1.0) - mean) for name, mean in zip(names, means, strict=True))
    return max(float((mine - wanted).abs().nan_to_num().max()), means_differ), middle - began, ended - middle


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--seeds", type=int, default=20)
    asked.add_argument("--images", type=int, default=60)
    asked.add_argument("--classes", type=int, default=5)
    given = asked.parse_args()
    torch.set_num_threads(1)
    print("| case | largest difference | fmeco, s | pycocotools, s |")
    print("|---|---|---|---|")
    for case in CASES:
        found = [compare(seed, case, given.images, given.classes) for seed in range(given.seeds)]
        difference, mine, other = max(x[0] for x in found), sum(x[1] for x in found), sum(x[2] for x in found)
        print(f"| {case} | {difference:.1e} | {mine:.1f} | {other:.1f} |", flush=True)


if __name__ == "__main__":
    main()
