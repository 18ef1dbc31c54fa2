"""Make the JSON Schema of a config, for editors."""

from __future__ import annotations

from typing import Any

from fmeco.config.run_config import PLUGIN_SECTIONS
from fmeco.config.sections import SECTIONS, Carry
from fmeco.plugins.registry import plugins


def json_schema() -> dict[str, Any]:
    """Make the JSON Schema of a config file, with all installed plug-ins."""
    properties: dict[str, Any] = {
        "stage": {"enum": ["pretrain", "finetune"]},
        "from": {"type": "string"},
        "seed": {"type": "integer", "minimum": 0},
    }
    for section, kind in PLUGIN_SECTIONS.items():
        word = "strategy" if section == "transfer" else "name"
        options = []
        bare: list[str] = []
        patterns: list[dict[str, Any]] = []
        for plugin in plugins(kind).values():
            names = plugin.spellings or [plugin.name]
            spelled = {"pattern": f"^{plugin.name}/."} if plugin.open else {"enum": names}
            if plugin.open:
                patterns.append({"type": "string", **spelled})
            else:
                bare += names
            body = plugin.model.model_json_schema()
            body.pop("title", None)
            body["description"] = plugin.help
            body["properties"] = {word: spelled, **body.get("properties", {})}
            if section == "transfer":
                body["properties"] |= Carry.model_json_schema()["properties"]
            body["required"] = [word, *body.get("required", [])]
            options.append(body)
        properties[section] = {"anyOf": [{"enum": bare}, *patterns, *options]}
    for name, model in SECTIONS.items():
        properties[name] = {key: value for key, value in model.model_json_schema().items() if key != "title"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fmeco config",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
