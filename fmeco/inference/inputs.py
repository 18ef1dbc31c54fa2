"""Turn what a user passes to `predict` and `embed` into samples: paths, texts, rows, tables, arrays."""

from __future__ import annotations

import bisect
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from torch import Tensor

from fmeco.core.data import DataSpec, Form, Given, Inputs, Samples
from fmeco.data.spec_reader import reader_module
from fmeco.errors import ConfigError, DataError, FmecoError, clean, listing
from fmeco.log import say

Source = str | Given
Read = Callable[[DataSpec, Sequence[Source]], Samples]


def sources_of(inputs: Any, spec: DataSpec) -> list[Source]:
    """Turn inputs into sources for the reader of a spec: paths and texts as strings, all else as `Given`.

    inputs: one input or several. One is a path, a text, a dict (a row; with lists as values, rows), a DataFrame or an array;
        several are a list of these.

    Raises ConfigError for an input that the reader does not take.
    """
    takes: Mapping[str, str] = getattr(reader_module(spec), "TAKES", {})
    if _is_one(inputs):
        return _group([("inputs", 0, inputs)], spec, takes)
    if not isinstance(inputs, Iterable) or isinstance(inputs, bytes | bytearray):
        raise _unfit("inputs", inputs, spec, takes)
    return _group([(f"inputs[{i}]", i, one) for i, one in enumerate(inputs)], spec, takes)


def read(spec: DataSpec, sources: Sequence[Source]) -> Samples:
    """Read sources with the dataset plug-in of a spec. One that cannot be read becomes a sample that raises the reason.

    Raises ConfigError if the plug-in cannot read new inputs, or if it reads none of these for such a reason.
    """
    reader: Read | None = getattr(reader_module(spec), "read", None)
    if reader is None:
        raise ConfigError(
            f"the dataset plug-in '{clean(spec.reader)}' has no read(spec, sources): it cannot read new inputs"
            if spec.reader
            else "the dataset of this checkpoint names no reader, so it cannot read new inputs"
        )
    groups = itertools.groupby(sources, key=lambda source: isinstance(source, str))
    parts = [part for _, group in groups for part in _parts(reader, spec, list(group))]
    errors = [part.error for part in parts if isinstance(part, Unreadable)]
    if len(errors) == len(parts) and (wrong := [error for error in errors if isinstance(error, ConfigError)]):
        raise wrong[0]  # such as a missing extra, which is not about one file
    return parts[0] if len(parts) == 1 else Joined(parts)


def _parts(reader: Read, spec: DataSpec, sources: list[Source]) -> list[Samples]:
    """Read sources together; if that fails, each half by itself, down to the sources that cannot be read."""
    try:
        return [reader(spec, sources)]
    except (DataError, ConfigError) as error:
        if len(sources) == 1:
            return [Unreadable(str(sources[0]), error)]
    half = len(sources) // 2
    return _parts(reader, spec, sources[:half]) + _parts(reader, spec, sources[half:])


class Unreadable(Samples):
    """Stand for a source that cannot be read: one sample that raises the error."""

    in_memory = True

    def __init__(self, source: str, error: FmecoError) -> None:
        self.source, self.error = source, error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Inputs:
        raise self.error

    def name(self, index: int) -> str:
        return self.source


