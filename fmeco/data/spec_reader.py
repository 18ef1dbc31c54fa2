"""Load the dataset plug-in that a data description names as its reader, and say how inputs are prepared."""

from __future__ import annotations

from types import ModuleType

from fmeco.core.data import DataSpec
from fmeco.errors import ConfigError, clean
from fmeco.plugins.registry import find, require


def reader_module(spec: DataSpec) -> ModuleType | None:
    """Import the plug-in that reads new inputs; None where the description names none.

    read(spec, sources): the samples of files, rows or strings.
    SENTENCES = True: a source may be a text itself instead of a path.
    plot(spec, inputs, rows, file): a picture of predictions.
    shown(spec): how inputs are prepared, in a few words.
    """
    if not spec.reader:
        return None
    require("reading these inputs", [("datasets", spec.reader)])
    return find("datasets", spec.reader)[0].load()


def show_preprocessing(spec: DataSpec) -> str:
    """Say how inputs are prepared, as the reader says it; else by the plain values of `spec.preprocessing`."""
    try:
        shown = getattr(reader_module(spec), "shown", None)
    except ConfigError:  # the reader is of a plug-in that is not loaded
        shown = None
    if shown is not None:
        return str(shown(spec))
    plain = {name: value for name, value in spec.preprocessing.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{clean(name)} {clean(value, 60)}" for name, value in plain.items()) or f"{spec.modality} data"
