"""Parse safetensors files more strictly than the format asks, and refuse tensors with NaN or infinity."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from fmeco.errors import CheckpointError, clean, listing

_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
FLOAT8 = {"F8_E4M3", "F8_E5M2"}  # types that files of other tools may have, too
_NAME = re.compile(r"[A-Za-z0-9_.\-/:\[\]]{1,300}")


def parse(body: bytes, source: Path, more_types: Collection[str] = ()) -> dict[str, Tensor]:
    """Parse the named tensors of a safetensors file.

    source: path for messages.
    more_types: allowed types of tensors besides the usual ones.

    Stricter than the format: raises CheckpointError also for duplicate names, and for unusual names or types.
    """

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a name appears twice")
        return dict(pairs)

    try:
        size = int.from_bytes(body[:8], "little")
        if size > min(len(body), 100 << 20):
            raise ValueError("the header is longer than the file")
        header = json.loads(body[8 : 8 + size], object_pairs_hook=without_duplicates)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if not _NAME.fullmatch(name) or entry["dtype"] not in (*_DTYPES, *more_types):
                raise ValueError(
                    f"the tensor {clean(name, 80)} of type {clean(entry['dtype'], 20)} has a name or type that is not allowed"
                )
        loaded: dict[str, Tensor] = safetensors.load(body)
        tensors = {name: loaded[name] for name in header}  # the library returns them in no order
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        MemoryError,
        OverflowError,
    ) as error:
        raise CheckpointError(f"{source} is not a valid safetensors file: {clean(error, 200)}") from None
    return tensors


def refuse_nonfinite(tensors: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Return the tensors. Raises CheckpointError if one contains NaN or infinity."""
    if bad := nonfinite(tensors):
        raise CheckpointError(f"{source}: not finite (NaN or infinity) in {listing(bad, 5)}")
    return tensors


def nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that contain NaN or infinity."""
    return [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
