"""Masked modelling: hide some tokens and predict them (words, items, patches of images or series, table columns). Needs no labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import (
    BLANK,
    HIDDEN,
    Backbone,
    Batch,
    ConfigError,
    DataSpec,
    Doc,
    Ge,
    Gt,
    Inputs,
    Loss,
    Lt,
    Objective,
    Tokens,
    mix,
    uniform,
)
from fmeco.nn.ids import UNKNOWN_ITEM
from fmeco.nn.layers import Head
from fmeco.objectives import _popular_items, _ranking
from fmeco.objectives._decoder import Decoder
from fmeco.objectives._ranking import Catalogue, Recommends

IDS, PATCHES, COLUMNS = 0.15, 0.75, 0.3  # default share of tokens to hide: BERT's, MAE's, and one in between
SERIES = 0.4  # https://arxiv.org/abs/2211.14730 section 4.2
BLANKED, SWAPPED = 0.8, 0.1  # shares of the hidden ids that are blanked, and swapped; the rest stays unchanged
EPS = 1e-6


def suits(spec: DataSpec, backbone: Backbone) -> bool:
    """Tell whether this is the default objective for data without targets: yes for backbones of tokens that are not causal."""
    return bool(backbone.numbers) or (backbone.vocabulary > 0 and not backbone.causal)


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    rate: Annotated[
        float | None,
        Doc(
            "share of a sample's tokens to hide; null = 0.15 for ids, 0.75 for image patches, 0.3 for table columns, 0.4 for "
            "series"
        ),
        Gt(0),
        Lt(1),
    ] = None,
    decoder: Annotated[
        int,
        Doc(
            "for patches: number of blocks of a decoder that predicts them; the backbone then runs on the visible patches only, "
            "in a fraction of the time; 0 = no decoder, the backbone predicts them"
        ),
        Ge(0),
    ] = 0,
    swap: Annotated[
        bool, Doc("replace a tenth of the hidden ids by random ids and leave a tenth unchanged, as BERT does")
    ] = True,
) -> Objective:
    if not (backbone.vocabulary or backbone.numbers):
        raise ConfigError(
            f"objective mask needs a backbone with tokens to hide, and {type(backbone).__name__} has none",
            "backbone: transformer has tokens",
        )
    if backbone.causal:
        raise ConfigError(
            "objective mask needs a bidirectional backbone, and this one is causal",
            "set backbone.causal: false, or use objective: next",
        )
    if decoder and not backbone.tokens:
        raise ConfigError(
            "objective.decoder needs a backbone that can run on a part of its patches, such as transformer on images"
        )
    images = any(len(described.shape) == 3 for described in spec.seen.values())
    if rate is None:
        rate = PATCHES if images else IDS if "tokens" in spec.seen else SERIES if "series" in spec.seen else COLUMNS
    if decoder and not 0 < round(rate * backbone.tokens) < backbone.tokens:
        raise ConfigError(
            f"objective.rate: {rate:g} of {backbone.tokens} patches leaves no patch visible, or none to predict"
        )
    # Not for tables: the id of a category belongs to one column, and a random id would be a value of another column.
    swap = swap and "tokens" in spec.seen
    return Mask(backbone, rate, swap, images, Decoder(backbone, decoder) if decoder else None, _ranking.catalogue(spec))


def draw(keys: Tensor, real: Tensor, rate: float) -> Tensor:
    """Choose the tokens to hide (B, T): a share `rate` of each sample's real tokens, and at least one.

    The choice depends on keys (B,) and positions only, so padding does not change it.
    """
    order = draws(keys, real, 0).masked_fill(~real, 2.0)
    count = (rate * real.sum(1)).round().clamp_min(1)
    rank = order.argsort(dim=1, stable=True).argsort(1)
    chosen: Tensor = real & (rank < count[:, None])
    return chosen


def draws(keys: Tensor, like: Tensor, stream: int) -> Tensor:
    """Draw a uniform number for each token (B, T), on the device of `like`."""
    return uniform(mix(keys[:, None], torch.arange(like.shape[1])), stream).to(like.device)


def normalized(patches: Tensor) -> Tensor:
    """Standardise each patch (..., P) by its own mean and deviation. https://arxiv.org/abs/2111.06377 section 4"""
    variance, mean = torch.var_mean(patches, -1, keepdim=True, correction=0)
    return (patches - mean) / (variance + EPS).sqrt()


def errors(guess: Tensor, patches: Tensor) -> Tensor:
    """Compute the mean squared error (N,) of predicted patches (N, P)."""
    return (guess - patches).square().mean(-1)


