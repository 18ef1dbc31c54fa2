"""Read a plug-in's signature from its source, without importing it, and make its config schema."""

from __future__ import annotations

import ast
import dataclasses
import functools
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, create_model

from fmeco.errors import ConfigError, listing, nearest
from fmeco.plugins.keys import KEY_GROUPS, VOCABULARY, Without


def schema(name: str, fields: Mapping[str, Any]) -> type[BaseModel]:
    """Create a strict pydantic model: it rejects unknown keys, wrong types and non-finite numbers.

    fields: key -> (type, default).
    """
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, protected_namespaces=())
    model: type[BaseModel] = create_model(name, __config__=config, **fields)
    return model


@functools.cache  # each file is parsed twice: for its kind, then for its signature
def _tree(text: str, name: str) -> ast.Module:
    return ast.parse(text, name)


def parse_file(file: Path) -> ast.Module:
    """Parse a Python file. Raises ConfigError if it cannot be read or has a syntax error."""
    try:
        return _tree(file.read_text("utf-8"), str(file))
    except SyntaxError as error:
        raise ConfigError(f"{file}:{error.lineno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None


def literal(tree: ast.Module, name: str, file: Path) -> Any:
    """Return the value of a top-level `NAME = literal`, or None if there is none. Raises ConfigError."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name and isinstance(node, ast.Assign | ast.AnnAssign):
            try:
                return ast.literal_eval(node.value) if node.value is not None else None
            except ValueError:
                raise ConfigError(
                    f"{file}:{node.lineno}: {name} must be a literal, because the file is not imported to read it"
                ) from None
    return None


def annotation(node: ast.expr) -> Any:
    """Evaluate a type annotation made of names in `VOCABULARY`, without running any code of the file. Raises ValueError."""
    match node:
        case ast.Constant(value=str() | int() | float() | None):
            return node.value
        case ast.Name(id=name) if name in VOCABULARY:
            return VOCABULARY[name]
        case ast.UnaryOp(op=ast.USub()):
            return ast.literal_eval(node)
        case ast.Tuple(elts=items):
            return tuple(annotation(item) for item in items)
        case ast.List(elts=items):
            return [annotation(item) for item in items]
        case ast.Subscript(value=base, slice=item):
            return annotation(base)[annotation(item)]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return annotation(left) | annotation(right)
        case ast.Call(func=ast.Name(id=name), args=args) if name in ("Doc", "Gt", "Ge", "Lt", "Le", "Without"):
            return VOCABULARY[name](*(ast.literal_eval(arg) for arg in args))
    raise ValueError(f"cannot read the type `{ast.unparse(node)}`")


def mentions(node: ast.expr | None, name: str) -> bool:
    """Tell whether an annotation contains the bare name `name`."""
    return node is not None and any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


class KeyGroup(NamedTuple):
    """Describe user keys that `build` receives bundled in one parameter.

    kind: dataclass of that parameter.
    fields: key -> (type, default).
    """

    kind: type
    fields: Mapping[str, tuple[Any, Any]]


def key_group(node: ast.expr, default: ast.expr | None) -> KeyGroup | None:
    """Read a bundling parameter such as `splitting: Splitting = Splitting(val_fraction=0.1)`; None for a single key.

    Raises ValueError if the default is not such a call with literal arguments, or names an unknown key.
    """
    name = next((name for name in KEY_GROUPS if mentions(node, name)), None)
    if name is None:
        return None
    kind, declared = KEY_GROUPS[name], annotation(node)
    bare, *extras = typing.get_args(declared) if typing.get_origin(declared) is Annotated else (declared,)
    if bare is not kind:
        raise ValueError(f"{name} bundles several keys; its type must be {name} or Annotated[{name}, Without(...)]")
    without = [key for extra in extras if isinstance(extra, Without) for key in extra.keys]
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    match default:
        case None:
            overrides: dict[str, Any] = {}
        case ast.Call(func=ast.Name(id=called), args=[], keywords=keywords) if called == name:
            overrides = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords}
        case _:
            raise ValueError(f"its default must be written {name}(key=value)")
    for keys, valid in ((without, defaults), (overrides, [key for key in defaults if key not in without])):
        if unknown := [key for key in keys if key not in valid]:
            raise ValueError(f"{name} has no key {listing(unknown)}{nearest(unknown[0], valid)}")
    types = typing.get_type_hints(kind, include_extras=True)
    fields = {key: (types[key], overrides.get(key, value)) for key, value in defaults.items() if key not in without}
    return KeyGroup(kind, fields)
