"""Data: what a dataset gives, from the description of its inputs to a batch."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fmeco.core.target import Target
from fmeco.errors import CheckpointError, ConfigError, DataError, clean

Inputs = dict[str, Tensor]  # "image", "columns", "tokens", ... -> (B, ...); without B for one sample


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
        except (TypeError, KeyError, AttributeError, ConfigError) as error:
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


class Wrapped(Samples):
    """Hand on all that other samples say of themselves. A wrapper overrides what it changes: after `super().__init__` for
    an attribute, and by a method of its own for a method."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        for name in _SAID:
            setattr(self, name, getattr(samples, name))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Inputs:
        return self.samples[index]

    def name(self, index: int) -> str:
        return self.samples.name(index)

    def answers(self, index: int, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.samples.answers(index, answer)


_SAID = [
    name for name, value in vars(Samples).items() if not (name.startswith("_") or callable(value))
]  # its attributes


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
