"""What plug-ins are checked with: small data, batches of it, and backbones for it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import Tensor

from fmeco.assembly.data import described
from fmeco.config.check import choose
from fmeco.config.dataset_argument import dataset_section
from fmeco.config.run_config import PLUGIN_SECTIONS, Choice
from fmeco.core.data import Batch, Data, Form, Inputs, InputSpec, Samples, Wrapped
from fmeco.core.model import Backbone
from fmeco.core.random import seed_torch
from fmeco.core.target import KINDS, Target
from fmeco.data.loader import evaluation_batches
from fmeco.data.reading import Reading, unreadable
from fmeco.errors import ConfigError, FmecoError
from fmeco.plugins.registry import Plugin, plugins
from fmeco.testing.report import Broken

CPU = torch.device("cpu")
ALONE = Reading(0, 1, None)
STEPS = 3  # of generated series


def pick(plugin: Plugin, options: Mapping[str, Any]) -> Choice:
    """Choose a plug-in as a config does; of one that has NAMES, the first. Raises ConfigError for wrong or missing keys."""
    if plugin.open and not plugin.names:
        raise Broken("OPEN takes any name, and NAMES has none that could be checked")
    section = next(section for section, kind in PLUGIN_SECTIONS.items() if kind == plugin.kind)
    name = f"{plugin.name}/{plugin.names[0]}" if plugin.names else plugin.name
    return choose(section, {"strategy" if section == "transfer" else "name": name, **options})


def build_data(choice: Choice) -> Data:
    """Build a dataset as a run without a checkpoint does."""
    data = choice.build(known=None, whole=False)
    if not isinstance(data, Data):
        raise Broken(f"build() must return core.Data, not {type(data).__name__}")
    return data


def batches(data: Data, part: str = "train", size: int = 4, count: int = 1) -> list[Batch]:
    """Read the first batches of a split as an evaluation does."""
    found = evaluation_batches(data, data.split(part), batch_size=size, reading=ALONE, device=CPU, in_order=True)
    taken = list(itertools.islice(found, count))
    for batch in taken:
        if batch.skipped:
            raise unreadable(batch)
    return taken


@dataclass
class Bench:
    """Hold what the checks of all plug-ins share.

    folder: for generated files. dataset: what `--dataset` names, None = small data of every modality.
    backbone: as a config's section, None = those that fit the data.
    own: the plug-ins that are checked or lie beside them.
    """

    folder: Path
    dataset: str | None
    backbone: Any
    own: tuple[Plugin, ...]
    built: dict[str, Data | None] = field(default_factory=dict)

    def trials(self) -> Iterator[tuple[str, Data]]:
        """Give small data to check with, by name: the datasets among `own`, then those that make an `example(folder)`."""
        if self.dataset is not None:
            choice = choose("dataset", dataset_section(self.dataset))
            yield choice.spelled, described(build_data(choice))
            return
        own = [plugin for plugin in self.own if plugin.kind == "datasets"]
        for plugin in [*own, *(one for one in plugins("datasets").values() if one.built_in)]:
            if plugin.name not in self.built:
                self.built[plugin.name] = self._example(plugin, plugin in own)
            data = self.built[plugin.name]
            if data is not None:
                yield plugin.name, data

    def _example(self, plugin: Plugin, own: bool) -> Data | None:
        """Build a dataset's example, or one of `own` by its defaults. None where it has none, or lacks a library."""
        try:
            options = example(plugin, self.folder)
            return None if options is None and not own else described(build_data(pick(plugin, options or {})))
        except FmecoError:
            return None
        except Exception:  # of one that is checked itself, and reported there
            if own:
                return None
            raise

    def backbones(self, data: Data) -> Iterator[Backbone]:
        """Build backbones that take this data: those among `own`, then small ones that come with fmeco."""
        if self.backbone is not None:
            yield choose("backbone", self.backbone).build(spec=data.spec)
            return
        own = [plugin for plugin in self.own if plugin.kind == "backbones"]
        usual = [one for one in plugins("backbones").values() if one.built_in and not one.names and not one.open]
        for plugin in [*own, *usual]:
            seed_torch(0)
            try:
                backbone: Backbone = pick(plugin, {}).build(spec=data.spec)
            except (ConfigError, Broken):
                continue
            yield backbone


