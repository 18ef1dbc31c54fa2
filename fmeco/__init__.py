"""fmeco: transfer learning you can trust.

`fmeco.pretrain`, `fmeco.finetune`, `fmeco.resume`, `fmeco.evaluate`, `fmeco.probe`, `fmeco.rank` and `fmeco.load` are the
Python face of the command line. Importing fmeco does nothing and imports nothing heavy; torch comes in with the first call.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fmeco._version import __version__ as __version__

__all__ = ["FmecoError", "embed", "evaluate", "finetune", "load", "predict", "pretrain", "probe", "rank", "resume"]

if TYPE_CHECKING:
    from fmeco.errors import FmecoError
    from fmeco.evaluation.evaluate import evaluate
    from fmeco.evaluation.probe import probe, rank
    from fmeco.inference.embed import embed
    from fmeco.inference.model import load
    from fmeco.inference.predict import predict
    from fmeco.training.api import finetune, pretrain, resume

_HOMES = {  # name -> the module that it is imported from when it is first asked for
    "FmecoError": "errors",
    "embed": "inference.embed",
    "evaluate": "evaluation.evaluate",
    "finetune": "training.api",
    "load": "inference.model",
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
