"""Define the interfaces of models: backbones and their features, objectives and losses, teachers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn

from fmeco.core.data import Batch, Data, DataSpec, Inputs, Samples, View
from fmeco.core.feature_maps import map_size, resample
from fmeco.core.page import Part
from fmeco.errors import ConfigError

Mode = Literal["loss", "rows", "predict", "vector", "represent", "head_rows"]


@dataclass(slots=True)
class Features:
    """Hold the outputs of a backbone. A backbone fills the fields it has; an objective uses the ones it needs.

    pooled: (B, D), one vector per sample.
    tokens: (B, T, D), one vector per token.
    mask: (B, T) bool, True = a real token, False = padding.
    grid: (h, w) if the tokens are the cells of a map, row by row.
    """

    pooled: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None

    @property
    def vector(self) -> Tensor:
        """Return one vector per sample (B, D): `pooled`, or the mean of the real tokens. Raises TypeError without both."""
        if self.pooled is not None:
            return self.pooled
        if self.tokens is None:
            raise TypeError("a backbone must fill Features.pooled or Features.tokens")
        if self.mask is None:
            return self.tokens.mean(1)
        weight = self.mask.unsqueeze(-1).to(self.tokens.dtype)  # (B, T, 1)
        return (self.tokens * weight).sum(1) / weight.sum(1).clamp_min(1)


class Tokens(NamedTuple):
    """Hold the values that a backbone's tokens encode. Of the T tokens, the first T' encode numbers and the others ids.

    mask: (B, T) bool, True = a real token, False = padding.
    numbers: (B, T', P), such as the P pixel values of image patches.
    ids: (B, T - T') int64, such as of words.
    """

    mask: Tensor
    numbers: Tensor | None = None
    ids: Tensor | None = None


STORED = "stored features"  # input (B, V, ...): precomputed features of the backbone's frozen part

# Inputs for masked prediction. HIDDEN (B, T) bool: True = hide the token. BLANK (D,): embedding that replaces hidden tokens;
# without it the backbone drops the hidden tokens.
HIDDEN, BLANK = "hidden", "blank"


class Backbone(nn.Module, ABC):
    """Compute Features from Inputs.

    width: D of `Features.vector`.
    vocabulary: number of ids, for a backbone that can `tokenize` to ids; 0 = none.
    numbers: P of `Tokens.numbers`, for a backbone that can `tokenize` to numbers; 0 = none.
    tokens: number of tokens T, if it is the same for all samples and the backbone can drop hidden ones (HIDDEN without BLANK);
        otherwise 0.
    causal: a token's features depend only on it and earlier tokens.
    map_widths, map_strides: C_i and stride of each map of `maps`, finest first; () = the backbone has no maps.
    unmapped: names of the parameters that `maps` does not use, such as those of a final norm. They get no gradient from it,
        which DDP does not accept: an objective that trains on maps alone sets their `requires_grad` to False.
    class_layers: name prefixes of layers that a published model has and the backbone leaves out, such as `fc.` of
        torchvision's resnet18. Weights of these layers are not loaded.
    rest: function (stored features, training) -> Features: runs the part after the frozen part; None = no such part.
    """

    width: int
    vocabulary: int = 0
    numbers: int = 0
    tokens: int = 0
    causal = False
    map_widths: tuple[int, ...] = ()
    map_strides: tuple[int, ...] = ()
    unmapped: tuple[str, ...] = ()
    class_layers: tuple[str, ...] = ()
    rest: Callable[[Tensor, bool], Features] | None = None

    @abstractmethod
    def forward(self, inputs: Inputs) -> Features: ...

    def __call__(self, inputs: Inputs) -> Features:
        """Run the backbone.

        If `inputs` holds precomputed features of the frozen part (`STORED`, shape (B, V, ...)), skip that part and run
        `rest` on `stored[:, 0]`. V is the number of stored augmented versions of a sample (`transfer.views`). In training,
        one of them has already been picked (V = 1). A validation sample has a single version, repeated V times.
        If everything is frozen, the stored features are already the output vector.
        """
        stored = inputs.get(STORED)
        if stored is not None:
            return Features(pooled=stored[:, 0]) if self.rest is None else self.rest(stored[:, 0], self.training)
        features: Features = super().__call__(inputs)
        return features

    @property
    def library(self) -> nn.Module:
        """Return the module whose state dict is saved. Its parameter names are those of the library that it comes from, such as timm."""
        return self

    def adapt(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Convert tensors of another model to this model's shapes where that is well defined: sum or copy input channels,
        interpolate position embeddings.

        Returns the state and the names it reshaped.
        """
        return state, []

    def mapped(self, inputs: Inputs) -> Features:
        """Run the backbone and always fill `tokens`.

        A convolutional network omits tokens in `forward`, since a vector is enough for most objectives. It overrides this
        method, and returns the cells of its last feature map as tokens.
        """
        return self(inputs)

    def maps(self, inputs: Inputs) -> list[Tensor]:
        """Compute feature maps (B, C_i, H_i, W_i) of images (B, C, H, W), finest first.

        C_i = map_widths[i], H_i = ceil(H / map_strides[i]) and W_i = ceil(W / map_strides[i]). Strides are powers of two up to
        32. By default, the grid of tokens of `mapped` is resampled to each stride, without parameters: the pyramid of
        https://arxiv.org/abs/2203.16527 section 3. Raises TypeError if the backbone has no maps.
        """
        if not self.map_strides:
            raise TypeError(f"{type(self).__name__} has no feature maps")
        image = next((x for x in inputs.values() if x.ndim == 4), None)
        found = self.mapped(inputs)
        if image is None or found.tokens is None or found.grid is None:
            raise TypeError(
                f"{type(self).__name__}.mapped returns no grid of an image's tokens to make feature maps of"
            )
        grid = found.tokens.transpose(1, 2).unflatten(2, found.grid)  # (B, D, h, w)
        return [resample(grid, map_size(image.shape[2], image.shape[3], stride)) for stride in self.map_strides]

    def tokenize(self, inputs: Inputs) -> Tokens:
        """Return the values that `Features.tokens` encode, as targets for masked or next-token prediction.

        A backbone with this method also accepts the inputs HIDDEN and BLANK. Raises TypeError if it has no such tokens.
        """
        raise TypeError(f"{type(self).__name__} does not support tokenize()")

    def scores(self, tokens: Tensor) -> Tensor:
        """Score every id for each token: (N, D) -> (N, vocabulary), dot products with the input embeddings of the ids.

        The input and output embeddings are tied: https://arxiv.org/abs/1608.05859. Raises TypeError if the backbone has no
        tokens for ids.
        """
        raise TypeError(f"{type(self).__name__} has no tokens for ids")

    def embedded(self, ids: Tensor) -> Tensor:
        """Return the embeddings (..., D) of ids (...), to compute `scores` for only a few ids of a large vocabulary."""
        raise TypeError(f"{type(self).__name__} has no tokens for ids")

    def calibrate(self, inputs: Inputs) -> None:
        """Compute weights that are derived from data instead of learned, such as those of a whitening layer. inputs: a few hundred training samples (B, ...).

        Called once, on a new model that starts without pretrained weights.
        """

    def depth_of(self, name: str) -> int:
        """Return a parameter's distance from the input, for layer-wise learning rates. name: as in `library`.

        By default it is the position of the parameter's layer among the layers that have parameters.
        """
        order = list(dict.fromkeys(key.rpartition(".")[0] for key, _ in self.library.named_parameters()))
        return order.index(name.rpartition(".")[0])


class Published(NamedTuple):
    """Describe published weights and the preprocessing that they expect.

    url: URL of the file, or the path of a local file.
    digits: first hex digits of its SHA-256; "" = not published.
    spec: description of the inputs; None = not published. The function `assumed()` of the backbone's
        plug-in then returns the preprocessing to use, such as ImageNet's.
    licence: licence of the weights; None = not stated.
    shards: further files that hold the rest of the weights.
    size: bytes of the file at `url`, perhaps rounded; 0 = not stated.
    """

    url: str
    digits: str
    spec: DataSpec | None
    licence: str | None = None
    shards: tuple[str, ...] = ()
    size: int = 0


@dataclass(slots=True)
class Loss:
    """Hold a loss as a sum and a count. The training loop minimises sum / count, each added up over the
    micro-batches and ranks of a step.

    sum: scalar tensor, the summed loss.
    count: number of terms in the sum, usually samples.
    """

    sum: Tensor
    count: Tensor | float


# A simple method to compare a model with: (data, samples, rows) -> (the method's own rows, number of training samples that the
# method used). Rows are values per sample, as `Objective.rows` returns them; `Objective.metrics` computes metrics from them.
# data: the run's data; its training split holds only the samples that the run trained on.
# samples: the evaluated split.
# rows: the model's rows of that split; rows["index"] (N,) are positions in `samples`.
Baseline = Callable[[Data, Samples, Mapping[str, Tensor]], tuple[dict[str, Tensor], int]]


class Objective(nn.Module, ABC):
    """Compute a Loss from a Batch. Owns the backbone, heads and teachers.

    views: views of each sample that the loader must make.
    coupled: the loss compares the samples of a step with each other (contrastive). `represent` then computes tensors for each
        part of a step, and `compare` computes the loss from the tensors of the whole step, so that a step can be split into
        micro-batches and over ranks. A coupled objective without these two methods needs all samples of a step in one forward pass.
    probes: names of the probes (knn, linear) that evaluations run on the backbone's vectors by default.
    vectors_only: True if the objective uses inputs only to compute the backbone's vectors; features of a frozen part can then
        be precomputed.
    idle: names of the backbone's parameters that the loss does not depend on. They require no gradient, and never learn.
    batch_size: samples per step where the config leaves it to `auto`; 0 = by the number of samples.
    directions: metric name -> "max" or "min". The first metric selects the best checkpoint, unless the run has probes (then the first
        probe's metric does) or `evaluate.best` names a metric.
    about: topic -> note for readers of metrics and predictions, such as which class is the positive one.
    baselines: name -> simple method to compare the model's metrics with.
    """

    views: tuple[View, ...] = (View(),)
    coupled = False
    probes: tuple[str, ...] = ()
    vectors_only = False
    idle: tuple[str, ...] = ()
    batch_size = 0
    directions: Mapping[str, Literal["max", "min"]] = {}
    about: Mapping[str, str] = {}
    baselines: Mapping[str, Baseline] = {}
    backbone: Backbone

    def forward(self, batch: Batch, mode: Mode) -> Any:
        """Call the method named by `mode`. Every call goes through here, so wrappers (compile, data parallel) see it.

        Raises ValueError for an unknown mode.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"an objective has no mode {mode}")
        return getattr(self, mode)(batch)

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Compute the training loss of a batch."""

    @abstractmethod
    def rows(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the per-sample tensors (B, ...) that `metrics` needs. They are gathered over the split by index."""

    @abstractmethod
    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Compute named metrics from the rows (N, ...) of a whole split. Must be pure. Accuracies are fractions 0..1."""

    def represent(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute tensors (B, ...) for `compare`, each row from its own sample alone. Only for coupled objectives.

        All parameters must be used in here, none in `compare`.
        """
        raise NotImplementedError

    def compare(self, parts: tuple[Tensor, ...], target: Mapping[str, Tensor | list[Any]]) -> Loss:
        """Compute the loss from the representations and targets of a whole step. Only for coupled objectives."""
        raise NotImplementedError

    def vector(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the backbone's vectors (B, D) of the first view."""
        return {"vector": self.product(batch.views[0]).vector}

    def head_rows(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the per-sample tensors (B, ...) that `solve` needs: by default "vector", and "target/NAME" for each target."""
        targets = {f"target/{name}": value for name, value in batch.target.items() if isinstance(value, Tensor)}
        return {**targets, **self.vector(batch)}

    def solve(self, rows: Mapping[str, Tensor], penalties: Mapping[str, float]) -> dict[str, float]:
        """Write the head that fits frozen features best, in closed form or by a convex fit.

        rows: `head_rows` of all training samples (N, ...), on the CPU, and "weight" (N,): how often each sample is drawn.
        penalties: weight penalty of a target's head, by the target's name; those that are absent are chosen by
            cross-validation on the rows.

        Returns the penalties of all targets whose heads were written; {} = this objective has no head to solve.
        """
        return {}

    def correct(self, rows: dict[str, Tensor]) -> Tensor | None:
        """Return a bool mask (N,), True = the sample is answered correctly; None if an answer is not simply right or wrong.

        The mean of this mask must equal the first metric of `directions`. Used for paired tests and the metric's standard error.
        """
        return None

    def page(self, rows: dict[str, Tensor]) -> list[Part]:
        """Describe the answers to a whole split for the report, beyond the metrics: per class, by confidence, the worst ones.

        rows: as for `metrics`.
        """
        return []

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Compute outputs (B, ...) for `decode`. Raises ConfigError if the objective makes no predictions."""
        raise ConfigError(f"the objective {type(self).__name__} makes no predictions")

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Turn outputs into one dict per sample, with `prediction` and, if there is one, `probability`.

        Answers that lie on the image are tensors under the names of riders' forms: mask, boxes, points.
        """
        raise ConfigError(f"the objective {type(self).__name__} makes no predictions")

    def class_probabilities(self, outputs: dict[str, Tensor]) -> tuple[tuple[str, ...], Tensor] | None:
        """Return the names of the classes, and their probabilities (B, C) in the outputs of `predict`; None if there are none."""
        return None

    def told(self, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Turn a sample's decoded answer into rows of `predict`: by default, one row.

        What lies on the image has been mapped to the sample's file. A tensor that stays in a row is for Python and for
        `predict --output FOLDER`.
        """
        return [dict(answer)]

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        """Return tensor name -> class names, for each tensor that has one row (dimension 0) per class.

        Finetuning copies the rows of classes that both tasks have.
        """
        return {}

    def ailing(self, metrics: Mapping[str, float]) -> str | None:
        """Describe a problem of the learned representation, such as collapse, that metrics show; None = no problem."""
        return None

    def begin(self) -> None:
        """Prepare for the first step, such as by copying the weights to teachers. Called one time, after the initial weights
        are loaded."""

    def after_step(self, progress: float) -> None:
        """Update teachers and queues after each optimizer step. progress: finished share of the run, 0..1."""

    @property
    def product(self) -> Backbone:
        """Return the module that is saved as the backbone."""
        return self.backbone


class Teacher(NamedTuple):
    """Hold a frozen trained model. An objective's config names it in a key of type Ref.

    ref: the Ref as written in the config.
    backbone: its backbone.
    objective: its objective; None for weights without one.
    spec: description of its inputs.
    id: id of its checkpoint; None for weights that are not from a checkpoint.
    """

    ref: str
    backbone: Backbone
    objective: Objective | None
    spec: DataSpec
    id: str | None
