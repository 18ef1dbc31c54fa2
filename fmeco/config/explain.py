"""Explain in plain words why a value does not fit a schema."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from fmeco.errors import clean, nearest

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping {key: value}",
    "none_required": "null",
    "finite_number": "a finite number",
    "mapping_type": "a mapping {key: value}",
    "tuple_type": "a list",
}


def explain(
    error: ValidationError, model: type[BaseModel], raw: Mapping[str, Any], more_keys: Iterable[str]
) -> Iterable[tuple[tuple[Any, ...], str]]:
    """Yield (path of a key, message) for pydantic's errors. Joins the errors of a union's members with "or".

    more_keys: valid keys of the section that the model lacks.
    """
    grouped: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors(include_url=False):
        place: list[Any] = []
        value: Any = raw
        for part in item["loc"]:  # keep the parts that are keys of the config; pydantic also lists union members
            if isinstance(value, list) and isinstance(part, int):
                value = value[part]
            elif isinstance(value, Mapping) and part in value:
                value = value[part]
            elif item["type"] in ("missing", "extra_forbidden") and part == item["loc"][-1]:
                pass
            else:
                break
            place.append(part)
        grouped.setdefault(tuple(place), []).append(item)
    for where, items in grouped.items():
        first = items[0]
        if first["type"] == "extra_forbidden":
            valid = [*model.model_fields, *more_keys]
            yield where, f"unknown key{nearest(str(where[-1]), valid)}; valid keys: {', '.join(valid) or 'none'}"
        elif first["type"] == "missing":
            yield where, "missing"
        elif first["type"] == "value_error":
            message = str(first["ctx"]["error"])
            key = message.split()[0]  # messages about a whole section begin with the key at fault
            yield ((key,) if not where and key in raw else where), message
        else:
            wanted: list[str] = []
            for item in items:
                limits = item.get("ctx", {})
                if item["type"] == "literal_error":
                    wanted.append(limits["expected"].replace("'", ""))
                elif item["type"] in _WANTED:
                    wanted.append(_WANTED[item["type"]])
                elif bound := [
                    (sign, limits[key])
                    for key, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
                    if key in limits
                ]:
                    wanted.append(" and ".join(f"a number {sign} {limit}" for sign, limit in bound))
                else:
                    wanted.append(item["msg"])
            guess = ""
            if isinstance(first["input"], str):
                words = [word.strip() for text in wanted for word in re.split(r",| or ", text)]
                guess = nearest(first["input"], words)
            yield where, f"expected {' or '.join(dict.fromkeys(wanted))}, got {shown(first['input'])}{guess}"


def shown(value: Any) -> str:
    """Show a config value in a message, in YAML's spelling."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    return f"the text '{clean(value, 60)}'" if isinstance(value, str) else clean(value, 60)
