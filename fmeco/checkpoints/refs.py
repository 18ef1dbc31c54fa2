"""Resolve a REF to weights: of a run, a checkpoint, another tool's file, or published by a library."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmeco.checkpoints import carried, pointers
from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints.foreign import shards
from fmeco.checkpoints.foreign.files import SUFFIXES
from fmeco.checkpoints.schema import HINT, check
from fmeco.checkpoints.sources import Source, assumed, completed, decoded_anew, described, published, read_all
from fmeco.config.check import choose
from fmeco.config.parser import peek, scalar
from fmeco.config.run_config import PLUGIN_SECTIONS, Choice
from fmeco.core.data import DataSpec
from fmeco.data.spec_reader import reader_module, show_preprocessing
from fmeco.errors import CheckpointError, ConfigError, FmecoError, clean, known_errors, listing, nearest
from fmeco.files import absence
from fmeco.log import say
from fmeco.plugins.registry import plugins, require

NO_HEAD = "this command needs a run or a checkpoint, which has a trained head and knows its data"
TAKERS = (
    "finetune and pretrain (--from), check, probe, rank, embed and info take such weights; a file needs --set backbone=NAME, "
    "except for info"
)


_sources: dict[tuple[str, str, str], Source] | None = None  # cache of `held`; None = do not cache


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
        if _is_published(str(ref)):
            raise ConfigError(f"{clean(ref)} names published weights: {NO_HEAD}", TAKERS)
        runs = [str(run) for run in Path("runs").glob("*")]
        raise ConfigError(
            f"{clean(ref)}: no such run, checkpoint or file{nearest(str(ref), runs)}",
            "a REF is a path; pretrain, finetune, probe and rank also accept published weights: torchvision/resnet18@DEFAULT",
        )
    if not path.is_dir():
        if path.is_file():
            raise _no_checkpoint(path, ref)
        what = absence(path)
        raise CheckpointError(f"{clean(ref)}: {what}, and not the directory of a run or checkpoint")
    if not (path / checkpoint.MANIFEST).exists():
        found = pointers.find(path / "checkpoints" if (path / "checkpoints").is_dir() else path, "best")
        if found is None:
            if (path / "config.yaml").exists():
                raise CheckpointError(f"{clean(ref)} has no checkpoint yet", f"fmeco resume {clean(ref)}")
            if _has_weights(path) and not carried.is_carried(path):
                raise _no_checkpoint(path, ref)
            runs = [str(run.parent) for run in sorted(path.glob("*/config.yaml"))]
            hint = f"it holds the runs {listing(runs)}" if runs else ""
            if carried.is_carried(path):
                hint = (
                    "it holds published weights without a head: pretrain, finetune, check, probe, rank and info take it"
                )
            raise CheckpointError(
                f"{clean(ref)} is neither a run nor a checkpoint: it holds no {checkpoint.MANIFEST}", hint
            )
        path = found
    return checkpoint.open_checkpoint(path.resolve())


def _no_checkpoint(path: Path, ref: str | Path) -> FmecoError:
    """Make the error for a path that a command takes for a run or checkpoint, and that holds other weights, or none."""
    if path.is_file() and shards.find_weights(path) is None:
        return CheckpointError(f"{clean(ref)}: it is a file, and not the directory of a run or checkpoint")
    what = "is a file of weights" if path.is_file() else "is a folder with weights of another tool"
    return CheckpointError(f"{clean(ref)} {what}: {NO_HEAD}", TAKERS)


def is_bare(ref: str | Path) -> bool:
    """Tell whether a REF names weights that no run of fmeco made: a file, a folder of another tool, or published ones."""
    path = pointers.follow(Path(ref))
    return _is_published(str(ref)) if not path.exists() else weights_of_others(path) is not None


def weights_of_others(path: Path) -> Path | None:
    """Return the weights in a file or folder of another tool; None if there are none, or it is a run or checkpoint, or holds runs."""
    ours = [path / name for name in (checkpoint.MANIFEST, "config.yaml", "checkpoints")]
    if any(file.exists() for file in ours) or any(path.glob("*/config.yaml")):
        return None
    return shards.find_weights(path)


def _has_weights(path: Path) -> bool:
    """Tell whether a folder holds weights of another tool, if only several that a REF must choose from."""
    try:
        return weights_of_others(path) is not None
    except ConfigError:
        return True


def _is_published(ref: str) -> bool:
    """Tell whether a REF is spelled as published weights, SOURCE/ARCH@WEIGHTS, of a backbone that there is."""
    name, at, _ = ref.partition("@")
    with contextlib.suppress(FmecoError):
        return bool(at) and choose("backbone", {"name": name}).arch is not None
    return False


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


def objective_of(saved: checkpoint.Checkpoint, overrides: Sequence[str]) -> Choice:
    """Check the objective of a checkpoint, with keys changed that say how it answers.

    overrides: objective.KEY=VALUE, of keys that the objective's plug-in lists as ANSWERING. Raises ConfigError for others.
    """
    chosen = section_of(saved, "objective")
    free, changed = chosen.plugin.answering, dict(saved.meta["config"]["objective"])
    for item in overrides:
        path, sign, value = item.partition("=")
        key = path.strip().removeprefix("objective.")
        if not sign or key not in free:
            names = listing([f"objective.{name}" for name in free])
            raise ConfigError(
                f"--set {clean(item)}: a trained model's answers depend on {names if free else 'no key that can be changed'}",
                *([f"such as --set objective.{free[0]}={changed.get(free[0])}"] if free else []),
            )
        changed[key] = scalar(value)
    return choose("objective", changed) if overrides else chosen


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


def resolve(ref: str, backbone: Choice | None, keys: Mapping[str, Any] | None = None) -> Source:
    """Load the weights that a REF names.

    backbone: backbone section of the config. A file of another tool needs it; for other weights it may be None.
    keys: keys of that section that the config sets; the others are the REF's. None for all.

    Raises ConfigError, CheckpointError and ResourceError.
    """
    if _sources is None:
        return _resolve(ref, backbone, keys)
    key = (ref, repr(backbone), repr(keys))
    if key not in _sources:
        _sources[key] = _resolve(ref, backbone, keys)
    return _sources[key]


def _resolve(ref: str, backbone: Choice | None, keys: Mapping[str, Any] | None) -> Source:
    """Load the weights that a REF names, without the cache of `held`."""
    path = pointers.follow(Path(ref))
    if path.is_file():
        return _file(path, ref, backbone)
    if carried.is_carried(path):
        return _carried(path, ref, backbone, keys)
    if path.is_dir() and (inside := weights_of_others(path)) is not None:
        return _file(inside, ref, backbone)
    if is_local(ref):
        return _saved(ref, backbone, keys)
    return published(*named(ref, backbone, keys))


def is_local(ref: str) -> bool:
    """Tell whether a REF is a path, rather than published weights SOURCE/ARCH@WEIGHTS."""
    return pointers.follow(Path(ref)).exists() or "@" not in ref


def named(ref: str, backbone: Choice | None, keys: Mapping[str, Any] | None = None) -> tuple[Choice, str]:
    """Return the backbone and the name of the weights of a REF SOURCE/ARCH@WEIGHTS.

    backbone: backbone section of the config, if any. Raises ConfigError if it is another one.
    keys: of the backbone, which the config sets without naming it.
    """
    name, _, weights = ref.partition("@")
    if backbone is None:
        return completed(choose("backbone", {"name": name, **(keys or {})})), weights
    chosen = choose("backbone", {"name": name})
    if backbone.spelled != chosen.spelled:
        raise ConfigError(f"the config's backbone ({backbone.spelled}) contradicts {clean(ref)}")
    return backbone, weights


def _carried(path: Path, ref: str, backbone: Choice | None, keys: Mapping[str, Any] | None) -> Source:
    """Load published weights from a folder that `fmeco fetch` wrote. Raises ConfigError if the config's backbone is another one."""
    about, spec, files = carried.read(path)
    require(clean(ref), [("backbones", about["backbone"]["name"])])
    try:
        chosen = choose("backbone", {**about["backbone"], **(keys or {})})
    except ConfigError as error:
        raise CheckpointError(f"{path / carried.ABOUT}: backbone: {error.message}", *error.hints) from None
    if backbone is not None and backbone.spelled != chosen.spelled:
        raise ConfigError(
            f"the config's backbone ({backbone.spelled}) contradicts {clean(ref)} ({chosen.spelled})",
            "remove `backbone:` from the config: the folder's is used",
        )
    say(f"{clean(ref)}: {clean(about['ref'])}: preprocessing of these weights: {described(spec, about['licence'])}")
    return Source(ref, backbone or chosen, read_all(files), decoded_anew(spec), licence=about["licence"])


