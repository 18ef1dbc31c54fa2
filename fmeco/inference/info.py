"""Describe a checkpoint: what it was made from, for what data, and how good it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import refs


def info(ref: str | Path) -> dict[str, Any]:
    """Describe a checkpoint, after checking every file of it against the manifest."""
    found = refs.find_checkpoint(ref)
    checkpoint.verify(found)
    meta, spec = found.meta, found.spec
    outside = {"name": "given in Python"}
    backbone, objective, dataset = (
        meta["config"].get(section, outside) for section in ("backbone", "objective", "dataset")
    )
    return {
        "checkpoint": str(found.path),
        "id": found.id,
        "verified": len(found.manifest["files"]),
        "format": found.manifest["format"],
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
            if not isinstance(value, list) and len(str(value)) < 200  # a tokenizer is no reading matter
        },
        "sizes": dict(spec.sizes),
        "metrics": dict(meta["metrics"]),
        "parents": ", ".join(found.manifest["parents"]) or "none",
        "licence": meta["licence"] or "not stated",
        "needs": ", ".join(meta["needs"]) or "fmeco alone",
        "versions": meta["versions"],
        "resumable": "trainer.json" in found.manifest["files"] and (found.path / "trainer.json").exists(),
    }
