"""Set the numeric precision of forward passes, and tell which devices compute asynchronously."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

NOTHING = contextlib.nullcontext()


def autocast(device: torch.device, precision: str) -> Any:
    """Return torch's autocast context for bf16 or fp16, or a context that does nothing for fp32."""
    if precision == "fp32":
        return NOTHING
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def immediate(device: torch.device) -> bool:
    """Tell whether reading a number from the device needs no synchronisation, as on all devices but CUDA.

    Only CUDA also has fused optimizer kernels that skip a step with non-finite gradients by themselves.
    """
    return device.type != "cuda"
