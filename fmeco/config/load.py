"""Read a config from a YAML file or mapping, options of the command line, and --set; later ones override earlier ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmeco.config.check import Check
from fmeco.config.dataset_argument import section_for_training
from fmeco.config.parser import Marks, parse_yaml, peek, read_tree
from fmeco.config.run_config import RunConfig, Stage
from fmeco.errors import ConfigError, clean


def load_config(
    source: Path | Mapping[str, Any] | None,
    *,
    stage: Stage | None = None,
    overrides: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
    name: str | None = None,
    own_backbone: bool = False,
) -> RunConfig:
    """Read and check a config.

    source: YAML file, mapping (from the Python API), or None (all defaults).
    stage: command that the config is for; None = read it from the config.
    overrides: `a.b=c` strings of --set.
    given: sections set by command-line options (--dataset, --from); they override the file, and --set overrides them.
    name: name of the run; None = the file's stem, or the dataset's name.
    own_backbone: the caller passes the backbone as an object; the config's is ignored.

    Raises ConfigError that lists all mistakes.
    """
    tree, marks = read_tree(source)
    problems: list[str] = []
    for key, value in (given or {}).items():
        tree[key] = value
        marks = {path: mark for path, mark in marks.items() if path[:1] != (key,)}
        marks[key,] = "command line"
    stage = stage or _stage(tree)  # before --set, which changes keys of a run, not what it is
    for item in overrides:
        _override(tree, marks, item, problems)
    if own_backbone:
        _drop_backbone(tree, overrides, problems)
    stem = source.stem if isinstance(source, Path) else None
    config = Check(marks, problems, stage).run(tree, name or stem, own_backbone)
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    return config


def read_config(
    source: Path | str | Mapping[str, Any] | None,
    *,
    stage: Stage | None = None,
    ref: str | Path | None = None,
    dataset: str | Path | None = None,
    overrides: Sequence[str] = (),
    name: str | None = None,
    own_backbone: bool = False,
    allow_partial: bool = False,
) -> RunConfig:
    """Read and check a run's config, with the options of the command line.

    ref: REF of --from.
    dataset: X of --dataset.
    allow_partial: --allow-partial.
    source, stage, overrides, name, own_backbone: as in `load_config`.

    Raises ConfigError that lists all mistakes.
    """
    given: dict[str, Any] = {}
    if ref is not None:
        given["from"] = str(ref)
    if dataset is not None:
        given["dataset"] = section_for_training(str(dataset), ref, crossing=_crosses(source, overrides))
    config = load_config(
        Path(source) if isinstance(source, str) else source,
        stage=stage,
        overrides=overrides,
        given=given,
        name=name,
        own_backbone=own_backbone,
    )
    if allow_partial:
        config = dataclasses.replace(config, carry=config.carry.model_copy(update={"allow_partial": True}))
    if config.stage == "finetune" and config.source is None and not own_backbone:
        raise ConfigError(
            "finetuning needs weights to start from: --from REF",
            "REF is a run, a checkpoint, a file of weights, or SOURCE/ARCH@WEIGHTS",
        )
    return config


def _crosses(source: Path | str | Mapping[str, Any] | None, overrides: Sequence[str]) -> bool:
    """Tell whether a config or --set allows weights of another modality, before either is checked."""
    tree = peek(Path(source)) if isinstance(source, str | Path) else source or {}
    section = tree.get("transfer")
    in_file = isinstance(section, Mapping) and section.get("cross_modality") is True
    return in_file or any(item.replace(" ", "") == "transfer.cross_modality=true" for item in overrides)


def _drop_backbone(tree: dict[str, Any], overrides: Sequence[str], problems: list[str]) -> None:
    """Remove the config's backbone, whose place an object takes. An override of one of its keys is a problem."""
    tree.pop("backbone", None)
    for item in overrides:
        if item.partition("=")[0].strip().partition(".")[0] == "backbone":
            problems.append(f"--set {clean(item)}: the backbone was passed as an object, so its section is not used")


def _stage(tree: Mapping[str, Any]) -> Stage:
    """Find the stage of a config: its key `stage`, otherwise finetune if it has `from` or `transfer`, else pretrain."""
    declared = tree.get("stage")
    if declared in ("pretrain", "finetune"):
        return "finetune" if declared == "finetune" else "pretrain"
    return "finetune" if "from" in tree or "transfer" in tree else "pretrain"


def _override(tree: dict[str, Any], marks: Marks, item: str, problems: list[str]) -> None:
    """Apply one `a.b=c` of --set to the tree. Adds mistakes to `problems`.

    A section that is a bare name becomes a mapping before a key in it is set. Setting a whole section replaces it.
    """
    where = f"--set {clean(item)}"
    key, equals, text = item.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        problems.append(f"{where}: write it as --set section.key=value")
        return
    try:
        value, _ = parse_yaml(text, where)
    except ConfigError as error:
        problems.append(error.message)
        return
    target = tree
    for part in path[:-1]:
        inner = target.get(part)
        if isinstance(inner, str):
            inner = {"strategy" if part == "transfer" else "name": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            problems.append(f"{where}: '{part}' is not a section")
            return
        target[part] = inner
        target = inner
    target[path[-1]] = None if text == "" else value
    for old in [mark for mark in marks if mark[: len(path)] == path]:
        del marks[old]
    marks[path] = where
