"""Open a checkpoint directory and verify every byte of it. All files are data, so loading one executes no code.

    step-00000123/
        backbone.safetensors    backbone, with the source library's parameter names
        objective.safetensors   heads and other tensors of the objective
        meta.json               format, step, config, data description, metrics, versions
        trainer.safetensors, trainer.json    training state, only needed to resume
        manifest.json           sizes and SHA-256 of the files above, and ids of the parent checkpoints
        README.md               model card; not in the manifest, so that users can edit it

The SHA-256 of manifest.json is the checkpoint's id.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fmeco.checkpoints import schema
from fmeco.checkpoints.tensors import parse, refuse_nonfinite
from fmeco.core.data import DECODE_RULE, DataSpec
from fmeco.errors import CheckpointError, clean
from fmeco.files import regular

FORMAT = 1
# format number -> pure function that turns its meta.json into that of the next format
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
MANIFEST, META, TRAINER = "manifest.json", "meta.json", "trainer.json"
STEP = re.compile(r"step-(\d{8,})")  # name of a checkpoint directory


def steps(folder: Path) -> list[Path]:
    """List the checkpoint directories in a folder, oldest first."""
    paths = [path for path in folder.glob("step-*") if STEP.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(paths, key=lambda path: int(path.name[5:]))


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint in a folder that holds some."""
    return int(steps(folder)[-1].name[5:])


def step_folder(folder: Path, step: int) -> Path:
    """Return the checkpoint directory of a step."""
    return folder / f"step-{step:08d}"


@dataclass(frozen=True)
class Checkpoint:
    """Hold an opened checkpoint, whose manifest and meta.json are checked. Other files are verified when they are read.

    path: directory of the checkpoint.
    id: SHA-256 of the manifest.
    meta: contents of meta.json, migrated to the current format.
    manifest: contents of manifest.json.
    """

    path: Path
    id: str
    meta: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def spec(self) -> DataSpec:
        """Return the description of the data. Raises CheckpointError if it is not valid."""
        try:
            return DataSpec.from_json(self.meta["spec"])
        except CheckpointError as error:
            raise CheckpointError(f"{self.path / META}: spec: {error.message}", *error.hints) from None

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """Read the named tensors of STEM.safetensors. Verifies the hash before parsing. Raises CheckpointError."""
        name = f"{stem}.safetensors"
        tensors = unpack(_verified(self.path, name, self.manifest), self.path / name)
        for alias, original in self.meta.get("aliases", {}).items():
            if alias.startswith(f"{stem}/"):
                if (stored := original.removeprefix(f"{stem}/")) not in tensors:
                    raise CheckpointError(
                        f"{self.path / META}: aliases: {clean(alias)} is another name of {clean(original)}, which {name} lacks"
                    )
                tensors[alias.removeprefix(f"{stem}/")] = tensors[stored]
        return tensors

    def trainer(self) -> dict[str, Any]:
        """Read trainer.json. Raises CheckpointError if the checkpoint has no training state."""
        if TRAINER not in self.manifest["files"] or not (self.path / TRAINER).exists():
            raise CheckpointError(
                f"{self.path} holds no training state (a copy made for sharing?): it can be used, but not resumed"
            )
        state = _json(_verified(self.path, TRAINER, self.manifest), self.path / TRAINER)
        schema.check(schema.Trainer, state, self.path / TRAINER)
        return state


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint directory and check its manifest and meta.json. Raises CheckpointError that names a bad file."""
    path = Path(path)
    raw = _read_file(path / MANIFEST, limit=1 << 20)
    manifest = _json(raw, path / MANIFEST)
    number = manifest.get("format")
    if type(number) is int and number > FORMAT:
        raise CheckpointError(
            f"{path} has format {clean(number, 20)} of a newer fmeco; this version reads formats up to {FORMAT}",
            "pip install --upgrade fmeco",
        )
    schema.check(schema.Manifest, manifest, path / MANIFEST)
    meta = _json(_verified(path, META, manifest), path / META)
    for number in range(manifest["format"], FORMAT):
        meta = MIGRATIONS[number](meta)
    schema.check(schema.Meta, meta, path / META)
    opened = Checkpoint(path, hashlib.sha256(raw).hexdigest(), meta, manifest)
    if opened.spec.decode > DECODE_RULE:
        raise CheckpointError(
            f"{path} decodes inputs by rule {opened.spec.decode} of a newer fmeco; this version knows {DECODE_RULE} rules",
            "pip install --upgrade fmeco",
        )
    return opened


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """Read a JSON object from a regular file of at most `limit` bytes. Raises CheckpointError."""
    body = _read_file(path, limit)
    if len(body) > limit:
        raise CheckpointError(f"{path} is larger than {limit >> 20} MB")
    return _json(body, path)


def _json(body: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object in a file of a checkpoint. Raises CheckpointError, also for NaN and infinity."""

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{clean(text, 40)} is not a finite number")
        return number

    try:
        value = json.loads(body, parse_float=finite, parse_constant=finite)
        if not isinstance(value, dict):
            raise ValueError("expected a mapping")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not valid JSON: {clean(error, 80)}; {path.parent} is not an fmeco checkpoint, or was modified"
        ) from None
    return value


def verify(checkpoint: Checkpoint) -> None:
    """Verify all files against the manifest; the training state may be missing. Raises CheckpointError."""
    for name in checkpoint.manifest["files"]:
        if (checkpoint.path / name).exists() or not name.startswith("trainer."):
            _verified(checkpoint.path, name, checkpoint.manifest)


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Open the newest intact checkpoint with a training state; None if there is none. Reports damaged ones with `say`."""
    for path in reversed(steps(folder)):
        try:
            checkpoint = open_checkpoint(path)
            verify(checkpoint)
            if TRAINER in checkpoint.manifest["files"]:
                return checkpoint
        except CheckpointError as error:
            say(f"skipping a damaged checkpoint: {error.message}")
    return None


def _verified(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    """Read a file and compare its size and SHA-256 with the manifest. Raises CheckpointError."""
    entry = manifest["files"].get(name)
    if entry is None:
        raise CheckpointError(f"{folder}: the manifest does not list {name}")
    body = _read_file(folder / name, limit=entry["size"])
    if len(body) != entry["size"] or hashlib.sha256(body).hexdigest() != entry["sha256"]:
        raise CheckpointError(
            f"{folder / name} was modified or damaged: its content does not match the manifest",
            "copy the checkpoint again from its source",
        )
    return body


def _read_file(path: Path, limit: int) -> bytes:
    """Read at most `limit` + 1 bytes of a regular file; one byte too many shows the caller that it is too long."""
    try:
        with open(path, "rb", opener=lambda name, flags: regular(name, flags | os.O_NOFOLLOW)) as file:
            return file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a complete checkpoint: {path.name} is missing") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


def unpack(body: bytes, source: Path) -> dict[str, Tensor]:
    """Parse the named tensors of a safetensors file, as `parse` does. Raises CheckpointError also for NaN and infinity."""
    return refuse_nonfinite(parse(body, source), source)
