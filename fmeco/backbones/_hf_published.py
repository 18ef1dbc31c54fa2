"""Find the files of a published model, in a folder or on the hub: config, weights, licence."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from fmeco.backbones._hf_config import strip_config
from fmeco.core import ConfigError, clean
from fmeco.errors import ResourceError

HUB = "https://huggingface.co/{}/resolve/main/{}"
LIMIT = 4 << 20  # bytes of a JSON file, which may name thousands of classes


def is_folder(arch: str) -> bool:
    return arch.startswith((".", "/"))


def place(arch: str, name: str) -> str:
    """Give the place of a file of a model: a path, or an address on the hub."""
    return os.path.join(arch, name) if is_folder(arch) else HUB.format(arch, name)


def local_file(arch: str, name: str) -> Path | None:
    """Give the path of a file of a model, downloaded if need be; None where the model has none of this name."""
    from fmeco.download import NotPublished, fetch

    where = place(arch, name)
    if is_folder(arch):
        return Path(where) if os.path.isfile(where) else None
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", arch):
        raise ConfigError(f"hf/{clean(arch)}: no name of the hub", "a folder is written hf/./FOLDER or hf//FOLDER")
    try:
        return fetch(where)
    except NotPublished:
        return None


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises ConfigError that names the file."""
    try:
        with open(path, "rb") as file:
            body = file.read(LIMIT + 1)
        if len(body) > LIMIT:
            raise ValueError(f"larger than {LIMIT >> 20} MB")
        found = json.loads(body)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{clean(path)} cannot be read as JSON: {clean(error)}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{clean(path)} holds no object, as in {{...}}")
    return found


def read_config(arch: str) -> dict[str, Any]:
    """Read what config.json of a model says of its architecture. Raises ConfigError that names the file."""
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
            f"{clean(where)}: no such file", "a model is a folder, or name of the hub, with a config.json"
        )
    return strip_config(read_json(path), clean(where))


def weight_files(arch: str) -> list[str]:
    """List the names of the files that hold the weights: one, or several shards, or pytorch_model.bin."""
    if local_file(arch, "model.safetensors") is not None:
        return ["model.safetensors"]
    index = local_file(arch, "model.safetensors.index.json")
    if index is not None:
        files = read_json(index).get("weight_map")
        names = sorted(set(files.values())) if isinstance(files, dict) else []
        if not names or not all(
            isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) for name in names
        ):
            raise ConfigError(f"{clean(index)} names no files of weights in this folder")
        return names
    if local_file(arch, "pytorch_model.bin") is not None:
        return ["pytorch_model.bin"]
    raise ConfigError(f"{clean(place(arch, 'model.safetensors'))}: no such file, and no pytorch_model.bin")


def licence(arch: str) -> str | None:
    """Read the licence from the first lines of the model's card; None where it does not say."""
    path = local_file(arch, "README.md")
    if path is None:
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        head = re.match(r"---\n(.*?)\n---", file.read(LIMIT), re.DOTALL)
    found = re.search(r"^license:[ \t]*([\w.-]+)[ \t]*$", head[1], re.MULTILINE) if head else None
    return found[1] if found else None
