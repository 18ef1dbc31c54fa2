"""Hide some tokens and guess them: words, patches of an image or series, columns of a table. Needs no labels."""

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
    Gt,
    Inputs,
    Loss,
    Lt,
    Objective,
    Tokens,
    mix,
    uniform,
)
from fmeco.nn import Head

IDS, PATCHES, COLUMNS = 0.15, 0.75, 0.3  # the share that is hidden: BERT's, MAE's, and one between them
SERIES = 0.4  # https://arxiv.org/abs/2211.14730 section 4.2
BLANKED, SWAPPED = 0.8, 0.1  # of the hidden ids; the rest stays as it is
EPS = 1e-6


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    rate: Annotated[
        float | None,
        Doc("share of a sample's tokens to hide; null = 0.15 of ids, 0.75 of patches, 0.3 of columns, 0.4 of series"),
        Gt(0),
        Lt(1),
    ] = None,
    swap: Annotated[
        bool, Doc("of the hidden ids, show a tenth as another one and a tenth as it is, as BERT does")
    ] = True,
) -> Objective:
    if not (backbone.vocabulary or backbone.numbers):
        raise ConfigError(
            f"objective mask needs a backbone whose tokens it can hide, such as transformer, not {type(backbone).__name__}"
        )
    if backbone.causal:
        raise ConfigError(
            "objective mask needs a backbone that looks both ways", "backbone.causal: false, or objective: next"
        )
    images = any(len(one.shape) == 3 for one in spec.inputs.values())
    if rate is None:
        rate = PATCHES if images else IDS if "tokens" in spec.inputs else SERIES if "series" in spec.inputs else COLUMNS
    # Ids that stand for categories belong to columns; one of another column would be no value of this one.
    return Mask(backbone, rate, swap and "tokens" in spec.inputs, images)


def draw(keys: Tensor, real: Tensor, rate: float) -> Tensor:
    """Which of the real tokens (B, T) to hide: a share `rate` of each sample's, and one at least. By keys (B,) and
    positions alone, so that padding changes nothing."""
    order = draws(keys, real, 0).masked_fill(~real, 2.0)
    count = (rate * real.sum(1)).round().clamp_min(1)
    rank = order.argsort(dim=1, stable=True).argsort(1)
    chosen: Tensor = real & (rank < count[:, None])
    return chosen


def draws(keys: Tensor, like: Tensor, stream: int) -> Tensor:
    """A uniform number for each token (B, T), where `like` is."""
    return uniform(mix(keys[:, None], torch.arange(like.shape[1])), stream).to(like.device)


def normalized(patches: Tensor) -> Tensor:
    """Patches (..., P), each less its mean and divided by its deviation. https://arxiv.org/abs/2111.06377 section 4."""
    variance, mean = torch.var_mean(patches, -1, keepdim=True, correction=0)
    return (patches - mean) / (variance + EPS).sqrt()


def errors(guess: Tensor, patches: Tensor) -> Tensor:
    """The mean squared error (N,) of guesses (N, P) of patches (N, P)."""
    return (guess - patches).square().mean(-1)


class Mask(Objective):
    """Cross-entropy of hidden ids (https://arxiv.org/abs/1810.04805 section 3.1), squared error of hidden numbers
    (https://arxiv.org/abs/2111.06377): the mean over all that is hidden."""

    directions: Mapping[str, Literal["max", "min"]] = {"loss": "min", "accuracy": "max"}

    def __init__(self, backbone: Backbone, rate: float, swap: bool, images: bool) -> None:
        super().__init__()
        self.backbone, self.rate, self.swap = backbone, rate, swap
        # Columns are standardised, and of series how high a patch lies in its window is what is to be guessed.
        self.wanted = normalized if images else torch.Tensor.float
        self.blank = nn.Parameter(torch.randn(backbone.width) / math.sqrt(backbone.width))
        self.bias = nn.Parameter(torch.zeros(backbone.vocabulary)) if backbone.vocabulary else None
        self.numbers = Head(backbone.width, backbone.numbers, 0.0) if backbone.numbers else None

    def hide(self, batch: Batch) -> tuple[Inputs, Tokens, Tensor]:
        """(inputs with tokens hidden, what the tokens stand for, which ones are to be guessed (B, T))."""
        inputs = batch.views[0]
        tokens, keys = self.backbone.tokenize(inputs), batch.keys[0]
        chosen = draw(keys, tokens.mask, self.rate)
        if not self.swap or tokens.ids is None:
            return {**inputs, HIDDEN: chosen, BLANK: self.blank}, tokens, chosen
        fate = draws(keys, chosen, 1)
        swapped = chosen & (fate >= BLANKED) & (fate < BLANKED + SWAPPED)
        strange = 1 + (draws(keys, chosen, 2) * (self.backbone.vocabulary - 1)).long()  # id 0 is padding
        inputs = {**inputs, "tokens": torch.where(swapped, strange, tokens.ids)}
        return {**inputs, HIDDEN: chosen & (fate < BLANKED), BLANK: self.blank}, tokens, chosen

    def guess(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token (B, T): its loss, 0 where it was not hidden; whether it was; whether it was an id guessed right."""
        inputs, tokens, chosen = self.hide(batch)
        features = self.backbone(inputs).tokens
        assert features is not None
        split = 0 if tokens.numbers is None else tokens.numbers.shape[1]
        loss = torch.zeros(chosen.shape, device=chosen.device)
        right = torch.zeros_like(chosen)
        if self.numbers is not None and tokens.numbers is not None:
            at = chosen[:, :split]
            found = errors(self.numbers(features[:, :split][at]).float(), self.wanted(tokens.numbers[at].float()))
            loss[:, :split] = torch.zeros_like(loss[:, :split]).masked_scatter(at, found)
        if self.bias is not None and tokens.ids is not None:
            at = chosen[:, split:]
            logits = (self.backbone.scores(features[:, split:][at]) + self.bias).float()  # (N, ids)
            wanted = tokens.ids[at]  # (N,)
            found = F.cross_entropy(logits, wanted, reduction="none")
            loss[:, split:] = torch.zeros_like(loss[:, split:]).masked_scatter(at, found)
            right[:, split:] = torch.zeros_like(at).masked_scatter(at, logits.argmax(1) == wanted)
        return loss, chosen, right

    def loss(self, batch: Batch) -> Loss:
        loss, chosen, _ = self.guess(batch)
        return Loss(loss.sum(), chosen.sum())

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        loss, chosen, right = self.guess(batch)
        ids = chosen if self.numbers is None else chosen & False
        return {"loss": loss.sum(1), "hidden": chosen.sum(1), "ids": ids.sum(1), "right": right.sum(1)}

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        out = {"loss": float(rows["loss"].double().sum() / rows["hidden"].sum())}
        if ids := int(rows["ids"].sum()):
            out["accuracy"] = int(rows["right"].sum()) / ids
        return out
