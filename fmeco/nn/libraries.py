"""Import heavy libraries on demand, and explain a failed import in one sentence."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from fmeco.errors import ConfigError


def import_torchvision(module: str = "torchvision") -> Any:
    """Import torchvision on demand, since it takes two seconds. Raises ConfigError if it does not match torch."""
    try:
        return importlib.import_module(module)
    except (RuntimeError, ImportError, AttributeError, OSError) as error:
        raise ConfigError(
            f"torchvision cannot be used with this torch ({torch.__version__}): {str(error).splitlines()[0]}",
            "install torch and torchvision together, from the same index: pip install --upgrade torch torchvision",
        ) from None
