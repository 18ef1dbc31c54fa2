"""Experimental. Assign each view to the same prototypes as a momentum teacher assigns larger views of the sample. Needs no labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from fmeco.core import (
    Backbone,
    Batch,
    ConfigError,
    DataSpec,
    Doc,
    Ge,
    Gt,
    Le,
    Lt,
    Objective,
    TeacherMomentum,
    View,
    clean,
)
from fmeco.nn.layers import trial
from fmeco.objectives._pairs import Pairs, projector
from fmeco.objectives._teacher import MovingTeacher, momentum

# Smallest and largest share of the area that a view shows, if there are local views: https://arxiv.org/abs/2104.14294 appendix E.
GLOBAL, LOCAL = (0.4, 1.0), (0.05, 0.4)
CENTRE = 0.9  # momentum of the centre


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    prototypes: Annotated[int, Doc("number of prototypes that views are assigned to"), Gt(1)] = 1024,
    local: Annotated[int, Doc("number of smaller views per sample, besides the two large ones; 0 = none"), Ge(0)] = 4,
    local_size: Annotated[float, Doc("side of a smaller view, as a share of the input's"), Gt(0), Lt(1)] = 0.5,
    temperature: Annotated[float, Doc("softmax temperature of the student"), Gt(0)] = 0.1,
    teacher_temperature: Annotated[
        list[float], Doc("softmax temperature of the teacher at the start and after its warm-up; below the student's")
    ] = [0.04, 0.07],
    warmup: Annotated[float, Doc("share of the run in which the teacher's temperature warms up"), Ge(0), Le(1)] = 0.1,
    momentum: TeacherMomentum = 0.99,
    hidden: Annotated[int, Doc("width of the head's hidden layers"), Gt(0)] = 512,
    projection: Annotated[int, Doc("width of the projections and prototypes"), Gt(0)] = 256,
) -> Objective:
    views = [View("one"), View("other")]
    if local:
        _takes_smaller(backbone, spec, View(size=local_size))
        views = [view._replace(area=GLOBAL) for view in views]
        views += [View(f"local {number}", size=local_size, area=LOCAL) for number in range(1, local + 1)]
    first, last = teacher_temperature
    head = Head(backbone.width, hidden, projection, prototypes)
    return DINO(backbone, head, tuple(views), Temperatures(temperature, first, last, warmup), momentum)


def check(*, teacher_temperature: list[float], **_: object) -> list[str]:
    if len(teacher_temperature) != 2 or min(teacher_temperature) <= 0:
        return [
            f"teacher_temperature: expected two numbers above 0, for the start and after the warm-up, got {teacher_temperature}"
        ]
    return []


def _takes_smaller(backbone: Backbone, spec: DataSpec, view: View) -> None:
    """Check that the backbone accepts smaller views by running one. Raises ConfigError if it or the data does not."""
    images = {name: described.shape for name, described in spec.seen.items() if len(described.shape) == 3}
    if len(images) != 1 or len(spec.seen) != 1:
        raise ConfigError(
            f"objective.local: smaller views are for images, and this dataset has {', '.join(spec.seen)}",
            "objective.local: 0 turns them off",
        )
    ((name, (channels, *sides)),) = images.items()
    height, width = map(view.side, sides)
    like = next(backbone.parameters())
    try:
        with trial(backbone):
            backbone({name: torch.zeros(1, channels, height, width, device=like.device)})
    except (RuntimeError, ValueError, AssertionError, LookupError, TypeError) as error:
        why = clean(str(error).partition("\n")[0], 120)
        raise ConfigError(
            f"objective.local: the backbone cannot run on smaller views of {height}x{width} pixels: {why}",
            "objective.local: 0 turns them off; cnn and resnets take images of any size that is not too small",
        ) from None


class Head(nn.Sequential):
    """Map vectors (B, width) to projections (B, D), and these to their cosines with each prototype (B, K).

    https://arxiv.org/abs/2104.14294 appendix C, but with batch norm: the vectors of small networks share a large common
    part, and without batch norm views would hardly differ.
    """

    def __init__(self, width: int, hidden: int, projection: int, prototypes: int) -> None:
        super().__init__(projector(width, hidden, projection, layers=3), Cosines(projection, prototypes))
        self.prototypes = prototypes


class Cosines(nn.Module):
    """Compute the cosine similarity of vectors (B, D) with each of K learned directions (B, K)."""

    def __init__(self, width: int, directions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(directions, width) / width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class Temperatures(NamedTuple):
    """Hold the softmax temperatures.

    student: of the student.
    first: of the teacher at the start.
    last: of the teacher after its warm-up.
    warmup: share of the run that the warm-up lasts.
    """

    student: float
    first: float
    last: float
    warmup: float

    def teacher(self, progress: Tensor) -> Tensor:
        """Compute the teacher's temperature (). progress: finished share of the run ()."""
        return self.first + (self.last - self.first) * (progress / max(self.warmup, 1e-9)).clamp(max=1)


