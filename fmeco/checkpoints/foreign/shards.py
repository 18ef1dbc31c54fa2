"""Find the weights files in a folder of another tool, and read weights that are split over several files."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from fmeco.checkpoints.foreign.files import SUFFIXES, Contents, is_weights, open_foreign, widened
from fmeco.errors import CheckpointError, ConfigError, clean, listing, readable
from fmeco.files import read_json

INDEX = ".index.json"
_STANDARD = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
_LIMIT = 64 << 20  # largest index, in bytes


def find_weights(path: Path) -> Path | None:
    """Find the weights that a path names: the file itself, an index of shards, or those of a folder; None if it has none.

    Raises ConfigError for a folder with several files of weights and none with a usual name.
    """
    if path.is_file():
        return path if is_weights(path) or path.name.endswith(INDEX) else None
    if not path.is_dir():
        return None
    for name in _STANDARD:
        if (path / name).is_file():
            return path / name
    indexes = sorted(path.glob(f"*{INDEX}"))
    files = indexes or sorted(file for file in path.iterdir() if is_weights(file) and file.is_file())
    if len(files) > 1:
        raise ConfigError(
            f"{clean(path)} holds several files of weights: {listing(readable(file.name) for file in files)}",
            "name one of them",
        )
    return files[0] if files else None


def open_weights(path: Path) -> Contents:
    """Read a file of weights, or all shards of an index, as they are. Raises CheckpointError."""
    if not path.name.endswith(INDEX):
        return open_foreign(path)
    wanted = _read_index(path)
    state: dict[str, Tensor] = {}
    for name in sorted(set(wanted.values())):
        if not (path.parent / name).is_file():
            raise CheckpointError(
                f"{path.parent / name}: no such file, and {path.name} says that it holds a part of the weights",
                "copy all files of the folder again from their source",
            )
        shard = open_foreign(path.parent / name).state
        if twice := sorted(set(shard) & set(state)):
            raise CheckpointError(f"{path.parent / name} and another shard both hold {listing(twice, 5)}")
        if lost := sorted(key for key, file in wanted.items() if file == name and key not in shard):
            raise CheckpointError(f"{path.parent / name} lacks what {path.name} says it holds: {listing(lost, 5)}")
        state |= shard
    return Contents(f"{len(set(wanted.values()))} shards with an index", state, {})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights, or of all shards of an index, as `read_foreign` does."""
    return widened(open_weights(path).state, path)


def _read_index(path: Path) -> dict[str, str]:
    """Read which shard holds each tensor. Raises CheckpointError, also for a shard outside the index's folder."""
    try:
        content = read_json(path, _LIMIT)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as an index of shards: {clean(error, 200)}") from None
    wanted = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(wanted, dict) or not wanted:
        raise CheckpointError(f"{path} is not an index of shards: it has no weight_map {{tensor: file}}")
    for key, name in wanted.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name) or not name.endswith(SUFFIXES):
            raise CheckpointError(
                f"{path}: weight_map: {clean(key, 80)}: {clean(name, 80)} is not a file of weights in the same folder"
            )
    return wanted
