"""Parse YAML strictly, as plain data only, and keep the line of every key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fmeco.errors import ConfigError, clean, nearest
from fmeco.files import regular

_INT = re.compile(r"[-+]?(0|[1-9][0-9_]{0,30})")

_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")

_NONFINITE = re.compile(r"[-+]?\.(inf|Inf|INF|nan|NaN|NAN)")

Marks = dict[tuple[Any, ...], str]  # path in the tree -> "file:line"


def parse_yaml(text: str, where: str) -> tuple[Any, Marks]:
    """Parse one plain YAML document into dicts, lists and scalars. Also returns the line of every key.

    `1e-3` is a number; yes, no, on and off are text, as in YAML 1.2.

    where: file name for messages.

    Raises ConfigError for invalid YAML, aliases and anchors (300 bytes can expand to gigabytes), tags, duplicate keys,
    several documents, deep nesting and huge files.
    """
    if len(text) > 256 * 1024:
        raise ConfigError(f"{where}: larger than 256 KB, too large for a config")
    try:
        depth = nodes = documents = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            start: Any = event.start_mark
            line = start.line + 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            nodes += isinstance(event, yaml.NodeEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ConfigError(
                    f"{where}:{line}: YAML anchors and aliases (&, *) are not allowed; write the value out"
                )
            if (tag := getattr(event, "tag", None)) is not None:
                raise ConfigError(f"{where}:{line}: YAML tags ({clean(tag)}) are not allowed")
            if documents > 1:
                raise ConfigError(f"{where}:{line}: more than one document in the file")
            if depth > 32 or nodes > 5000:
                raise ConfigError(f"{where}:{line}: nested too deeply or too long for a config")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {clean(error.problem or error.context)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {clean(error)}") from None
    marks: Marks = {}
    problems: list[str] = []
    tree = _plain(root, where, (), marks, problems) if root is not None else {}
    if problems:
        raise ConfigError("\n".join(problems))
    return tree, marks


def _plain(node: yaml.Node, where: str, path: tuple[Any, ...], marks: Marks, problems: list[str]) -> Any:
    """Turn a YAML node into plain data. Fills `marks`, and adds mistakes to `problems`."""
    marks[path] = f"{where}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, where, (*path, i), marks, problems) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        out: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            at = f"{where}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append(f"{at}: a key must be plain text, not a list or mapping")
                continue
            key = key_node.value
            if key in out:
                problems.append(f"{at}: the key '{clean(key)}' is given twice")
            out[key] = _plain(value_node, where, (*path, key), marks, problems)
            marks[(*path, key)] = at
        return out
    quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
    return node.value if quoted else scalar(node.value)


def scalar(text: str) -> Any:
    """Convert an unquoted YAML scalar as YAML 1.2 does: null, booleans, numbers (also 1e-3), otherwise text."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not re.fullmatch(r"[-+]?0[0-9]+", text):
        return float(text)
    if _NONFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def peek(file: Path) -> dict[str, Any]:
    """Read the sections of a config file without checking them; {} if it is missing or not a config."""
    try:
        return read_tree(file)[0]
    except ConfigError:
        return {}


def read_tree(source: Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], Marks]:
    """Read a YAML file, or copy a mapping, into a config tree. Also returns the line of every key. Raises ConfigError."""
    if source is None:
        return {}, {}
    if not isinstance(source, Path):
        tree = _given(source, ())
        assert isinstance(tree, dict)
        return tree, {}
    try:
        with open(source, "rb", opener=regular) as file:
            text = file.read().decode("utf-8-sig")
    except FileNotFoundError:
        siblings = [str(path) for path in source.parent.glob("*.y*ml")] if source.parent.is_dir() else []
        raise ConfigError(f"{clean(source)}: no such config file{nearest(str(source), siblings)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}") from None
    tree, marks = parse_yaml(text, str(source))
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: a config is a mapping of sections, as in `dataset: {{name: digits}}`")
    return tree, marks


def _given(value: Any, path: tuple[str, ...]) -> Any:
    """Copy a value of a mapping from Python as plain data; numpy's numbers and arrays, and Paths, become plain, too.

    path: of its key, for messages. Raises ConfigError for a value of another type.
    """
    if isinstance(value, Mapping):
        return {str(key): _given(item, (*path, str(key))) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _given(value.tolist(), path)
    if isinstance(value, list | tuple):
        return [_given(item, path) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise ConfigError(
        f"{clean('.'.join(path))}: a {type(value).__name__} is no value of a config",
        "values are texts, paths, numbers, True, False, None, lists and dicts",
    )
