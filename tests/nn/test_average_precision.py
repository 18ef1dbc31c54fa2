"""COCO's average precision against cases computed by hand and a reference in loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fmeco.nn.detection.average_precision import AREAS, LIMITS, THRESHOLDS, average_precisions, match, summary
from fmeco.nn.intervals import bootstrap

Rows = dict[str, Tensor]


def stacked(matches: list[Rows]) -> Rows:
    return {name: torch.stack([one[name] for one in matches]) for name in matches[0]}


def matched(found: list[list[float]], truth: list[list[float]], classes: int = 1, **options: Any) -> Rows:
    """Match detections (x0, y0, x1, y1, score, class) with true boxes (x0, y0, x1, y1, class)."""
    d, t = torch.tensor(found).reshape(-1, 6), torch.tensor(truth).reshape(-1, 5)
    return match(d[:, :4], d[:, 4], d[:, 5].long(), t[:, :4], t[:, 4].long(), classes, **options)


def judged(*images: Rows) -> Tensor:
    return average_precisions(stacked(list(images)))


# ---------------------------------------------------------------- a reference in loops


def iou(a: list[float], b: list[float], crowd: bool) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both, of_a, of_b = width * height, (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return both / (of_a if crowd else of_a + of_b - both)


def outcomes(image: dict[str, Tensor], c: int, threshold: float, low: float, high: float) -> tuple[list[Any], int]:
    """List (score, "right" | "wrong" | "ignored") of the detections of a class, and count the true boxes to find."""
    truth = [
        (box, crowd, crowd or not low <= area <= high)
        for box, label, crowd, area in zip(
            *(image[name].tolist() for name in ("truth", "truth_labels", "ignore", "areas")), strict=True
        )
        if label == c
    ]
    found = zip(*(image[name].tolist() for name in ("boxes", "scores", "labels")), strict=True)
    listed, taken = [], set()
    for box, score, _ in sorted((x for x in found if x[2] == c), key=lambda x: -x[1])[:100]:
        best = None
        for g, (true, crowd, ignored) in enumerate(truth):
            overlap = iou(box, true, crowd)
            if overlap >= threshold and (crowd or g not in taken):
                rank = (not ignored, overlap, g)
                best = rank if best is None else max(best, rank)
        if best is None:
            listed.append((score, "wrong" if low <= (box[2] - box[0]) * (box[3] - box[1]) <= high else "ignored"))
        else:
            taken.add(best[2])
            listed.append((score, "right" if best[0] else "ignored"))
    return listed, sum(not ignored for _, _, ignored in truth)


def reference(images: list[dict[str, Tensor]], classes: int) -> Tensor:
    out = torch.full((classes, len(THRESHOLDS), len(AREAS)), math.nan, dtype=torch.float64)
    for c in range(classes):
        for t, threshold in enumerate(THRESHOLDS):
            for a, (low, high) in enumerate(LIMITS):
                parts = [outcomes(image, c, threshold, low, high) for image in images]
                wanted = sum(count for _, count in parts)
                if wanted == 0:
                    continue
                points, right, wrong = [], 0, 0
                for _, outcome in sorted((x for listed, _ in parts for x in listed), key=lambda x: -x[0]):
                    right += outcome == "right"
                    wrong += outcome == "wrong"
                    points.append((right / wanted, right / max(1, right + wrong)))
                levels = [
                    max((precision for recall, precision in points if recall >= level), default=0.0)
                    for level in np.linspace(0, 1, 101)
                ]
                out[c, t, a] = sum(levels) / 101
    return out


def random_image(g: np.random.Generator, classes: int) -> dict[str, Tensor]:
    """Make an image of few places, so that boxes overlap, scores tie, and areas of 32^2 and 96^2 occur."""
    n_true = int(g.integers(0, 5))
    low = g.integers(0, 3, (n_true, 2)) * 10
    truth = np.concatenate([low, low + g.choice([16, 32, 40, 96, 120], (n_true, 1))], 1)
    near = truth[g.integers(0, n_true, int(g.integers(0, 8)))] if n_true else np.empty((0, 4), dtype=int)
    moved = near + g.integers(-4, 5, near.shape) * np.array([1, 1, 1, 1])
    far = g.integers(0, 60, (3, 2))
    boxes = torch.from_numpy(np.concatenate([moved, np.concatenate([far, far + g.choice([8, 32, 96], (3, 1))], 1)]))
    n = len(boxes)
    return {
        "boxes": boxes.float(),
        "scores": torch.from_numpy(g.integers(1, 8, n) / 8).float(),
        "labels": torch.from_numpy(g.integers(0, classes, n)),
        "truth": torch.from_numpy(truth).float(),
        "truth_labels": torch.from_numpy(g.integers(0, classes - 1, n_true)),
        "ignore": torch.from_numpy(g.random(n_true) < 0.2),
        "areas": torch.from_numpy((truth[:, 2] - truth[:, 0]) ** 2 * g.choice([1.0, 0.5], n_true)),
    }


@pytest.mark.parametrize("seed", range(12))
def test_average_precisions_are_those_of_the_reference(seed: int) -> None:
    g, classes = np.random.default_rng(seed), 3
    images = [random_image(g, classes) for _ in range(8)]
    found = judged(*(match(**image, classes=classes) for image in images))
    torch.testing.assert_close(found, reference(images, classes), rtol=0, atol=1e-12, equal_nan=True)
    assert found[-1].isnan().all()  # the last class has no truth


def test_images_drawn_with_repetition_count_as_often() -> None:
    g, drawn = np.random.default_rng(1), [3, 0, 3, 2, 3]
    images = [random_image(g, 3) for _ in range(4)]
    rows = stacked([match(**image, classes=3) for image in images])
    found = average_precisions({name: values[torch.tensor(drawn)] for name, values in rows.items()})
    torch.testing.assert_close(found, reference([images[i] for i in drawn], 3), rtol=0, atol=1e-12, equal_nan=True)


# ---------------------------------------------------------------- cases computed by hand


def test_a_perfect_detection_has_an_ap_of_1_at_every_threshold() -> None:
    found = judged(matched([[0, 0, 50, 50, 0.3, 0]], [[0, 0, 50, 50, 0]]))
    assert (found[0, :, :1] == 1).all()
    assert (found[0, :, AREAS.index("medium")] == 1).all()
    assert found[0, :, AREAS.index("small")].isnan().all()


def test_iou_decides_up_to_which_threshold_a_detection_is_right() -> None:
    found = judged(matched([[0, 0, 50, 40, 0.9, 0]], [[0, 0, 50, 50, 0]]))[0, :, 0]  # IoU 0.8
    assert found.tolist() == [1.0] * 7 + [0.0] * 3


def test_precision_is_the_highest_at_this_recall_or_a_higher_one() -> None:
    # By falling score: right, wrong, right, of two: precision 1 up to recall 0.5 (51 levels), 2/3 above (50 levels).
    truth = [[0, 0, 10, 10, 0], [100, 0, 110, 10, 0]]
    found = judged(
        matched([[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [100, 0, 110, 10, 0.7, 0]], truth),
    )
    assert found[0, 0, 0] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_the_second_detection_of_a_box_is_wrong() -> None:
    truth = [[0, 0, 10, 10, 0], [100, 0, 110, 10, 0]]
    twice = [[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.8, 0], [100, 0, 110, 10, 0.7, 0]]
    assert judged(matched(twice, truth))[0, 0, 0] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_equal_scores_keep_the_order_of_images_and_detections() -> None:
    right, wrong = [0, 0, 10, 10, 0.5, 0], [50, 50, 60, 60, 0.5, 0]
    truth = [[0, 0, 10, 10, 0]]
    assert judged(matched([right, wrong], truth))[0, 0, 0] == 1
    assert judged(matched([wrong, right], truth))[0, 0, 0] == pytest.approx(0.5)
    assert judged(matched([right], truth), matched([wrong], []))[0, 0, 0] == 1
    assert judged(matched([wrong], []), matched([right], truth))[0, 0, 0] == pytest.approx(0.5)


def test_detections_in_a_crowd_are_ignored_however_many() -> None:
    truth = [[0, 0, 100, 100, 0], [200, 0, 210, 10, 0]]
    inside = [[float(x), 0.0, x + 10.0, 10.0, 0.9, 0.0] for x in range(0, 90, 10)]
    rows = matched([*inside, [200, 0, 210, 10, 0.1, 0]], truth, ignore=torch.tensor([True, False]))
    assert judged(rows)[0, 0, 0] == 1
    assert rows["truth"][0].tolist() == [1, 1, 0, 0]
    assert judged(matched([*inside, [200, 0, 210, 10, 0.1, 0]], truth))[0, 0, 0] < 0.1


def test_a_detection_takes_a_box_that_counts_before_a_crowd_that_fits_better() -> None:
    truth = [[0, 0, 100, 100, 0], [0, 0, 50, 50, 0]]
    rows = matched([[0, 0, 50, 45, 0.9, 0]], truth, ignore=torch.tensor([True, False]))  # IoU 0.9; 1 with the crowd
    assert judged(rows)[0, :, 0].tolist() == [1.0] * 9 + [0.0]


def test_a_detection_takes_the_box_that_fits_best_and_leaves_the_other() -> None:
    truth = [[0, 0, 50, 50, 0], [0, 0, 50, 40, 0]]
    found = [[0, 0, 50, 49, 0.9, 0], [0, 0, 50, 33, 0.8, 0]]  # IoU 0.98 and 0.82; 0.66 and 0.825
    for order in (truth, truth[::-1]):
        assert judged(matched(found, order))[0, :7, 0].tolist() == [1.0] * 7


def test_an_area_on_the_border_belongs_to_both_ranges() -> None:
    rows = matched([[0, 0, 32, 32, 0.9, 0], [0, 0, 96, 96, 0.8, 0]], [[0, 0, 32, 32, 0], [0, 0, 96, 96, 0]])
    assert rows["truth"][0].tolist() == [2, 1, 2, 1]
    assert (judged(rows)[0, 0] == 1).all()


def test_areas_of_objects_replace_those_of_their_boxes() -> None:
    rows = matched([], [[0, 0, 40, 40, 0]], areas=torch.tensor([900.0]))
    assert rows["truth"][0].tolist() == [1, 1, 0, 0]


def test_a_wrong_detection_outside_the_area_range_is_ignored() -> None:
    rows = matched([[200, 200, 400, 400, 0.9, 0], [0, 0, 10, 10, 0.5, 0]], [[0, 0, 10, 10, 0]])
    assert judged(rows)[0, 0].tolist()[:2] == [pytest.approx(0.5), 1.0]


def test_classes_are_matched_apart() -> None:
    found = judged(matched([[0, 0, 10, 10, 0.9, 1]], [[0, 0, 10, 10, 0]], classes=3))
    assert found[0, 0, 0] == 0
    assert found[1:].isnan().all()


def test_of_many_detections_the_highest_scores_are_kept() -> None:
    other = [[50.0, 50.0, 60.0, 60.0, 0.5 + i / 1000, 0.0] for i in range(100)]
    last = [0.0, 0.0, 10.0, 10.0, 0.1, 0.0]
    truth = [[0, 0, 10, 10, 0]]
    assert judged(matched([*other, last], truth))[0, 0, 0] == 0
    assert judged(matched([*other, last], truth, most=200))[0, 0, 0] == 0  # 100 of a class at most
    other[0][5] = 1.0
    assert judged(matched([*other, last], truth, classes=2, most=200))[0, 0, 0] == pytest.approx(0.01)
    assert judged(matched([*other, last], truth, classes=2))[0, 0, 0] == 0  # 100 of all classes


def test_rows_have_one_shape_and_are_small() -> None:
    full = [[0.0, 0.0, 10.0, 10.0, i / 200, 3.0] for i in range(200)]
    images = [matched([], [], 80), matched(full, [[0, 0, 10, 10, 3]], 80), matched([], [[0, 0, 10, 10, 3]], 80)]
    assert len({tuple((name, x.shape, x.dtype) for name, x in image.items()) for image in images}) == 1
    assert sum(x.nbytes for x in images[0].values()) == 24 * 100 + 16 * 80
    assert images[1]["score"].tolist() == sorted(images[1]["score"].tolist(), reverse=True)


def test_half_precision_and_inference_mode_are_fine() -> None:
    with torch.inference_mode():
        boxes, label = torch.tensor([[0, 0, 50, 50.0]]), torch.zeros(1, dtype=torch.int64)
        rows = match(boxes.half(), torch.ones(1).bfloat16(), label, boxes, label, 1)
        assert judged(rows)[0, 0, 0] == 1


# ---------------------------------------------------------------- the summary


def test_the_summary_names_means_and_leaves_out_what_has_no_truth() -> None:
    truth = [[0, 0, 50, 50, 0], [0, 0, 50, 50, 2]]
    found = judged(matched([[0, 0, 50, 36, 0.9, 0]], truth, classes=3))  # IoU 0.72
    assert summary(found, ["cat", "dog", "fish"]) == {
        "map": 0.25,
        "map50": 0.5,
        "map75": 0.0,
        "map_medium": 0.25,
        "ap/cat": 0.5,
        "ap/fish": 0.0,
    }


def test_without_truth_the_summary_is_empty() -> None:
    assert summary(judged(matched([[0, 0, 5, 5, 0.9, 0]], [])), ["cat"]) == {}


def test_the_bootstrap_gives_an_interval_around_the_value() -> None:
    g = np.random.default_rng(0)
    rows = stacked([match(**random_image(g, 3), classes=3) for _ in range(60)])
    names = ["a", "b", "c"]

    def measure(at: Tensor) -> float:
        return summary(average_precisions({name: x[at] for name, x in rows.items()}), names)["map"]

    low, high = bootstrap(60, 50, 1, measure)
    assert low < measure(torch.arange(60)) < high
