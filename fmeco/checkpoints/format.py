"""The format of a checkpoint, a directory of safetensors and JSON: open it, and verify every byte.

    step-00000123/
        backbone.safetensors    the product, under the source library's own names
        objective.safetensors   heads
        meta.json               format, step, config, data description, metrics, versions
        trainer.safetensors, trainer.json    what only resume needs
        manifest.json           sizes and SHA-256 of the above, and the parents' ids; its own SHA-256 is the id
        README.md               the model card; outside the manifest, to be edited

Loading executes nothing: all of it is data.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from fmeco.core.data import DataSpec
from fmeco.errors import CheckpointError, clean, listing

FORMAT = 1
# format -> a pure function from that format's meta.json to the next one's
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
MANIFEST, META = "manifest.json", "meta.json"
_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
_NAME = re.compile(r"[A-Za-z0-9_.\-/:\[\]]{1,300}")
_STEP = re.compile(r"step-(\d{8,})")


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step-*") if _STEP.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name[5:]))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory whose manifest, meta.json and hashes have been checked."""

    path: Path
    id: str  # SHA-256 of the manifest
    meta: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def spec(self) -> DataSpec:
        return DataSpec.from_json(self.meta["spec"])

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """The named tensors of a file, read once, hashed, and only then parsed."""
        name = f"{stem}.safetensors"
        found = unpack(_verified(self.path, name, self.manifest), self.path / name)
        for alias, original in self.meta.get("aliases", {}).items():
            if alias.startswith(f"{stem}/"):
                found[alias.removeprefix(f"{stem}/")] = found[original.removeprefix(f"{stem}/")]
        return found

    def trainer(self) -> dict[str, Any]:
        if "trainer.json" not in self.manifest["files"] or not (self.path / "trainer.json").exists():
            raise CheckpointError(
                f"{self.path} holds no training state (a shared copy?): it can be used, but not resumed"
            )
        state = json.loads(_verified(self.path, "trainer.json", self.manifest))
        assert isinstance(state, dict)
        return state


def open_checkpoint(path: Path) -> Checkpoint:
    """Open and check a checkpoint directory. Raises CheckpointError that names the file that is missing or changed."""
    path = Path(path)
    raw = _read_file(path / MANIFEST, limit=1 << 20)
    try:
        manifest = json.loads(raw)
        files = manifest["files"]
        if not isinstance(manifest["format"], int) or not all(isinstance(one, str) for one in manifest["parents"]):
            raise TypeError("format")
        for name, entry in files.items():
            odd = "/" in name or name.startswith(".")
            if odd or not isinstance(entry["size"], int) or not isinstance(entry["sha256"], str):
                raise ValueError(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{path / MANIFEST} is not a manifest: this is not an fmeco checkpoint, or it was changed"
        ) from None
    if manifest["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest['format']}, made by a newer fmeco; this one reads up to {FORMAT}",
            "pip install --upgrade fmeco",
        )
    try:
        meta = json.loads(_verified(path, META, manifest))
        for number in range(manifest["format"], FORMAT):
            meta = MIGRATIONS[number](meta)
        meta["spec"], meta["config"], meta["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path / META} is not valid") from None
    return Checkpoint(path, hashlib.sha256(raw).hexdigest(), meta, manifest)


def verify(checkpoint: Checkpoint) -> None:
    """Check every file that is present against the manifest."""
    for name in checkpoint.manifest["files"]:
        if (checkpoint.path / name).exists() or not name.startswith("trainer."):
            _verified(checkpoint.path, name, checkpoint.manifest)


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint of a run to resume from, or None. Damaged ones are named and passed over."""
    for path in reversed(steps(folder)):
        try:
            checkpoint = open_checkpoint(path)
            verify(checkpoint)
            if "trainer.json" in checkpoint.manifest["files"]:
                return checkpoint
        except CheckpointError as error:
            say(f"passing over a damaged checkpoint: {error.message}")
    return None


def _verified(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    entry = manifest["files"].get(name)
    if entry is None:
        raise CheckpointError(f"{folder}: the manifest does not list {name}")
    body = _read_file(folder / name, limit=entry["size"])
    if len(body) != entry["size"] or hashlib.sha256(body).hexdigest() != entry["sha256"]:
        raise CheckpointError(
            f"{folder / name} is not the file that was saved: its content does not match the manifest",
            "copy the checkpoint again from where it came",
        )
    return body


def _read_file(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes (a longer one is read one byte further, so that its size is wrong)."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            return file.read(limit + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a whole checkpoint: {path.name} is missing") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


def unpack(body: bytes, source: Path) -> dict[str, Tensor]:
    """safetensors bytes -> named tensors. Stricter than the format: no duplicate or odd names, no NaN."""

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a name appears twice")
        return dict(pairs)

    try:
        size = int.from_bytes(body[:8], "little")
        if size > min(len(body), 100 << 20):
            raise ValueError("the header is longer than the file")
        header = json.loads(body[8 : 8 + size], object_pairs_hook=no_twins)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if not _NAME.fullmatch(name) or entry["dtype"] not in _DTYPES:
                raise ValueError(f"the tensor {clean(name, 80)} has an odd name or type")
        tensors: dict[str, Tensor] = safetensors.load(body)
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
    return refuse_nonfinite(tensors, source)


def refuse_nonfinite(tensors: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    if bad := [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]:
        raise CheckpointError(f"{source}: not finite (NaN or infinity) in {listing(bad, 5)}")
    return tensors