class Mask(Recommends):
    """Predict hidden tokens; the loss is the mean over all hidden tokens.

    ids: cross-entropy (https://arxiv.org/abs/1810.04805 section 3.1).
    numbers: squared error (https://arxiv.org/abs/2111.06377). With a decoder, hidden patches do not enter the backbone.
    events: BERT4Rec (https://arxiv.org/abs/1904.06690); the next item is predicted as a hidden item at the end.
    """

    def __init__(
        self,
        backbone: Backbone,
        rate: float,
        swap: bool,
        images: bool,
        decoder: Decoder | None,
        catalogue: Catalogue | None,
    ) -> None:
        super().__init__()
        self.backbone, self.rate, self.swap = backbone, rate, swap
        self.decoder, self.catalogue = decoder, catalogue
        own: Mapping[str, Literal["max", "min"]] = {"loss": "min", "accuracy": "max"}
        self.directions = own if catalogue is None else _ranking.DIRECTIONS
        self.baselines = _popular_items.baselines(catalogue)
        # Only image patches are standardised: columns already are, and the level of a series' patch has to be predicted.
        self.wanted = normalized if images else torch.Tensor.float
        if decoder is None:
            self.blank = nn.Parameter(torch.randn(backbone.width) / math.sqrt(backbone.width))
        self.bias = nn.Parameter(torch.zeros(backbone.vocabulary)) if backbone.vocabulary else None
        self.numbers = (
            Head(decoder.width if decoder else backbone.width, backbone.numbers, 0.0) if backbone.numbers else None
        )

    def hide(self, batch: Batch) -> tuple[Inputs, Tokens, Tensor]:
        """Hide tokens. Returns (the inputs with tokens hidden, the original tokens, which ones to predict (B, T))."""
        inputs = batch.views[0]
        tokens, keys = self.backbone.tokenize(inputs), batch.keys[0]
        chosen = draw(keys, tokens.mask, self.rate)
        if self.decoder is not None:
            return {**inputs, HIDDEN: chosen}, tokens, chosen
        if not self.swap or tokens.ids is None:
            return {**inputs, HIDDEN: chosen, BLANK: self.blank}, tokens, chosen
        fate = draws(keys, chosen, 1)
        swapped = chosen & (fate >= BLANKED) & (fate < BLANKED + SWAPPED)
        strange = 1 + (draws(keys, chosen, 2) * (self.backbone.vocabulary - 1)).long()  # id 0 is padding
        inputs = {**inputs, "tokens": torch.where(swapped, strange, tokens.ids)}
        return {**inputs, HIDDEN: chosen & (fate < BLANKED), BLANK: self.blank}, tokens, chosen

    def guess(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the hidden tokens. Returns three tensors (B, T).

        They are each token's loss (0 unless hidden), whether it was hidden, and whether it was an id and predicted right.
        """
        inputs, tokens, chosen = self.hide(batch)
        features = self.backbone(inputs).tokens
        assert features is not None
        if self.decoder is not None:
            features = self.decoder(features, chosen)
        split = 0 if tokens.numbers is None else tokens.numbers.shape[1]
        loss = torch.zeros(chosen.shape, device=chosen.device)
        right = torch.zeros_like(chosen)
        if self.numbers is not None and tokens.numbers is not None:
            at = chosen[:, :split]
            losses = errors(self.numbers(features[:, :split][at]).float(), self.wanted(tokens.numbers[at].float()))
            loss[:, :split] = torch.zeros_like(loss[:, :split]).masked_scatter(at, losses)
        if self.bias is not None and tokens.ids is not None:
            at = chosen[:, split:]
            logits = (self.backbone.scores(features[:, split:][at]) + self.bias).float()  # (N, ids)
            wanted = tokens.ids[at]  # (N,)
            losses = F.cross_entropy(logits, wanted, reduction="none")
            loss[:, split:] = torch.zeros_like(loss[:, split:]).masked_scatter(at, losses)
            right[:, split:] = torch.zeros_like(at).masked_scatter(at, logits.argmax(1) == wanted)
        return loss, chosen, right

    def scores(self, history: Inputs) -> Tensor:
        """Score all ids for a hidden item that is appended to the history."""
        tokens = F.pad(history["tokens"], (0, 1))
        end = tokens.ne(0).sum(1, keepdim=True)  # (B, 1)
        tokens = tokens.scatter(1, end, UNKNOWN_ITEM)[:, : int(end.max()) + 1]
        hidden = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, end, True)
        features = self.backbone({**history, "tokens": tokens, HIDDEN: hidden, BLANK: self.blank}).tokens
        assert features is not None and self.bias is not None
        with torch.autocast(features.device.type, enabled=False):
            return self.backbone.scores(features[hidden].float()) + self.bias

    def loss(self, batch: Batch) -> Loss:
        loss, chosen, _ = self.guess(batch)
        return Loss(loss.sum(), chosen.sum())

    def guessed(self, batch: Batch) -> dict[str, Tensor]:
        loss, chosen, right = self.guess(batch)
        ids = chosen if self.numbers is None else chosen & False
        return {"loss": loss.sum(1), "hidden": chosen.sum(1), "ids": ids.sum(1), "right": right.sum(1)}

    def measured(self, rows: dict[str, Tensor]) -> dict[str, float]:
        out = {"loss": float(rows["loss"].double().sum() / rows["hidden"].sum())}
        if ids := int(rows["ids"].sum()):
            out["accuracy"] = int(rows["right"].sum()) / ids
        return out
