"""What objectives over two views of each sample share: projections, and how the representation is watched."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fmeco.core import Backbone, Batch, Loss, Objective, View
from fmeco.nn.layers import mlp
from fmeco.nn.metrics import effective_rank, spread

WATCHED = 4096  # samples of a split, evenly spread, that ranks are taken of
COLLAPSED = 0.05  # of `spread`
FLAT = 2.5  # of `projection_rank`


def projector(width: int, hidden: int, out: int, layers: int) -> nn.Sequential:
    """Vectors (B, width) -> projections (B, out): linear layers, all but the last followed by batch norm and ReLU."""
    widths = [width, *[hidden] * (layers - 1)]
    return nn.Sequential(*mlp(widths, batch_norm=True, dropout=0.0), nn.Linear(widths[-1], out))


class Pairs(Objective):
    """Two views of each sample through backbone and projector.

    Evaluation sees plain samples: `effective_rank` of the backbone's vectors and, of the projections, where a collapse
    shows first, `projection_rank` and the `spread` of their directions, or their standard deviation.
    """

    views: tuple[View, ...] = (View("one"), View("other"))
    coupled = True
    probes = ("knn",)
    cause = "the learning rate may be too high"  # of a collapse, most likely
    flat = FLAT
    directed = True  # only the projections' directions matter to the loss
    directions: Mapping[str, Literal["max", "min"]] = {
        "effective_rank": "max",
        "projection_rank": "max",
        "spread": "max",
    }

    def __init__(self, backbone: Backbone, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector

    @abstractmethod
    def losses(self, one: Tensor, other: Tensor, *rest: Tensor, target: Mapping[str, Tensor | list[Any]]) -> Tensor:
        """The loss of each sample (B,), from what `represent` gives."""

    def represent(self, batch: Batch) -> tuple[Tensor, ...]:
        """Projections (B, D) of the two views."""
        return tuple(self.projector(self.backbone(view).vector).float() for view in batch.views)

    def compare(self, parts: tuple[Tensor, ...], target: Mapping[str, Tensor | list[Any]]) -> Loss:
        found = self.losses(*parts, target=target)
        return Loss(found.sum(), len(found))

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
        return f"the representation has collapsed: samples look alike ({numbers}); {self.cause}"
