"""What objectives over two views of each sample share: projections, and how the representation is watched."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import Backbone, Batch, DataSpec, Loss, Objective, View
from fmeco.nn import mlp, votes

WATCHED = 4096  # samples of a split, evenly spread, that ranks and neighbours are taken of
COLLAPSED = 0.05  # of `spread`
FLAT = 2.5  # of `projection_rank`


def projector(width: int, hidden: int, out: int, layers: int) -> nn.Sequential:
    """Vectors (B, width) -> projections (B, out): linear layers, all but the last followed by batch norm and ReLU."""
    widths = [width, *[hidden] * (layers - 1)]
    return nn.Sequential(*mlp(widths, batch_norm=True, dropout=0.0), nn.Linear(widths[-1], out))


def spread(z: Tensor) -> float:
    """How far the directions of vectors (N, D) differ: the deviation of their normalised values times the square root of D.
    1 = everywhere, 0 = all the same. https://arxiv.org/abs/2011.10566 section 4.1."""
    return float(F.normalize(z.double(), dim=1).std(0, correction=0).mean() * math.sqrt(z.shape[1]))


def effective_rank(x: Tensor) -> float:
    """In how many directions vectors (N, D) vary: exp of the entropy of their singular values' shares.
    https://arxiv.org/abs/2210.02885 (RankMe), equation (1); of centred vectors, so that a common part is no direction."""
    sizes = torch.linalg.svdvals((x - x.mean(0)).double())
    shares = sizes / sizes.sum().clamp_min(1e-12)
    return float((-(shares * shares.clamp_min(1e-12).log()).sum()).exp())


def neighbours_agree(x: Tensor, labels: Tensor) -> float:
    """Share of samples (N, D) whose class the others' votes name."""
    x = F.normalize(x, dim=1)
    alike = (x @ x.T).fill_diagonal_(-math.inf)  # a vote for itself would weigh exp(-inf)
    found = votes(alike, labels, int(labels.max()) + 1)
    return float((found.argmax(1) == labels).double().mean())


class Pairs(Objective):
    """Two views of each sample through backbone and projector.

    Evaluation sees plain samples. `knn`: how often the nearest other samples of the split have a sample's class, where the
    data has classes. `effective_rank` of the backbone's vectors. Of the projections, where a collapse shows first:
    `projection_rank`, and the `spread` of their directions, or their standard deviation.
    """

    views: tuple[View, ...] = (View("one"), View("other"))
    coupled = True
    cause = "the learning rate may be too high"  # of a collapse, most likely
    flat = FLAT
    directed = True  # only the projections' directions matter to the loss

    def __init__(self, backbone: Backbone, spec: DataSpec, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector
        self.target = next((name for name, one in spec.targets.items() if one.kind == "class"), None)
        best: dict[str, Literal["max", "min"]] = {} if self.target is None else {"knn": "max"}
        self.directions: Mapping[str, Literal["max", "min"]] = {
            **best,
            "effective_rank": "max",
            "projection_rank": "max",
            "spread": "max",
        }

    @abstractmethod
    def compare(self, one: Tensor, other: Tensor, batch: Batch) -> Tensor:
        """The loss of each sample (B,), from the two things that `represent` gives."""

    def represent(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Projections (B, D) of the two views."""
        one, other = (self.projector(self.backbone(view).vector).float() for view in batch.views)
        return one, other

    def loss(self, batch: Batch) -> Loss:
        found = self.compare(*self.represent(batch), batch)
        return Loss(found.sum(), len(found))

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        vector = self.backbone(batch.views[0]).vector
        out = {"vector": vector, "projection": self.projector(vector)}
        return out if self.target is None else {**out, "label": batch.target[self.target]}  # type: ignore[dict-item]

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        at = torch.arange(0, len(rows["vector"]), -(-len(rows["vector"]) // WATCHED))
        x, z = rows["vector"][at], rows["projection"][at]
        found = {
            "effective_rank": effective_rank(x),
            "projection_rank": effective_rank(z),
            "spread": spread(z) if self.directed else float(z.std(0).mean()),
        }
        if self.target is None:
            return found
        labels = rows["label"][at]
        known = labels >= 0
        return {"knn": neighbours_agree(x[known], labels[known]), **found} if int(known.sum()) > 1 else found

    def ailing(self, metrics: Mapping[str, float]) -> str | None:
        if metrics["spread"] >= COLLAPSED and metrics["projection_rank"] >= self.flat:
            return None
        numbers = f"spread {metrics['spread']:.3f}, projection_rank {metrics['projection_rank']:.1f}"
        return f"the representation has collapsed: samples look alike ({numbers}); {self.cause}"
