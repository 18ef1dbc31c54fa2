"""Objects with a box and a class, found by FCOS (https://arxiv.org/abs/1904.01355) on the feature maps of the backbone.

FCOS has no anchors: each place of a map says the class of the object that it lies in, how far the sides of its box are, and how
near it is to the box's centre.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fmeco.core import (
    MISSING_CLASS,
    SHOWN,
    Backbone,
    Batch,
    Cases,
    ConfigError,
    DataSpec,
    Doc,
    Ge,
    Gt,
    Inputs,
    Le,
    Loss,
    Lt,
    Objective,
    Part,
)
from fmeco.nn.class_report import per_class
from fmeco.nn.detection import average_precision, fcos
from fmeco.nn.pyramid import FeaturePyramid, check_maps, conv_block, freeze_unmapped, image_in

DEFAULT_FOR = ("boxes",)  # kinds of targets
ANSWERING = ("score", "nms", "most")  # keys that `predict --set` may change

FINEST = 8  # stride of the finest map, where the backbone has several
COARSEST = 64  # stride of the coarsest map, which is made of the backbone's last one
RARE = 0.01  # probability of an object at a place before training, https://arxiv.org/abs/1708.02002 section 3.3
MEASURED_FROM = 0.05  # score from which detections count in the average precision
FARTHEST = 8.0  # exponent of the largest distance, in strides


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    target: Annotated[str, Doc("name of the dataset's target to learn")] = "boxes",
    width: Annotated[int, Doc("channels of the feature pyramid and of the head, a multiple of 16"), Ge(16)] = 96,
    depth: Annotated[int, Doc("convolutions of the head before the last"), Ge(1), Le(8)] = 2,
    score: Annotated[float, Doc("smallest score of a predicted object"), Gt(0), Lt(1)] = 0.3,
    nms: Annotated[
        float,
        Doc("of two boxes of a class that overlap by more than this (IoU), only the better one is predicted"),
        Gt(0),
        Le(1),
    ] = 0.6,
    most: Annotated[int, Doc("largest number of objects per image"), Ge(1)] = 100,
) -> Objective:
    described = spec.targets.get(target)
    if described is None or described.kind != "boxes":
        kind = "no such target" if described is None else f"it is of kind {described.kind}"
        raise ConfigError(
            f"objective detection needs a target of boxes '{target}': {kind}",
            "dataset: {name: boxes, path: ...} makes one",
        )
    check_maps(backbone, width, "detection")
    return Detection(backbone, described.classes, target, described.input, width, depth, score, nms, most)


class Found(NamedTuple):
    """Hold what the head says of all places L of all maps.

    scores: (B, L, C) of the classes, before the sigmoid.
    distances: (B, L, 4) to the sides of the box, in pixels.
    centred: (B, L), centerness before the sigmoid.
    at: the places.
    """

    scores: Tensor
    distances: Tensor
    centred: Tensor
    at: fcos.Locations


class Detection(Objective):
    batch_size = 8  # each place is a term of the loss: more steps help more than more images in each
    directions: Mapping[str, Literal["max", "min"]] = {
        "map": "max",
        "map50": "max",
        "map75": "max",
        "map_small": "max",
        "map_medium": "max",
        "map_large": "max",
        "loss": "min",
    }

    def __init__(
        self,
        backbone: Backbone,
        classes: tuple[str, ...],
        target: str,
        rider: str,
        width: int,
        depth: int,
        score: float,
        nms: float,
        most: int,
    ) -> None:
        super().__init__()
        self.idle = freeze_unmapped(backbone)
        self.backbone, self.classes, self.target, self.rider = backbone, classes, target, rider
        self.score, self.nms, self.most = score, nms, most
        strides = backbone.map_strides
        self.first = next((at for at, stride in enumerate(strides) if stride >= FINEST), len(strides) - 1)
        self.strides = list(strides[self.first :])
        self.pyramid = FeaturePyramid(backbone.map_widths[self.first :], width)
        self.coarser = nn.ModuleList()
        while self.strides[-1] < COARSEST:
            self.coarser.append(conv_block(width, stride=2))
            self.strides.append(2 * self.strides[-1])
        self.of_class, self.of_box = (nn.Sequential(*(conv_block(width) for _ in range(depth))) for _ in range(2))
        self.classify = nn.Conv2d(width, len(classes), 3, padding=1)
        self.measure = nn.Conv2d(width, 5, 3, padding=1)  # four distances, and the centerness
        self.scales = nn.Parameter(torch.ones(len(self.strides)))
        for layer in (self.classify, self.measure):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.classify.bias, -math.log((1 - RARE) / RARE))  # type: ignore[arg-type]

    def found(self, inputs: Inputs) -> Found:
        """Run the network."""
        levels = self.pyramid(self.backbone.maps(inputs)[self.first :])
        for block in self.coarser:
            levels.append(block(levels[-1]))
        scores, distances, centred = [], [], []
        for level, stride, scale in zip(levels, self.strides, self.scales, strict=True):
            scores.append(_flat(self.classify(self.of_class(level))))
            measured = _flat(self.measure(self.of_box(level))).float()  # (B, h * w, 5)
            distances.append((scale * measured[..., :4]).clamp_max(FARTHEST).exp() * stride)
            centred.append(measured[..., 4])
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        at = fcos.locations(sizes, self.strides, device=levels[0].device)
        return Found(torch.cat(scores, 1).float(), torch.cat(distances, 1), torch.cat(centred, 1), at)

    def loss(self, batch: Batch) -> Loss:
        """Compute the sum of the paper's losses (equation 2), with GIoU for the boxes, over the places in objects.

        Images of which nobody said what is in them are left out.
        """
        found, annotated = self.found(batch.views[0]), self.annotated(batch)
        known = Found(found.scores[annotated], found.distances[annotated], found.centred[annotated], found.at)
        return self.loss_of(known, batch.views[0][self.rider][annotated])

    def annotated(self, batch: Batch) -> Tensor:
        """Return a bool mask (B,) of the images whose objects are known, even if there are none."""
        value = batch.target[self.target]
        assert isinstance(value, Tensor)
        return value != MISSING_CLASS

    def loss_of(self, found: Found, boxes: Tensor) -> Loss:
        """Compare the head's answers with the boxes (B, n, 5)."""
        classes, distances = fcos.assign(boxes, found.at)
        inside = classes > 0  # (B, L)
        centres = found.at.centres.expand(len(boxes), -1, -1)[inside]
        answered, wanted = (fcos.decode(x[inside], centres) for x in (found.distances, distances))
        total = (
            fcos.focal_loss(found.scores, classes)
            + fcos.giou_loss(answered, wanted)
            + fcos.centerness_loss(found.centred[inside], distances[inside])
        )
        return Loss(total, inside.sum())

    def detections(self, found: Found, size: torch.Size, score: float) -> list[fcos.Detections]:
        sizes = torch.tensor([size[-2:]] * len(found.scores), device=found.scores.device)
        return fcos.select(
            found.scores,
            found.distances,
            found.centred,
            found.at,
            sizes,
            threshold=score,
            overlap=self.nms,
            most=self.most,
        )

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        """Match each image's detections with its boxes, as `nn/detection/average_precision.py` says, and compute its loss."""
        view, boxes, annotated = batch.views[0], batch.views[0][self.rider], self.annotated(batch).tolist()
        found = self.found(view)
        rows = []
        for at, one in enumerate(self.detections(found, image_in(view)[1].shape, MEASURED_FROM)):
            truth = boxes[at][boxes[at][:, 4] > 0]
            shown = len(one.boxes) if annotated[at] else 0
            matched = average_precision.match(
                one.boxes[:shown],
                one.scores[:shown],
                one.labels[:shown],
                truth[:, :4],
                truth[:, 4].long() - 1,
                len(self.classes),
                most=self.most,
            )
            only = slice(at, at + 1)
            alone = Found(found.scores[only], found.distances[only], found.centred[only], found.at)
            loss = self.loss_of(alone, boxes[only])
            known = float(annotated[at])
            rows.append(
                {**matched, "loss": loss.sum.cpu() * known, "places": torch.as_tensor(loss.count).cpu() * known}
            )
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        averages = average_precision.average_precisions(rows)
        loss = float(rows["loss"].double().sum() / rows["places"].double().sum().clamp_min(1))
        return {**average_precision.summary(averages, self.classes), "loss": loss}

    def page(self, rows: dict[str, Tensor]) -> list[Part]:
        found, truth = rows["score"] >= self.score, rows["truth"][:, :, 0]  # (N, S); (N, C), of all sizes
        right, wrong = (found & (rows[name] & 1).bool() for name in ("true_positive", "false_positive"))  # at IoU 0.5
        of_class = [rows["category"] == c for c in range(len(self.classes))]
        hits = [int((right & chosen).sum()) for chosen in of_class]
        claimed = [int(((right | wrong) & chosen).sum()) for chosen in of_class]
        table = per_class(self.classes, hits, truth.sum(0).tolist(), claimed, "objects")
        missed, false = truth.sum(1) - right.sum(1), wrong.sum(1)
        bad = missed + false
        worst = [i for i in bad.argsort(descending=True, stable=True)[:SHOWN].tolist() if bad[i]]
        captions = tuple(f"{int(missed[i])} of {int(truth[i].sum())} missed, {int(false[i])} false" for i in worst)
        note = f"Detections with a score from {self.score:g} count, and are right from an IoU of 0.5. " + table.note
        parts: list[Part] = [dataclasses.replace(table, note=note)]
        if worst:
            parts.append(Cases("Worst images", tuple(worst), captions, "With their true boxes."))
        return parts

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Detect objects: "boxes" (B, most, 5) as in a rider, and "scores" (B, most); zeros where there is none."""
        view = batch.views[0]
        found = self.detections(self.found(view), image_in(view)[1].shape, self.score)
        boxes, scores = torch.zeros(len(found), self.most, 5), torch.zeros(len(found), self.most)
        for at, one in enumerate(found):
            boxes[at, : len(one.boxes)] = torch.cat([one.boxes, one.labels[:, None] + 1.0], 1).cpu()
            scores[at, : len(one.boxes)] = one.scores.cpu()
        return {"boxes": boxes, "scores": scores}

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        kept = [scores > 0 for scores in outputs["scores"]]
        return [
            {"boxes": boxes[present], "scores": scores[present]}
            for boxes, scores, present in zip(outputs["boxes"], outputs["scores"], kept, strict=True)
        ]

    def told(self, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Describe each object in a row of its own, the surest first; an image without any has one row without a prediction."""
        empty = {"prediction": None, "probability": None, **dict.fromkeys(SIDES)}
        rows = []
        for (*sides, label), score in zip(answer["boxes"].tolist(), answer["scores"].tolist(), strict=True):
            if label:  # zero where nothing of a box lies in the picture
                named = {"prediction": self.classes[int(label) - 1], "probability": score}
                rows.append({**named, **dict(zip(SIDES, (round(side, 2) for side in sides), strict=True))})
        return rows or [empty]

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        return {"classify.weight": self.classes, "classify.bias": self.classes}


SIDES = ("left", "top", "right", "bottom")  # columns of a box, in pixels of the picture


def _flat(x: Tensor) -> Tensor:
    """Put the places of a map into one dimension, (B, C, h, w) -> (B, h * w, C)."""
    return x.flatten(2).transpose(1, 2)
