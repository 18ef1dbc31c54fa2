"""The vocabulary of fmeco: what datasets, augmentations, backbones and objectives say to each other.

Letters in shape comments: B samples, V views, T tokens, D width, C channels or classes, H W height and width.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fmeco.errors import CheckpointError, ConfigError, DataError, clean, listing, nearest
from fmeco.plugins.registry import (
    Classes,
    Color,
    Doc,
    FilePath,
    Fold,
    Ge,
    Gt,
    ImageSize,
    Le,
    LimitPerClass,
    LimitSeed,
    Lt,
    ObjectiveSection,
    Ref,
    Scalar,
    TeacherMomentum,
    TestFraction,
    ValFraction,
)

__all__ = [
    "BLANK",
    "FIRST_ITEM",
    "HIDDEN",
    "STORED",
    "UNKNOWN_ITEM",
    "Augment",
    "Backbone",
    "Batch",
    "CheckpointError",
    "Classes",
    "Color",
    "ConfigError",
    "Data",
    "DataError",
    "DataSpec",
    "Doc",
    "Features",
    "FilePath",
    "Fold",
    "Ge",
    "Gt",
    "ImageSize",
    "InputSpec",
    "Inputs",
    "Le",
    "LimitPerClass",
    "LimitSeed",
    "Loss",
    "Lt",
    "Mode",
    "Objective",
    "ObjectiveSection",
    "Published",
    "Ref",
    "Samples",
    "Scalar",
    "Target",
    "Teacher",
    "TeacherMomentum",
    "TestFraction",
    "Tokens",
    "ValFraction",
    "View",
    "clean",
    "fit",
    "known",
    "listing",
    "mix",
    "mix_numbers",
    "nearest",
    "numbering",
    "pad",
    "same_modality",
    "standardize",
    "uniform",
]

Inputs = dict[str, Tensor]  # "image", "columns", "tokens", ... -> (B, ...); without B for one sample
Mode = Literal["loss", "rows", "predict", "vector", "represent"]
# Ids of events: of an item that training did not see, and the first that it did; 0 is padding.
UNKNOWN_ITEM, FIRST_ITEM = 1, 2
MISSING_CLASS = -1  # the class index of a sample without a label; a number or a row of labels is then not a number


# ---------------------------------------------------------------- the contract of the data


@dataclass(frozen=True)
class InputSpec:
    """One named input: its shape, how it is stored, and the affine map that makes it the model's input.

    `shape` is that of one sample, (C, H, W) or (F,). Dimension 0 of `shape` is the one `mean` and `std` run over.
    The model sees `(stored * scale - mean) / std`; an empty mean leaves the stored values as they are.
    ragged: dimension 0 of a sample may be shorter than shape[0]; a batch is padded with 0 to its longest sample.
    offset: of ids, what was added to those of their tokenizer, so that 0 is free for padding.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"  # a torch dtype's name, as stored
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    ragged: bool = False
    offset: int = 0


@dataclass(frozen=True)
class Target:
    """One named target. `kind` is class (one of `classes`), multilabel (a subset of them), number, series (`steps` numbers in
    a row), or text (a row of characters, which are its `classes`).

    `counts` (samples per class), `mean` and `std` (of a number) and `missing` (samples without a value) describe the
    training split; a run fills them in. Heads predict numbers in units of `std` from `mean`.
    """

    kind: Literal["class", "multilabel", "number", "series", "text"]
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    missing: int = 0
    steps: int = 0

    def described(self, values: Tensor) -> Target:
        """This target with the statistics of the training split's values (N, ...)."""
        here = known(values)
        missing = len(values) - int(here.sum())
        if self.kind == "series":  # in the units of its inputs
            return dataclasses.replace(self, missing=missing)
        values = values[here]
        if self.kind == "class":
            counts = tuple(values.bincount(minlength=len(self.classes)).tolist())
            return dataclasses.replace(self, counts=counts, missing=missing)
        if self.kind == "multilabel":
            return dataclasses.replace(self, counts=tuple(int(n) for n in values.sum(0)), missing=missing)
        std = float(values.double().std(correction=0))
        mean = float(values.double().mean())
        return dataclasses.replace(self, mean=mean, std=std if std > 0 else 1.0, missing=missing)


