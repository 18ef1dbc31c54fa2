"""Read a plug-in's signature from its source, without importing it: names, types, defaults and help become a schema."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge as Ge
from annotated_types import Gt as Gt
from annotated_types import Le as Le
from annotated_types import Lt as Lt
from pydantic import BaseModel, ConfigDict, create_model

from fmeco.errors import ConfigError
from fmeco.plugins.keys import (
    NESTED,
    RATE,
    Classes,
    Color,
    Doc,
    FilePath,
    Fold,
    ImageSize,
    LimitPerClass,
    LimitSeed,
    Ref,
    Scalar,
    TeacherMomentum,
    TestFraction,
    ValFraction,
)

VOCABULARY: dict[str, Any] = {
    **{t.__name__: t for t in (bool, int, float, str, list, dict, tuple)},
    **{"None": None, "Any": Any, "Annotated": Annotated, "Literal": Literal, "Scalar": Scalar},
    **{"Doc": Doc, "Gt": Gt, "Ge": Ge, "Lt": Lt, "Le": Le},
    **{
        "Classes": Classes,
        "LimitPerClass": LimitPerClass,
        "LimitSeed": LimitSeed,
        "ValFraction": ValFraction,
    },
    **{"TestFraction": TestFraction, "Fold": Fold, "ImageSize": ImageSize, "Color": Color},
    **{"TeacherMomentum": TeacherMomentum, "FilePath": FilePath, "Ref": Ref, "Rate": RATE},
    **dict.fromkeys(NESTED, Any),
}


def schema(name: str, fields: Mapping[str, Any]) -> type[BaseModel]:
    """A strict pydantic model: unknown keys, wrong types and non-finite numbers are errors."""
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, protected_namespaces=())
    model: type[BaseModel] = create_model(name, __config__=config, **fields)
    return model


@functools.cache  # a file is parsed for its kind, and then for its signature
def _tree(text: str, name: str) -> ast.Module:
    return ast.parse(text, name)


def parse_file(file: Path) -> ast.Module:
    try:
        return _tree(file.read_text("utf-8"), str(file))
    except SyntaxError as error:
        raise ConfigError(f"{file}:{error.lineno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None


def literal(tree: ast.Module, name: str, file: Path) -> Any:
    """The value of a top-level `NAME = literal`, or None."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name and isinstance(node, ast.Assign | ast.AnnAssign):
            try:
                return ast.literal_eval(node.value) if node.value is not None else None
            except ValueError:
                raise ConfigError(
                    f"{file}:{node.lineno}: {name} must be a literal: it is read without importing the file"
                ) from None
    return None


def annotation(node: ast.expr) -> Any:
    """Evaluate a type annotation over `VOCABULARY`, without running any code of the file."""
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
        case ast.Call(func=ast.Name(id=name), args=args) if name in ("Doc", "Gt", "Ge", "Lt", "Le"):
            return VOCABULARY[name](*(ast.literal_eval(arg) for arg in args))
    raise ValueError(f"cannot read the type `{ast.unparse(node)}`")


def mentions(node: ast.expr | None, name: str) -> bool:
    return node is not None and any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))
