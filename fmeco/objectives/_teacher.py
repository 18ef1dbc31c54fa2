"""A teacher that follows its student: a moving average of backbone and projector."""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from fmeco.core import Backbone, Inputs


def momentum(start: float, progress: float) -> float:
    """How much of itself a teacher keeps at a step, from `start` to 1 over the run, by half a cosine.
    https://arxiv.org/abs/2006.07733 section 3.3."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


class MovingTeacher(nn.Module):
    """Inputs -> projections (B, D), without a gradient.

    Its parameters never learn: they require no gradient, so that no optimizer is handed them, and `follow` moves them.
    Batch norm works with the statistics of the batch, as the papers' teachers do, since running ones would lag behind
    weights that move; the running ones that are saved are its own. Everything else is in evaluation mode: dropout would
    only blur what is to be learned.
    """

    def __init__(self, backbone: Backbone, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = copy.deepcopy(backbone), copy.deepcopy(projector)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, inputs: Inputs) -> Tensor:
        found: Tensor = self.projector(self.backbone(inputs).vector)
        return found.float()

    def train(self, mode: bool = True) -> MovingTeacher:
        super().train(False)
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.train(mode)
        return self

    @torch.no_grad()
    def begin(self, backbone: Backbone, projector: nn.Module) -> None:
        """Become a copy of the student, its buffers included."""
        for mine, theirs in ((self.backbone, backbone), (self.projector, projector)):
            for own, tensor in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
                own.copy_(tensor)

    @torch.no_grad()
    def follow(self, backbone: Backbone, projector: nn.Module, kept: float) -> None:
        """kept * teacher + (1 - kept) * student, of each parameter."""
        student: list[Tensor] = list(itertools.chain(backbone.parameters(), projector.parameters()))
        torch._foreach_lerp_(list(self.parameters()), student, 1 - kept)