def known(values: Tensor) -> Tensor:
    """Which samples (N,) have a value of a target (N, ...)."""
    if not values.is_floating_point():
        return values != MISSING_CLASS
    return ~values.isnan() if values.ndim == 1 else ~values.sum(1).isnan()  # rows that overlap are not copied


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of its data to be used again. Stored in the checkpoint; compared by name and value.

    `preprocessing` is whatever `reader.read(spec, sources)` needs to turn a file, row or string into Inputs:
    size, resize rule, interpolation, colour mode, tokenizer, column statistics. It is plain JSON.
    """

    modality: str  # "image", "table", ...
    inputs: Mapping[str, InputSpec]
    targets: Mapping[str, Target] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    reader: str = ""  # the dataset plug-in whose read() applies `preprocessing`
    sizes: Mapping[str, int] = field(default_factory=dict)  # samples per split
    fingerprint: str = ""  # of the training data

    @property
    def ragged(self) -> bool:
        """Whether samples differ in length."""
        return any(one.ragged for one in self.inputs.values())

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> DataSpec:
        """Rebuild a DataSpec; raises CheckpointError when the JSON is not one."""

        def build(kind: type, value: Mapping[str, Any]) -> Any:
            return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})

        try:
            return DataSpec(
                **{
                    **raw,
                    "inputs": {name: build(InputSpec, value) for name, value in raw["inputs"].items()},
                    "targets": {name: build(Target, value) for name, value in raw["targets"].items()},
                }
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"the data description is not valid: {clean(error)}") from None

    def preprocessing_only(self) -> DataSpec:
        """What finetuning hands to a dataset: how inputs are made, and nothing of the old task."""
        return dataclasses.replace(self, targets={}, sizes={}, fingerprint="")


def same_modality(known: DataSpec | None, modality: str) -> None:
    """For datasets of one modality. Raises CheckpointError where the checkpoint's data (`known`) is of another."""
    if known is not None and known.modality not in (modality, ""):
        raise CheckpointError(
            f"this checkpoint is for {known.modality} data, and the dataset holds {modality} data",
            "finetuning can start from such weights, where the architecture takes both: transfer.cross_modality=true",
        )


class Samples(ABC):
    """A split: samples by position. `targets` holds one tensor (N, ...) or list of length N per target, and whatever else
    of a sample its metrics need.

    Reading sample i must depend on nothing but i and the files: no global random state, no order of calls. Samples are
    read from several threads and processes at once.
    """

    targets: Mapping[str, Tensor | list[Any]] = {}
    groups: Mapping[str, Sequence[str]] = {}  # column -> a value per sample, to measure by (`evaluate --by`)
    notes: tuple[str, ...] = ()  # findings that the user should read (skipped files, ...)
    in_memory = False  # True when reading a sample is so cheap that loader workers would only cost
    tensors: Inputs | None = None  # the whole split (N, ...), where it is in memory: batches are then cut from it
    content = ""  # a hash of what the samples hold and how they are read, where it pays to keep them decoded
    lengths: Tensor | None = None  # (N,) of ragged samples: batches are then made of samples of like length
    block = 1  # of so many in a row each is like the next, as windows that overlap are: intervals draw them together

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Inputs:
        """The canonical decode of one sample. Raises DataError that names the file."""

    @abstractmethod
    def name(self, index: int) -> str:
        """A stable name: the relative path, or the row number."""

    def answers(self, index: int, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What an objective decodes for a sample as rows for the user of `predict`: one, or one for each step of time."""
        return [dict(answer)]


@dataclass(frozen=True)
class Data:
    """What a dataset plug-in builds. `notes` are findings that the user should read (skipped folders, ...)."""

    spec: DataSpec
    train: Samples | None = None
    val: Samples | None = None
    test: Samples | None = None
    collate: Callable[[Sequence[Inputs]], Inputs] | None = None  # default: stack, and pad what is ragged
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> Samples:
        """The split called train, val or test. Raises ConfigError when this dataset has none."""
        samples: Samples | None = getattr(self, name) if name in ("train", "val", "test") else None
        if samples is None or len(samples) == 0:
            has = [split for split in ("train", "val", "test") if getattr(self, split) is not None]
            raise ConfigError(f"this dataset has no {clean(name)} split", f"it has: {', '.join(has)}")
        return samples


@dataclass
class Batch:
    """B samples on their way to an objective.

    views: one Inputs per augmented view of the same B samples. target: name -> (B, ...) tensor, or a list.
    index: (B,) positions in the split. keys: (V, B) int64 on the CPU, one random key per view and sample: all
    randomness of augmentation comes from them, so that workers, ranks and resume change no bit. The lowest bit of a
    sample's key is a fair coin that lands on the other side in the next epoch.
    """

    views: list[Inputs]
    target: dict[str, Tensor | list[Any]]
    index: Tensor
    keys: Tensor
    skipped: list[str] = field(default_factory=list)  # samples left out of this batch, with the reason

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device, **how: Any) -> Batch:
        return self._each(lambda x: x.to(device, **how))

    def pin_memory(self) -> Batch:
        """For a loader that feeds a GPU; torch calls it by this name."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return dataclasses.replace(
            self,
            views=[{name: change(x) for name, x in view.items()} for view in self.views],
            target={name: change(x) if isinstance(x, Tensor) else x for name, x in self.target.items()},
        )

    def split(self, sizes: list[int]) -> Iterator[Batch]:
        """Smaller batches, in order. Where inputs begin in memory can decide how sums are rounded: each begins as if it
        were alone."""

        def cut(values: Tensor | list[Any]) -> Sequence[Any]:
            if isinstance(values, Tensor):
                return list(values.split(sizes))
            ends = itertools.accumulate(sizes)
            return [values[end - n : end] for n, end in zip(sizes, ends, strict=True)]

        views = [{name: cut(x) for name, x in view.items()} for view in self.views]
        target = {name: cut(values) for name, values in self.target.items()}
        index, keys = cut(self.index), self.keys.split(sizes, 1)
        for i in range(len(sizes)):
            yield Batch(
                [{name: _aligned(parts[i]) for name, parts in view.items()} for view in views],
                {name: parts[i] for name, parts in target.items()},
                index[i],
                keys[i],
            )


