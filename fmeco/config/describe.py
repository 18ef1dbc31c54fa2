"""Describe plug-ins and sections of a config: their keys, with types, defaults and help. torch is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from fmeco.config.sections import SECTIONS, Carry
from fmeco.plugins.registry import find, kind_of, plugins


def describe_plugin(kind: str, name: str) -> dict[str, Any]:
    """Describe a plug-in by its name, or by one of the names that it knows. Raises ConfigError."""
    known = plugins(kind_of(kind))
    plugin = known[name] if name in known else find(kind_of(kind), name)[0]
    return {"name": name, "help": plugin.help, "keys": _keys(plugin.model)}


def describe_section(name: str) -> dict[str, Any]:
    """Describe a section that no plug-in owns, or the keys that every transfer strategy has."""
    model: type[BaseModel] = Carry if name == "transfer" else SECTIONS[name]
    return {"name": name, "help": (model.__doc__ or "").strip(), "keys": _keys(model)}


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
