"""Read weights files of other tools, running no code of theirs."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmeco.checkpoints.format import refuse_nonfinite, unpack
from fmeco.errors import CheckpointError, clean


def read_foreign(path: Path) -> dict[str, Tensor]:
    """A weights file of another tool (.safetensors .pth .pt .ckpt .bin) -> named tensors, running no code of it.

    Raises CheckpointError. There is no fallback to unsafe loading.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            return unpack(path.read_bytes(), path)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on odd pickles; what is wrong with one is said below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # mutated files raise a dozen classes; every one of them means the same to a user
        why = (
            "it wants to run code"
            if "weights_only" in str(error).lower() or "Unsupported" in str(error)
            else "it is damaged, or no such file"
        )
        raise CheckpointError(
            f"{path} cannot be read as a file of weights: {why}",
            "save the model's state_dict() with safetensors, or with torch.save",
        ) from None
    state = _find_state(loaded)
    if state is None:
        raise CheckpointError(
            f"{path} holds no state dict", "expected named tensors, alone or under 'state_dict' or 'model'"
        )
    for name, tensor in state.items():
        if (
            tensor.is_sparse
            or tensor.is_quantized
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise CheckpointError(f"{path}: the tensor {clean(name, 80)} claims more data than the file holds")
    return refuse_nonfinite(state, path)


def _check_zip(path: Path) -> None:
    """torch.save stores records uncompressed; a deflated one is a bomb."""
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
        raise CheckpointError(f"{path} is not an archive that torch.save writes")


def _find_state(loaded: Any, depth: int = 0) -> dict[str, Tensor] | None:
    """The largest mapping of names to tensors, at most three levels down. Several of a size side by side (a teacher and a
    student) are several networks, and their names begin with their keys."""
    if not isinstance(loaded, Mapping) or depth > 3:
        return None
    own = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    inner = {str(key): state for key, value in loaded.items() if (state := _find_state(value, depth + 1))}
    most = max(map(len, inner.values()), default=0)
    if len(own) >= most:
        return own or None
    alike = {key: state for key, state in inner.items() if len(state) > most / 2}
    if len(alike) == 1:
        return next(iter(alike.values()))
    return {f"{key}.{name}": tensor for key, state in alike.items() for name, tensor in state.items()}
