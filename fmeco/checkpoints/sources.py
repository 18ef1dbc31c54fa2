"""Find weights that libraries publish, and load them. Define Source, the weights that a run starts from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints.foreign.files import read_foreign
from fmeco.config.run_config import Choice
from fmeco.core.data import DECODE_RULE, DataSpec
from fmeco.core.model import Published
from fmeco.data.spec_reader import show_preprocessing
from fmeco.download import File, get, record, weights_file
from fmeco.errors import CheckpointError, ConfigError, clean, listing
from fmeco.log import say


@dataclass(frozen=True)
class Source:
    """Hold weights to start from, with the preprocessing that they expect.

    ref: REF that names them.
    backbone: config section of the backbone; None for a backbone that was passed as an object.
    state: tensors of the backbone, by name.
    spec: data description; of weights from outside fmeco only inputs and preprocessing.
    checkpoint: checkpoint that holds them; None for weights from outside fmeco.
    licence: licence of the weights; None = not stated.
    """

    ref: str
    backbone: Choice | None
    state: Mapping[str, Tensor]
    spec: DataSpec
    checkpoint: checkpoint.Checkpoint | None = None
    licence: str | None = None


def published(backbone: Choice, weights: str) -> Source:
    """Load the weights that a library publishes for an architecture; download them once.

    Files are hashed on every load. If the publisher states no hash, the hash is only shown; no file can run code.

    Raises ConfigError, CheckpointError and ResourceError.
    """
    found = find_release(backbone, weights)
    for file in found.files:
        if "://" not in file.url:
            continue
        path = get(file)
        if not record(file).digest:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            say(f"{found.ref}: the publisher states no hash to compare with; SHA-256 {digest}")
    state = read_all([file.path for file in found.files])
    say(f"{found.ref}: {found.note}: {described(found.spec, found.licence)}")
    return Source(found.ref, backbone, state, decoded_anew(found.spec), licence=found.licence)


@dataclass(frozen=True)
class Release:
    """Describe published weights that may not be on this machine yet.

    ref: REF that names them.
    files: files of weights.
    spec: description of the inputs, with the preprocessing.
    note: words for the user about the origin of the preprocessing.
    licence: licence of the weights; None = not stated.
    """

    ref: str
    files: list[File]
    spec: DataSpec
    note: str
    licence: str | None


def find_release(backbone: Choice, weights: str) -> Release:
    """Find the weights that a library publishes for an architecture, without downloading them.

    Raises ConfigError, and ResourceError for descriptions such as config.json that cannot be downloaded.
    """
    find = getattr(backbone.plugin.load(), "pretrained", None)
    if find is None or backbone.arch is None:
        raise ConfigError(f"the backbone {backbone.spelled} has no published weights")
    release = Published(*find(backbone.arch, weights))
    ref = f"{backbone.spelled}@{weights}"
    note, spec = "preprocessing of these weights", release.spec
    if spec is None:
        whose, spec = assumed(backbone, ref)
        note = f"these weights do not state their preprocessing; assuming {whose}"
    facts: dict[str, Any] = {"licence": release.licence, "bring": f"fmeco fetch {ref} --out FOLDER"}
    files = [
        record(weights_file(url, release.digits, size=0 if release.shards else release.size, **facts))
        if "://" in url
        else File(url, Path(url), **facts)
        for url in (release.url, *release.shards)
    ]
    return Release(ref, files, spec, note, release.licence)


def described(spec: DataSpec, licence: str | None) -> str:
    """Describe the preprocessing and licence of weights in a line."""
    return show_preprocessing(spec) + (f"; licence: {clean(licence)}" if licence else "")


def read_all(files: Iterable[Path]) -> dict[str, Tensor]:
    """Read the tensors of several files. Raises CheckpointError for a name that two of them hold."""
    state: dict[str, Tensor] = {}
    for path in files:
        part = read_foreign(path)
        if twice := sorted(set(part) & set(state)):
            raise CheckpointError(f"{path} and another file of these weights both hold {listing(twice, 5)}")
        state |= part
    return state


def decoded_anew(spec: DataSpec) -> DataSpec:
    """Add the newest decode rule to the preprocessing of weights that no fmeco checkpoint holds, and let the config change it."""
    return dataclasses.replace(spec, preprocessing={**spec.preprocessing, "decode": DECODE_RULE}, published=True)


def completed(backbone: Choice) -> Choice:
    """Add all settings that the architecture's name implies to the backbone's options, by the plug-in's `complete`.

    A checkpoint can then rebuild its model without sources outside fmeco and its libraries, such as a config file.
    """
    complete = getattr(backbone.plugin.load(), "complete", None)
    if complete is None:
        return backbone
    return dataclasses.replace(backbone, options=complete(backbone.arch, dict(backbone.options)))


def assumed(backbone: Choice, ref: str) -> tuple[str, DataSpec]:
    """Return the preprocessing to assume for weights that do not state theirs, as (whose, spec), such as "ImageNet's".

    Raises ConfigError if the backbone's plug-in has no function `assumed`.
    """
    assume = getattr(backbone.plugin.load(), "assumed", None)
    if assume is None:
        raise ConfigError(
            f"neither {clean(ref)} nor the backbone {backbone.spelled} states how inputs were preprocessed",
            "add a function preprocessing(arch) -> DataSpec to the backbone's plug-in file",
        )
    whose, spec = assume()
    return whose, spec
