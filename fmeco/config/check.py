"""Check a parsed config and build the frozen, complete RunConfig, before torch is imported.

All mistakes are reported at once, each with its file, line, key and the nearest valid name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fmeco.config.explain import explain, shown
from fmeco.config.parser import Marks
from fmeco.config.run_config import PLUGIN_SECTIONS, TOP_KEYS, Choice, RunConfig, Stage
from fmeco.config.sections import SECTIONS, Carry
from fmeco.errors import ConfigError, FmecoError, clean, listing, nearest
from fmeco.plugins.registry import find, plugins

# Plug-in of a section that does not name one.
DEFAULT_NAMES = {"optimizer": "adamw", "schedule": "cosine", "transfer": "full"}
FINETUNE_STRATEGY = "auto"  # strategy of a finetune that names none


class Check:
    """Build a RunConfig from a config tree, and collect all problems.

    marks: path of a key -> where it was written, "file:line".
    problems: list to which messages are added.
    stage: stage of the run.
    """

    def __init__(self, marks: Marks, problems: list[str], stage: Stage) -> None:
        self.marks, self.problems, self.stage = marks, problems, stage

    def say(self, path: tuple[Any, ...], message: str) -> None:
        """Add a problem with the key at `path`, prefixed with its file, line and name."""
        mark = next((self.marks[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.marks), None)
        key = ".".join(str(part) for part in path)
        self.problems.append(f"{mark + ': ' if mark else ''}{clean(key) + ': ' if key else ''}{message}")

    def run(self, tree: dict[str, Any], name: str | None, own_backbone: bool) -> RunConfig | None:
        """Check a whole config. Returns None if there are problems.

        name: name of the run; None = the dataset's name.
        own_backbone: the caller passes the backbone as an object, so the config need not name one.
        """
        stage = self.stage
        for key in tree:
            if key not in TOP_KEYS:
                self.say((key,), f"unknown section{nearest(key, TOP_KEYS)}")
        if (declared := tree.get("stage", stage)) != stage:
            self.say(("stage",), f"this config is for `fmeco {clean(declared)}`, not for `fmeco {stage}`")
        source = tree.get("from")
        if source is not None and not isinstance(source, str):
            self.say(("from",), "expected text: a run, a checkpoint, a file or SOURCE/ARCH@WEIGHTS")
        seed = tree.get("seed", 0)
        if type(seed) is not int or not 0 <= seed < 2**31:
            self.say(("seed",), f"expected a whole number from 0 to 2147483647, got {shown(seed)}")
        transfer = dict(self._mapping(tree, "transfer"))
        common = {key: transfer.pop(key) for key in Carry.model_fields if key in transfer}
        carry = self._section(Carry, common, ("transfer",))
        default = FINETUNE_STRATEGY if stage == "finetune" else DEFAULT_NAMES["transfer"]
        if transfer and "strategy" not in transfer:
            self._unnamed(transfer)
        if common or transfer or source is not None or stage == "finetune":
            transfer = {"strategy": default, **transfer}
        if stage == "pretrain" and source is None:
            backbone = tree.get("backbone")
            if transfer and not (isinstance(backbone, Mapping) and backbone.get("weights")):
                self.say(("transfer",), "only for runs that start from weights (--from, or backbone.weights)")
            if tree.get("backbone") is None and not own_backbone:
                self.say(("backbone",), "missing: pretraining needs one, such as `backbone: resnet18`")
        keys = None
        if source is not None and not own_backbone and tree.get("backbone") is not None:
            tree, keys = self._keys_of_source(tree)
        tree = {**tree, "optimizer": tree.get("optimizer") or {}, "schedule": tree.get("schedule") or {}}
        choices = {s: self._choice(tree, s) for s in PLUGIN_SECTIONS if s != "transfer"}
        if transfer:
            choices["transfer"] = self._choice({"transfer": transfer}, "transfer")
        if keys and (named := choices["backbone"]) is not None:
            names = [named.plugin.renamed.get(key, key) for key in keys]
            keys = {key: named.options[key] for key in names if key in named.options}
        sections = {name: self._section(model, self._mapping(tree, name), (name,)) for name, model in SECTIONS.items()}
        if self.problems:
            return None
        parts: dict[str, Any] = {"transfer": None, "carry": carry, "backbone_keys": keys, **choices, **sections}
        run_name = re.sub(r"[^A-Za-z0-9._-]+", "-", name or _name_of(choices["dataset"])) or "run"
        return RunConfig(stage=stage, source=source, seed=seed, name=run_name, **parts)

    def _unnamed(self, keys: Mapping[str, Any]) -> None:
        """Refuse keys of a strategy that is not named: the default one would read them in another sense, or not at all."""
        owners = [
            name for name, plugin in plugins("strategies").items() if keys.keys() <= plugin.model.model_fields.keys()
        ]
        line = (
            f"write `strategy: {owners[0]}` beside them" if len(owners) == 1 else "write `strategy: NAME` beside them"
        )
        among = f", {'one of ' if len(owners) > 1 else ''}{', '.join(owners)}" if owners else ""
        self.say(("transfer",), f"names no strategy, and {listing(list(keys))} are keys of a strategy{among}: {line}")

    def _keys_of_source(self, tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Split off the keys that the config sets in the backbone of its source.

        Returns (the tree, without a backbone that has no name; the keys, None if the section is no mapping or name).
        """
        section = tree["backbone"]
        if isinstance(section, str):
            return tree, {}
        if not isinstance(section, Mapping):
            return tree, None
        keys = {key: value for key, value in section.items() if key != "name"}
        if "name" in section:
            return tree, keys
        return {**tree, "backbone": None}, keys

    def _mapping(self, tree: Mapping[str, Any], section: str) -> Mapping[str, Any]:
        value = tree.get(section)
        if value is None:
            return {}
        if isinstance(value, str) and section == "transfer":
            return {"strategy": value}
        if not isinstance(value, Mapping):
            self.say((section,), f"expected a section of keys, got {shown(value)}")
            return {}
        return value

    def _choice(self, tree: Mapping[str, Any], section: str) -> Choice | None:
        word = "strategy" if section == "transfer" else "name"
        return self._pick(tree.get(section), PLUGIN_SECTIONS[section], (section,), word, DEFAULT_NAMES.get(section))

    def _pick(
        self, value: Any, kind: str, path: tuple[Any, ...], word: str = "name", default: str | None = None
    ) -> Choice | None:
        """Check the section at `path`, a plug-in's name or a mapping with its keys. Returns None if it is empty or wrong.

        kind: kind of the plug-in.
        word: key that names the plug-in.
        default: plug-in if the section names none.
        """
        if value is None:
            return None
        if isinstance(value, str):
            value = {word: value}
        if not isinstance(value, Mapping):
            self.say(path, f"expected a name or a section of keys, got {shown(value)}")
            return None
        name = value.get(word, default)
        if not isinstance(name, str):
            self.say(
                (*path, word) if word in value else path,
                f"{'missing: ' if name is None else ''}`{word}:` must be one of: {', '.join(plugins(kind))}",
            )
            return None
        try:
            plugin, arch = find(kind, name)
        except FmecoError as error:
            self.say(
                (*path, word),
                error.message.removeprefix(f"{kind}: ") + "".join(f"; {h}" for h in error.hints),
            )
            return None
        options = {key: item for key, item in value.items() if key != word}
        for old, new in plugin.renamed.items():
            if old in options:
                if new in options:
                    self.say((*path, old), f"is the old name of '{new}', which is also given")
                options[new] = options.pop(old)
                self.marks[*path, new] = self.marks.get((*path, old), self.marks.get(path, ""))
        given = frozenset(options)
        if self.stage == "finetune":
            options = {**plugin.finetune, **options}
        model = self._section(plugin.model, options, path)
        if model is None:
            return None
        checked = model.model_dump()
        for key, inner in plugin.nested.items():
            chosen = {part: self._pick(raw or "", inner, (*path, key, part)) for part, raw in checked[key].items()}
            checked[key] = {part: choice.to_dict() for part, choice in chosen.items() if choice is not None}
        return Choice(kind, plugin.name, arch, checked, plugin, given)

    def _section(self, model: type[BaseModel], raw: Mapping[str, Any], path: tuple[Any, ...]) -> BaseModel | None:
        """Check the keys of a section against its schema. Returns None if there are problems."""
        try:
            return model.model_validate(dict(raw))
        except ValidationError as error:
            more_keys = Carry.model_fields if path == ("transfer",) else ()
            for place, message in explain(error, model, raw, more_keys):
                self.say((*path, *place), message)
            return None


def _name_of(dataset: Choice | None) -> str:
    """Name a run after its dataset."""
    return Path(str(dataset.options.get("path") or dataset.arch or dataset.name)).stem if dataset is not None else "run"


def choose(section: str, raw: Any) -> Choice:
    """Check one plug-in section by itself, as `load_config` does. Raises ConfigError."""
    check = Check({}, [], "pretrain")
    chosen = check._choice({section: raw}, section)
    if chosen is None:
        raise ConfigError("\n".join(check.problems))
    return chosen
