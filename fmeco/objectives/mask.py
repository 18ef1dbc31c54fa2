"""Hide some tokens and guess them: words, items, patches of an image or series, columns of a table. Needs no labels."""

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

IDS, PATCHES, COLUMNS = 0.15, 0.75, 0.3  # the share that is hidden: BERT's, MAE's, and one between them
SERIES = 0.4  # https://arxiv.org/abs/2211.14730 section 4.2
BLANKED, SWAPPED = 0.8, 0.1  # of the hidden ids; the rest stays as it is
EPS = 1e-6


def suits(spec: DataSpec, backbone: Backbone) -> bool:
    """Say whether this objective is the default for data without targets: a backbone of tokens learns to fill them in."""
    return bool(backbone.numbers) or (backbone.vocabulary > 0 and not backbone.causal)


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
    decoder: Annotated[
        int,
        Doc(
            "of patches: blocks of a decoder that guesses them, so that the backbone sees what is not hidden alone, which "
            "takes a fraction of the time; 0 = the backbone guesses"
        ),
        Ge(0),
    ] = 0,
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
    if decoder and not backbone.tokens:
        raise ConfigError("objective.decoder needs patches, which a backbone such as transformer can go without")
    images = any(len(one.shape) == 3 for one in spec.inputs.values())
    if rate is None:
        rate = PATCHES if images else IDS if "tokens" in spec.inputs else SERIES if "series" in spec.inputs else COLUMNS
    if decoder and not 0 < round(rate * backbone.tokens) < backbone.tokens:
        raise ConfigError(f"objective.rate: {rate:g} of {backbone.tokens} patches leaves none, or none to guess")
    # Ids that stand for categories belong to columns; one of another column would be no value of this one.
    swap = swap and "tokens" in spec.inputs
    return Mask(backbone, rate, swap, images, Decoder(backbone, decoder) if decoder else None, _ranking.catalogue(spec))


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


class Mask(Recommends):
    """Cross-entropy of hidden ids (https://arxiv.org/abs/1810.04805 section 3.1), squared error of hidden numbers
    (https://arxiv.org/abs/2111.06377): the mean over all that is hidden. With a decoder, hidden patches do not enter the
    backbone. Of events it is BERT4Rec (https://arxiv.org/abs/1904.06690): what comes next is a hidden item at the end."""

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
        # Columns are standardised, and of series how high a patch lies in its window is what is to be guessed.
        self.wanted = normalized if images else torch.Tensor.float
        if decoder is None:
            self.blank = nn.Parameter(torch.randn(backbone.width) / math.sqrt(backbone.width))
        self.bias = nn.Parameter(torch.zeros(backbone.vocabulary)) if backbone.vocabulary else None
        self.numbers = (
            Head(decoder.width if decoder else backbone.width, backbone.numbers, 0.0) if backbone.numbers else None
        )

    def hide(self, batch: Batch) -> tuple[Inputs, Tokens, Tensor]:
        """(inputs with tokens hidden, what the tokens stand for, which ones are to be guessed (B, T))."""
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
        """Of each token (B, T): its loss, 0 where it was not hidden; whether it was; whether it was an id guessed right."""
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

    def scores(self, history: Inputs) -> Tensor:
        """As what is hidden behind the history."""
        tokens = F.pad(history["tokens"], (0, 1))
        place = tokens.ne(0).sum(1, keepdim=True)  # (B, 1)
        tokens = tokens.scatter(1, place, UNKNOWN_ITEM)[:, : int(place.max()) + 1]
        hidden = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, place, True)
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
