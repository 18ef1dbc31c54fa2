"""The promises of a dataset: its description fits its samples, and reading has no memory."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmeco.config.run_config import Choice
from fmeco.core.data import Data, DataSpec, Inputs, Samples
from fmeco.core.geometry import fit
from fmeco.core.target import Target
from fmeco.data.reading import Threads
from fmeco.errors import DataError, listing
from fmeco.testing.bench import Bench, build_data
from fmeco.testing.report import Broken, Checks

LOOKED = 12  # samples of each split, evenly spread
ROUNDS = 3  # of reading from two threads

Parts = Mapping[str, Samples]


def checks(choice: Choice, bench: Bench) -> Checks:
    """Check a dataset that is built twice with the same keys."""
    data, again = build_data(choice), build_data(choice)
    parts = {name: part for name in ("train", "val", "test") if (part := getattr(data, name)) is not None}
    if not parts.get("train"):
        raise Broken("Data.train has no samples")
    yield "description", functools.partial(_description, choice, data, again, parts)
    if not (yield "samples", functools.partial(_samples, data.spec, parts)):
        return
    if not (yield "reading again", functools.partial(_reading_again, parts)):
        return
    yield "reading from threads", functools.partial(_threads, parts)
    named = yield "names", functools.partial(_names, parts, again)
    yield "targets", functools.partial(_targets, data.spec, parts)
    named = named and (yield "splits", functools.partial(_splits, parts))
    if "known" in choice.plugin.injected:
        yield "preparing as a checkpoint did", functools.partial(_known, choice, data)
    if named:
        yield "read", functools.partial(_read, choice, data.spec, parts)


def looked(samples: Samples) -> list[int]:
    """Choose samples to look at, evenly spread."""
    return list(range(0, len(samples), max(1, len(samples) // LOOKED)))[:LOOKED]


def differs(one: Inputs, other: Inputs) -> str | None:
    """Name the first input in which two samples differ."""
    unequal = (name for name in {**one, **other} if name not in one or name not in other)
    changed = (name for name in one if name in other and not _equal(one[name], other[name]))
    return next(unequal, None) or next(changed, None)


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _description(choice: Choice, data: Data, again: Data, parts: Parts) -> str | None:
    spec = data.spec
    try:
        back = DataSpec.from_json(json.loads(json.dumps(spec.to_json())))
    except TypeError as error:
        raise Broken(f"the spec cannot be stored as JSON: {error}; spec.preprocessing takes plain values") from None
    if back != spec:
        raise Broken(f"spec.{_unlike(spec, back)} changes when it is stored as JSON: use lists, and keys of text")
    if spec != again.spec:
        raise Broken(f"two builds with the same keys differ in spec.{_unlike(spec, again.spec)}")
    if (said := choice.plugin.modality) not in ("", spec.modality):
        raise Broken(f"MODALITY is '{said}', and spec.modality '{spec.modality}'")
    for name, samples in parts.items():
        if spec.sizes.get(name) != len(samples):
            raise Broken(f"spec.sizes['{name}'] is {spec.sizes.get(name)}, and the split has {len(samples)} samples")
    return None


def _unlike(one: DataSpec, other: DataSpec) -> str:
    mine, theirs = asdict(one), asdict(other)
    return next((name for name in mine if mine[name] != theirs[name]), "inputs")


def _in_order(samples: Samples, order: list[int]) -> list[Inputs]:
    return [samples[i] for i in order]


def _samples(spec: DataSpec, parts: Parts) -> str | None:
    for split, samples in parts.items():
        for i in looked(samples):
            where, sample = f"{split} sample {i}", samples[i]
            if set(sample) != set(spec.inputs):
                raise Broken(f"{where} has the inputs {listing(sample)}; spec.inputs says {listing(spec.inputs)}")
            try:
                fit(sample, spec)
            except DataError as error:
                raise Broken(f"{where}: {error.message}; a dimension 0 that varies is `ragged`") from None
            for name, one in spec.inputs.items():
                if str(sample[name].dtype) != f"torch.{one.dtype}":
                    raise Broken(f"{where}: '{name}' is {sample[name].dtype}; spec.inputs says {one.dtype}")
            _shortcuts(where, samples, i, sample, spec)
    return None


def _shortcuts(where: str, samples: Samples, i: int, sample: Inputs, spec: DataSpec) -> None:
    """Compare what a split says of all its samples at once with one of them."""
    if samples.tensors is not None:
        if name := differs({name: x[i] for name, x in samples.tensors.items()}, sample):
            raise Broken(f"{where}: Samples.tensors['{name}'] is not what reading gives")
    if samples.lengths is not None:
        if not spec.ragged:
            raise Broken(
                f"{where}: Samples.lengths is for ragged inputs, and spec.inputs has none: InputSpec(..., ragged=True)"
            )
        lengths = {len(sample[name]) for name, one in spec.inputs.items() if one.ragged}
        if int(samples.lengths[i]) not in lengths:
            raise Broken(f"{where}: Samples.lengths says {int(samples.lengths[i])}; it has {listing(sorted(lengths))}")


def _reading_again(parts: Parts) -> str | None:
    for split, samples in parts.items():
        at = looked(samples)
        first, kept = list[Inputs](), list[Inputs]()
        for i in at:
            first.append(samples[i])
            kept.append({name: x.clone() for name, x in first[-1].items()})
        for i, before in reversed(list(zip(at, kept, strict=True))):
            torch.manual_seed(i)  # reading may not depend on it
            if name := differs(samples[i], before):
                raise Broken(f"{split} sample {i}: '{name}' is another one when it is read again, in another order")
        for i, sample, before in zip(at, first, kept, strict=True):
            if name := differs(sample, before):
                raise Broken(f"{split} sample {i}: '{name}' changed while other samples were read: they share memory")
    return None


def _threads(parts: Parts) -> str | None:
    """Read the same samples from two threads, which are made to take turns often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Threads(2) as threads:
            for split, samples in parts.items():
                at = looked(samples)
                kept = [{name: x.clone() for name, x in samples[i].items()} for i in at]
                orders = [order for _ in range(ROUNDS) for order in (at, at[::-1])]
                reads = threads.map(functools.partial(_in_order, samples), orders)
                for order, found in zip(orders, reads, strict=True):
                    for i, sample in zip(order, found, strict=True):
                        if name := differs(sample, kept[at.index(i)]):
                            raise Broken(f"{split} sample {i}: '{name}' is another one when two threads read at once")
    finally:
        sys.setswitchinterval(interval)
    return None


