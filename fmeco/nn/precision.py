"""Set the numeric precision of forward passes, and know when a device's numbers are there."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

NOTHING = contextlib.nullcontext()


def autocast(device: torch.device, precision: str) -> Any:
    """Enter torch's autocast for bf16 and fp16; nothing for fp32."""
    if precision == "fp32":
        return NOTHING
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def immediate(device: torch.device) -> bool:
    """Tell whether a number is there as soon as it is asked for. Only CUDA computes behind the host's back, and has kernels of
    optimizers that leave out by themselves what is not finite."""
    return device.type != "cuda"
