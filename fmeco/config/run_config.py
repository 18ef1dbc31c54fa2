"""RunConfig: everything that decides a run, frozen and complete."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from fmeco.config.sections import SECTIONS, Carry, Evaluate, Train
from fmeco.plugins.registry import Plugin, find, plugins

PLUGIN_SECTIONS = {
    "dataset": "datasets",
    "backbone": "backbones",
    "objective": "objectives",
    "optimizer": "optimizers",
    "schedule": "schedules",
    "augment": "augment",
    "transfer": "strategies",
}
TOP_KEYS = (*PLUGIN_SECTIONS, *SECTIONS, "seed", "stage", "from")  # all that a config may have

Stage = Literal["pretrain", "finetune"]


@dataclass(frozen=True)
class Choice:
    """A plug-in section: which plug-in, its library's architecture if it has several, and every key's value."""

    kind: str
    name: str
    arch: str | None
    options: Mapping[str, Any] = field(hash=False)
    plugin: Plugin = field(compare=False, repr=False)

    @property
    def spelled(self) -> str:
        return self.name if self.arch is None else f"{self.name}/{self.arch}"

    def build(self, **injected: Any) -> Any:
        """Build what the section describes. injected: what its signature may ask for before `*`, by name."""
        return self.plugin.build({"arch": self.arch, **injected}, self.options)

    def to_dict(self) -> dict[str, Any]:
        return {"strategy" if self.kind == "strategies" else "name": self.spelled, **self.options}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. A section that is None is chosen from the data or the checkpoint."""

    stage: Stage
    source: str | None  # the REF of --from
    dataset: Choice | None
    backbone: Choice | None
    objective: Choice | None
    augment: Choice | None
    optimizer: Choice
    schedule: Choice
    transfer: Choice | None
    carry: Carry
    train: Train
    evaluate: Evaluate
    seed: int
    name: str  # for the run directory: the config's stem or the dataset's name

    def to_dict(self, paths: Literal["given", "absolute", "relative"] = "given") -> dict[str, Any]:
        """The config as nested dicts. Absolute paths do not depend on the current folder; relative ones can travel."""

        def place(path: str) -> str:
            if paths == "relative":
                return os.path.relpath(path) if os.path.isabs(path) else path
            return os.path.abspath(path) if paths == "absolute" and os.path.exists(path) else path

        def folder(name: str) -> str:
            """SOURCE/./FOLDER or SOURCE/./FOLDER@WEIGHTS; a folder is told from other names by how it begins."""
            source, _, rest = name.partition("/")
            plugin = plugins("backbones").get(source)
            if plugin is None or not plugin.open or not rest.startswith((".", "/")):
                return name
            path, at, weights = rest.partition("@")
            path = place(path)
            return f"{source}/{'' if path.startswith(('.', '/')) else './'}{path}{at}{weights}"

        out: dict[str, Any] = {"stage": self.stage}
        if self.source is not None:
            out["from"] = place(folder(self.source))
        for section in PLUGIN_SECTIONS:
            choice: Choice | None = getattr(self, section)
            if choice is not None:
                out[section] = choice.to_dict()
                if choice.plugin.open:
                    out[section]["name"] = folder(choice.spelled)
                for key in choice.plugin.paths:
                    if isinstance(choice.options[key], str):
                        out[section][key] = place(choice.options[key])
        if self.transfer is not None:
            out["transfer"] |= self.carry.model_dump()
        return out | {
            "train": self.train.model_dump(),
            "evaluate": self.evaluate.model_dump(),
            "seed": self.seed,
        }

    def to_yaml(self) -> str:
        """The config as the run's own file, with absolute paths."""
        text: str = yaml.safe_dump(self.to_dict("absolute"), sort_keys=False, allow_unicode=True, width=100)
        return text

    @property
    def needs(self) -> list[str]:
        """The plug-ins outside of fmeco that data and model of this run are made with, as KIND/NAME."""
        chosen = [one for one in (self.dataset, self.backbone, self.objective, self.augment) if one is not None]
        used = [plugin for one in chosen for plugin in (one.plugin, *_inner(one.plugin, one.options))]
        outside = [f"{one.kind}/{one.name}" for one in used if not one.built_in]
        return list(dict.fromkeys(outside))

    def replace(self, **changes: Any) -> RunConfig:
        return dataclasses.replace(self, **changes)


def _inner(plugin: Plugin, options: Mapping[str, Any]) -> list[Plugin]:
    """The plug-ins of the sections within a plug-in's section."""
    found = []
    for key, kind in plugin.nested.items():
        for section in options[key].values():
            inner = find(kind, section["name"])[0]
            found += [inner, *_inner(inner, section)]
    return found
