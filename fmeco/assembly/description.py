"""Describe a run for its checkpoints: the part of meta.json that stays the same during training."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from typing import Any

import numpy as np
import torch

from fmeco._version import __version__
from fmeco.assembly.stages import Training


def describe_run(training: Training) -> dict[str, Any]:
    """Collect the config, data, classes, dependencies, licence and versions that every checkpoint of a run stores."""
    config, objective = training.config, training.objective
    return {
        "stage": config.stage,
        "name": config.name,
        "config": config.to_dict("relative"),
        "spec": training.data.spec.to_json(),
        "class_rows": {name: list(classes) for name, classes in objective.class_rows().items()},
        "parameters": sum(p.numel() for name, p in objective.named_parameters() if name in training.model.roles),
        "needs": _needs(training),
        "licence": training.model.origin.licence,
        "precision": config.train.precision,
        "threads": torch.get_num_threads(),
        "transplant": training.model.origin.transplanted,
        "versions": {
            "fmeco": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "git": _git_commit(),
    }


def _needs(training: Training) -> list[str]:
    """List code outside of fmeco that the checkpoint needs: plug-ins as KIND/NAME, and a backbone given in Python."""
    backbone = training.objective.backbone
    needs = training.config.needs
    if training.config.backbone is None:
        needs.append(f"a backbone given in Python ({type(backbone).__module__}.{type(backbone).__qualname__})")
    return needs


def _git_commit() -> str | None:
    """Return the commit of the git repository that the command runs in, if any."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        process = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        return process.stdout.strip() or None
    return None
