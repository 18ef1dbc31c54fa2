"""Find the weights that a REF names: of a run, a checkpoint, a foreign file, or published by a library."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fmeco.checkpoints import foreign
from fmeco.checkpoints import format as checkpoint
from fmeco.config.check import choose
from fmeco.config.parser import peek
from fmeco.config.run_config import PLUGIN_SECTIONS, Choice
from fmeco.core.data import DataSpec
from fmeco.core.model import Published
from fmeco.data.spec_reader import show_preprocessing
from fmeco.download import fetch
from fmeco.errors import CheckpointError, ConfigError, clean, listing, nearest
from fmeco.log import say
from fmeco.plugins.registry import plugins, require

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Source:
    """Weights to start from, and how their inputs were made."""

    ref: str
    backbone: Choice | None  # None where it is an object that was passed
    state: Mapping[str, Tensor]  # the backbone's tensors
    spec: DataSpec  # of a checkpoint: everything; of a foreign file: preprocessing only
    checkpoint: checkpoint.Checkpoint | None = None  # None for foreign weights
    licence: str | None = None  # of the weights, where their publisher states one


_held: dict[tuple[str, str], Source] | None = None


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Read and verify a source that several runs start from once; it is kept until the end of the `with` block."""
    global _held
    outer, _held = _held, _held if _held is not None else {}
    try:
        yield
    finally:
        _held = outer


def find_checkpoint(ref: str | Path) -> checkpoint.Checkpoint:
    """Open the checkpoint that a run directory (its best) or a checkpoint directory names. Raises ConfigError when there
    is none, CheckpointError when it is not whole."""
    path = Path(ref)
    if not path.exists():
        runs = [str(run) for run in Path("runs").glob("*")]
        raise ConfigError(
            f"{clean(ref)}: no such run, checkpoint or file{nearest(str(ref), runs)}",
            "a REF is a path; pretrain, finetune, probe and rank also take published weights, such as torchvision/resnet18@DEFAULT",
        )
    if path.is_dir() and not (path / checkpoint.MANIFEST).exists():
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        path = next((folder / name for name in ("best", "last") if (folder / name).exists()), path)
        if path == Path(ref):
            if (path / "config.yaml").exists():
                raise CheckpointError(f"{clean(ref)} has no checkpoint yet", f"fmeco resume {clean(ref)}")
            runs = [str(run.parent) for run in sorted(path.glob("*/config.yaml"))]
            hint = f"it holds the runs {listing(runs)}" if runs else ""
            raise CheckpointError(
                f"{clean(ref)} is neither a run nor a checkpoint: it holds no {checkpoint.MANIFEST}", hint
            )
    return checkpoint.open_checkpoint(path.resolve())


def check_needs(found: checkpoint.Checkpoint, ref: str | Path, *kinds: str) -> None:
    """Raise ConfigError where the checkpoint was made with plug-ins of these kinds that are not there."""
    needs = (str(need).partition("/") for need in found.meta.get("needs", []))
    require(clean(ref), [(kind, name) for kind, _, name in needs if kind in kinds])


def check_run(run: Path) -> None:
    """Raise ConfigError where the run's config names plug-ins that are not there. To go on, it needs all of them."""
    sections = peek(run / "config.yaml")
    require(clean(run), [named for key, kind in PLUGIN_SECTIONS.items() for named in _named(kind, sections.get(key))])


def _named(kind: str, section: Any) -> Iterator[tuple[str, str]]:
    """(kind, name) of the plug-in that a section of a run's config names, and of those of the sections within it."""
    name = section.get("strategy" if kind == "strategies" else "name") if isinstance(section, Mapping) else None
    if isinstance(name, str):
        yield kind, name
        plugin = plugins(kind).get(name.partition("/")[0])
        for key, inner in plugin.nested.items() if plugin is not None else ():
            for one in (section.get(key) or {}).values():
                yield from _named(inner, one)


def resolve(ref: str, backbone: Choice | None) -> Source:
    """Find the weights that REF names. `backbone` is the config's, needed for foreign files alone.

    Raises ConfigError, CheckpointError, ResourceError.
    """
    if _held is None:
        return _resolve(ref, backbone)
    key = (ref, repr(backbone))
    if key not in _held:
        _held[key] = _resolve(ref, backbone)
    return _held[key]