def sorted_alike(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean cross-entropy of student and teacher over pairs of different views (B,).

    student: log-probabilities (B, V, K); the first two views are the large ones.
    teacher: probabilities for these two views (B, 2, K).
    https://arxiv.org/abs/2104.14294 equations (2) and (3), with a mean for the sum.
    """
    entropies = -(teacher @ student.mT)  # (B, 2, V)
    same_view = entropies.diagonal(dim1=1, dim2=2).sum(1)
    return (entropies.sum((1, 2)) - same_view) / (2 * student.shape[1] - 2)


class DINO(Pairs):
    """Train a student to assign views to the prototypes that its moving average assigns large views to.

    Not coupled: the loss of a sample depends on other samples through the centre only, which is constant within a step.
    """

    coupled = False
    cause = "objective.teacher_temperature may be too near to the student's, or the learning rate too high"
    projector: Head

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        views: tuple[View, ...],
        temperatures: Temperatures,
        momentum: float,
    ) -> None:
        super().__init__(backbone, head)
        self.views, self.temperatures, self.momentum = views, temperatures, momentum
        self.teacher = MovingTeacher(backbone, head)
        # Buffers, so that checkpoints hold them, and so that trial steps (benchmarks, range tests), which restore buffers,
        # leave no trace. A step adds to `seen` and `count`; `after_step` moves the centre.
        self.register_buffer("centre", torch.zeros(head.prototypes))
        self.register_buffer("seen", torch.zeros(head.prototypes))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("progress", torch.zeros(()))

    centre: Tensor  # (K,)
    seen: Tensor  # (K,), sum of the teacher's cosines in this step
    count: Tensor  # (), number of views in that sum
    progress: Tensor  # (), the finished share of the run

    def represent(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute cosines with the prototypes: the student's (B, V, K), and the teacher's for the first two views (B, 2, K)."""
        wanted = torch.stack([self.teacher(view) for view in batch.views[:2]], 1)
        if self.training:
            self.seen += wanted.sum((0, 1))
            self.count += wanted.shape[0] * wanted.shape[1]
        student = [self.projector(self.backbone(view).vector) for view in batch.views]
        return torch.stack(student, 1).float(), wanted

    def losses(self, first: Tensor, second: Tensor, *rest: Tensor, target: Mapping[str, Tensor | list[Any]]) -> Tensor:
        """Compute the loss of each sample (B,) from the cosines of student and teacher.

        https://arxiv.org/abs/2104.14294 equation (1); the teacher's are centred and sharpened (section 3.1).
        """
        return sorted_alike((first / self.temperatures.student).log_softmax(2), self.sharpened(second))

    def sharpened(self, cosines: Tensor) -> Tensor:
        """Turn cosines with the prototypes (..., K) into probabilities: centred, at the teacher's temperature."""
        return ((cosines - self.centre) / self.temperatures.teacher(self.progress)).softmax(-1)

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the rows for `metrics`, with the teacher's probabilities as `projection`.

        Both collapses that the paper describes (section 5.3), into one prototype and into the uniform distribution, give
        all samples the same probabilities.
        """
        view = batch.views[0]
        return {"vector": self.backbone(view).vector, "projection": self.sharpened(self.teacher(view))}

    def begin(self) -> None:
        self.teacher.begin(self.backbone, self.projector)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the centre (https://arxiv.org/abs/2104.14294 equation (4)) and the teacher (section 3.1).

        The centre stays if the step had no samples or its values were not finite.
        """
        if distributed.is_initialized():  # all ranks share one centre
            distributed.all_reduce(self.seen)
            distributed.all_reduce(self.count)
        mean = self.seen / self.count  # nan if there were no samples
        self.centre.copy_(torch.where(mean.isfinite().all(), self.centre.lerp(mean, 1 - CENTRE), self.centre))
        self.seen.zero_()
        self.count.zero_()
        self.progress.fill_(progress)
        self.teacher.follow(self.backbone, self.projector, momentum(self.momentum, progress))
