"""Describe a checkpoint: what it was trained from, on which data, and its metrics; or a folder of published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmeco.checkpoints import carried, refs
from fmeco.checkpoints import format as checkpoint
from fmeco.core.data import DataSpec


def info(ref: str | Path) -> dict[str, Any]:
    """Describe a checkpoint, or a folder that `fmeco fetch` wrote, after checking its files against their hashes.

    Raises CheckpointError for a file that is missing or damaged.
    """
    if carried.is_carried(Path(ref)):
        return _published(Path(ref))
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
        "preprocessing": _shown(spec),
        "sizes": dict(spec.sizes),
        "metrics": dict(meta["metrics"]),
        "parents": ", ".join(saved.manifest["parents"]) or "none",
        "licence": meta["licence"] or "not stated",
        "needs": ", ".join(meta["needs"]) or "fmeco alone",
        "versions": meta["versions"],
        "resumable": "trainer.json" in saved.manifest["files"] and (saved.path / "trainer.json").exists(),
    }


def _published(folder: Path) -> dict[str, Any]:
    """Describe a folder of published weights."""
    about, spec, files = carried.read(folder)
    return {
        "folder": str(folder.resolve()),
        "weights": about["ref"],
        "verified": len(files),
        "format": about["format"],
        "backbone": about["backbone"]["name"],
        "modality": spec.modality,
        "preprocessing": _shown(spec),
        "licence": about["licence"] or "not stated",
    }


def _shown(spec: DataSpec) -> dict[str, Any]:
    """Return the values of the preprocessing that are short enough to show; a tokenizer is not."""
    return {
        key: value for key, value in spec.preprocessing.items() if not isinstance(value, list) and len(str(value)) < 200
    }
