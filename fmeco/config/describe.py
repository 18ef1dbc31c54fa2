"""Describe plug-ins and sections of a config: their keys, with types, defaults and help. torch is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from fmeco.config.check import DEFAULT_NAMES
from fmeco.config.run_config import PLUGIN_SECTIONS, TOP_KEYS
from fmeco.config.sections import SECTIONS, Carry
from fmeco.errors import ConfigError, clean, nearest
from fmeco.plugins.registry import INJECTED, find, kind_of, plugins

# What each key at the top of a config is for. train and evaluate say it in their own docstrings.
_HELP = {
    "dataset": "The data to train on: where it is, how it is split, and how samples are read.",
    "backbone": "The network that turns samples into features. Pretraining makes its weights, finetuning starts from them.",
    "objective": "What the features are for: a head with its loss and its metrics.",
    "optimizer": "How gradients change the weights, and the learning rate.",
    "schedule": "How the learning rate changes over a run.",
    "augment": "How training samples are varied at random. Evaluation sees them unchanged.",
    "transfer": "How a run starts from other weights: which parameters train, when, and how fast. Only with --from.",
    "seed": "A whole number that decides all that is random in a run: new weights, the order of samples, augmentation.",
    "stage": "The command that the config is for: pretrain or finetune. It may be left out.",
    "from": "The weights to start from, as --from: a run, a checkpoint, a file of weights, or SOURCE/ARCH@WEIGHTS.",
}
# What a config gets that does not have the key. Where it is a plug-in's name, DEFAULT_NAMES has it.
_DEFAULT = {
    "dataset": "none, a run needs one; --dataset X writes this section",
    "backbone": "none when pretraining; when finetuning, the checkpoint's own",
    "objective": "chosen by the targets of the dataset",
    "augment": "chosen by the kind of data; none where no plug-in offers one",
    "seed": "0",
    "stage": "the command's",
    "from": "none, a run starts from new weights",
}


def kinds() -> dict[str, list[str]]:
    """The kinds of plug-ins, each with the names of its plug-ins."""
    return {kind: list(plugins(kind)) for kind in INJECTED}


def sections() -> dict[str, str]:
    """The sections and single keys of a config, each with what it is for."""
    return {name: _HELP.get(name) or (SECTIONS[name].__doc__ or "").strip() for name in TOP_KEYS}


def describe_kind(word: str) -> dict[str, str]:
    """The plug-ins of a kind, each with its help. Raises ConfigError with the nearest kind."""
    return {plugin.name: plugin.help for plugin in plugins(_kind(word)).values()}


def describe_plugin(word: str, name: str) -> dict[str, Any]:
    """Describe a plug-in by its name, or by one of the names that it knows. Raises ConfigError with the nearest name."""
    known = plugins(_kind(word))
    plugin = known[name] if name in known else find(_kind(word), name)[0]
    return {"name": name, "help": plugin.help, "keys": _keys(plugin.model)}


def describe_section(name: str) -> dict[str, Any]:
    """Describe a section, or a single key, of a config. Raises ConfigError with the nearest name.

    name, help, keys: as of a plug-in; keys are those that the section has whichever plug-in it names.
    kind, pick, plugins: of a section that names a plug-in, its kind, the key that names it, and the plug-ins there are.
    default: what a config without the section gets.
    """
    if name not in TOP_KEYS:
        raise ConfigError(
            f"no section of a config is called '{clean(name)}'{nearest(name, TOP_KEYS)}",
            f"sections: {', '.join(TOP_KEYS)}",
        )
    found: dict[str, Any] = {"name": name, "help": sections()[name], "keys": {}}
    if name in SECTIONS:
        return found | {"keys": _keys(SECTIONS[name])}
    if name in PLUGIN_SECTIONS:
        pick = "strategy" if name == "transfer" else "name"
        found["help"] += f" `{pick}:` picks the plug-in."
        kind = PLUGIN_SECTIONS[name]
        found |= {"kind": kind, "pick": pick, "plugins": list(plugins(kind))}
    if name == "transfer":
        found["keys"] = _keys(Carry)
    return found | {"default": DEFAULT_NAMES.get(name) or _DEFAULT[name]}


def _kind(word: str) -> str:
    """The kind of plug-in that a word means; where it means none, also look for it among sections."""
    try:
        return kind_of(word)
    except ConfigError as error:
        if word in TOP_KEYS:
            raise ConfigError(error.message, f"`fmeco describe section {word}` describes that section") from None
        if near := nearest(word, ["section"]):
            raise ConfigError(f"no kind of plug-in is called '{clean(word)}'{near}", *error.hints) from None
        raise


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    required = schema.get("required", [])
    return {
        key: {
            "type": _type(one),
            "default": one.get("default"),
            "help": one.get("description", ""),
            "required": key in required,
        }
        for key, one in schema.get("properties", {}).items()
    }


def _type(schema: Mapping[str, Any]) -> str:
    """Put a JSON-schema type into words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(option) for option in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = "".join(
        f" {sign} {schema[key]:g}"
        for key, sign in (("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<="))
        if key in schema
    )
    words = {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "mapping"}
    kind = schema.get("type", "any")
    return words.get(kind, str(kind)) + bounds
