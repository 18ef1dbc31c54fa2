"""What plug-ins are checked with: small data, batches of it, and backbones for it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmeco.assembly.data import described
from fmeco.config.check import choose
from fmeco.config.dataset_argument import dataset_section
from fmeco.config.run_config import PLUGIN_SECTIONS, Choice
from fmeco.core.data import Batch, Data, Samples, Wrapped
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
    """Samples with other targets."""

    def __init__(self, samples: Samples, targets: Mapping[str, Tensor | list[Any]]) -> None:
        super().__init__(samples)
        self.targets = targets


def with_targets(data: Data) -> Iterator[tuple[str, Data]]:
    """Give the data as it is, and with one generated target `label` of each kind."""
    yield "its own targets", data
    for kind in KINDS:
        target = _target(kind)
        parts = {name: part for name in ("train", "val") if (part := getattr(data, name)) is not None}
        made: Any = {name: Labelled(part, {"label": values(target, len(part))}) for name, part in parts.items()}
        spec = dataclasses.replace(data.spec, targets={"label": target})
        yield f"a target of kind {kind}", described(dataclasses.replace(data, spec=spec, **made))


def _target(kind: str) -> Target:
    try:
        return Target(kind, ("a", "b"))
    except ConfigError:  # a kind that is described by its length
        return Target(kind, steps=STEPS)


def values(target: Target, count: int) -> Tensor | list[Any]:
    """Generate a target's values of `count` samples."""
    generator, classes = torch.Generator().manual_seed(count), len(target.classes)
    if target.steps:
        return torch.randn(count, target.steps, generator=generator)
    if target.traits.one_class:
        return torch.arange(count) % classes
    if target.traits.loss == "sigmoid":
        return torch.randint(0, 2, (count, classes), generator=generator).float()
    if target.traits.loss is not None:
        return torch.randn(count, generator=generator)
    return [torch.tensor([i % classes]) for i in range(count)]
