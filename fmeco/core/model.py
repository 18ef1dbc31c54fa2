"""Models: backbones, their features, objectives and losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn

from fmeco.core.data import Batch, Data, DataSpec, Inputs, Samples, View
from fmeco.errors import ConfigError

Mode = Literal["loss", "rows", "predict", "vector", "represent"]


@dataclass(slots=True)
class Features:
    """What a backbone returns. A backbone fills what it has; an objective says which it needs."""

    pooled: Tensor | None = None  # (B, D)
    tokens: Tensor | None = None  # (B, T, D)
    mask: Tensor | None = None  # (B, T) bool, True = a real token
    grid: tuple[int, int] | None = None  # tokens are the cells of an (h, w) map, row by row
    pyramid: list[Tensor] | None = None  # maps (B, C_i, H_i, W_i), coarse last

    @property
    def vector(self) -> Tensor:
        """One vector per sample (B, D): `pooled`, else the mean of the real tokens."""
        if self.pooled is not None:
            return self.pooled
        if self.tokens is None:
            raise TypeError("a backbone must fill Features.pooled or Features.tokens")
        if self.mask is None:
            return self.tokens.mean(1)
        weight = self.mask.unsqueeze(-1).to(self.tokens.dtype)  # (B, T, 1)
        return (self.tokens * weight).sum(1) / weight.sum(1).clamp_min(1)


class Tokens(NamedTuple):
    """What a backbone's tokens stand for: first those that stand for numbers, then those that stand for an id.

    mask: (B, T) bool, True = a real token. numbers: (B, T', P), such as the pixels of patches. ids: (B, T - T') int64.
    """

    mask: Tensor
    numbers: Tensor | None = None
    ids: Tensor | None = None


STORED = "stored features"  # the name of the input that holds what a frozen part of the backbone gives

HIDDEN, BLANK = "hidden", "blank"  # inputs: which tokens (B, T) a backbone sees as a vector (D,) in place of their own


class Backbone(nn.Module, ABC):
    """Inputs -> Features. `width` is D of `Features.vector`. `class_layers`: names (or their beginnings) of the library
    model's layers that a backbone goes without, and that a file of weights may therefore hold in excess."""

    width: int
    vocabulary: int = 0  # how many ids tokens may stand for, of a backbone that can `tokenize`
    numbers: int = 0  # P, where they stand for numbers
    tokens: int = 0  # how many a sample has, where all have as many, and HIDDEN without BLANK leaves some of them out
    causal = False  # a token's features depend on nothing that comes after it
    class_layers: tuple[str, ...] = ()
    rest: Callable[[Tensor, bool], Features] | None = None  # (stored values, whether training) -> Features

    @abstractmethod
    def forward(self, inputs: Inputs) -> Features: ...

    def __call__(self, inputs: Inputs) -> Features:
        """`forward`; or, where `inputs` hold what its frozen part gives (B, V, ...), computed before, the `rest` of the
        way from the first of the V views. Where all is frozen that is the vector itself."""
        stored = inputs.get(STORED)
        if stored is not None:
            return Features(pooled=stored[:, 0]) if self.rest is None else self.rest(stored[:, 0], self.training)
        features: Features = super().__call__(inputs)
        return features

    @property
    def library(self) -> nn.Module:
        """The module whose state dict is saved, under its source library's own key names."""
        return self

    def adapt(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Fit foreign tensors to this model where that is well defined (channels, positions).

        Returns the state and the names it reshaped.
        """
        return state, []

    def mapped(self, inputs: Inputs) -> Features:
        """`forward`, with tokens: a convolutional network, which does without them where a vector is all that is asked for,
        gives its last map, cell by cell."""
        return self(inputs)

    def tokenize(self, inputs: Inputs) -> Tokens:
        """What each of Features.tokens stands for. A backbone that says so also takes the inputs HIDDEN and BLANK: an
        objective can then ask it to guess."""
        raise TypeError(f"{type(self).__name__} has no tokens that stand for anything")

    def scores(self, tokens: Tensor) -> Tensor:
        """How well features of tokens (N, D) fit each id (N, vocabulary): their products with the ids' embeddings. One
        matrix then learns from both its ends. https://arxiv.org/abs/1608.05859"""
        raise TypeError(f"{type(self).__name__} has no tokens that stand for ids")

    def embedded(self, ids: Tensor) -> Tensor:
        """The embeddings (..., D) of ids (...), with which `scores` are products: for scores of a few of very many ids."""
        raise TypeError(f"{type(self).__name__} has no tokens that stand for ids")

    def calibrate(self, inputs: Inputs) -> None:
        """Fit what is computed from data rather than learned to a few hundred training samples. Called once, on a new
        model without weights to start from."""

    def depth_of(self, name: str) -> int:
        """Distance of a parameter (named as in `library`) from the input, for layer-wise rates; by default the
        position of its layer among the layers that have parameters."""
        order = list(dict.fromkeys(key.rpartition(".")[0] for key, _ in self.library.named_parameters()))
        return order.index(name.rpartition(".")[0])


class Published(NamedTuple):
    """Where a library publishes weights, and how their inputs were prepared.

    url: of the file; a file of this machine is its path.
    digits: the first ones of its SHA-256, "" where the publisher does not say them.
    spec: None where the publisher does not say it; the plug-in's `assumed()` then does.
    licence: None where the publisher does not state one.
    shards: the files that hold the rest of the weights.
    """

    url: str
    digits: str
    spec: DataSpec | None
    licence: str | None = None
    shards: tuple[str, ...] = ()


@dataclass(slots=True)
class Loss:
    """A loss as a sum and what it is a sum over: the loop divides once, over micro-batches and ranks.

    parts: further named sums over the same count, for the log.
    """

    sum: Tensor
    count: Tensor | float
    parts: Mapping[str, Tensor] = field(default_factory=dict)


# A plain method to hold a model against: (data, samples, rows) -> the rows that the objective's `metrics` take, and how many
# training samples it learned from. data: the run's own, with the run's share of the training split. samples: the split that
# was measured. rows: the objective's of it; rows["index"] (N,) are positions in `samples`.
Baseline = Callable[[Data, Samples, Mapping[str, Tensor]], tuple[dict[str, Tensor], int]]


class Objective(nn.Module, ABC):
    """A Batch in, a Loss out. Owns the backbone, heads and teachers.

    directions: metric name -> "max" or "min"; the first one picks the best checkpoint unless the config does.
    about: what a reader of its metrics and predictions must know, such as which class is the positive one.
    coupled: the loss depends on which samples share a step. It is then `compare` of what `represent` gives, so that the
    samples of a step can pass the model in parts, on several ranks; without these two, they must pass together.
    probes: what evaluations find out about the backbone's vectors where the config does not say: knn, linear.
    baselines: name -> a plain method that its metrics can be held against.
    vectors_only: inputs serve for nothing but the backbone's vectors: what is frozen of it can then be computed once.
    """

    views: tuple[View, ...] = (View(),)
    coupled = False
    probes: tuple[str, ...] = ()
    vectors_only = False
    directions: Mapping[str, Literal["max", "min"]] = {}
    about: Mapping[str, str] = {}
    baselines: Mapping[str, Baseline] = {}
    backbone: Backbone

    def forward(self, batch: Batch, mode: Mode) -> Any:
        """The one entry, so that whatever wraps an objective (compile, data parallel) sees every call."""
        if mode not in get_args(Mode):
            raise ValueError(f"an objective has no mode {mode}")
        return getattr(self, mode)(batch)

    @abstractmethod
    def loss(self, batch: Batch) -> Loss: ...

    @abstractmethod
    def rows(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample tensors (B, ...) that `metrics` needs; gathered over the split in order of index."""

    @abstractmethod
    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Pure: rows of a whole split -> named numbers. Accuracies are fractions 0..1."""

    def represent(self, batch: Batch) -> tuple[Tensor, ...]:
        """Of a coupled objective: tensors (B, ...), each a function of its own sample. All parameters work in here."""
        raise NotImplementedError

    def compare(self, parts: tuple[Tensor, ...], target: Mapping[str, Tensor | list[Any]]) -> Loss:
        """Of a coupled objective: the loss of a whole step's representations and targets."""
        raise NotImplementedError

    def vector(self, batch: Batch) -> dict[str, Tensor]:
        """The backbone's vectors (B, D) of the first view."""
        return {"vector": self.product(batch.views[0]).vector}

    def correct(self, rows: dict[str, Tensor]) -> Tensor | None:
        """Which samples (N,) were answered right, where an answer is right or wrong; their share is then the first of
        `directions`. For tests on pairs, and for the standard error of that metric."""
        return None

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Outputs (B, ...) for `decode`. Objectives without predictions leave it."""
        raise ConfigError(f"the objective {type(self).__name__} makes no predictions")

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, str | float]]:
        """One dict with `prediction` and, where there is one, `probability` per sample."""
        raise ConfigError(f"the objective {type(self).__name__} makes no predictions")

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        """Tensors whose dimension 0 runs over classes -> the classes' names, so that finetuning can carry over
        the rows of classes that both tasks have."""
        return {}

    def ailing(self, metrics: Mapping[str, float]) -> str | None:
        """What is wrong with what was learned so far, as far as an evaluation's metrics tell; None = nothing."""
        return None

    def begin(self) -> None:
        """Before the first step, when the weights to start from are in place: teachers become copies of them."""

    def after_step(self, progress: float) -> None:
        """Move teachers and queues; called after each optimizer step with the finished share of the run."""

    @property
    def product(self) -> Backbone:
        """The module that is saved as the backbone."""
        return self.backbone


class Teacher(NamedTuple):
    """What a Ref in an objective's section names: a trained model, frozen. objective: None of weights without one. id: of
    the checkpoint."""

    ref: str
    backbone: Backbone
    objective: Objective | None
    spec: DataSpec
    id: str | None