def _file(path: Path, ref: str, backbone: Choice | None) -> Source:
    """Load the weights in a file of another tool."""
    if shards.find_weights(path) is None:
        raise ConfigError(f"{clean(ref)} is not a file of weights", f"supported suffixes: {', '.join(SUFFIXES)}")
    if backbone is None:
        raise ConfigError(
            f"{clean(ref)} does not state its architecture",
            "add the line `backbone: NAME` to the config, or --set backbone=NAME; `fmeco list backbones` shows the names",
            as_model(path),
        )
    describe = getattr(backbone.plugin.load(), "preprocessing", None)
    spec = describe(backbone.arch) if describe is not None else None
    whose = f"that of {backbone.spelled}"
    if spec is None:
        whose, spec = assumed(backbone, ref)
    say(f"{path.name} does not state its preprocessing; assuming {whose} ({show_preprocessing(spec)})")
    return Source(str(path), backbone, shards.read_weights(path), decoded_anew(spec))


def as_model(path: Path) -> str:
    """Say how to name a folder of another library's model as a REF; "" if `path` is not the weights of one."""
    readers = [plugin.name for plugin in plugins("backbones").values() if plugin.open]
    if not readers or not (path.parent / "config.json").is_file():
        return ""
    folder = os.path.relpath(path.parent)
    folder = os.path.abspath(folder) if folder.startswith("..") else f"./{folder}"
    return f"its folder is a model with a config.json: {clean(f'{readers[0]}/{folder}@DEFAULT')} knows its architecture"


