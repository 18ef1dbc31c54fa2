"""List the types that files of torch may hold besides tensors, and stand-ins that are read in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class Record:
    """Stand for an object of a harmless type: keep what the file says about it, and run none of the type's code.

    fields: its attributes, by name.
    arguments: arguments that it would be made with.
    """

    arguments: tuple[Any, ...] = ()
    fields: Mapping[str, Any] = {}

    def __new__(cls, *arguments: Any) -> Record:
        made = object.__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.fields = state


class Mapped:
    """Stand for a kind of dict: reading one gives a plain dict."""

    def __new__(cls, *arguments: Any) -> dict[Any, Any]:  # type: ignore[misc]  # torch fills the items of plain dicts only
        return {}


class Place(Record):
    """Stand for a path."""

    def __str__(self) -> str:
        return "/".join(map(str, self.arguments)).replace("//", "/")


# Type, as files name it -> its stand-in. Torch refuses every other type that is not part of a tensor.
HARMLESS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            *("argparse.Namespace", "types.SimpleNamespace", "typing.Any"),
            *("datetime.date", "datetime.datetime", "datetime.timedelta"),
            *("numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
            *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
            *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode"),
            *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
        ),
        Record,
    ),
    **{
        f"{module}.{name}": Place
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
    **dict.fromkeys(
        (
            *("builtins.dict", "builtins.list", "builtins.int", "builtins.str", "collections.defaultdict"),
            "pytorch_lightning.utilities.parsing.AttributeDict",
            "lightning.fabric.utilities.data.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
        ),
        Mapped,
    ),
}


def stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return the stand-ins with the names of their types, as torch.serialization.safe_globals takes them."""
    return [(stand_in, name) for name, stand_in in HARMLESS.items()]


def plain_values(loaded: Any, seen: set[int], name: str = "", depth: int = 0) -> dict[str, str | int | float | bool]:
    """Collect the texts and numbers of a loaded file by dotted name, at most three levels down, such as args.model.

    seen: ids of the mappings that were searched; each is searched once.
    """
    if isinstance(loaded, Place):
        loaded = str(loaded)
    if isinstance(loaded, str | int | float | bool):
        return {name: loaded}
    inner = loaded.fields if isinstance(loaded, Record) else loaded
    if not isinstance(inner, Mapping) or depth > 3 or id(inner) in seen:
        return {}
    seen.add(id(inner))
    found: dict[str, str | int | float | bool] = {}
    for key, value in inner.items():
        if isinstance(key, str):
            found |= plain_values(value, seen, f"{name}.{key}" if name else key, depth + 1)
    return found
