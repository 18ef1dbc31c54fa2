"""The parts of FCOS against torchvision's detector, and cases made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision import ops
from torchvision.models.detection.fcos import FCOS, FCOSHead

from fmeco.nn.detection import fcos

SIZE, STRIDES, CLASSES = 256, (8, 16, 32, 64), 4
AT = fcos.locations([(SIZE // s, SIZE // s) for s in STRIDES], STRIDES)


class Recorder(FCOSHead):
    """Keep what torchvision's detector assigned, and compute its losses."""

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):  # type: ignore[no-untyped-def]
        self.matched = torch.stack(matched_idxs)
        return super().compute_loss(targets, head_outputs, anchors, matched_idxs)


def detector() -> FCOS:
    body = nn.Identity()
    body.out_channels = 32  # type: ignore[assignment]
    return FCOS(body, CLASSES, head=Recorder(32, 1, CLASSES), score_thresh=0.05)


def anchors(at: fcos.Locations) -> Tensor:
    half = at.strides[:, None] / 2
    return torch.cat([at.centres - half, at.centres + half], 1)


def random_boxes(g: torch.Generator, n: int) -> Tensor:
    """Make rows (n, 5) of boxes of all sizes inside the image."""
    side = (torch.rand(n, 2, generator=g) * math.log(SIZE / 6) + math.log(6)).exp().clamp_max(SIZE)
    low = torch.rand(n, 2, generator=g) * (SIZE - side)
    label = torch.randint(1, CLASSES + 1, (n, 1), generator=g)
    return torch.cat([low, low + side, label], 1)


