"""Find and read the files of a published model in a folder or on the hub: config, weights, licence."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from fmeco import files
from fmeco.backbones._hf_config import strip_config
from fmeco.core import ConfigError, clean
from fmeco.errors import ResourceError

HUB = "https://huggingface.co/{}/resolve/main/{}"
LIMIT = 4 << 20  # largest JSON file, in bytes; a config may list thousands of classes


def is_folder(arch: str) -> bool:
    """Tell whether a name is a folder (it begins with . or /) rather than a model of the hub."""
    return arch.startswith((".", "/"))


def place(arch: str, name: str) -> str:
    """Return the path or hub address of a model's file."""
    return os.path.join(arch, name) if is_folder(arch) else HUB.format(arch, name)


def local_file(arch: str, name: str) -> Path | None:
    """Return the local path of a model's file, downloading it if needed; None if the model has no such file.

    Raises ConfigError for a name that the hub cannot have, ResourceError if the download fails.
    """
    from fmeco.download import NotPublished, get

    where = place(arch, name)
    if is_folder(arch):
        return Path(where) if os.path.isfile(where) else None
    try:
        return get(_hub_file(arch, name))
    except NotPublished:
        return None


def has_file(arch: str, name: str) -> bool:
    """Tell whether a model has a file, without downloading it. Raises the errors of `local_file`."""
    from fmeco.download import exists

    return os.path.isfile(place(arch, name)) if is_folder(arch) else exists(_hub_file(arch, name))


def _hub_file(arch: str, name: str) -> Any:
    """Describe a file of the hub, as fmeco.download does. Raises ConfigError for a name that the hub cannot have."""
    from fmeco.download import weights_file

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", arch):
        raise ConfigError(
            f"hf/{clean(arch)}: not a valid model name of the hub", "a folder is written hf/./FOLDER or hf//FOLDER"
        )
    return weights_file(place(arch, name), name=name, bring=f"fmeco fetch hf/{arch}@DEFAULT --out FOLDER")


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON file that holds an object, or a list if `kind` is list. Raises ConfigError that names the file."""
    try:
        content = files.read_json(path, LIMIT)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{clean(path)} cannot be read as JSON: {clean(error)}") from None
    if not isinstance(content, kind):
        raise ConfigError(f"{clean(path)} is not a JSON {'object {...}' if kind is dict else 'list [...]'}")
    return content


def read_config(arch: str) -> dict[str, Any]:
    """Read the architecture from a model's config.json (`strip_config`). Raises ConfigError that names the file."""
    where = place(arch, "config.json")
    if is_folder(arch) and not os.path.isdir(arch):
        raise ConfigError(f"hf/{clean(arch)}: no such folder")
    try:
        path = local_file(arch, "config.json")
    except ResourceError as error:
        folder = f"the folder {clean(arch)} is written hf/./{clean(arch)}" if os.path.isdir(arch) else ""
        raise ResourceError(error.message, *error.hints, folder) from None
    if path is None:
        raise ConfigError(
            f"{clean(where)}: no such file", "a model is a folder, or a name of the hub, that has a config.json"
        )
    return strip_config(read_json(path), clean(where))


def weight_files(arch: str) -> list[str]:
    """List the file names of a model's weights: model.safetensors or pytorch_model.bin, or the shards of either.

    Raises ConfigError if the model has none of them.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if has_file(arch, name):
            return [name]
        index = local_file(arch, f"{name}.index.json")
        if index is not None:
            return _shards(index, name.rpartition(".")[2])
    raise ConfigError(f"{clean(place(arch, 'model.safetensors'))}: no such file, and no pytorch_model.bin")


def _shards(index: Path, suffix: str) -> list[str]:
    """List the files that an index names. Raises ConfigError for one with another suffix, or outside the folder."""
    by_tensor = read_json(index).get("weight_map")
    names = list(by_tensor.values()) if isinstance(by_tensor, dict) else []
    if not names or not all(isinstance(name, str) and re.fullmatch(rf"[\w-][\w.-]*\.{suffix}", name) for name in names):
        raise ConfigError(f"{clean(index)}: weight_map must name .{suffix} files of the same folder")
    return sorted(set(names))


def licence(arch: str) -> str | None:
    """Read the licence from the YAML header of the model card (README.md); None if it states none."""
    path = local_file(arch, "README.md")
    if path is None:
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        head = re.match(r"---\n(.*?)\n---", file.read(LIMIT), re.DOTALL)
    stated = re.search(r"^license:[ \t]*([\w.-]+)[ \t]*$", head[1], re.MULTILINE) if head else None
    return stated[1] if stated else None