def _resolve(ref: str, backbone: Choice | None) -> Source:
    path = Path(ref)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ConfigError(f"{clean(ref)} is not a file of weights", f"known: {', '.join(SUFFIXES)}")
        if backbone is None:
            raise ConfigError(
                f"{clean(ref)} does not say which architecture it belongs to",
                "add the line `backbone: NAME` to the config, or --set backbone=NAME; `fmeco list backbones` shows the names",
            )
        describe = getattr(backbone.plugin.load(), "preprocessing", None)
        spec = describe(backbone.arch) if describe is not None else None
        if spec is None:
            whose, spec = _assumed(backbone, ref)
            say(f"{path.name} holds no preprocessing: {whose} is assumed ({show_preprocessing(spec)})")
        else:
            say(f"{path.name} holds no preprocessing: that of {backbone.spelled} is taken ({show_preprocessing(spec)})")
        return Source(str(path), backbone, foreign.read_foreign(path), spec)
    if path.exists() or "@" not in ref:
        found = find_checkpoint(ref)
        check_needs(found, ref, "backbones")
        raw = found.meta["config"].get("backbone")
        if raw is None:
            raise CheckpointError(
                f"{clean(ref)} was made with a backbone given in Python: {found.meta.get('needs')}",
                "hand it in again: fmeco.finetune(..., backbone=...)",
            )
        own = choose("backbone", raw)
        if backbone is not None and (backbone.spelled != own.spelled or _structure(backbone) != _structure(own)):
            raise ConfigError(
                f"the config's backbone ({backbone.spelled} {dict(backbone.options)}) contradicts the checkpoint's "
                f"({own.spelled} {dict(own.options)})",
                "leave `backbone:` out: the checkpoint knows it",
            )
        return Source(str(ref), own, found.tensors("backbone"), found.spec, found, found.meta.get("licence"))
    name, _, weights = ref.partition("@")
    own = choose("backbone", {"name": name})
    if backbone is None:
        own = completed(own)
    else:
        if backbone.spelled != own.spelled:
            raise ConfigError(f"the config's backbone ({backbone.spelled}) contradicts {clean(ref)}")
        own = backbone
    return published(own, weights)


def published(backbone: Choice, weights: str) -> Source:
    """Download the library's own weights for an architecture once; they are hashed in full on every load. A hash that the
    publisher does not state cannot be compared: it is shown, and the file runs no code either way."""
    find = getattr(backbone.plugin.load(), "pretrained", None)
    if find is None or backbone.arch is None:
        raise ConfigError(f"the backbone {backbone.spelled} has no published weights")
    found = Published(*find(backbone.arch, weights))
    ref = f"{backbone.spelled}@{weights}"
    said, spec = "preprocessing of these weights", found.spec
    if spec is None:
        whose, spec = _assumed(backbone, ref)
        said = f"they hold no preprocessing; {whose} is assumed"
    state: dict[str, Tensor] = {}
    for url in (found.url, *found.shards):
        remote = "://" in url
        path = fetch(url, found.digits) if remote else Path(url)
        if remote and not found.digits:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            say(f"{ref}: its publisher states no hash to compare with; SHA-256 {digest}")
        part = foreign.read_foreign(path)
        if twice := sorted(set(part) & set(state)):
            raise CheckpointError(f"{path} holds tensors that another file of these weights has: {listing(twice, 5)}")
        state |= part
    say(f"{ref}: {said}: {show_preprocessing(spec)}" + (f"; licence: {found.licence}" if found.licence else ""))
    return Source(ref, backbone, state, spec, licence=found.licence)


def completed(backbone: Choice) -> Choice:
    """Write into the backbone's options what the name of its architecture stands for, where that lies outside of fmeco and
    its libraries: a checkpoint must describe its model by itself."""
    complete = getattr(backbone.plugin.load(), "complete", None)
    if complete is None:
        return backbone
    return dataclasses.replace(backbone, options=complete(backbone.arch, dict(backbone.options)))


def _assumed(backbone: Choice, ref: str) -> tuple[str, DataSpec]:
    """Ask the backbone's plug-in what to assume of weights that do not say how their inputs were prepared, and whose way
    that is. Raises ConfigError where it assumes nothing."""
    assume = getattr(backbone.plugin.load(), "assumed", None)
    if assume is None:
        raise ConfigError(
            f"{clean(ref)} does not say how its inputs were prepared, nor does the backbone {backbone.spelled}",
            "a function preprocessing(arch) -> DataSpec in the file of its plug-in can say it",
        )
    whose, spec = assume()
    return whose, spec


def _structure(backbone: Choice) -> dict[str, Any]:
    """Give the options without `weights`, which say where values come from, not what the model is."""
    return {key: value for key, value in backbone.options.items() if key != "weights"}