def _names(parts: Parts, again: Data) -> str | None:
    for split, samples in parts.items():
        names = [samples.name(i) for i in range(len(samples))]
        if wrong := next((name for name in names if not isinstance(name, str)), None):
            raise Broken(f"name() must return text, not {type(wrong).__name__}")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise Broken(f"two {split} samples have the name '{twice}'")
        other = again.split(split)
        changed = [i for i in looked(samples) if other.name(i) != names[i]]
        if len(other) != len(samples) or changed:
            raise Broken(f"the {split} samples have other names when the dataset is built again: no order is fixed")
    return None


def _targets(spec: DataSpec, parts: Parts) -> str | None:
    for split, samples in parts.items():
        for name, target in spec.targets.items():
            if name not in samples.targets:
                raise Broken(f"the {split} samples have no target '{name}', which spec.targets has")
            values = samples.targets[name]
            if len(values) != len(samples):
                raise Broken(f"the {split} samples have {len(values)} values of '{name}' for {len(samples)} samples")
            if wrong := _misfit(target, values):
                raise Broken(f"'{name}' of the {split} samples, of kind {target.kind}, needs {wrong}")
    return None if spec.targets else "it has none"


def _misfit(target: Target, values: Tensor | list[Any]) -> str | None:
    """What values of a target should be, where they are not."""
    traits, classes = target.traits, len(target.classes)
    if target.input:
        fits = (
            isinstance(values, Tensor) and values.dtype == torch.int64 and bool(((values == 0) | (values == -1)).all())
        )
        return None if fits else f"an int64 tensor (N,) with 0, or -1 for no '{target.input}'"
    if not target.steps and not traits.one_class and traits.loss is None:  # rows of classes
        rows = all(isinstance(row, Tensor) and row.ndim == 1 for row in values)
        fits = rows and all(0 <= int(c) < classes for row in values for c in row)
        return None if fits else f"a list of tensors (L,) with numbers from 0 to {classes - 1}"
    if not isinstance(values, Tensor):
        return "one tensor for all samples"
    if traits.one_class:
        fits = values.dtype == torch.int64 and values.ndim == 1 and bool(((values >= -1) & (values < classes)).all())
        return None if fits else f"an int64 tensor (N,) with numbers from 0 to {classes - 1}, or -1 for no label"
    wanted = [len(values), *([target.steps] if target.steps else [classes] if traits.loss == "sigmoid" else [])]
    if list(values.shape) != wanted or not values.is_floating_point():
        return f"a tensor of floats of shape {tuple(wanted)}, not {values.dtype} of {tuple(values.shape)}"
    if traits.loss == "sigmoid" and not bool(((values == 0) | (values == 1) | values.isnan()).all()):
        return "values of 0 and 1, or NaN for no label"
    return None


