"""fmeco: transfer learning you can trust.

`fmeco.pretrain`, `fmeco.finetune`, `fmeco.resume`, `fmeco.evaluate`, `fmeco.probe`, `fmeco.rank` and `fmeco.load` are the
Python face of the command line. Importing fmeco does nothing and imports nothing heavy; torch comes in with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["FmecoError", "embed", "evaluate", "finetune", "load", "predict", "pretrain", "probe", "rank", "resume"]

if TYPE_CHECKING:
    from fmeco.errors import FmecoError
    from fmeco.evaluation import evaluate
    from fmeco.probing import probe, rank
    from fmeco.run import finetune, pretrain, resume
    from fmeco.use import embed, load, predict


def __getattr__(name: str) -> Any:
    if name == "FmecoError":
        from fmeco.errors import FmecoError

        return FmecoError
    if name in __all__:
        from fmeco import evaluation, probing, run, use

        return getattr(next(module for module in (run, use, evaluation, probing) if hasattr(module, name)), name)
    raise AttributeError(f"module 'fmeco' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
