"""Define the momentum teacher: a moving average of the student's backbone and projector."""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from fmeco.core import Backbone, Inputs


def momentum(start: float, progress: float) -> float:
    """Compute the teacher's momentum: from `start` to 1 over the run, along half a cosine.

    progress: finished share of the run.
    https://arxiv.org/abs/2006.07733 section 3.3.
    """
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


class MovingTeacher(nn.Module):
    """Compute projections (B, D) of inputs, without gradients.

    No optimizer trains the parameters: they require no gradient, and `follow` updates them. Batch norm uses the statistics
    of the batch, as the teachers of the papers do, because running statistics would lag behind the moving weights; the
    teacher saves running statistics of its own. All other modules stay in eval mode: dropout would add noise to the
    targets.
    """

    def __init__(self, backbone: Backbone, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = copy.deepcopy(backbone), copy.deepcopy(projector)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, inputs: Inputs) -> Tensor:
        projection: Tensor = self.projector(self.backbone(inputs).vector)
        return projection.float()

    def train(self, mode: bool = True) -> MovingTeacher:
        super().train(False)
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.train(mode)
        return self

    @torch.no_grad()
    def begin(self, backbone: Backbone, projector: nn.Module) -> None:
        """Copy the student's parameters and buffers."""
        for mine, theirs in ((self.backbone, backbone), (self.projector, projector)):
            for own, tensor in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
                own.copy_(tensor)

    @torch.no_grad()
    def follow(self, backbone: Backbone, projector: nn.Module, kept: float) -> None:
        """Move each parameter: teacher = kept * teacher + (1 - kept) * student."""
        student: list[Tensor] = list(itertools.chain(backbone.parameters(), projector.parameters()))
        torch._foreach_lerp_(list(self.parameters()), student, 1 - kept)
