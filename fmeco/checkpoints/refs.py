"""Resolve a REF to weights: of a run, a checkpoint, another tool's file, or published by a library."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fmeco.checkpoints import foreign, pointers
from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints.schema import HINT, check
from fmeco.config.check import choose
from fmeco.config.parser import peek
from fmeco.config.run_config import PLUGIN_SECTIONS, Choice
from fmeco.core.data import DECODE_RULE, DataSpec
from fmeco.core.model import Published
from fmeco.data.spec_reader import reader_module, show_preprocessing
from fmeco.download import fetch
from fmeco.errors import CheckpointError, ConfigError, FmecoError, clean, known_errors, listing, nearest
from fmeco.files import absence
from fmeco.log import say
from fmeco.plugins.registry import plugins, require

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


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


_sources: dict[tuple[str, str], Source] | None = None  # cache of `held`; None = do not cache


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Cache the results of `resolve` inside the `with` block, so that several runs read and verify a source once."""
    global _sources
    outer, _sources = _sources, _sources if _sources is not None else {}
    try:
        yield
    finally:
        _sources = outer


def find_checkpoint(ref: str | Path) -> checkpoint.Checkpoint:
    """Open the checkpoint at a path: a checkpoint directory, or the best one of a run directory.

    Raises ConfigError if the path does not exist, and CheckpointError if it is not a valid checkpoint.
    """
    path = pointers.follow(Path(ref))
    if not path.exists():
        runs = [str(run) for run in Path("runs").glob("*")]
        raise ConfigError(
            f"{clean(ref)}: no such run, checkpoint or file{nearest(str(ref), runs)}",
            "a REF is a path; pretrain, finetune, probe and rank also accept published weights: torchvision/resnet18@DEFAULT",
        )
    if not path.is_dir():
        what = "it is a file" if path.is_file() else absence(path)
        raise CheckpointError(f"{clean(ref)}: {what}, and not the directory of a run or checkpoint")
    if not (path / checkpoint.MANIFEST).exists():
        found = pointers.find(path / "checkpoints" if (path / "checkpoints").is_dir() else path, "best")
        if found is None:
            if (path / "config.yaml").exists():
                raise CheckpointError(f"{clean(ref)} has no checkpoint yet", f"fmeco resume {clean(ref)}")
            runs = [str(run.parent) for run in sorted(path.glob("*/config.yaml"))]
            hint = f"it holds the runs {listing(runs)}" if runs else ""
            raise CheckpointError(
                f"{clean(ref)} is neither a run nor a checkpoint: it holds no {checkpoint.MANIFEST}", hint
            )
        path = found
    return checkpoint.open_checkpoint(path.resolve())


def check_needs(saved: checkpoint.Checkpoint, ref: str | Path, *kinds: str) -> None:
    """Raise ConfigError if a plug-in of these kinds that the checkpoint needs is missing."""
    needs = (str(need).partition("/") for need in saved.meta["needs"])
    require(clean(ref), [(kind, name) for kind, _, name in needs if kind in kinds])


def spec_of(saved: checkpoint.Checkpoint) -> DataSpec:
    """Return the data description of a checkpoint, checked by the dataset plug-in that reads it. Raises CheckpointError."""
    spec = saved.spec
    try:
        declared = getattr(reader_module(spec), "SPEC", None)
    except ConfigError:  # the plug-in is not loaded, so it is not used either
        declared = None
    if declared is not None:
        check(declared, saved.meta["spec"], saved.path / checkpoint.META, "spec")
    return spec


def section_of(saved: checkpoint.Checkpoint, name: str) -> Choice:
    """Check the section of a plug-in in a checkpoint's config. Raises CheckpointError that names the wrong keys."""
    try:
        return choose(name, saved.meta["config"][name])
    except ConfigError as error:
        raise CheckpointError(f"{saved.path / checkpoint.META}: config: {error.message}", *error.hints) from None


@contextlib.contextmanager
def rebuilding(saved: checkpoint.Checkpoint) -> Iterator[None]:
    """Turn a failure to build the model of a checkpoint, within the context, into a CheckpointError.

    Errors that fmeco names already stay as they are, and so do all errors if the model needs plug-ins of others.
    """
    try:
        with known_errors():
            yield
    except FmecoError:
        raise
    except Exception as error:
        if saved.meta["needs"]:
            raise
        raise CheckpointError(
            f"{saved.path / checkpoint.META}: no model can be built from its config and spec: "
            f"{type(error).__name__}: {clean(error, 200)}",
            HINT,
        ) from error


def check_run(run: Path) -> None:
    """Raise ConfigError if a plug-in that the run's config names is missing. A resume needs all of them."""
    sections = peek(run / "config.yaml")
    require(clean(run), [named for key, kind in PLUGIN_SECTIONS.items() for named in _named(kind, sections.get(key))])


def _named(kind: str, section: Any) -> Iterator[tuple[str, str]]:
    """Yield (kind, name) of the plug-in that a config section names, and of the plug-ins of its nested sections."""
    name = section.get("strategy" if kind == "strategies" else "name") if isinstance(section, Mapping) else None
    if isinstance(name, str):
        yield kind, name
        plugin = plugins(kind).get(name.partition("/")[0])
        for key, inner in plugin.nested.items() if plugin is not None else ():
            for nested in (section.get(key) or {}).values():
                yield from _named(inner, nested)


