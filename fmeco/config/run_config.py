"""Define RunConfig, the frozen and complete config of a run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from fmeco.config.parser import scalar
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
TOP_KEYS = (*PLUGIN_SECTIONS, *SECTIONS, "seed", "stage", "from")  # all keys that a config may have at the top

Stage = Literal["pretrain", "finetune"]


@dataclass(frozen=True)
class Choice:
    """Hold a checked plug-in section.

    kind: kind of the plug-in.
    name: name of the plug-in.
    arch: architecture or dataset of the plug-in's library; None if the plug-in has no library.
    options: value of every key.
    plugin: the plug-in.
    given: keys that the config gives, and does not leave to their defaults.
    """

    kind: str
    name: str
    arch: str | None
    options: Mapping[str, Any] = field(hash=False)
    plugin: Plugin = field(compare=False, repr=False)
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @property
    def spelled(self) -> str:
        """Return the name as a config writes it: NAME or NAME/ARCH."""
        return self.name if self.arch is None else f"{self.name}/{self.arch}"

    def build(self, **injected: Any) -> Any:
        """Build the plug-in. injected: values for the parameters of its `build` before `*`, by name."""
        return self.plugin.build({"arch": self.arch, **injected}, self.options)

    def to_dict(self) -> dict[str, Any]:
        """Return the section as a config writes it, with all keys."""
        return {"strategy" if self.kind == "strategies" else "name": self.spelled, **self.options}


@dataclass(frozen=True)
class RunConfig:
    """Hold the complete config of a run.

    stage: pretrain or finetune.
    source: REF of --from; None = start from new weights.
    dataset, backbone, objective, augment: plug-in sections; None = chosen later from the data or the checkpoint.
    backbone_keys: keys of the source's backbone that the config sets, and that are to be changed; None once `backbone` is
        complete.
    optimizer, schedule: plug-in sections.
    transfer: transfer strategy; None = the run does not start from other weights.
    carry: keys of `transfer:` that all strategies have.
    train, evaluate: sections without a plug-in.
    seed: seed of all randomness.
    name: name for the run directory, the config's stem or the dataset's name.
    """

    stage: Stage
    source: str | None
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
    name: str
    backbone_keys: Mapping[str, Any] | None = None

    def to_dict(self, paths: Literal["given", "absolute", "relative", "names"] = "given") -> dict[str, Any]:
        """Return the config as nested dicts.

        paths: given = paths as written; absolute = independent of the current folder; relative = to the current folder,
            so that the config can move to another machine; names = only the last part, to compare moved configs.
        """

        def convert(path: str) -> str:
            if paths == "names":
                return os.path.basename(os.path.normpath(path))
            if paths == "relative":
                return os.path.relpath(path) if os.path.isabs(path) else path
            return os.path.abspath(path) if paths == "absolute" and os.path.exists(path) else path

        def convert_name(name: str) -> str:
            """Convert the path in SOURCE/FOLDER or SOURCE/FOLDER@WEIGHTS; FOLDER begins with `.` or `/`."""
            source, _, rest = name.partition("/")
            plugin = plugins("backbones").get(source)
            if plugin is None or not plugin.open or not rest.startswith((".", "/")):
                return name
            path, at, weights = rest.partition("@")
            path = convert(path)
            return f"{source}/{'' if path.startswith(('.', '/')) else './'}{path}{at}{weights}"

        out: dict[str, Any] = {"stage": self.stage}
        if self.source is not None:
            out["from"] = convert(convert_name(self.source))
        for section in PLUGIN_SECTIONS:
            choice: Choice | None = getattr(self, section)
            if choice is not None:
                out[section] = choice.to_dict()
                if choice.plugin.open:
                    out[section]["name"] = convert_name(choice.spelled)
                for key in choice.plugin.paths:
                    if isinstance(choice.options[key], str):
                        out[section][key] = convert(choice.options[key])
        if self.backbone_keys is not None:  # the source decides on the other keys
            section = out.get("backbone", self.backbone_keys)
            out["backbone"] = {key: section[key] for key in ("name", *self.backbone_keys) if key in section}
        if self.transfer is not None:
            out["transfer"] |= self.carry.model_dump()
        return out | {
            "train": self.train.model_dump(),
            "evaluate": self.evaluate.model_dump(),
            "seed": self.seed,
        }

    def to_yaml(self) -> str:
        """Return the config as YAML with absolute paths, as the run directory stores it."""
        text: str = yaml.dump(self.to_dict("absolute"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
        return text

    @property
    def needs(self) -> list[str]:
        """List the plug-ins outside fmeco that the run's data and model use, as KIND/NAME."""
        sections = (self.dataset, self.backbone, self.objective, self.augment)
        choices = [choice for choice in sections if choice is not None]
        used = [plugin for choice in choices for plugin in (choice.plugin, *_inner(choice.plugin, choice.options))]
        outside = [f"{plugin.kind}/{plugin.name}" for plugin in used if not plugin.built_in]
        return list(dict.fromkeys(outside))

    def undecided(self) -> RunConfig:
        """Leave out a learning rate that the config does not give: the strategy is still to choose it."""
        optimizer = self.optimizer
        options = {key: value for key, value in optimizer.options.items() if key != "lr" or key in optimizer.given}
        return dataclasses.replace(self, optimizer=dataclasses.replace(optimizer, options=options))

    def replace(self, **changes: Any) -> RunConfig:
        """Return a copy with changed fields."""
        return dataclasses.replace(self, **changes)


class _Dumper(yaml.SafeDumper):
    """Write YAML that `parse_yaml` reads back as it was."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quote a text that would be read as a number, such as the class 1e5, or lose a character, such as a line separator."""
    style = '"' if not text.isprintable() else None if isinstance(scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _inner(plugin: Plugin, options: Mapping[str, Any]) -> list[Plugin]:
    """List the plug-ins of all sections nested in a plug-in's section."""
    nested = []
    for key, kind in plugin.nested.items():
        for section in options[key].values():
            inner = find(kind, section["name"])[0]
            nested += [inner, *_inner(inner, section)]
    return nested
