"""Describe plug-ins and config sections: their keys with types, defaults and help. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from fmeco.config.check import DEFAULT_NAMES
from fmeco.config.run_config import PLUGIN_SECTIONS, TOP_KEYS
from fmeco.config.sections import SECTIONS, Carry
from fmeco.errors import ConfigError, clean, nearest
from fmeco.plugins.registry import INJECTED, find, kind_of, plugins

# Help for each key at the top of a config. For train and evaluate it is the docstring of their schema.
_HELP = {
    "dataset": "The training data: where it is, how it is split and how samples are read.",
    "backbone": "The network that computes features. Pretraining trains it from scratch, finetuning starts from its weights.",
    "objective": "The task on top of the features: heads, loss and metrics.",
    "optimizer": "The update rule for the weights, with the learning rate.",
    "schedule": "The course of the learning rate over a run.",
    "augment": "Random changes to training samples. Evaluation uses unchanged samples.",
    "transfer": "The strategy for a run with --from: which parameters train, in which phases and at which learning rate.",
    "seed": "A whole number that determines all randomness of a run: initial weights, sample order, augmentation.",
    "stage": "The command that the config is for, pretrain or finetune. Optional.",
    "from": "The weights to start from, as in --from: a run, a checkpoint, a file of weights, or SOURCE/ARCH@WEIGHTS.",
}
# Default of each top-level key without a default plug-in (DEFAULT_NAMES), in words.
_DEFAULT = {
    "dataset": "none, it is required; --dataset X writes this section",
    "backbone": "none when pretraining; the checkpoint's when finetuning",
    "objective": "chosen by the dataset's targets",
    "augment": "chosen by the data's modality; none if no plug-in fits",
    "seed": "0",
    "stage": "the command in use",
    "from": "none, the run starts from new weights",
}


def kinds() -> dict[str, list[str]]:
    """List the names of all plug-ins by kind."""
    return {kind: list(plugins(kind)) for kind in INJECTED}


def sections() -> dict[str, str]:
    """Return the help of each section and single key of a config."""
    return {name: _HELP.get(name) or (SECTIONS[name].__doc__ or "").strip() for name in TOP_KEYS}


def describe_kind(word: str) -> dict[str, str]:
    """Return the help of each plug-in of a kind. Raises ConfigError that suggests the nearest kind."""
    return {plugin.name: plugin.help for plugin in plugins(_kind(word)).values()}


def describe_plugin(word: str, name: str) -> dict[str, Any]:
    """Describe a plug-in. Raises ConfigError that suggests the nearest name.

    word: kind of the plug-in, singular or plural.
    name: name of the plug-in, or of an architecture or dataset that it builds.
    """
    by_name = plugins(_kind(word))
    plugin = by_name[name] if name in by_name else find(_kind(word), name)[0]
    return {"name": name, "help": plugin.help, "keys": _keys(plugin.model)}


def describe_section(name: str) -> dict[str, Any]:
    """Describe a section or single key of a config. Raises ConfigError that suggests the nearest name.

    Returns a dict:
    name, help: name and help of the section.
    keys: keys that the section has with any plug-in, as in `describe_plugin`.
    kind, pick, plugins: kind of the section's plug-ins, key that names the plug-in, all plug-ins; only if it names one.
    default: default of the section, in words.
    """
    if name not in TOP_KEYS:
        raise ConfigError(
            f"unknown config section: '{clean(name)}'{nearest(name, TOP_KEYS)}",
            f"sections: {', '.join(TOP_KEYS)}",
        )
    section: dict[str, Any] = {"name": name, "help": sections()[name], "keys": {}}
    if name in SECTIONS:
        return section | {"keys": _keys(SECTIONS[name])}
    if name in PLUGIN_SECTIONS:
        pick = "strategy" if name == "transfer" else "name"
        section["help"] += f" `{pick}:` picks the plug-in."
        kind = PLUGIN_SECTIONS[name]
        section |= {"kind": kind, "pick": pick, "plugins": list(plugins(kind))}
    if name == "transfer":
        section["keys"] = _keys(Carry)
    return section | {"default": DEFAULT_NAMES.get(name) or _DEFAULT[name]}


def _kind(word: str) -> str:
    """Resolve a word to a kind of plug-in. Raises ConfigError with a hint if the word is a section of a config."""
    try:
        return kind_of(word)
    except ConfigError as error:
        if word in TOP_KEYS:
            raise ConfigError(error.message, f"`fmeco describe section {word}` describes that section") from None
        if near := nearest(word, ["section"]):
            raise ConfigError(f"unknown kind of plug-in: '{clean(word)}'{near}", *error.hints) from None
        raise


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    """Describe the keys of a schema: key -> type in words, default, help and whether it is required."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    return {
        key: {
            "type": _type(entry),
            "default": entry.get("default"),
            "help": entry.get("description", ""),
            "required": key in required,
        }
        for key, entry in schema.get("properties", {}).items()
    }


def _type(schema: Mapping[str, Any]) -> str:
    """Describe a JSON Schema type in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(option) for option in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = " and".join(
        f" {sign} {schema[key]:g}"
        for key, sign in (("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<="))
        if key in schema
    )
    words = {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "mapping"}
    kind = schema.get("type", "any")
    return words.get(kind, str(kind)) + bounds