def resolve(ref: str, backbone: Choice | None) -> Source:
    """Load the weights that a REF names.

    backbone: backbone section of the config. A file of another tool needs it; for other weights it may be None.

    Raises ConfigError, CheckpointError and ResourceError.
    """
    if _sources is None:
        return _resolve(ref, backbone)
    key = (ref, repr(backbone))
    if key not in _sources:
        _sources[key] = _resolve(ref, backbone)
    return _sources[key]


def _resolve(ref: str, backbone: Choice | None) -> Source:
    """Load the weights that a REF names, without the cache of `held`."""
    path = pointers.follow(Path(ref))
    if path.is_file():
        return _file(path, ref, backbone)
    if path.exists() or "@" not in ref:
        return _saved(ref, backbone)
    name, _, weights = ref.partition("@")
    chosen = choose("backbone", {"name": name})
    if backbone is None:
        return published(completed(chosen), weights)
    if backbone.spelled != chosen.spelled:
        raise ConfigError(f"the config's backbone ({backbone.spelled}) contradicts {clean(ref)}")
    return published(backbone, weights)


def _file(path: Path, ref: str, backbone: Choice | None) -> Source:
    """Load the weights in a file of another tool."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{clean(ref)} is not a file of weights", f"supported suffixes: {', '.join(SUFFIXES)}")
    if backbone is None:
        raise ConfigError(
            f"{clean(ref)} does not state its architecture",
            "add the line `backbone: NAME` to the config, or --set backbone=NAME; `fmeco list backbones` shows the names",
        )
    describe = getattr(backbone.plugin.load(), "preprocessing", None)
    spec = describe(backbone.arch) if describe is not None else None
    whose = f"that of {backbone.spelled}"
    if spec is None:
        whose, spec = _assumed(backbone, ref)
    say(f"{path.name} does not state its preprocessing; assuming {whose} ({show_preprocessing(spec)})")
    return Source(str(path), backbone, foreign.read_foreign(path), _decoded_anew(spec))


def _saved(ref: str, backbone: Choice | None) -> Source:
    """Load the backbone of a run or checkpoint. Raises ConfigError if the config's backbone differs from it."""
    saved = find_checkpoint(ref)
    check_needs(saved, ref, "backbones")
    raw = saved.meta["config"].get("backbone")
    if raw is None:
        raise CheckpointError(
            f"{clean(ref)} was made with a backbone given in Python: {listing(saved.meta['needs'])}",
            "pass it again: fmeco.finetune(..., backbone=...)",
        )
    chosen = section_of(saved, "backbone")
    if backbone is not None and (backbone.spelled != chosen.spelled or _structure(backbone) != _structure(chosen)):
        raise ConfigError(
            f"the config's backbone ({backbone.spelled} {dict(backbone.options)}) contradicts the checkpoint's "
            f"({chosen.spelled} {dict(chosen.options)})",
            "remove `backbone:` from the config: the checkpoint's is used",
        )
    return Source(str(ref), chosen, saved.tensors("backbone"), spec_of(saved), saved, saved.meta["licence"])


def published(backbone: Choice, weights: str) -> Source:
    """Load the weights that a library publishes for an architecture; download them once.

    Files are hashed on every load. If the publisher states no hash, the hash is only shown; no file can run code.

    Raises ConfigError, CheckpointError and ResourceError.
    """
    find = getattr(backbone.plugin.load(), "pretrained", None)
    if find is None or backbone.arch is None:
        raise ConfigError(f"the backbone {backbone.spelled} has no published weights")
    release = Published(*find(backbone.arch, weights))
    ref = f"{backbone.spelled}@{weights}"
    note, spec = "preprocessing of these weights", release.spec
    if spec is None:
        whose, spec = _assumed(backbone, ref)
        note = f"these weights do not state their preprocessing; assuming {whose}"
    state: dict[str, Tensor] = {}
    for url in (release.url, *release.shards):
        remote = "://" in url
        path = fetch(url, release.digits) if remote else Path(url)
        if remote and not release.digits:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            say(f"{ref}: the publisher states no hash to compare with; SHA-256 {digest}")
        part = foreign.read_foreign(path)
        if twice := sorted(set(part) & set(state)):
            raise CheckpointError(f"{path} and another file of these weights both hold {listing(twice, 5)}")
        state |= part
    say(f"{ref}: {note}: {show_preprocessing(spec)}" + (f"; licence: {release.licence}" if release.licence else ""))
    return Source(ref, backbone, state, _decoded_anew(spec), licence=release.licence)


def _decoded_anew(spec: DataSpec) -> DataSpec:
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


def _assumed(backbone: Choice, ref: str) -> tuple[str, DataSpec]:
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


def _structure(backbone: Choice) -> dict[str, Any]:
    """Return the options that define the architecture, without `weights`, which only says where values come from."""
    return {key: value for key, value in backbone.options.items() if key != "weights"}