def _splits(parts: Parts) -> str | None:
    seen: dict[str, str] = {}
    for split, samples in parts.items():
        for i in range(len(samples)):
            name = samples.name(i)
            if name in seen:
                raise Broken(f"'{name}' is in two splits, {seen[name]} and {split}")
            seen[name] = split
    return ", ".join(f"{split} {len(samples)}" for split, samples in parts.items())


def _known(choice: Choice, data: Data) -> str | None:
    """Finetuning hands in how a checkpoint's inputs are made: inputs are then made so."""
    found: Data = choice.build(known=data.spec.preprocessing_only(), whole=False)
    if found.spec.inputs != data.spec.inputs:
        raise Broken("with `known`, the spec of a checkpoint of the same data, spec.inputs is another one")
    one, other = data.split("train"), found.split("train")
    if len(one) == len(other) and (name := differs(one[0], other[0])):
        raise Broken(f"with `known`, the spec of a checkpoint of the same data, '{name}' of train sample 0 differs")
    return None


def _read(choice: Choice, spec: DataSpec, parts: Parts) -> str | None:
    """`read` makes the inputs that the dataset makes, where a sample is a file or a row of one."""
    module = choice.plugin.load()
    if not hasattr(module, "read"):
        if spec.reader == choice.plugin.name:
            raise Broken("spec.reader names this plug-in, whose file has no function read(spec, sources)")
        return "no function read: `predict` takes no files"
    if not spec.reader:
        raise Broken(
            "the file has a function read, and spec.reader does not name it: reader='" + choice.plugin.name + "'"
        )
    compared = 0
    for split, samples in parts.items():
        for i in looked(samples)[:4]:
            for source in _sources(choice, samples.name(i)):
                found = module.read(spec, [source])
                names = [found.name(j) for j in range(len(found))]
                at = names.index(samples.name(i)) if samples.name(i) in names else 0
                if len(found) > 1 and samples.name(i) not in names:
                    continue
                compared += 1
                # What lies on an image is known of the dataset's own samples alone.
                own = {name: x for name, x in samples[i].items() if name in spec.seen}
                if name := differs(fit(found[at], spec), fit(own, spec)):
                    raise Broken(
                        f"{split} sample {i}: read(spec, ['{source}']) gives another '{name}' than the dataset"
                    )
                break
    return f"{compared} samples compared" if compared else "no sample is a file of its own: nothing was compared"


def _sources(choice: Choice, name: str) -> Iterator[str]:
    """The files that may hold a sample of this name."""
    for key in choice.plugin.paths:
        path = choice.options[key]
        if isinstance(path, str):
            yield from (
                str(place) for place in (Path(path) / name, Path(path).parent / name, Path(path)) if place.is_file()
            )
    if Path(name).is_file():
        yield name
