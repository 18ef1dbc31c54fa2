"""One class per pixel, learned with cross-entropy on the feature maps of the backbone.

The decoder is a feature pyramid (https://arxiv.org/abs/1612.03144) whose levels are added up at the finest one, as in
Panoptic FPN (https://arxiv.org/abs/1901.02446 section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import (
    IGNORED,
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
    Loss,
    Lt,
    Objective,
    Part,
    Table,
    listing,
    nearest,
)
from fmeco.nn.pyramid import FeaturePyramid, check_maps, conv_block, freeze_unmapped, image_in, resized_like

DEFAULT_FOR = ("mask",)  # kinds of targets

LEFT_OUT = -100  # label of pixels that torch's cross_entropy leaves out
WINDOWS = 8  # of an image that are computed at once
EPSILON = 1.0  # pixels added to both sides of Dice's fraction, which is not defined for an absent class


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    target: Annotated[str, Doc("name of the dataset's target to learn")] = "mask",
    width: Annotated[int, Doc("channels of the decoder, a multiple of 16"), Ge(16)] = 64,
    dropout: Annotated[float, Doc("dropout before the last layer"), Ge(0), Lt(1)] = 0.1,
    dice: Annotated[float, Doc("weight of the Dice loss, beside cross-entropy"), Ge(0)] = 1.0,
    focal: Annotated[
        float,
        Doc("gamma of the focal loss, which gives less weight to pixels that are already right; 0 = cross-entropy"),
        Ge(0),
    ] = 0.0,
    class_weights: Annotated[
        dict[str, Annotated[float, Gt(0)]] | None,
        Doc("weight of each class in the cross-entropy, by name; others have 1"),
    ] = None,
    overlap: Annotated[
        float,
        Doc("share of a window that overlaps the next one, where images are larger than image_size"),
        Ge(0),
        Lt(0.9),
    ] = 0.25,
    test_flip: Annotated[bool, Doc("evaluate and predict with the mean of an image and its mirror image")] = False,
) -> Objective:
    described = spec.targets.get(target)
    if described is None or described.kind != "mask":
        kind = "no such target" if described is None else f"it is of kind {described.kind}"
        raise ConfigError(
            f"objective segmentation needs a mask target '{target}': {kind}",
            "dataset: {name: masks, path: FOLDER} makes one",
        )
    check_maps(backbone, width, "segmentation")
    if class_weights and (strange := [name for name in class_weights if name not in described.classes]):
        raise ConfigError(
            f"objective.class_weights names {listing(strange)}, not classes of this dataset{nearest(strange[0], described.classes)}"
        )
    weights = [(class_weights or {}).get(name, 1.0) for name in described.classes] if class_weights else None
    image = next(iter(spec.seen.values()))
    return Segmentation(
        backbone,
        described.classes,
        described.input,
        image.shape[-1],
        width,
        dropout,
        dice,
        focal,
        weights,
        overlap,
        test_flip,
    )


class Decoder(nn.Module):
    """Compute features (B, width, h, w) of pixels from feature maps, on the grid of the finest one.

    widths: channels of the maps, finest first.
    """

    def __init__(self, widths: tuple[int, ...], width: int, dropout: float) -> None:
        super().__init__()
        self.pyramid, self.last, self.dropout = FeaturePyramid(widths, width), conv_block(width), nn.Dropout2d(dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        finest, *coarser = self.pyramid(maps)
        total = finest
        for level in coarser:
            total = total + resized_like(level, finest)
        features: Tensor = self.dropout(self.last(total))
        return features


class Segmentation(Objective):
    weights: Tensor | None
    batch_size = 8  # each pixel is a term of the loss: more steps help more than more images in each (docs/LOG.md)
    directions: Mapping[str, Literal["max", "min"]] = {
        "miou": "max",
        "dice": "max",
        "pixel_accuracy": "max",
        "loss": "min",
    }

    def __init__(
        self,
        backbone: Backbone,
        classes: tuple[str, ...],
        rider: str,
        side: int,
        width: int,
        dropout: float,
        dice: float,
        focal: float,
        weights: list[float] | None,
        overlap: float,
        test_flip: bool,
    ) -> None:
        super().__init__()
        self.idle = freeze_unmapped(backbone)
        self.backbone, self.classes, self.rider, self.side = backbone, classes, rider, side
        self.dice, self.focal, self.overlap, self.test_flip = dice, focal, overlap, test_flip
        self.decoder = Decoder(backbone.map_widths, width, dropout)
        self.head = nn.Conv2d(width, len(classes), 1)
        # Not saved in checkpoints: it is rebuilt from the config.
        self.register_buffer("weights", None if weights is None else torch.tensor(weights), persistent=False)

    def logits(self, inputs: Inputs) -> Tensor:
        """Compute the scores (B, C, H, W) of each pixel."""
        scores = self.head(
            self.decoder(self.backbone.maps(inputs))
        ).float()  # (B, C, h, w); the loss needs full precision
        return F.interpolate(scores, image_in(inputs)[1].shape[-2:], mode="bilinear", align_corners=False)

    def loss(self, batch: Batch) -> Loss:
        """Compute the mean over pixels of each image's cross-entropy, plus `dice` times its Dice loss, summed over images."""
        each, judged = self.losses(self.logits(batch.views[0]), batch.views[0][self.rider])
        return Loss(each.sum(), judged.sum())

    def losses(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss (B,) of each image, and which images (B,) have a pixel with a class."""
        valid = mask != IGNORED  # (B, H, W)
        label = mask.long().masked_fill(~valid, LEFT_OUT)
        each = F.cross_entropy(logits, label, self.weights, reduction="none")  # (B, H, W)
        if self.focal:  # https://arxiv.org/abs/1708.02002 equation (4)
            sure = (
                F.cross_entropy(logits, label, reduction="none").neg().exp()
                if self.weights is not None
                else each.neg().exp()
            )
            each = each * (1 - sure).clamp_min(0).pow(self.focal)
        weight = valid.float() if self.weights is None else self.weights[label.clamp_min(0)] * valid
        loss = each.flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)
        if self.dice:
            loss = loss + self.dice * self.dice_loss(logits, label, valid)
        judged = valid.flatten(1).any(1)
        return loss * judged, judged

    def dice_loss(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        """Compute 1 - Dice (B,), the mean over the classes of an image. https://arxiv.org/abs/1606.04797 equation (1), not squared"""
        chance = logits.softmax(1) * valid[:, None]
        truth = F.one_hot(label.clamp_min(0), len(self.classes)).movedim(-1, 1) * valid[:, None]
        both = (chance * truth).flatten(2).sum(2)  # (B, C)
        sizes = chance.flatten(2).sum(2) + truth.flatten(2).sum(2)
        present = truth.flatten(2).any(2)
        ratio = (2 * both + EPSILON) / (sizes + EPSILON)
        return ((1 - ratio) * present).sum(1) / present.sum(1).clamp_min(1)

    def chances(self, inputs: Inputs) -> Tensor:
        """Compute the probabilities (B, C, H, W) of each pixel's classes, for evaluation and prediction."""
        name, image = image_in(inputs)

        def of_part(part: Tensor) -> Tensor:
            found = self.logits({name: part}).softmax(1)
            if self.test_flip:
                found = (found + self.logits({name: part.flip(-1)}).softmax(1).flip(-1)) / 2
            return found

        if max(image.shape[-2:]) <= self.side:
            return of_part(image)
        return over_windows(image, self.side, self.overlap, len(self.classes), of_part)

    def vector(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the backbone's vectors (B, D), of the centre of images that are larger than those it was trained on."""
        name, image = image_in(batch.views[0])
        top, left = (max(0, side - self.side) // 2 for side in image.shape[-2:])
        centre = image[..., top : top + self.side, left : left + self.side]
        return {"vector": self.product({name: centre}).vector}

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        """Count the pixels of each image by class: "hits", "claimed" and "present" (B, C); and compute its loss."""
        chances, mask = self.chances(batch.views[0]), batch.views[0][self.rider]
        claimed, valid, classes = chances.argmax(1), mask != IGNORED, len(self.classes)
        offset = torch.arange(len(mask), device=mask.device)[:, None, None] * classes

        def counted(label: Tensor, of: Tensor) -> Tensor:
            return (label.long() + offset)[of].bincount(minlength=len(mask) * classes).view(len(mask), classes)

        loss, judged = self.losses(chances.clamp_min(1e-9).log(), mask)
        return {
            "hits": counted(claimed, valid & (claimed == mask)),
            "claimed": counted(claimed, valid),
            "present": counted(mask, valid),
            "loss": loss,
            "judged": judged,
        }

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        hits, claimed, present = (rows[name].sum(0).double() for name in ("hits", "claimed", "present"))  # each (C,)
        sizes = claimed + present
        seen = sizes > 0  # leave out classes that are neither present nor predicted
        if not present.any():
            return {"loss": 0.0}
        iou, dice = hits / (sizes - hits), 2 * hits / sizes
        return {
            "miou": float(iou[seen].mean()),
            "dice": float(dice[seen].mean()),
            "pixel_accuracy": float(hits.sum() / present.sum()),
            "loss": float(rows["loss"].double().sum() / rows["judged"].sum()),
            **{f"iou/{name}": float(iou[c]) for c, name in enumerate(self.classes) if seen[c]},
        }

    def page(self, rows: dict[str, Tensor]) -> list[Part]:
        hits, claimed, present = (rows[name].double() for name in ("hits", "claimed", "present"))  # each (N, C)
        totals = [each.sum(0) for each in (hits, claimed, present)]
        table = []
        for c, name in enumerate(self.classes):
            right, said, true = (float(each[c]) for each in totals)
            both = said + true - right
            share = true / float(totals[2].sum().clamp_min(1))
            images = int((present[:, c] > 0).sum())
            table.append(
                (name, images, share, right / both if both else None, 2 * right / (both + right) if both else None)
            )
        of_image = (hits / (claimed + present - hits).clamp_min(1)).where(claimed + present > 0, torch.nan).nanmean(1)
        judged = rows["judged"].bool().nonzero()[:, 0]
        worst = judged[of_image[judged].argsort(stable=True)][:SHOWN].tolist()
        return [
            Table("Classes", ("class", "images", "share of pixels", "IoU", "Dice"), tuple(table)),
            Cases(
                "Worst images",
                tuple(worst),
                tuple(f"mean IoU {of_image[i]:.3f}" for i in worst),
                "With their true masks.",
            ),
        ]

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        sure, mask = self.chances(batch.views[0]).max(1)
        return {"mask": mask.to(torch.uint8), "probability": sure.flatten(1).mean(1)}

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        return [
            {"mask": mask, "probability": sure}
            for mask, sure in zip(outputs["mask"], outputs["probability"].tolist(), strict=True)
        ]

    def told(self, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Describe a mask by the share of each class in its pixels."""
        counts = answer["mask"].flatten().long().bincount(minlength=IGNORED + 1)[: len(self.classes)]
        shares = (counts / counts.sum().clamp_min(1)).tolist()
        most = self.classes[int(counts.argmax())]
        return [
            {
                "prediction": most,
                "probability": answer["probability"],
                **{f"area/{name}": share for name, share in zip(self.classes, shares, strict=True)},
                "mask": answer["mask"],
            }
        ]

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        return {"head.weight": self.classes, "head.bias": self.classes}


def over_windows(image: Tensor, side: int, overlap: float, classes: int, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute the probabilities (1, C, H, W) of an image (1, channels, H, W) in square windows that overlap.

    A pixel gets the mean over its windows, in which pixels near the border, where the network sees one side only, count less.

    compute: function (N, channels, side, side) -> (N, C, side, side).
    """
    _, _, height, width = image.shape
    places = [(top, left) for top in starts(height, side, overlap) for left in starts(width, side, overlap)]
    h, w = min(side, height), min(side, width)
    fade = (_fade(h)[:, None] * _fade(w)).to(image.device)  # (h, w)
    total, weight = image.new_zeros(1, classes, height, width, dtype=torch.float32), image.new_zeros(height, width)
    for at in range(0, len(places), WINDOWS):
        chosen = places[at : at + WINDOWS]
        parts = compute(torch.cat([image[..., top : top + h, left : left + w] for top, left in chosen]))
        for part, (top, left) in zip(parts, chosen, strict=True):
            total[0, :, top : top + h, left : left + w] += part * fade
            weight[top : top + h, left : left + w] += fade
    return total / weight


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Return where windows of a side begin, evenly spread, so that neighbours overlap by at least a share of the side."""
    if length <= side:
        return [0]
    count = 1 + math.ceil((length - side) / max(1, side * (1 - overlap)))
    return [round(at * (length - side) / (count - 1)) for at in range(count)]


def _fade(side: int) -> Tensor:
    """Return weights (side,) that fall from 1 in the middle to 1 / side at the ends."""
    distance = torch.minimum(torch.arange(1, side + 1), torch.arange(side, 0, -1)).float()
    return (distance / distance.max()).clamp_min(1 / side)
