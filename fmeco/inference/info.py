"""Describe a checkpoint: what it was trained from, on which data, and its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import refs


def info(ref: str | Path) -> dict[str, Any]:
    """Describe a checkpoint, after checking its files against the manifest.

    Raises CheckpointError for a file that is missing or damaged.
    """
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
        "preprocessing": {
            key: value
            for key, value in spec.preprocessing.items()
            if not isinstance(value, list) and len(str(value)) < 200  # a tokenizer is too long to show
        },
        "sizes": dict(spec.sizes),
        "metrics": dict(meta["metrics"]),
        "parents": ", ".join(saved.manifest["parents"]) or "none",
        "licence": meta["licence"] or "not stated",
        "needs": ", ".join(meta["needs"]) or "fmeco alone",
        "versions": meta["versions"],
        "resumable": "trainer.json" in saved.manifest["files"] and (saved.path / "trainer.json").exists(),
    }