def example(plugin: Plugin, folder: Path) -> dict[str, Any] | None:
    """The keys of a dataset's own example, whose files are written below `folder`. None where it has none."""
    make = getattr(plugin.load(), "example", None)
    if make is None:
        return None
    place = folder / plugin.name
    place.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = make(place)
    return options


# ---------------------------------------------------------------- generated targets


class Labelled(Wrapped):
    """Samples with other targets; and with a rider on their images, if a name and form of one are given."""

    def __init__(self, samples: Samples, targets: Mapping[str, Tensor | list[Any]], rider: Rider | None = None) -> None:
        super().__init__(samples)
        self.targets, self.rider = targets, rider
        if rider is not None:
            self.tensors, self.content = None, ""

    def __getitem__(self, index: int) -> Inputs:
        inputs = self.samples[index]
        if self.rider is None:
            return inputs
        height, width = inputs[self.rider.image].shape[-2:]
        return {**inputs, RIDER: drawn(self.rider.form, index, height, width)}


RIDER = "answer"  # name of a generated rider


class Rider(NamedTuple):
    """Say on which input a rider lies, and in which form."""

    image: str
    form: Form


def drawn(form: Form, index: int, height: int, width: int) -> Tensor:
    """Generate what lies on an image: a box of class 0 or 1 in its middle, and the same as a mask or point."""
    label = index % 2
    left, top, right, bottom = width // 4, height // 4, width - width // 4, height - height // 4
    if form == get_args(Form)[1]:
        pixels = torch.zeros(height, width, dtype=torch.uint8)
        pixels[top:bottom, left:right] = label
        return pixels
    place = [left, top, right, bottom] if form == get_args(Form)[2] else [(left + right) / 2, (top + bottom) / 2]
    return torch.tensor([[*place, label + 1.0], [0.0] * (len(place) + 1)])


def with_targets(data: Data) -> Iterator[tuple[str, Data]]:
    """Give the data as it is, and with one generated target `label` of each kind."""
    yield "its own targets", data
    image = next((name for name, one in data.spec.seen.items() if len(one.shape) == 3), None)
    for kind in KINDS:
        target = _target(kind)
        if target.input and image is None:
            continue
        parts = {name: part for name in ("train", "val") if (part := getattr(data, name)) is not None}
        inputs, rider = data.spec.seen, None
        if target.input:
            assert image is not None
            rider = Rider(image, cast(Form, kind))
            sides = inputs[image].shape[-2:]
            shape = drawn(rider.form, 0, *sides).shape
            ragged = tuple(shape) != sides
            dtype = "float32" if ragged else "uint8"
            inputs[RIDER] = InputSpec(tuple(shape), dtype, ragged=ragged, rides=image, form=rider.form)
        made: Any = {name: Labelled(part, {"label": values(target, len(part))}, rider) for name, part in parts.items()}
        spec = dataclasses.replace(data.spec, inputs=inputs, targets={"label": target})
        yield f"a target of kind {kind}", described(dataclasses.replace(data, spec=spec, **made))


def _target(kind: str) -> Target:
    for keys in ({"classes": ("a", "b")}, {"steps": STEPS}, {"classes": ("a", "b"), "input": RIDER}):
        with contextlib.suppress(ConfigError):  # a kind that is described by its length, or lies on an image
            return Target(kind, **keys)
    raise AssertionError(f"no target of kind {kind} can be made")


def values(target: Target, count: int) -> Tensor | list[Any]:
    """Generate a target's values of `count` samples."""
    generator, classes = torch.Generator().manual_seed(count), len(target.classes)
    if target.input:
        return torch.zeros(count, dtype=torch.int64)
    if target.steps:
        return torch.randn(count, target.steps, generator=generator)
    if target.traits.one_class:
        return torch.arange(count) % classes
    if target.traits.loss == "sigmoid":
        return torch.randint(0, 2, (count, classes), generator=generator).float()
    if target.traits.loss is not None:
        return torch.randn(count, generator=generator)
    return [torch.tensor([i % classes]) for i in range(count)]
