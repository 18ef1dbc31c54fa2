"""Read how a folder of sentence-transformers turns tokens into one vector per text: modules.json and the files that it names."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, NamedTuple

from fmeco.backbones._hf_published import local_file, place, read_json
from fmeco.core import ConfigError, clean, listing

MODES = {
    "mean": "mean",
    "cls": "first",
    "max": "max",
    "lasttoken": "last",
}  # pooling mode -> the backbone's name for it
WAY_OUT = "to train the Transformer alone, set backbone.pooling and backbone.normalize"
# Keys of older files, each of which turns on one mode.
_OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Sentence(NamedTuple):
    """Describe how the library turns the vectors of tokens into one.

    pooling: way of pooling.
    normalize: whether the vector is divided by its length.
    """

    pooling: str
    normalize: bool


class Limits(NamedTuple):
    """Describe how the library prepares texts.

    length: maximum number of tokens; None = not stated.
    lowercase: whether texts are converted to lower case.
    """

    length: int | None
    lowercase: bool


def read_sentence(arch: str) -> Sentence | None:
    """Read the modules of a text model; None if it has no modules.json, or one without a Transformer at its start.

    Raises ConfigError that names the file for a module or a way of pooling that fmeco does not have.
    """
    where, modules = _modules(arch)
    kinds = [_kind(module) for module in modules]
    if kinds[:1] != ["Transformer"]:
        return None
    if kinds[1:2] != ["Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise ConfigError(
            f"{where}: its modules are {listing(kinds)}; fmeco has Transformer, Pooling and then perhaps Normalize",
            WAY_OUT,
        )
    return Sentence(_mode(_read(arch, modules[1], "config.json"), where), "Normalize" in kinds)


def read_limits(arch: str) -> Limits | None:
    """Read how a text model prepares texts; None if it has no modules.json, or one without a Transformer at its start."""
    _, modules = _modules(arch)
    if not modules or _kind(modules[0]) != "Transformer":
        return None
    stated = _read(arch, modules[0], "sentence_bert_config.json")
    length = stated.get("max_seq_length")
    return Limits(length if isinstance(length, int) and length > 0 else None, stated.get("do_lower_case") is True)


def _modules(arch: str) -> tuple[str, list[dict[str, Any]]]:
    """Read modules.json. Returns (its place, for messages; the modules, [] if there is no such file)."""
    path = local_file(arch, "modules.json")
    where = clean(place(arch, "modules.json"))
    return where, _list(read_json(path, kind=list), where) if path is not None else []


def _kind(module: dict[str, Any]) -> str:
    """Return the class of a module, without its package."""
    return str(module.get("type")).rpartition(".")[2]


def _list(content: Any, where: str) -> list[dict[str, Any]]:
    """Check that modules.json lists modules. Raises ConfigError."""
    if not isinstance(content, list) or not all(isinstance(module, dict) for module in content):
        raise ConfigError(f"{where} is not a list of modules [{{...}}, ...]")
    return content


def _read(arch: str, module: dict[str, Any], name: str) -> dict[str, Any]:
    """Read a file of a module; {} if there is none. Raises ConfigError for a folder outside the model's."""
    folder = PurePosixPath(str(module.get("path") or ""))
    if folder.is_absolute() or ".." in folder.parts:
        raise ConfigError(f"{clean(place(arch, 'modules.json'))}: the path {clean(folder)} leaves the model's folder")
    path = local_file(arch, str(folder / name))
    return read_json(path) if path is not None else {}


def _mode(described: dict[str, Any], where: str) -> str:
    """Return the way of pooling, in the spelling of either version. Raises ConfigError for several, and for unknown ones."""
    modes = described.get("pooling_mode") or [mode for key, mode in _OLD_KEYS.items() if described.get(key) is True]
    named = [modes] if isinstance(modes, str) else list(modes) or ["mean"]
    if len(named) != 1 or named[0] not in MODES:
        raise ConfigError(
            f"{where}: texts are pooled by {listing(map(str, named))}; fmeco has {listing(MODES)}, one at a time",
            WAY_OUT,
        )
    return MODES[named[0]]