def _resolved(backbone: Choice) -> str:
    """Return the name of a backbone, with the path of a folder in it made absolute."""
    arch = backbone.arch or ""
    is_path = backbone.plugin.open and arch.startswith((".", "/"))
    return f"{backbone.name}/{os.path.realpath(arch)}" if is_path else backbone.spelled


def _saved(ref: str, backbone: Choice | None, keys: Mapping[str, Any] | None) -> Source:
    """Load the backbone of a run or checkpoint. Raises ConfigError if the config names another backbone."""
    saved = find_checkpoint(ref)
    check_needs(saved, ref, "backbones")
    raw = saved.meta["config"].get("backbone")
    if raw is None:
        raise CheckpointError(
            f"{clean(ref)} was made with a backbone given in Python: {listing(saved.meta['needs'])}",
            "pass it again: fmeco.finetune(..., backbone=...)",
        )
    chosen = section_of(saved, "backbone")
    if backbone is not None and _resolved(backbone) != _resolved(chosen):
        raise ConfigError(
            f"the config's backbone ({backbone.spelled}) contradicts the checkpoint's ({chosen.spelled})",
            "remove `backbone:` from the config, or its name: the checkpoint's is used, with the keys that you set",
        )
    if keys is None and backbone is not None:
        keys = backbone.options
    chosen, before = choose("backbone", {**raw, **(keys or {})}), chosen
    for key, old in before.options.items():
        if chosen.options[key] != old and key != "weights":  # which only says where values came from
            say(f"backbone.{key}: {clean(chosen.options[key], 80)} instead of {clean(old, 80)} in {clean(ref)}")
    return Source(str(ref), chosen, saved.tensors("backbone"), spec_of(saved), saved, saved.meta["licence"])
