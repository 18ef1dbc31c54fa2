"""Read a config: a YAML file or a mapping, the command line's sections, and --set, in that order of strength."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fmeco.config.check import Check
from fmeco.config.dataset_argument import dataset_section
from fmeco.config.parser import Marks, parse_yaml
from fmeco.config.run_config import Choice, RunConfig
from fmeco.errors import ConfigError, clean, nearest


def load_config(
    source: Path | Mapping[str, Any] | None,
    *,
    stage: Literal["pretrain", "finetune"] | None = None,
    overrides: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> RunConfig:
    """Read and check a config.

    source: a YAML file, a mapping (the Python API), or None (all defaults). overrides: `a.b=c` strings of --set.
    given: sections that the command line itself sets (--dataset, --from), stronger than the file, weaker than --set.
    stage: what the config is for; None reads it from the config.
    Raises ConfigError that lists every mistake.
    """
    tree, marks = _source(source)
    problems: list[str] = []
    for key, value in (given or {}).items():
        tree[key] = value
        marks = {path: mark for path, mark in marks.items() if path[:1] != (key,)}
        marks[key,] = "command line"
    for item in overrides:
        _override(tree, marks, item, problems)
    if stage is None:
        stage = _stage(tree)
    check = Check(marks, problems)
    config = check.run(tree, stage)
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    stem = source.stem if isinstance(source, Path) else None
    if name is None:
        name = stem or (
            Path(str(config.dataset.options.get("path") or config.dataset.arch or config.dataset.name)).stem
            if config.dataset
            else "run"
        )
    return config.replace(name=re.sub(r"[^A-Za-z0-9._-]+", "-", name) or "run")


def read_config(
    source: Path | str | Mapping[str, Any] | None,
    *,
    stage: Any = None,
    ref: str | Path | None = None,
    dataset: str | None = None,
    overrides: Sequence[str] = (),
    name: str | None = None,
    own_backbone: bool = False,
    allow_partial: bool = False,
) -> RunConfig:
    """Read the config of a run from what the command line gives. Raises ConfigError.

    stage: None is finetune for a config that starts from a checkpoint, else pretrain.
    """
    given: dict[str, Any] = {}
    if ref is not None:
        given["from"] = str(ref)
    if dataset is not None:
        own = peek(Path(ref) / "config.yaml").get("dataset") if ref is not None else None
        given["dataset"] = dataset_section(dataset, str(own.get("name")) if isinstance(own, dict) else None)
    if own_backbone:
        given["backbone"] = None
    if isinstance(source, str):
        source = Path(source)
    if own_backbone and stage != "finetune":
        given["backbone"] = "mlp"  # a place holder: the object that was handed in takes its place
    settings = load_config(source, stage=stage, overrides=overrides, given=given, name=name)
    if own_backbone:
        settings = settings.replace(backbone=None)
    if allow_partial:
        settings = settings.replace(carry=settings.carry.model_copy(update={"allow_partial": True}))
    if settings.stage == "finetune" and settings.source is None and not own_backbone:
        raise ConfigError(
            "finetuning starts from a checkpoint: --from REF",
            "REF is a run, a checkpoint, a file of weights, or SOURCE/ARCH@WEIGHTS",
        )
    return settings


def peek(file: Path) -> dict[str, Any]:
    """The sections of a file as they are, to see what it is about; {} when it is not a config."""
    try:
        return _source(file)[0]
    except ConfigError:
        return {}


def choose(section: str, raw: Any) -> Choice:
    """One plug-in section by itself, as `load_config` reads it. Raises ConfigError."""
    check = Check({}, [])
    chosen = check._choice({section: raw}, section)
    if chosen is None:
        raise ConfigError("\n".join(check.problems))
    return chosen


def _stage(tree: Mapping[str, Any]) -> Literal["pretrain", "finetune"]:
    """What a config is for: what it says, else finetuning if it starts from a checkpoint."""
    written = tree.get("stage")
    if written in ("pretrain", "finetune"):
        return "finetune" if written == "finetune" else "pretrain"
    return "finetune" if "from" in tree or "transfer" in tree else "pretrain"


def _source(source: Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], Marks]:
    if source is None:
        return {}, {}
    if not isinstance(source, Path):
        return _deep_copy(source), {}
    try:
        text = source.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        siblings = [str(path) for path in source.parent.glob("*.y*ml")] if source.parent.is_dir() else []
        raise ConfigError(f"{clean(source)}: no such config file{nearest(str(source), siblings)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}") from None
    tree, marks = parse_yaml(text, str(source))
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: a config is a mapping of sections, as in `dataset: {{name: digits}}`")
    return tree, marks


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _deep_copy(item) for key, item in value.items()}
    return [_deep_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _override(tree: dict[str, Any], marks: Marks, item: str, problems: list[str]) -> None:
    """Apply one `a.b=c`: bare strings are expanded first, setting a section replaces it."""
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