class Joined(Samples):
    """Serve several samples one after another."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        self.parts = parts
        self.ends = list(itertools.accumulate(len(part) for part in parts))
        self.notes = tuple(note for part in parts for note in part.notes)
        self.in_memory = all(part.in_memory for part in parts)

    def at(self, index: int) -> tuple[Samples, int]:
        """Find the part that holds a sample, and the sample's position in it."""
        number = bisect.bisect_right(self.ends, index)
        return self.parts[number], index - (self.ends[number - 1] if number else 0)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Inputs:
        part, at = self.at(index)
        return part[at]

    def name(self, index: int) -> str:
        part, at = self.at(index)
        return part.name(at)

    def answers(self, index: int, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        part, at = self.at(index)
        return part.answers(at, answer)

    def back(self, index: int, form: Form, answer: Tensor) -> Tensor:
        part, at = self.at(index)
        return part.back(at, form, answer)


def in_part(samples: Samples, index: int) -> tuple[Samples, int]:
    """Find the samples that the dataset plug-in made of a sample's source, and its position in them."""
    return samples.at(index) if isinstance(samples, Joined) else (samples, index)


def has_own_answers(samples: Samples) -> bool:
    """Tell whether the answers of samples have columns of their own, such as times."""
    parts = samples.parts if isinstance(samples, Joined) else [samples]
    return any(type(part).answers is not Samples.answers for part in parts)


# ---------------------------------------------------------------- what a user passes


def _is_frame(value: Any) -> bool:
    """Tell whether a value is a DataFrame, of any library."""
    return hasattr(value, "columns") and hasattr(value, "__getitem__")


def _is_array(value: Any) -> bool:
    """Tell whether a value is an array of numbers, a tensor, or an image of Pillow. An array of texts is a list of texts."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "OSUT"
    # The class is asked for the attribute, because reading that of an image decodes its file.
    return isinstance(value, Tensor) or (hasattr(type(value), "__array_interface__") and hasattr(value, "mode"))


def _is_one(value: Any) -> bool:
    """Tell whether a value is one input, not several."""
    return isinstance(value, str | os.PathLike | Mapping | Given) or _is_frame(value) or _is_array(value)


def _group(named: Sequence[tuple[str, int, Any]], spec: DataSpec, takes: Mapping[str, str]) -> list[Source]:
    """Make the sources of inputs. Consecutive dicts become one table. named: (name, position, input) of each."""
    sources: list[Source] = []
    rows: list[Mapping[Any, Any]] = []
    for name, position, value in named:
        is_row = isinstance(value, Mapping) and "rows" in takes and not _is_columns(value)
        if rows and not is_row:
            sources.append(_table_of(rows, position - len(rows)))
            rows = []
        if is_row:
            rows.append(value)
        else:
            sources.append(_source(name, value, spec, takes))
    if rows:
        sources.append(_table_of(rows, named[-1][1] + 1 - len(rows)))
    return sources


def _is_columns(value: Mapping[Any, Any]) -> bool:
    """Tell whether the values of a dict are columns, not cells."""
    return bool(value) and all(isinstance(x, list | tuple) or getattr(x, "ndim", 0) == 1 for x in value.values())


def _source(name: str, value: Any, spec: DataSpec, takes: Mapping[str, str]) -> Source:
    """Make the source of one input. Raises ConfigError if the reader does not take such an input."""
    if isinstance(value, Given):
        return value
    if isinstance(value, str | os.PathLike):
        return os.fsdecode(value)
    if (_is_frame(value) or isinstance(value, Mapping)) and "rows" in takes:
        return Given(name, _columns(name, value))
    if (isinstance(value, Mapping) and "mappings" in takes) or (_is_array(value) and "arrays" in takes):
        return Given(name, value)
    raise _unfit(name, value, spec, takes)


def _columns(name: str, value: Any) -> dict[str, list[Any]]:
    """Read the columns of a DataFrame or of a dict of columns. Raises ConfigError for columns that do not fit together."""
    keys = list(value) if isinstance(value, Mapping) else list(value.columns)
    if twice := [key for key, count in Counter(map(str, keys)).items() if count > 1]:
        raise ConfigError(f"{name}: the column {listing(twice)} appears more than once")
    columns = {str(key): list(map(_plain, value[key])) for key in keys}
    if len(set(map(len, columns.values()))) > 1:
        raise ConfigError(f"{name}: the columns of this dict differ in length")
    return columns


def _unfit(name: str, value: Any, spec: DataSpec, takes: Mapping[str, str]) -> ConfigError:
    """Make the error for an input that the reader does not take."""
    wanted = ["paths", *(["texts"] if getattr(reader_module(spec), "SENTENCES", False) else []), *takes.values()]
    return ConfigError(
        f"{name}: a {type(value).__name__} is no input of this model, which is for {clean(spec.modality)} data",
        f"pass {', or '.join(wanted)}; or a list of them",
    )


def _table_of(rows: Sequence[Mapping[Any, Any]], first: int) -> Given:
    """Join dicts to a table. first: position of the first one among the inputs. A key that a row lacks is a missing cell."""
    keys = dict.fromkeys(key for row in rows for key in row)
    if lacking := [str(key) for key in keys if any(key not in row for row in rows)]:
        say(f"some of the rows have no {listing(lacking)}: it counts as missing there")
    return Given("inputs", {str(key): [_plain(row.get(key)) for row in rows] for key in keys}, first)


def _plain(value: Any) -> Any:
    """Turn a library's value into Python's, and any missing value into None."""
    if isinstance(value, np.datetime64):
        exact = value.astype("datetime64[us]")  # the most digits of a datetime; a text holds more
        return exact.item() if exact == value or np.isnat(value) else str(value).replace("T", " ")
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value  # pandas.NA and pandas.NaT
