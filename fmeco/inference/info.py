"""Describe a checkpoint: what it was trained from, on which data, and its metrics; or weights that no run made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fmeco.checkpoints import carried, pointers, refs
from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints.foreign import shards
from fmeco.checkpoints.foreign.files import NARROW
from fmeco.checkpoints.tensors import nonfinite
from fmeco.core.data import DataSpec
from fmeco.errors import listing
from fmeco.inference.layers import layers


def info(ref: str | Path) -> dict[str, Any]:
    """Describe a checkpoint, or a folder that `fmeco fetch` wrote, after checking its files against their hashes.

    Also describes the weights in a file of another tool, and weights that a library publishes.

    Raises CheckpointError for a file that is missing or damaged.
    """
    path = pointers.follow(Path(ref))
    if carried.is_carried(path):
        return _carried(path)
    if not path.exists() and refs.is_bare(ref):
        return _published(str(ref))
    if (file := refs.weights_of_others(path)) is not None:
        return _file(file)
    saved = refs.find_checkpoint(ref)
    checkpoint.verify(saved)
    meta, spec = saved.meta, saved.spec
    not_in_config = {"name": "given in Python"}
    backbone, objective, dataset = (
        meta["config"].get(section, not_in_config) for section in ("backbone", "objective", "dataset")
    )
    return {
        "checkpoint": str(saved.path),
        "id": saved.id,
        "verified": len(saved.manifest["files"]),
        "format": saved.manifest["format"],
        "stage": meta["stage"],
        "step": meta["step"],
        "epoch": round(meta["epoch"], 4),
        "backbone": backbone["name"],
        "objective": objective["name"],
        "parameters": meta["parameters"],
        "dataset": dataset["name"],
        "modality": spec.modality,
        "targets": {name: ", ".join(target.classes) or target.kind for name, target in spec.targets.items()},
        "preprocessing": _preprocessing(spec),
        "sizes": dict(spec.sizes),
        "metrics": dict(meta["metrics"]),
        "parents": ", ".join(saved.manifest["parents"]) or "none",
        "licence": meta["licence"] or "not stated",
        "needs": ", ".join(meta["needs"]) or "fmeco alone",
        "versions": meta["versions"],
        "resumable": "trainer.json" in saved.manifest["files"] and (saved.path / "trainer.json").exists(),
    }


def _file(path: Path) -> dict[str, Any]:
    """Describe a file of weights, or an index with its shards."""
    contents = shards.open_weights(path)
    wide = {name: tensor.float() if tensor.dtype in NARROW else tensor for name, tensor in contents.state.items()}
    described: dict[str, Any] = {"file": str(path), "format": contents.kind, **_tensors(contents.state)}
    if bad := nonfinite(wide):
        described["not finite"] = listing(bad, 5)
    if contents.values:
        described["beside them"] = dict(contents.values)
    return described | {
        "use": refs.as_model(path) or "--from FILE --set backbone=NAME; the file does not state its architecture",
        "layers": layers(contents.state),
        "names": {name: _shape(tensor) for name, tensor in contents.state.items()},
    }


def _published(ref: str) -> dict[str, Any]:
    """Describe the weights that a library publishes for an architecture."""
    source = refs.resolve(ref, None)
    assert source.backbone is not None, "resolve names one"
    return {
        "weights": ref,
        "backbone": source.backbone.spelled,
        **_tensors(source.state),
        "modality": source.spec.modality,
        "preprocessing": _preprocessing(source.spec),
        "licence": source.licence or "not stated",
        "layers": layers(source.state),
        "names": {name: _shape(tensor) for name, tensor in source.state.items()},
    }


def _tensors(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Count tensors, numbers and bytes, and the tensors of each type."""
    return {
        "tensors": len(state),
        "numbers": sum(tensor.numel() for tensor in state.values()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
        "types": dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())),
    }


def _shape(tensor: Tensor) -> str:
    """Describe a tensor by type and shape."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _carried(folder: Path) -> dict[str, Any]:
    """Describe a folder of published weights."""
    about, spec, files = carried.read(folder)
    return {
        "folder": str(folder.resolve()),
        "weights": about["ref"],
        "verified": len(files),
        "format": about["format"],
        "backbone": about["backbone"]["name"],
        "modality": spec.modality,
        "preprocessing": _preprocessing(spec),
        "licence": about["licence"] or "not stated",
    }


def _preprocessing(spec: DataSpec) -> dict[str, Any]:
    """Return the preprocessing that is short enough to show: a tokenizer is not."""
    return {
        key: value for key, value in spec.preprocessing.items() if not isinstance(value, list) and len(str(value)) < 200
    }
