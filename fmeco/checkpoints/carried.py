"""Write and read a folder that holds published weights with all that is needed to use them without a network.

    FOLDER/
        published.json       source, backbone, preprocessing (with the tokenizer), licence, sizes and SHA-256 of the weights
        model.safetensors    weights, byte for byte as published; perhaps in several files, and of another name
        config.json, ...     the model's other files, as published

Loading it runs no code. `--from FOLDER` takes it as a REF.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import BaseModel, Field, ValidationError

from fmeco.checkpoints.format import read_json
from fmeco.checkpoints.schema import File, Named, Spec, check
from fmeco.core.data import DataSpec
from fmeco.core.stored import Stored
from fmeco.data.spec_reader import reader_module
from fmeco.errors import CheckpointError, ConfigError, clean
from fmeco.files import disk_error, sync_folder, temporary_beside, write_durably

ABOUT = "published.json"
FORMAT = 1
LIMIT = 256 << 20  # largest published.json, in bytes; a tokenizer may have hundreds of thousands of words


class About(Stored):
    """Declare published.json."""

    format: Annotated[int, Ge(1), Le(2**31)]
    ref: str
    backbone: Named
    spec: Spec
    licence: str | None
    weights: Annotated[
        dict[Annotated[str, Field(pattern=r"^[^./\\\x00][^/\\\x00]*$", max_length=200)], File], Field(min_length=1)
    ]


def is_carried(path: Path) -> bool:
    """Tell whether a folder was written by `write`."""
    return (path / ABOUT).is_file()


def check_free(out: Path, *, force: bool) -> None:
    """Raise ConfigError unless `out` is absent or empty, or, with `force`, holds what `write` wrote."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_carried(out):
        raise ConfigError(f"{clean(out)} exists, and is not a folder of published weights", "choose another --out")
    if not force:
        raise ConfigError(f"{clean(out)} holds published weights already", "--force replaces them")


def write(
    out: Path, about: Mapping[str, Any], weights: Sequence[Path], names: Sequence[str], others: Mapping[str, Path]
) -> dict[str, Any]:
    """Write the folder, complete or not at all. Returns the contents of published.json.

    about: ref, backbone, spec and licence.
    weights: files of weights, and `names`: their names in the folder.
    others: further files, by their path in the folder.

    Raises DiskError.
    """
    temporary = temporary_beside(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for name, path in {**others, **dict(zip(names, weights, strict=True))}.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
        entries = {name: _entry(temporary / name) for name in names}
        content = {"format": FORMAT, **about, "weights": entries}
        write_durably(temporary / ABOUT, json.dumps(content, indent=1, allow_nan=False).encode())
        sync_folder(temporary)
        if out.exists():
            shutil.rmtree(out)
        os.rename(temporary, out)
        sync_folder(out.parent)
    except OSError as error:
        raise disk_error(error, out, sum(path.stat().st_size for path in weights)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return content


def read(folder: Path) -> tuple[dict[str, Any], DataSpec, list[Path]]:
    """Read a folder that `write` wrote, and verify the weights. Returns (published.json, preprocessing, files of weights).

    Raises CheckpointError that names the file.
    """
    file = folder / ABOUT
    about = read_json(file, LIMIT)
    if type(number := about.get("format")) is int and number > FORMAT:
        raise CheckpointError(
            f"{clean(file)} has format {clean(number, 20)} of a newer fmeco; this version reads formats up to {FORMAT}",
            "pip install --upgrade fmeco",
        )
    check(About, about, file)
    try:
        spec = DataSpec.from_json(about["spec"])
    except CheckpointError as error:
        raise CheckpointError(f"{clean(file)}: spec: {error.message}", *error.hints) from None
    try:
        declared = getattr(reader_module(spec), "SPEC", None)
    except ConfigError:  # the plug-in is not loaded, so it is not used either
        declared = None
    if declared is not None and _has_wrong_values(declared, about["spec"]):
        check(declared, about["spec"], file, "spec")
    for name, entry in about["weights"].items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            raise CheckpointError(f"{clean(path)}: no such file, and {ABOUT} lists it", "copy the folder again")
        if _entry(path) != {"size": entry["size"], "sha256": entry["sha256"]}:
            raise CheckpointError(
                f"{clean(path)} was modified or damaged: its content does not match {ABOUT}", "copy the folder again"
            )
    return about, spec, [folder / name for name in about["weights"]]


def _has_wrong_values(declared: type[BaseModel], spec: Any) -> bool:
    """Tell whether a spec has wrong values. Absent ones are fine: published weights know no columns of a table."""
    try:
        declared.model_validate(spec)
    except ValidationError as error:
        return any(problem["type"] != "missing" for problem in error.errors())
    return False


def _entry(path: Path) -> dict[str, Any]:
    """Return the size and hash of a file, as published.json has them."""
    with open(path, "rb") as body:
        return {"size": os.fstat(body.fileno()).st_size, "sha256": hashlib.file_digest(body, "sha256").hexdigest()}
