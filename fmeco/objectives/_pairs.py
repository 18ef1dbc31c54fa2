"""Define the base class of objectives that compare two views of each sample: projections, and metrics of collapse."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fmeco.core import Backbone, Batch, Loss, Objective, View
from fmeco.nn.layers import mlp
from fmeco.nn.metrics import effective_rank, spread

WATCHED = 4096  # ranks are computed on at most so many samples, evenly spread over the split
COLLAPSED = 0.05  # a `spread` below this is a collapse
FLAT = 2.5  # a `projection_rank` below this is a collapse


def projector(width: int, hidden: int, out: int, layers: int) -> nn.Sequential:
    """Build a projector (B, width) -> (B, out): linear layers, all but the last followed by batch norm and ReLU."""
    widths = [width, *[hidden] * (layers - 1)]
    return nn.Sequential(*mlp(widths, batch_norm=True, dropout=0.0), nn.Linear(widths[-1], out))


class Pairs(Objective):
    """Compare two views of each sample after backbone and projector.

    Evaluation uses samples without augmentation and measures the effective rank of the backbone's vectors, and the rank
    and spread of the projections, where a collapse shows first.
    cause: the most likely cause of a collapse, for the warning.
    flat: the `projection_rank` below which the representation counts as collapsed.
    directed: whether the loss depends on the projections' directions only; `spread` is then that of the directions, else
        the projections' standard deviation.
    """

    views: tuple[View, ...] = (View("one"), View("other"))
    coupled = True
    probes = ("knn",)
    cause = "the learning rate may be too high"
    flat = FLAT
    directed = True
    directions: Mapping[str, Literal["max", "min"]] = {
        "effective_rank": "max",
        "projection_rank": "max",
        "spread": "max",
    }

    def __init__(self, backbone: Backbone, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector

    @abstractmethod
    def losses(self, first: Tensor, second: Tensor, *rest: Tensor, target: Mapping[str, Tensor | list[Any]]) -> Tensor:
        """Compute the loss of each sample (B,) from the tensors that `represent` returned."""

    def represent(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute the projections (B, D) of the two views."""
        return tuple(self.projector(self.backbone(view).vector).float() for view in batch.views)

    def compare(self, parts: tuple[Tensor, ...], target: Mapping[str, Tensor | list[Any]]) -> Loss:
        losses = self.losses(*parts, target=target)
        return Loss(losses.sum(), len(losses))

    def loss(self, batch: Batch) -> Loss:
        return self.compare(self.represent(batch), batch.target)

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        vector = self.backbone(batch.views[0]).vector
        return {"vector": vector, "projection": self.projector(vector)}

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        at = torch.arange(0, len(rows["vector"]), -(-len(rows["vector"]) // WATCHED))
        z = rows["projection"][at]
        return {
            "effective_rank": effective_rank(rows["vector"][at]),
            "projection_rank": effective_rank(z),
            "spread": spread(z) if self.directed else float(z.std(0).mean()),
        }

    def ailing(self, metrics: Mapping[str, float]) -> str | None:
        if metrics["spread"] >= COLLAPSED and metrics["projection_rank"] >= self.flat:
            return None
        numbers = f"spread {metrics['spread']:.3f}, projection_rank {metrics['projection_rank']:.1f}"
        return f"the representation has collapsed: all samples have nearly the same vector ({numbers}); {self.cause}"
