"""Read weights files of other tools without running any code in them."""

from __future__ import annotations

import collections
import json
import re
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmeco.checkpoints.foreign.harmless import HARMLESS, plain_values, stand_ins
from fmeco.checkpoints.tensors import FLOAT8, parse, refuse_nonfinite
from fmeco.errors import CheckpointError, clean, listing
from fmeco.files import disguise, regular
from fmeco.log import say

# Endings of the names of weights files.
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")

# Types with fewer bits than fp32, whose values fp32 holds exactly.
NARROW = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e4m3fnuz: "fp8",
    torch.float8_e5m2: "fp8",
    torch.float8_e5m2fnuz: "fp8",
}

_LOADING = threading.Lock()  # torch's list of harmless types belongs to the process


@dataclass(frozen=True)
class Contents:
    """Hold what a weights file holds.

    kind: format of the file, in words.
    state: named tensors, of the types that the file stores.
    values: texts and numbers beside them, by dotted name, such as epoch or args.model.
    """

    kind: str
    state: dict[str, Tensor]
    values: Mapping[str, str | int | float | bool]


def is_weights(path: Path) -> bool:
    """Tell by its name whether a file may hold weights."""
    return path.name.endswith(SUFFIXES)


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of another tool's weights file, those with fewer bits than fp32 converted to fp32.

    Runs no code of the file, and never falls back to unsafe loading. Raises CheckpointError.
    """
    return widened(open_foreign(path).state, Path(path))


def widened(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Convert tensors with fewer bits than fp32 to fp32, and say so. path: of the file, for messages.

    Raises CheckpointError for quantised weights, and for NaN and infinity.
    """
    for name, tensor in state.items():
        scales = [other for other in _scales_of(name) if other in state] if NARROW.get(tensor.dtype) == "fp8" else []
        if scales:
            raise CheckpointError(
                f"{path} holds quantised weights: {clean(name, 80)} is fp8, with the scale {clean(scales[0], 80)}",
                "use a file of the same weights that is not quantised (fp32, bf16 or fp16)",
            )
    counts = collections.Counter(NARROW[tensor.dtype] for tensor in state.values() if tensor.dtype in NARROW)
    wide = {name: tensor.float() if tensor.dtype in NARROW else tensor for name, tensor in state.items()}
    if counts:
        say(f"{path.name}: converted to fp32: {', '.join(f'{n} tensors of {name}' for name, n in counts.items())}")
    return refuse_nonfinite(wide, path)


def _scales_of(name: str) -> tuple[str, ...]:
    """List the names under which quantised files store the scale of a tensor."""
    layer = name.rpartition(".")[0]
    return f"{name}_scale", f"{name}_scale_inv", f"{name}_scales", f"{layer}.scale_weight"


def open_foreign(path: Path) -> Contents:
    """Read a weights file as it is, without converting its tensors. Runs no code of it. Raises CheckpointError."""
    path = Path(path)
    try:
        with open(path, "rb", opener=regular) as file:
            what = disguise(file.read(64))
            if what:
                raise CheckpointError(f"{path} cannot be read as a file of weights: {what}")
            if path.suffix == ".safetensors":
                file.seek(0)
                body = file.read()
                return Contents("safetensors", parse(body, path, FLOAT8), _metadata(body))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    loaded = _load(path)
    state = _find_state(loaded, set())
    if state is None:
        raise CheckpointError(
            f"{path} holds no state dict", "expected named tensors, alone or under 'state_dict' or 'model'"
        )
    for name, tensor in state.items():
        if (
            tensor.is_sparse
            or tensor.is_quantized
            or tensor.is_meta
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise CheckpointError(f"{path}: the tensor {clean(name, 80)} claims more data than the file holds")
    return Contents("written by torch.save", state, plain_values(loaded, set()))


def _metadata(body: bytes) -> dict[str, str | int | float | bool]:
    """Return the texts in the header of a safetensors file, which `parse` has checked."""
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return plain_values(header.get("__metadata__") or {}, set())


def _load(path: Path) -> Any:
    """Load a file of torch.save with tensors and harmless types only. Raises CheckpointError that names other types."""
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path)
        with _LOADING, warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins()):
            warnings.simplefilter("ignore")  # torch's warnings about odd pickles; errors are reported below
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files raise a dozen classes of errors, with the same meaning for a user
        raise CheckpointError(
            f"{path} cannot be read as a file of weights: {_why(path, str(error))}",
            "save the model's state_dict() with safetensors, or with torch.save",
        ) from None


def _why(path: Path, message: str) -> str:
    """Say why torch refuses a file. message: torch's own, which advises to switch safety off."""
    if named := _refused_types(path, message):
        return f"it holds objects that are no tensors, and would run code to make them: {listing(named, 5)}"
    if "legacy .tar format" in message or tarfile.is_tarfile(path):
        return "it is an archive of several files; unpack it, and name the file of weights in it"
    if "TorchScript" in message:
        return "it is a program of TorchScript, which would run code"
    if "weights_only" in message.lower() or "unsupported" in message.lower() or "reduce" in message:
        return "it would need to run code"
    return "it is damaged, or not such a file"


def _refused_types(path: Path, message: str) -> list[str]:
    """List the types in a file that are neither of tensors nor harmless, as pickles name them."""
    try:
        found = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - set(HARMLESS)
    except Exception:  # files that are not archives, or are damaged
        found = set()
    first = re.search(r"GLOBAL ([\w.]+)", message)
    return sorted(found) or ([first[1]] if first else [])


def _check_zip(path: Path) -> None:
    """Check that a ZIP file looks like one of torch.save. Raises CheckpointError.

    torch.save stores records uncompressed, so a compressed one is an attack (a zip bomb).
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if (
        len(pickles) != 1
        or pickles[0].file_size > 32 << 20
        or len(set(names)) < len(names)
        or any(
            entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or ".." in entry.filename
            for entry in entries
        )
        or sum(entry.file_size for entry in entries) > path.stat().st_size
    ):
        raise CheckpointError(f"{path} is not an archive written by torch.save")


def _find_state(loaded: Any, seen: set[int], depth: int = 0) -> dict[str, Tensor] | None:
    """Find the largest mapping of names to tensors, at most three levels down; None if there is none.

    Several mappings of similar size (such as of a teacher and a student) are joined, with their keys as name prefixes.
    The state of an optimizer, which numbers its tensors or has its own key, is left out.

    seen: ids of the mappings that were searched; each is searched once, since a file may nest one in itself a thousand times.
    """
    if not isinstance(loaded, Mapping) or depth > 3 or id(loaded) in seen:
        return None
    seen.add(id(loaded))
    named = {key: value for key, value in loaded.items() if isinstance(key, str) and not key.startswith("optimizer")}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    inner = {key: state for key, value in named.items() if (state := _find_state(value, seen, depth + 1))}
    most = max(map(len, inner.values()), default=0)
    if len(tensors) >= most:
        return tensors or None
    networks = {key: state for key, state in inner.items() if len(state) > most / 2}
    if len(networks) == 1:
        return next(iter(networks.values()))
    return {f"{key}.{name}": tensor for key, state in networks.items() for name, tensor in state.items()}
