"""Experimental. Sort views as a teacher, a moving average of the network itself, sorts larger views of the same sample. Needs no labels."""

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

# The share of the area that views show, where there are local ones: https://arxiv.org/abs/2104.14294 appendix E.
GLOBAL, LOCAL = (0.4, 1.0), (0.05, 0.4)
CENTRE = 0.9  # what the centre keeps of itself at a step


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    prototypes: Annotated[int, Doc("what views are sorted into"), Gt(1)] = 1024,
    local: Annotated[int, Doc("smaller views of each sample, beside two large ones; 0 = none"), Ge(0)] = 4,
    local_size: Annotated[float, Doc("side of a smaller view, as a share of the input's"), Gt(0), Lt(1)] = 0.5,
    temperature: Annotated[float, Doc("of the student"), Gt(0)] = 0.1,
    teacher_temperature: Annotated[
        list[float], Doc("of the teacher, at the start and after its warm-up; below the student's")
    ] = [0.04, 0.07],
    warmup: Annotated[float, Doc("of the teacher's temperature, as a share of the run"), Ge(0), Le(1)] = 0.1,
    momentum: TeacherMomentum = 0.99,
    hidden: Annotated[int, Doc("width of the head's hidden layers"), Gt(0)] = 512,
    projection: Annotated[int, Doc("width of the projections, which prototypes are compared with"), Gt(0)] = 256,
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
        return [f"teacher_temperature: expected two numbers above 0, at the start and after, got {teacher_temperature}"]
    return []


def _takes_smaller(backbone: Backbone, spec: DataSpec, view: View) -> None:
    """Raises ConfigError for a backbone that was built for one size."""
    images = {name: one.shape for name, one in spec.inputs.items() if len(one.shape) == 3}
    if len(images) != 1 or len(spec.inputs) != 1:
        raise ConfigError(
            f"objective.local: smaller views are parts of images, and this dataset has {', '.join(spec.inputs)}",
            "objective.local: 0 does without them",
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
            f"objective.local: the backbone cannot take smaller views, of {height}x{width} pixels: {why}",
            "objective.local: 0 does without them; cnn and resnets take images of any size, if it is not too small",
        ) from None


class Head(nn.Sequential):
    """Vectors (B, width) -> projections (B, D) -> their cosines with each prototype (B, K).
    https://arxiv.org/abs/2104.14294 appendix C, with the batch norm that it
    leaves out: vectors of small networks have so much in common that views would hardly differ without."""

    def __init__(self, width: int, hidden: int, projection: int, prototypes: int) -> None:
        super().__init__(projector(width, hidden, projection, layers=3), Cosines(projection, prototypes))
        self.prototypes = prototypes


class Cosines(nn.Module):
    """Vectors (B, D) -> the cosines of their angles with each of K directions (B, K)."""

    def __init__(self, width: int, directions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(directions, width) / width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class Temperatures(NamedTuple):
    """The student's; the teacher's at the start and after its warm-up, which lasts that share of the run."""

    student: float
    first: float
    last: float
    warmup: float

    def teacher(self, progress: Tensor) -> Tensor:
        """At a finished share of the run ()."""
        return self.first + (self.last - self.first) * (progress / max(self.warmup, 1e-9)).clamp(max=1)


def sorted_alike(student: Tensor, teacher: Tensor) -> Tensor:
    """Log-probabilities of the student (B, V, K), whose first two views are large ones, and probabilities of the teacher
    for these two (B, 2, K) -> the mean of their cross-entropies over pairs of different views (B,).

    https://arxiv.org/abs/2104.14294 equations (2) and (3), there a sum.
    """
    found = -(teacher @ student.mT)  # (B, 2, V)
    alike = found.diagonal(dim1=1, dim2=2).sum(1)
    return (found.sum((1, 2)) - alike) / (2 * student.shape[1] - 2)


class DINO(Pairs):
    """A sample's loss depends on others by the centre alone, which stands still within a step."""

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
        # All of it is saved. What a step has seen moves the centre after it; whoever tries steps out puts buffers back.
        self.register_buffer("centre", torch.zeros(head.prototypes))
        self.register_buffer("seen", torch.zeros(head.prototypes))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("progress", torch.zeros(()))

    centre: Tensor  # (K,)
    seen: Tensor  # (K,), the sum of what the teacher said in this step
    count: Tensor  # (), over how many views
    progress: Tensor  # (), the finished share of the run

    def represent(self, batch: Batch) -> tuple[Tensor, ...]:
        """Cosines with the prototypes of the student (B, V, K), and of the teacher for the first two views (B, 2, K)."""
        wanted = torch.stack([self.teacher(view) for view in batch.views[:2]], 1)
        if self.training:
            self.seen += wanted.sum((0, 1))
            self.count += wanted.shape[0] * wanted.shape[1]
        student = [self.projector(self.backbone(view).vector) for view in batch.views]
        return torch.stack(student, 1).float(), wanted

    def losses(self, one: Tensor, other: Tensor, *rest: Tensor, target: Mapping[str, Tensor | list[Any]]) -> Tensor:
        """https://arxiv.org/abs/2104.14294 equation (1), and the same of the teacher, centred and sharpened, as section 3.1 says."""
        return sorted_alike((one / self.temperatures.student).log_softmax(2), self.sharpened(other))

    def sharpened(self, cosines: Tensor) -> Tensor:
        """Cosines with the prototypes (..., K), centred, as probabilities at the teacher's temperature."""
        return ((cosines - self.centre) / self.temperatures.teacher(self.progress)).softmax(-1)

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        """What is watched for a collapse is what the teacher says: both collapses that the paper describes, into one prototype
        and into all of them alike (section 5.3), give all samples the same probabilities."""
        view = batch.views[0]
        return {"vector": self.backbone(view).vector, "projection": self.sharpened(self.teacher(view))}

    def begin(self) -> None:
        self.teacher.begin(self.backbone, self.projector)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """The centre moves as in equation (4) of https://arxiv.org/abs/2104.14294, unless the step had no sample or was
        not finite; the teacher as in its section 3.1."""
        if distributed.is_initialized():  # all ranks have one centre
            distributed.all_reduce(self.seen)
            distributed.all_reduce(self.count)
        mean = self.seen / self.count  # of nothing it is not a number
        self.centre.copy_(torch.where(mean.isfinite().all(), self.centre.lerp(mean, 1 - CENTRE), self.centre))
        self.seen.zero_()
        self.count.zero_()
        self.progress.fill_(progress)
        self.teacher.follow(self.backbone, self.projector, momentum(self.momentum, progress))
