"""Points on the surface of a few solids; not a plug-in, as its name begins with _."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHAPES = ("ball", "box", "rod", "ring")


def points_on(shape: str, count: int, generator: torch.Generator) -> Tensor:
    """Draw points (N, 3) on the surface of a solid with a radius of about 1."""
    if shape in ("ball", "box"):
        x = torch.randn(count, 3, generator=generator)
        size = x.norm(dim=1) if shape == "ball" else x.abs().amax(1)
        return x / size[:, None]
    turn, along = (2 * math.pi * torch.rand(count, generator=generator) for _ in range(2))
    if shape == "rod":
        return torch.stack([0.2 * turn.cos(), 0.2 * turn.sin(), along / math.pi - 1], 1)
    reach = 1 + 0.2 * along.cos()
    return torch.stack([reach * turn.cos(), reach * turn.sin(), 0.2 * along.sin()], 1)
