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
    """Hold what the library does beside the network.

    pooling: how the vectors of tokens become one.
    normalize: whether that vector is divided by its length.
    length: maximum number of tokens of a text; None = not stated.
    lowercase: whether texts are converted to lower case.
    """

    pooling: str
    normalize: bool
    length: int | None
    lowercase: bool


def read_sentence(arch: str) -> Sentence | None:
    """Read the modules of a model; None if it has no modules.json.

    Raises ConfigError that names the file for a module or a way of pooling that fmeco does not have.
    """
    path = local_file(arch, "modules.json")
    if path is None:
        return None
    where = clean(place(arch, "modules.json"))
    modules = _list(read_json(path, kind=list), where)
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise ConfigError(
            f"{where}: its modules are {listing(kinds)}; fmeco has Transformer, Pooling and then perhaps Normalize",
            "to train the Transformer alone, remove modules.json, and choose backbone.pooling",
        )
    described = _read(arch, modules[1], "config.json")
    stated = _read(arch, modules[0], "sentence_bert_config.json")
    length = stated.get("max_seq_length")
    return Sentence(
        pooling=_mode(described, where),
        normalize="Normalize" in kinds,
        length=length if isinstance(length, int) and length > 0 else None,
        lowercase=stated.get("do_lower_case") is True,
    )


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
            "choose one with backbone.pooling, after removing modules.json",
        )
    return MODES[named[0]]
