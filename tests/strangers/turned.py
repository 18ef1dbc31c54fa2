"""Turn every cloud about the z axis, by any angle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmeco.core import Augment, DataSpec, Inputs, uniform

KIND = "augment"


def default(spec: DataSpec, views: int) -> str | None:
    return "turned" if "points" in spec.inputs else None


class Turned(Augment):
    def batch(self, inputs: Inputs, keys: Tensor) -> Inputs:
        points = inputs["points"]  # (B, N, 3)
        angle = 2 * math.pi * uniform(keys, 1).to(points.device)  # (B,)
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        turn = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).view(-1, 3, 3)
        return {**inputs, "points": points @ turn}


def build() -> Augment:
    return Turned()