def _aligned(x: Tensor) -> Tensor:
    return x if x.data_ptr() % 64 == 0 else x.clone()


def fit(inputs: Inputs, spec: DataSpec, leading: int = 0) -> Inputs:
    """Centre-crop each input to the shape that the spec promises, where it is larger; of ids the beginning stays. A ragged
    one may be shorter. leading: dimensions before those of a sample: 0 for one sample, 1 for a whole split."""
    out = dict(inputs)
    for name, want in spec.inputs.items():
        x = out[name]
        for dim, size in enumerate(want.shape, leading):
            if x.shape[dim] > size:
                x = x.narrow(dim, 0 if want.dtype == "int64" else (x.shape[dim] - size) // 2, size)
        shape = tuple(x.shape[leading:])
        if shape != want.shape and not (want.ragged and shape[1:] == want.shape[1:]):
            raise DataError(f"input '{name}' has shape {shape}, the model expects {want.shape}")
        out[name] = x
    return out


def pad(parts: Sequence[Tensor]) -> Tensor:
    """Samples (L_i, ...) of several lengths -> (B, max L_i, ...), zeros at the end."""
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def numbering(tokenizer: Any) -> tuple[int, int]:
    """How many ids a tokenizer of the package tokenizers has (some numbers may stand for nothing), and the offset that
    they are stored with: batches are filled up with 0, which must not be a word of the text."""
    count = 1 + max(tokenizer.get_vocab().values(), default=0)
    return count, 0 if tokenizer.id_to_token(0) in ("[PAD]", "<pad>", "<|padding|>") else 1


def standardize(inputs: Inputs, spec: DataSpec) -> Inputs:
    """Stored values (B, ...) -> the model's: `(x * scale - mean) / std` per channel, as float32."""
    out = dict(inputs)
    for name, how in spec.inputs.items():
        if how.mean and name in out:
            x = out[name]
            last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
            factor, offset = _affine(how, x.shape[1:], last, x.device)
            out[name] = x.to(torch.float32, copy=True).mul_(factor).sub_(offset)
    return out


@functools.lru_cache(maxsize=64)
def _affine(how: InputSpec, shape: torch.Size, last: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """scale / std and mean / std, made once, and as large as a sample: numbers that lie in memory as a batch does are
    multiplied many at a time."""
    with torch.inference_mode(False):
        per_channel = (1, -1) + (1,) * (len(shape) - 1)
        std, mean = (torch.tensor(values, device=device).view(per_channel) for values in (how.std, how.mean))
        layout = torch.channels_last if last else torch.contiguous_format
        factor, offset = (x.expand(1, *shape).contiguous(memory_format=layout) for x in (how.scale / std, mean / std))
        return factor, offset


# ---------------------------------------------------------------- randomness


def mix(*words: int | Tensor) -> Tensor:
    """Hash integers (broadcast int64 tensors welcome) to int64 keys, with the SplitMix64 finaliser.

    A counter-based generator: the key of (seed, epoch, index, view) needs no state and no order of calls.
    https://doi.org/10.1145/2714064.2660195 (Steele, Lea, Flood 2014).
    """
    first = next((i for i, word in enumerate(words) if isinstance(word, Tensor)), len(words))
    h = np.array([mix_numbers(*words[:first])], dtype=np.uint64)  # type: ignore[arg-type]  # none of these is a Tensor
    for word in words[first:]:
        h = h + (word.numpy().view(np.uint64) if isinstance(word, Tensor) else np.uint64(word))
        h += _GAMMA
        for shift, factor in ((_30, _MIX1), (_27, _MIX2)):
            h ^= h >> shift
            h *= factor
        h ^= h >> _31
    keys = torch.from_numpy(h.view(np.int64))
    return keys if any(isinstance(word, Tensor) and word.ndim for word in words) else keys[0]


_GAMMA, _MIX1, _MIX2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_30, _27, _31 = map(np.uint64, (30, 27, 31))


def mix_numbers(*words: int) -> int:
    """`mix` of plain numbers, for which tensors would be slow; as an unsigned number."""
    h, limit = 0, (1 << 64) - 1
    for word in words:
        h = (h + word + 0x9E3779B97F4A7C15) & limit
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & limit
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & limit
        h ^= h >> 31
    return h


def seed_torch(*words: int) -> None:
    """Seed the generators that layers draw from (dropout, initialisation) with a hash of `words`."""
    seed = mix_numbers(*words) & 0x7FFFFFFFFFFFFFFF
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def uniform(keys: Tensor, stream: int) -> Tensor:
    """Uniform float32 numbers in [0, 1), one per key; another `stream` gives an independent draw."""
    bits = (mix(keys, stream) >> 40) & 0xFFFFFF  # 24 bits: every one is exact in float32
    return bits.to(torch.float32) / (1 << 24)


# ---------------------------------------------------------------- augmentation


class Augment(ABC):
    """How training samples vary. Two pure parts; both must give the same for the same key."""

    @property
    def per_sample(self) -> bool:
        """Whether `sample` does anything: where it does not, a split in memory is cut into batches as it is."""
        return type(self).sample is not Augment.sample

    @property
    def varies(self) -> bool:
        """Whether any part does."""
        return self.per_sample or type(self).batch is not Augment.batch

    def for_view(self, view: View) -> Augment:
        """The augmentation that makes this kind of view, by `sample` where it has a size of its own. Raises ConfigError
        where it cannot."""
        if view.size != 1 or view.area is not None:
            raise ConfigError(
                f"this augmentation cannot make '{view.name}': a part of a sample, of a size of its own",
                "augment: views makes such of images; objective.local: 0 does without, where the objective is dino",
            )
        return self

    def sample(self, inputs: Inputs, key: int) -> Inputs:
        """Geometry of one sample, in the loader's worker."""
        return inputs

    def batch(self, inputs: Inputs, keys: Tensor) -> Inputs:
        """What is cheaper for B samples at once, on the device. keys: (B,) int64 on the CPU."""
        return inputs


# ---------------------------------------------------------------- models


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
    """Where a library publishes weights, and how their inputs were made. digits: the first ones of the file's SHA-256,
    "" where the publisher does not say them. spec: None where the publisher does not say it. shards: the files that
    hold the rest of the weights. A file of this machine is its path."""

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


class View(NamedTuple):
    """One view of each sample that an objective asks the loader for.

    size: its side, as a share of the input's. area: the smallest and the largest share of the sample that it shows; None
    leaves that to the augmentation.
    """

    name: str = "main"
    augment: bool = True
    size: float = 1.0
    area: tuple[float, float] | None = None

    def side(self, whole: int) -> int:
        """Of an input with a side of `whole`."""
        return max(1, round(self.size * whole))


class Objective(nn.Module, ABC):
    """A Batch in, a Loss out. Owns the backbone, heads and teachers.

    directions: metric name -> "max" or "min"; the first one picks the best checkpoint unless the config does.
    about: what a reader of its metrics and predictions must know, such as which class is the positive one.
    coupled: the loss depends on which samples share a step. It is then `compare` of what `represent` gives, so that the
    samples of a step can pass the model in parts, on several ranks; without these two, they must pass together.
    probes: what evaluations find out about the backbone's vectors where the config does not say: knn, linear.
    vectors_only: inputs serve for nothing but the backbone's vectors: what is frozen of it can then be computed once.
    """

    views: tuple[View, ...] = (View(),)
    coupled = False
    probes: tuple[str, ...] = ()
    vectors_only = False
    directions: Mapping[str, Literal["max", "min"]] = {}
    about: Mapping[str, str] = {}
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
