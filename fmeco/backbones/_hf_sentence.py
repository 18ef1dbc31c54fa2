"""Read how a folder of sentence-transformers turns tokens into one vector per text: modules.json and the files that it names."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeGuard

from fmeco.backbones._hf_published import local_file, place, read_json
from fmeco.core import ConfigError, clean, listing

MODES = {
    "mean": "mean",
    "cls": "first",
    "max": "max",
    "lasttoken": "last",
}  # pooling mode -> the backbone's name for it
VECTOR = "sentence_embedding"  # the library's name for the vector of a text
# Names of the file about texts; the later ones are older.
CONFIGS = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)
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
    prompts: name -> text that can be put before each text.
    prompt: the one of them that is used unless the user names another; "" = none.
    """

    length: int | None
    lowercase: bool
    prompts: dict[str, str]
    prompt: str


def read_sentence(arch: str) -> Sentence | None:
    """Read the modules of a text model; None if it has no modules.json.

    Raises ConfigError that names the file for a module or a way of pooling that fmeco does not have.
    """
    where, modules = _modules(arch)
    if not modules:
        return None
    kinds = [_kind(module) for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise ConfigError(
            f"{where}: its modules are {listing(kinds)}; fmeco has Transformer, Pooling and then perhaps Normalize",
            WAY_OUT,
        )
    normalize = len(kinds) == 3
    if normalize and _read(arch, modules[2], "config.json").get("module_input_name", VECTOR) != VECTOR:
        raise ConfigError(f"{where}: Normalize of the vectors of tokens: fmeco normalises only those of texts", WAY_OUT)
    return Sentence(_mode(_read(arch, modules[1], "config.json"), where), normalize)


def read_limits(arch: str, longest: int | None) -> Limits | None:
    """Read how a text model prepares texts; None if it has no modules.json, or one without a Transformer at its start.

    longest: number of positions of the network; None = any.
    Raises ConfigError that names the file for prompts that are not text, or that are left out of the pooling.
    """
    _, modules = _modules(arch)
    if not modules or _kind(modules[0]) != "Transformer":
        return None
    stated = next((found for name in CONFIGS if (found := _read(arch, modules[0], name))), {})
    length = stated.get("max_seq_length")
    if not _is_length(length):  # files of version 6 state it in the tokenizer's
        stated_there = _read(arch, modules[0], "tokenizer_config.json").get("model_max_length")
        length = min((value for value in (stated_there, longest) if _is_length(value)), default=None)
    prompts, prompt = _prompts(arch)
    if prompts and len(modules) > 1 and _read(arch, modules[1], "config.json").get("include_prompt") is False:
        if prompt:
            raise ConfigError(
                f"{clean(place(arch, 'modules.json'))}: Pooling leaves out the prompt (include_prompt), which fmeco does not do"
            )
        prompts = {}
    return Limits(length, stated.get("do_lower_case") is True, prompts, prompt)


def _is_length(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and 0 < value < 1 << 20  # the library writes 10^30 for tokenizers without a limit


def _prompts(arch: str) -> tuple[dict[str, str], str]:
    """Read a model's prompts. Returns (name -> text, the default prompt). Raises ConfigError for a file that is not valid."""
    path = local_file(arch, "config_sentence_transformers.json")
    if path is None:
        return {}, ""
    stated = read_json(path)
    prompts, default = stated.get("prompts") or {}, stated.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise ConfigError(f"{clean(path)}: prompts is not a mapping of names to texts")
    if default is not None and default not in prompts:
        raise ConfigError(f"{clean(path)}: default_prompt_name is {clean(default)}, which prompts does not have")
    texts = {name: text or "" for name, text in prompts.items()}
    return texts, texts[default] if default is not None else ""


def _modules(arch: str) -> tuple[str, list[dict[str, Any]]]:
    """Read modules.json. Returns (its place, for messages; the modules, [] if there is no such file)."""
    path = local_file(arch, "modules.json")
    where = clean(place(arch, "modules.json"))
    return where, _list(read_json(path, kind=list), where) if path is not None else []


def _kind(module: dict[str, Any]) -> str:
    """Return the class of a module; of a package other than the library's, with its package."""
    package, _, name = str(module.get("type")).rpartition(".")
    return name if package.partition(".")[0] == "sentence_transformers" else clean(f"{package}.{name}")


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
