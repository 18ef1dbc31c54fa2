"""Define the data types: input and dataset descriptions, splits, batches and views."""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fmeco.core.target import Target
from fmeco.errors import CheckpointError, ConfigError, clean

# Newest version of the decode rule, by which a dataset plug-in turns a file into stored values. The version is raised when a change of
# the rule gives other values for the same file. A dataset's own version is `preprocessing["decode"]`, or 1 without that key.
DECODE_RULE = 2

Form = Literal["", "mask", "boxes", "points"]
Inputs = dict[str, Tensor]  # "image", "columns", "tokens", ... -> (B, ...); without B for one sample


@dataclass(frozen=True)
class InputSpec:
    """Describe one named input: its shape, its storage type and its normalisation.

    The model sees `(stored * scale - mean) / std`, or the stored values if `mean` is empty.

    shape: shape of one sample, (C, H, W) or (F,).
    dtype: name of the torch dtype in which values are stored.
    scale: factor on the stored values.
    mean, std: one value per index of dimension 0 of `shape`, such as per channel.
    ragged: dimension 0 of a sample may be shorter than shape[0]; a batch is padded with 0 to its longest sample.
    offset: number added to a tokenizer's ids, so that 0 is free for padding.
    rides: name of the image that this input lies on and is moved with (a rider); "" = an input of the model.
    form: how a rider is stored; see core/geometry.py.
    windows: images may be larger than `shape`. Evaluation and prediction read them whole, one by one, and the objective goes over
        them in windows of this shape.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    ragged: bool = False
    offset: int = 0
    rides: str = ""
    form: Form = ""
    windows: bool = False


@dataclass(frozen=True)
class DataSpec:
    """Describe a dataset as far as a trained model needs it. The checkpoint stores it.

    modality: "image", "table", ...
    inputs: name -> description of an input.
    targets: name -> description of a target.
    preprocessing: plain JSON that `reader.read(spec, sources)` needs to turn a file, row or string into Inputs, such as
        size, resize rule, interpolation, colour mode, tokenizer, column statistics.
    reader: dataset plug-in whose `read` applies `preprocessing`.
    sizes: samples per split.
    fingerprint: hash of the training data.
    published: a library states this preprocessing for its weights, so keys of the config may change it. Not stored.
    """

    modality: str
    inputs: Mapping[str, InputSpec]
    targets: Mapping[str, Target] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    reader: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    fingerprint: str = ""
    published: bool = False

    @property
    def seen(self) -> dict[str, InputSpec]:
        """Inputs of the model, without riders."""
        return {name: spec for name, spec in self.inputs.items() if not spec.rides}

    @property
    def riders(self) -> dict[str, InputSpec]:
        """Inputs that lie on an image and are moved with it, such as a mask or boxes."""
        return {name: spec for name, spec in self.inputs.items() if spec.rides}

    @property
    def ragged(self) -> bool:
        """Tell whether samples may differ in length."""
        return any(spec.ragged for spec in self.seen.values())

    @property
    def windows(self) -> bool:
        """Tell whether evaluation reads images whole, whatever their size (see InputSpec)."""
        return any(spec.windows for spec in self.inputs.values())

    @property
    def decode(self) -> int:
        """Version of the decode rule (see DECODE_RULE). A checkpoint stores it, so that its model always gets the same values."""
        return int(self.preprocessing.get("decode", 1))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON, for meta.json."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "published"}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> DataSpec:
        """Rebuild a DataSpec from `to_json`. Raises CheckpointError if the JSON does not describe one."""

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
        except (TypeError, KeyError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"the checkpoint's data description is not valid: {clean(error)}") from None

    def preprocessing_only(self) -> DataSpec:
        """Return a copy without targets, riders, sizes and fingerprint.

        Finetuning passes this copy to the dataset plug-in, so that new data is prepared as the source's data was.
        """
        return dataclasses.replace(self, inputs=self.seen, targets={}, sizes={}, fingerprint="")


def decode_rule(known: DataSpec | None) -> int:
    """Return the version of the decode rule for a dataset: that of the checkpoint (`known`); without one, the newest."""
    return DECODE_RULE if known is None else known.decode


class Samples(ABC):
    """Access the N samples of a split by position.

    Reading sample i must depend only on i and the files, not on global random state or the order of calls. Several
    threads and processes read samples at once.

    targets: name -> tensor (N, ...) or list of length N: each target, and other per-sample values that metrics need.
    groups: column -> value per sample, for metrics per group (`evaluate --by`).
    notes: messages for the user, such as about skipped files.
    in_memory: reading a sample is so cheap that loader workers would only slow it down.
    tensors: input name -> the whole split (N, ...), from which batches are cut; None = samples are read one by one.
    content: hash of the files' names and sizes and of how they are read, to cache decoded samples on disk; "" = do not
        cache.
    stamps: (N,) int64, a number per sample, such as from its file's folder and times. A different number means that the file
        may have changed. None = `content` alone identifies the samples.
    sizes: (N,) int64, the size of each sample's file, or another number that is the same for duplicates. The search for
        duplicates compares `digest` only among samples with the same number. None = no search for duplicates.
    origin: where the samples come from, such as a folder, for `fmeco cache`.
    lengths: (N,) lengths of ragged samples; batches are then made of samples of similar length.
    block: number of consecutive samples that resemble each other, such as overlapping windows; the bootstrap resamples
        whole blocks.
    """

    targets: Mapping[str, Tensor | list[Any]] = {}
    groups: Mapping[str, Sequence[str]] = {}
    notes: tuple[str, ...] = ()
    in_memory = False
    tensors: Inputs | None = None
    content = ""
    stamps: Tensor | None = None
    sizes: Tensor | None = None
    origin = ""
    lengths: Tensor | None = None
    block = 1

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Inputs:
        """Read and decode one sample, always to the same values. Raises DataError that names the file."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return a stable name of a sample: its relative path or row number."""

    def answers(self, index: int, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Turn a sample's decoded prediction into rows of `predict`: one row, or one per time step."""
        return [dict(answer)]

    def back(self, index: int, form: Form, answer: Tensor) -> Tensor:
        """Map an answer in a rider's form from the grid that the model saw to that of the sample's own file."""
        return answer

    def digest(self, index: int, *, stored: bool = False) -> bytes | None:
        """Return a hash (16 bytes) of a sample's file or content; None if neither can be hashed cheaply.

        stored: return a hash that is already known, such as from a cache; otherwise None, instead of reading the file.
        """
        return None


class Wrapped(Samples):
    """Wrap other samples and forward all their attributes and methods.

    After `super().__init__`, a subclass sets the attributes that it changes. It overrides the methods that it changes.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        for name in _ATTRIBUTES:
            setattr(self, name, getattr(samples, name))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Inputs:
        return self.samples[index]

    def name(self, index: int) -> str:
        return self.samples.name(index)

    def answers(self, index: int, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.samples.answers(index, answer)

    def back(self, index: int, form: Form, answer: Tensor) -> Tensor:
        return self.samples.back(index, form, answer)

    def digest(self, index: int, *, stored: bool = False) -> bytes | None:
        return self.samples.digest(index, stored=stored)


_ATTRIBUTES = [name for name, value in vars(Samples).items() if not (name.startswith("_") or callable(value))]


@dataclass(frozen=True)
class Given:
    """Hold an input that was passed in Python. `read(spec, sources)` gets it in place of a path or text.

    name: its place among the inputs, such as inputs[2], for messages.
    value: an array or mapping as it was passed; of rows, column name -> cells: texts, numbers, booleans, dates and times of
        Python, and None for a missing cell.
    first: number of the first row.
    """

    name: str
    value: Any
    first: int = 0

    def __str__(self) -> str:
        return self.name

    def row(self, index: int) -> str:
        """Return the name of a row."""
        return f"{self.name}[{self.first + index}]"


@dataclass(frozen=True)
class Data:
    """Hold a dataset, as a dataset plug-in returns it.

    spec: description of the data.
    train, val, test: splits; None = the dataset lacks it.
    collate: function that joins samples into a batch; None = stack them, and pad ragged inputs.
    notes: messages for the user, such as about skipped folders.
    """

    spec: DataSpec
    train: Samples | None = None
    val: Samples | None = None
    test: Samples | None = None
    collate: Callable[[Sequence[Inputs]], Inputs] | None = None
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> Samples:
        """Return the split named train, val or test. Raises ConfigError if it is missing or empty."""
        samples: Samples | None = getattr(self, name) if name in ("train", "val", "test") else None
        if samples is None or len(samples) == 0:
            has = [split for split in ("train", "val", "test") if getattr(self, split) is not None]
            raise ConfigError(f"this dataset has no {clean(name)} split", f"it has: {', '.join(has)}")
        return samples


@dataclass
class Batch:
    """Hold a batch of B samples for an objective.

    views: one Inputs per augmented view of the same B samples.
    target: name -> (B, ...) tensor, or a list of length B.
    index: (B,) positions in the split.
    keys: (V, B) int64 on the CPU, one random key per view and sample. All randomness of augmentation comes from these
        keys, so augmented samples are the same with any number of workers or ranks, and after a resume. The lowest bit of a
        sample's key alternates between 0 and 1 from epoch to epoch. If an augmentation mirrors an image exactly when this
        bit is set, each image is mirrored in every other epoch.
    skipped: unreadable samples left out of this batch, each with the reason.
    """

    views: list[Inputs]
    target: dict[str, Tensor | list[Any]]
    index: Tensor
    keys: Tensor
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device, **options: Any) -> Batch:
        """Move views and targets to a device. options: keyword arguments of Tensor.to."""
        return self._map_tensors(lambda x: move(x, device, **options))

    def pin_memory(self) -> Batch:
        """Pin the tensors for copies to a GPU. torch's DataLoader calls this method by name."""
        return self._map_tensors(lambda x: x.pin_memory())

    def _map_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return dataclasses.replace(
            self,
            views=[{name: change(x) for name, x in view.items()} for view in self.views],
            target={name: _each(change, x) for name, x in self.target.items()},
        )

    def split(self, sizes: list[int]) -> Iterator[Batch]:
        """Yield consecutive batches of the given sizes.

        Memory alignment can change how sums are rounded. A newly allocated tensor begins at a multiple of
        64 bytes. If an input of a yielded batch begins elsewhere, it is copied, so that it is aligned, too.
        """

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


def _each(change: Callable[[Tensor], Tensor], x: Any) -> Any:
    return change(x) if isinstance(x, Tensor) else [_each(change, y) for y in x] if isinstance(x, list) else x


def move(x: Tensor, device: torch.device, **options: Any) -> Tensor:
    """Move a tensor to a device. A float64 tensor becomes float32 on MPS, which has no float64. options: keyword arguments of Tensor.to."""
    if device.type == "mps" and x.dtype == torch.float64:
        x = x.float()
    return x.to(device, **options)


def _aligned(x: Tensor) -> Tensor:
    """Copy a tensor unless it begins at a multiple of 64 bytes, as a newly allocated one does."""
    return x if x.data_ptr() % 64 == 0 else x.clone()


class View(NamedTuple):
    """Describe one view of each sample that an objective needs.

    name: name for error messages.
    augment: whether the view is augmented.
    size: side of the view, as a share of the input's side.
    area: smallest and largest share of the sample's area that the view shows; None = the augmentation decides.
    """

    name: str = "main"
    augment: bool = True
    size: float = 1.0
    area: tuple[float, float] | None = None

    def side(self, whole: int) -> int:
        """Return the view's side in pixels for an input with a side of `whole` pixels."""
        return max(1, round(self.size * whole))
