"""Load the dataset plug-in that a data description names as its reader."""

from __future__ import annotations

from types import ModuleType

from fmeco.core import DataSpec
from fmeco.plugins.registry import find


def reader_module(spec: DataSpec) -> ModuleType | None:
    """Import the plug-in that reads new inputs; None where the description names none.

    read(spec, sources): the samples of files, rows or strings.
    SENTENCES = True: a source may be a text itself instead of a path.
    plot(spec, inputs, rows, file): a picture of predictions.
    """
    return find("datasets", spec.reader)[0].load() if spec.reader else None
