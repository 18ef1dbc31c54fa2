"""Read weights files of other tools without running any code in them."""

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
from fmeco.files import disguise, regular


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of another tool's weights file (.safetensors .pth .pt .ckpt .bin).

    Runs no code of the file, and never falls back to unsafe loading. Raises CheckpointError.
    """
    path = Path(path)
    try:
        with open(path, "rb", opener=regular) as file:
            what = disguise(file.read(64))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    if what:
        raise CheckpointError(f"{path} cannot be read as a file of weights: {what}")
    if path.suffix == ".safetensors":
        try:
            return unpack(path.read_bytes(), path)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warnings about odd pickles; errors are reported below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files raise a dozen classes of errors, with the same meaning for a user
        why = (
            "it would need to run code"
            if "weights_only" in str(error).lower() or "Unsupported" in str(error)
            else "it is damaged, or not such a file"
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


def _find_state(loaded: Any, depth: int = 0) -> dict[str, Tensor] | None:
    """Find the largest mapping of names to tensors, at most three levels down; None if there is none.

    Several mappings of similar size (such as of a teacher and a student) are joined, with their keys as name prefixes.
    """
    if not isinstance(loaded, Mapping) or depth > 3:
        return None
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    inner = {str(key): state for key, value in loaded.items() if (state := _find_state(value, depth + 1))}
    most = max(map(len, inner.values()), default=0)
    if len(tensors) >= most:
        return tensors or None
    networks = {key: state for key, state in inner.items() if len(state) > most / 2}
    if len(networks) == 1:
        return next(iter(networks.values()))
    return {f"{key}.{name}": tensor for key, state in networks.items() for name, tensor in state.items()}
