"""fmeco: transfer learning you can trust.

`fmeco.pretrain`, `fmeco.finetune`, `fmeco.resume`, `fmeco.evaluate`, `fmeco.probe`, `fmeco.rank` and `fmeco.load` are the
Python face of the command line. Importing fmeco does nothing and imports nothing heavy; torch comes in with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fmeco._version import __version__ as __version__

__all__ = ["FmecoError", "embed", "evaluate", "finetune", "load", "predict", "pretrain", "probe", "rank", "resume"]

if TYPE_CHECKING:
    from fmeco.errors import FmecoError
    from fmeco.evaluation.evaluate import evaluate
    from fmeco.evaluation.probe import probe, rank
    from fmeco.inference.model import embed, load, predict
    from fmeco.training.api import finetune, pretrain, resume


def __getattr__(name: str) -> Any:
    if name == "FmecoError":
        from fmeco.errors import FmecoError

        return FmecoError
    if name in __all__:
        from fmeco.evaluation import evaluate as evaluation
        from fmeco.evaluation import probe as probing
        from fmeco.inference import model as use
        from fmeco.training import api as run

        return getattr(next(module for module in (run, use, evaluation, probing) if hasattr(module, name)), name)
    raise AttributeError(f"module 'fmeco' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
