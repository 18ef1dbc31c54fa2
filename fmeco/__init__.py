"""fmeco: transfer learning you can trust.

`fmeco.pretrain`, `fmeco.finetune`, `fmeco.resume`, `fmeco.evaluate`, `fmeco.probe`, `fmeco.rank` and `fmeco.load` do in
Python what the commands of the same names do. `import fmeco` runs nothing and does not import torch; the first call
does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fmeco._version import __version__ as __version__

__all__ = [
    "FmecoError",
    "add_plugins",
    "embed",
    "evaluate",
    "fetch",
    "finetune",
    "load",
    "offline",
    "predict",
    "pretrain",
    "probe",
    "rank",
    "resume",
]

if TYPE_CHECKING:
    from fmeco.checkpoints.fetching import fetch
    from fmeco.download import offline
    from fmeco.errors import FmecoError
    from fmeco.evaluation.evaluate import evaluate
    from fmeco.evaluation.probe import probe, rank
    from fmeco.inference.embed import embed
    from fmeco.inference.model import load
    from fmeco.inference.predict import predict
    from fmeco.plugins.registry import add_plugins
    from fmeco.training.api import finetune, pretrain, resume

_HOMES = {  # name -> module below fmeco that defines it; imported on first use
    "FmecoError": "errors",
    "add_plugins": "plugins.registry",
    "embed": "inference.embed",
    "evaluate": "evaluation.evaluate",
    "fetch": "checkpoints.fetching",
    "finetune": "training.api",
    "load": "inference.model",
    "offline": "download",
    "predict": "inference.predict",
    "pretrain": "training.api",
    "probe": "evaluation.probe",
    "rank": "evaluation.probe",
    "resume": "training.api",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"fmeco.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fmeco' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
