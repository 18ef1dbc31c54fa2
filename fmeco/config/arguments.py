"""Check the arguments of the Python functions."""

from __future__ import annotations

import functools
import inspect
from collections import abc
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from fmeco.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

_WORDS = {str: "a string", Path: "a path", bool: "True or False", int: "a number", float: "a number", NoneType: "None"}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of each call of a function against its annotations. Raises ConfigError for one that does not fit."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        kinds = _kinds(function)
        for name, value in inspect.signature(function).bind(*args, **kwargs).arguments.items():
            if not _fits(value, kinds[name]):
                got = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
                raise ConfigError(f"{function.__name__}({name}=...): expected {_words(kinds[name])}; got {got}")
        return function(*args, **kwargs)

    return call


@functools.cache
def _kinds(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function)


def _fits(value: object, kind: Any) -> bool:
    """Tell whether a value has the type of an annotation."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is abc.Sequence:  # a text would count as a sequence of letters
        return isinstance(value, abc.Sequence) and not isinstance(value, str) and all(_fits(x, inner[0]) for x in value)
    return isinstance(value, origin or (int if kind is float and isinstance(value, int) else kind))


def _words(kind: Any) -> str:
    """Describe an annotation in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(one) for one in inner if one is not NoneType))
    if origin is abc.Sequence:
        return f"a list, each of it {_words(inner[0])}"
    if origin is not None:
        return "a function" if origin is abc.Callable else "a dict"
    return _WORDS.get(kind) or f"an object of {kind.__module__}.{kind.__qualname__}"
