"""Made-up recordings of an accelerometer; no plug-in, as the name begins with _."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RATE = 50  # moments per second
# motion -> (steps per second, strength of a step in g, share of the strength that goes up and down)
MOTIONS = {
    "climbing": (1.5, 0.35, 0.5),
    "resting": (0.25, 0.02, 0.5),
    "running": (2.8, 1.2, 0.8),
    "walking": (1.8, 0.4, 0.8),
}


def recording(motion: str, person: int, number: int, length: int) -> Tensor:
    """Make a recording (3, length) in g: sideways, forwards, upwards. Each person has a pace and a posture of their own."""
    own = torch.Generator().manual_seed(person)
    pace, tilt = 0.85 + 0.3 * torch.rand((), generator=own), 0.3 * torch.randn(2, generator=own)
    generator = torch.Generator().manual_seed(1000 * person + number)
    frequency, strength, upwards = MOTIONS[motion]
    phase = 2 * math.pi * (frequency * pace * torch.arange(length) / RATE + torch.rand((), generator=generator))
    step = strength * (phase.sin() + 0.4 * (2 * phase).sin())
    gravity = torch.tensor([float(tilt[0]), float(tilt[1]), 1.0])
    moved = torch.stack([0.3 * strength * (phase / 2).sin(), (1 - upwards) * step, upwards * step])
    return gravity[:, None] + moved + 0.05 * torch.randn(3, length, generator=generator)