def padded(parts: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(parts, batch_first=True)


def outputs(g: torch.Generator, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make what a network predicts: class scores, distances in strides, centerness."""
    n = len(AT.centres)
    scores = torch.randn(images, n, CLASSES, generator=g) - 2
    return scores, torch.rand(images, n, 4, generator=g) * 4, torch.randn(images, n, generator=g)


# ---------------------------------------------------------------- locations


def test_locations_are_the_centres_of_cells_row_by_row() -> None:
    at = fcos.locations([(2, 3), (1, 1)], (8, 16))
    x, y = [4, 12, 20, 4, 12, 20, 8], [4, 4, 4, 12, 12, 12, 8]
    assert at.centres.tolist() == [[float(a), float(b)] for a, b in zip(x, y, strict=True)]
    assert at.strides.tolist() == [8.0] * 6 + [16.0]
    assert at.ranges.tolist() == [[0.0, 64.0]] * 6 + [[64.0, math.inf]]
    assert at.counts == (6, 1)


def test_ranges_are_those_of_the_paper() -> None:
    at = fcos.locations([(1, 1)] * 5, (8, 16, 32, 64, 128))
    assert at.ranges.flatten().tolist() == [0, 64, 64, 128, 128, 256, 256, 512, 512, math.inf]


# ---------------------------------------------------------------- targets and losses


@pytest.mark.parametrize("seed", range(6))
def test_targets_and_losses_are_those_of_torchvision(seed: int) -> None:
    g, net = torch.Generator().manual_seed(seed), detector()
    parts = [random_boxes(g, n) for n in (7, 0, 1, 25)]
    scores, distances, central = outputs(g, len(parts))
    targets = [{"boxes": part[:, :4], "labels": part[:, 4].long() - 1} for part in parts]
    predicted = {"cls_logits": scores, "bbox_regression": distances, "bbox_ctrness": central[..., None]}
    wanted = net.compute_loss(targets, predicted, [anchors(AT)] * len(parts), list(AT.counts))

    boxes = padded(parts)
    classes, sides = fcos.assign(boxes, AT)
    owners = net.head.matched
    labels = torch.cat([boxes[..., 4], torch.zeros(len(parts), 1)], 1).long()
    assert torch.equal(classes, labels.gather(1, torch.where(owners < 0, boxes.shape[1], owners)))
    positive = classes > 0
    assert positive[[0, 3]].any(1).all() and not positive[1].any()
    true = boxes.gather(1, owners.clamp_min(0)[..., None].expand(-1, -1, 5))[..., :4]
    torch.testing.assert_close(fcos.decode(sides, AT.centres)[positive], true[positive], rtol=0, atol=1e-4)

    pixels = (distances * AT.strides[:, None])[positive]
    centres = AT.centres.expand(len(parts), -1, -1)[positive]
    found = {
        "classification": fcos.focal_loss(scores, classes),
        "bbox_regression": fcos.giou_loss(fcos.decode(pixels, centres), fcos.decode(sides[positive], centres)),
        "bbox_ctrness": fcos.centerness_loss(central[positive], sides[positive]),
    }
    for name, loss in found.items():
        torch.testing.assert_close(loss / positive.sum(), wanted[name], rtol=1e-5, atol=1e-5)


def test_a_batch_is_assigned_as_its_images_and_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    boxes = padded([random_boxes(g, n) for n in (3, 9, 1)])
    classes, sides = fcos.assign(boxes, AT)
    for image, c, d in zip(boxes, classes, sides, strict=True):
        one = fcos.assign(image, AT)
        assert torch.equal(one[0], c) and torch.equal(one[1], d)
    monkeypatch.setattr(fcos, "PAIRS", 1)
    again = fcos.assign(boxes, AT)
    assert torch.equal(again[0], classes) and torch.equal(again[1], sides)


def assigned(*rows: list[float]) -> tuple[Tensor, Tensor]:
    """Assign boxes on one level of 8 by 8 cells of 8 pixels. Returns class + 1 (8, 8) and distances (8, 8, 4)."""
    at = fcos.locations([(8, 8)], (8,), ranges=[(0, math.inf)])
    classes, distances = fcos.assign(torch.tensor(rows).reshape(-1, 5), at)
    return classes.reshape(8, 8), distances.reshape(8, 8, 4)


@pytest.mark.parametrize("rows", [[], [[0.0] * 5], [[0.0] * 5] * 3, [[0.0, 0, 64, 64, 0]]])
def test_an_image_without_boxes_is_background(rows: list[list[float]]) -> None:
    classes, distances = assigned(*rows)
    assert not classes.any() and not distances.any()


def test_locations_near_the_centre_of_a_box_get_its_class_and_distances() -> None:
    classes, distances = assigned([0, 0, 64, 64, 3])
    inner = torch.zeros(8, 8, dtype=torch.int64)
    inner[3:5, 3:5] = 3  # centres 28 and 36, which are 4 pixels from the centre; 12 is 1.5 strides and not near
    assert torch.equal(classes, inner)
    assert distances[3, 4].tolist() == [36, 28, 28, 36]  # of x = 36, y = 28
    assert not distances[classes == 0].any()


def test_a_box_on_the_edge_is_assigned_to_locations_inside_it_alone() -> None:
    classes, distances = assigned([56, 30, 64, 42, 1])  # the centre is x = 60, y = 36
    assert classes.nonzero().tolist() == [[4, 7]]
    assert distances[4, 7].tolist() == [4, 6, 4, 6]
    on_the_side, _ = assigned([60, 30, 64, 42, 1])  # a location on a side is not inside
    assert not on_the_side.any()


def test_a_tiny_box_is_assigned_to_the_location_that_it_contains_or_to_none() -> None:
    assert assigned([11, 11, 13, 13, 2])[0].nonzero().tolist() == [[1, 1]]
    assert not assigned([14, 14, 17, 17, 2])[0].any()


def test_of_nested_boxes_the_smaller_one_is_assigned() -> None:
    large, small = [0.0, 0, 64, 64, 1], [20.0, 20, 32, 40, 2]  # the small one contains x = 28, y = 28 and 36
    for rows in ([large, small], [small, large], [small, [0.0] * 5, large]):
        classes, distances = assigned(*rows)
        assert classes[3:5, 3:5].tolist() == [[2, 1], [2, 1]]
        assert distances[3, 3].tolist() == [8, 8, 4, 12]


def test_of_equal_boxes_the_first_is_assigned() -> None:
    assert assigned([0, 0, 16, 16, 4], [0, 0, 16, 16, 1])[0].unique().tolist() == [0, 4]


def test_the_size_decides_the_level() -> None:
    at = fcos.locations([(16, 16), (8, 8)], (8, 16))  # up to 64 pixels from a location to a side, and above
    for side, level in ((96.0, 0), (128.0, 1)):
        classes, _ = fcos.assign(torch.tensor([[0, 0, side, side, 1]]), at)
        finer, coarser = classes.split(list(at.counts))
        assert (bool(finer.any()), bool(coarser.any())) == (level == 0, level == 1)


def test_both_ends_of_a_range_belong_to_a_level() -> None:
    at = fcos.locations([(32, 32), (16, 16)], (8, 16))
    for low, level in ((4.0, 0), (8.0, 1)):  # 64 pixels to all sides from a location of this level, at the centre
        classes, distances = fcos.assign(torch.tensor([[low, low, low + 128, low + 128, 1]]), at)
        ends = (distances.split(list(at.counts))[level] == 64).all(1)
        assert int(ends.sum()) == 1
        assert classes.split(list(at.counts))[level][ends].tolist() == [1]


def test_the_losses_are_those_of_torchvision_ops_and_so_are_their_gradients() -> None:
    g = torch.Generator().manual_seed(0)
    scores = (torch.randn(50, CLASSES, generator=g) * 8).requires_grad_()
    classes = torch.randint(0, CLASSES + 1, (50,), generator=g)
    wanted = nn.functional.one_hot(classes, CLASSES + 1)[:, 1:].float()
    mine, other = fcos.focal_loss(scores, classes), ops.sigmoid_focal_loss(scores, wanted, reduction="sum")
    torch.testing.assert_close(mine, other)
    torch.testing.assert_close(*(torch.autograd.grad(loss, scores)[0] for loss in (mine, other)))

    boxes, true = (random_boxes(g, 60)[:, :4] for _ in range(2))  # some overlap, some are apart
    boxes.requires_grad_()
    mine, other = fcos.giou_loss(boxes, true), ops.generalized_box_iou_loss(boxes, true, reduction="sum")
    torch.testing.assert_close(mine, other)
    torch.testing.assert_close(*(torch.autograd.grad(loss, boxes)[0] for loss in (mine, other)))


def test_losses_of_no_location_are_0_and_extreme_scores_are_finite() -> None:
    none = torch.zeros(0, 4, requires_grad=True)
    total = fcos.giou_loss(none, none) + fcos.centerness_loss(none[:, 0], none)
    assert total == 0
    total.backward()
    extreme = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = fcos.focal_loss(extreme, torch.tensor([2]))
    loss.backward()
    assert loss.isfinite() and extreme.grad is not None and extreme.grad.isfinite().all()


def test_centerness_is_1_at_the_centre_and_falls_to_the_sides() -> None:
    found = fcos.centerness(torch.tensor([[5.0, 3, 5, 3], [1, 2, 4, 2], [1, 1, 4, 4], [0, 0, 0, 0]]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, 0.25, 0.0]))


# ---------------------------------------------------------------- detections


@pytest.mark.parametrize("candidates", [1000, 50])
def test_detections_are_those_of_torchvision(candidates: int) -> None:
    g, net = torch.Generator().manual_seed(1), detector()
    net.topk_candidates = candidates
    scores, distances, central = outputs(g, 3)
    sizes = torch.tensor([[SIZE, SIZE], [250, 256], [256, 254]])
    predicted = {"cls_logits": scores, "bbox_regression": distances, "bbox_ctrness": central[..., None]}
    split = {name: list(x.split(list(AT.counts), 1)) for name, x in predicted.items()}
    levels = list(anchors(AT).split(list(AT.counts)))
    wanted = net.postprocess_detections(split, [levels] * 3, [tuple(size) for size in sizes.tolist()])
    found = fcos.select(
        scores, distances * AT.strides[:, None], central, AT, sizes, threshold=0.05, candidates=candidates
    )
    for mine, other in zip(found, wanted, strict=True):
        assert len(mine.scores) == 100
        torch.testing.assert_close(mine.boxes, other["boxes"], rtol=0, atol=1e-4)
        torch.testing.assert_close(mine.scores, other["scores"], rtol=0, atol=1e-6)
        assert torch.equal(mine.labels, other["labels"])


def one_image(rows: list[tuple[int, int, float, list[float]]], size: tuple[int, int]) -> fcos.Detections:
    """Select from a level of 4 by 4 cells of 8 pixels. rows: location, class, score, distances."""
    at = fcos.locations([(4, 4)], (8,))
    scores, distances = torch.full((1, 16, 2), -20.0), torch.zeros(1, 16, 4)
    for where, label, score, sides in rows:
        scores[0, where, label], distances[0, where] = torch.tensor(score).logit(), torch.tensor(sides)
    return fcos.select(scores, distances, torch.full((1, 16), 20.0), at, torch.tensor([size]))[0]


def test_a_score_is_the_root_of_probability_times_centerness() -> None:
    found = one_image([(5, 1, 0.64, [4, 4, 4, 4])], (32, 32))
    assert found.boxes.tolist() == [[8, 8, 16, 16]]
    assert found.scores.tolist() == pytest.approx([0.8])
    assert found.labels.tolist() == [1]


def test_duplicates_are_removed_within_a_class_alone() -> None:
    twice = [(5, 0, 0.5, [4.0, 4, 12, 4]), (6, 0, 0.9, [12.0, 4, 4, 4]), (9, 1, 0.4, [4.0, 12, 12, 0])]
    found = one_image(twice, (32, 32))
    assert found.labels.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.9**0.5, 0.4**0.5])


def test_boxes_are_clipped_to_the_image_and_dropped_in_its_padding() -> None:
    found = one_image([(1, 0, 0.9, [20.0, 20, 20, 20]), (15, 0, 0.9, [2.0, 2, 2, 2])], (20, 24))
    assert found.boxes.tolist() == [[0, 0, 24, 20]]


def test_an_image_without_detections_has_empty_results() -> None:
    found = one_image([], (32, 32))
    assert (found.boxes.shape, found.scores.shape, found.labels.shape) == ((0, 4), (0,), (0,))
