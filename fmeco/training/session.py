"""A run while it trains: everything it holds, and how that is saved and restored."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import transplant, writer
from fmeco.config.sections import Train
from fmeco.core import Constraint, Objective, Phase, mix_numbers
from fmeco.data.loader import Loader
from fmeco.distributed.ranks import Ranks
from fmeco.errors import clean
from fmeco.log import say
from fmeco.reports.metrics_files import Log


@dataclass
class State:
    """What changes while a run trains, beside weights and optimizer. Saved in trainer.json."""

    step: int = 0
    total: int = 0  # steps of the whole run
    phase: int = 0  # of the transfer strategy
    phase_start: float = 0.0  # the step, or in a budget the second, that it began at
    phase_history: int = 0  # evaluations before it
    seconds: float = 0.0  # of training so far, over all resumes
    spent: dict[str, float] = field(default_factory=lambda: {"data": 0.0, "evaluate": 0.0, "save": 0.0})  # of them
    samples: int = 0  # trained on so far
    history: list[float] = field(default_factory=list)  # validation scores, higher is better
    best: float | None = None  # the highest of them
    best_step: int = 0  # of the checkpoint that is kept as the best
    waited: int = 0  # evaluations since the highest
    bad_samples: list[str] = field(default_factory=list)
    window: list[tuple[float, float, int]] = field(default_factory=list)  # loss, norm, samples of unlogged steps
    finished: bool = False


class Outcome(NamedTuple):
    """What a step gave, as tensors that nobody has waited for yet."""

    step: int
    loss: Tensor | float  # a sum
    over: Tensor | float  # what it is a sum over
    norm: Tensor | float
    factor: float  # on the learning rate


class Measured(NamedTuple):
    """What an evaluation gave. error: one standard error of the metric that picks the best, 0 where it is not known."""

    metrics: dict[str, float]
    bad: list[str]  # samples that could not be read
    error: float


class Gear(NamedTuple):
    """What one phase of a run trains with."""

    optimizer: torch.optim.Optimizer
    trained: list[torch.nn.Parameter]
    loader: Loader
    validate: Callable[[], Measured] | None  # measures the validation split


@dataclass
class Session:
    """Everything that one run holds. run.py puts it together."""

    run: Path
    objective: Objective
    ranks: Ranks
    phases: tuple[Phase, ...]
    prepare: Callable[[int], Gear]  # freezes and thaws what a phase wants
    constraint: Constraint | None
    batch_norm: Literal["frozen", "adapt"]
    schedule: Callable[..., float]  # handed step, total and history by name
    train: Train
    validation_size: int  # samples
    evaluate_every: int  # steps
    health: Literal["stop", "warn", "off"]
    best_metric: str
    best_sign: int  # +1 when higher is better
    seed: int
    device: torch.device
    precision: str
    meta: Mapping[str, Any]
    parents: list[str]
    card: Callable[[Mapping[str, Any]], str]
    log: Log
    stop: Callable[[], bool]
    state: State = field(default_factory=State)
    average: dict[str, Tensor] | None = None  # the EMA of every tensor of the objective, by name
    metrics: dict[str, float] = field(default_factory=dict)  # of the newest evaluation
    measured_at: int = -1  # the step of it
    error: float = 0.0  # one standard error of its metric
    scaler: torch.amp.GradScaler | None = None  # for fp16
    writer: writer.Writer = field(default_factory=writer.Writer)
    pending: list[Outcome] = field(default_factory=list)  # steps whose numbers are still on the device
    skipped: int = 0  # steps in a row that were not finite
    saved_at: float = 0.0  # the second of the last checkpoint to resume from
    gear: Gear | None = None  # of the present phase

    @property
    def training(self) -> Gear:
        assert self.gear is not None, "a phase was entered"
        return self.gear

    @property
    def epoch(self) -> float:
        """Passes over the training data so far."""
        return self.state.step / self.training.loader.steps_per_epoch

    def enter(self, phase: int) -> None:
        """Begin a phase, or take it up again."""
        self.state.phase, self.gear = phase, self.prepare(phase)

    @functools.cached_property
    def own_seed(self) -> int:
        """Of this rank."""
        return mix_numbers(self.seed, self.ranks.rank)


# ---------------------------------------------------------------- averaged weights


def update_average(average: dict[str, Tensor], objective: Objective, decay: float, step: int) -> None:
    """average <- decay * average + (1 - decay) * weights, with a smaller decay at the start, when weights move fast."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, tensor in objective.state_dict().items():
            if tensor.is_floating_point():
                average[name].lerp_(tensor, 1 - decay)
            else:
                average[name].copy_(tensor)


@contextlib.contextmanager
def evaluated_weights(s: Session) -> Iterator[None]:
    """Within, the objective holds the averaged weights, if there are any: what is evaluated is what is saved."""
    if s.average is None:
        yield
        return
    own = s.objective.state_dict()
    raw = {name: tensor.clone() for name, tensor in own.items()}
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(s.average[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(raw[name])


# ---------------------------------------------------------------- saving and restoring


def save(s: Session, *, full: bool, best: bool = False) -> None:
    """Write a checkpoint; without `full`, one to use but not to resume from. What changes in training is copied here; the
    rest is done by `s.writer`, beside training."""
    if not s.ranks.first:
        return
    s.writer.wait()  # one at a time
    if s.state.bad_samples:
        (s.run / "bad_samples.txt").write_text("\n".join(clean(name) for name in s.state.bad_samples) + "\n", "utf-8")
    optimizer, numbers = pack_optimizer(s.training.optimizer) if full else ({}, {})
    trainer = (
        {
            "state": asdict(s.state),
            "optimizer": numbers,
            "metrics_size": s.log.size(),
            "threads": torch.get_num_threads(),
            "ranks": s.ranks.world,
            "scaler": s.scaler.state_dict() if s.scaler is not None else None,
        }
        if full
        else None
    )
    meta = {
        **s.meta,
        # Metrics belong to the weights they were measured with; a save between evaluations has none.
        "metrics": {f"val_{k}": v for k, v in s.metrics.items()} if s.measured_at == s.state.step else {},
        "epoch": s.epoch,
        "best": best,
    }
    tensors: dict[str, Mapping[str, Tensor]] = {}
    if full:
        raw = {f"raw/{name}": x for name, x in s.objective.state_dict().items()} if s.average is not None else {}
        bound = {f"constraint/{name}": x for name, x in s.constraint.state().items()} if s.constraint else {}
        tensors["trainer"] = writer.snapshot({**raw, **optimizer, **bound})
    with evaluated_weights(s):
        product, rest = transplant.split_state(s.objective)
        tensors |= {"backbone": writer.snapshot(product), "objective": writer.snapshot(rest)}
    if s.constraint is not None and (adapter := s.constraint.adapter()):
        tensors["adapter"] = writer.snapshot(adapter)
    folder, step = s.run / "checkpoints", s.state.step

    def write() -> None:
        path = writer.write(folder, step, tensors, meta, trainer, s.parents, s.card(meta | {"step": step}))
        if full:
            writer.point(folder, "last", path)
        if best or not (folder / "best").exists():
            writer.point(folder, "best", path)
        writer.tidy(folder, s.train.keep)

    s.writer.start(write)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as (tensors, JSON)."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                numbers[f"{index}/{key}"] = value
    return tensors, numbers


def restore(s: Session, saved: checkpoint.Checkpoint) -> None:
    """Continue from a checkpoint: weights, averages, optimizer and state, bit for bit."""
    trainer, tensors = saved.trainer(), saved.tensors("trainer")
    raw = {name.removeprefix("raw/"): tensor for name, tensor in tensors.items() if name.startswith("raw/")}
    transplant.load_objective(s.objective, saved)
    if s.average is not None:
        s.average = {name: tensor.clone() for name, tensor in s.objective.state_dict().items()}
        transplant.load_exactly(s.objective, raw, str(saved.path))
    state: dict[int, dict[str, Any]] = {}
    for name, value in [
        *((n.removeprefix("optimizer/"), t) for n, t in tensors.items() if n.startswith("optimizer/")),
        *trainer["optimizer"].items(),
    ]:
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    if s.constraint is not None:
        bound = {n.removeprefix("constraint/"): x for n, x in tensors.items() if n.startswith("constraint/")}
        transplant.load_exactly(s.constraint.state(), bound, str(saved.path))
    total, state_then = s.state.total, State(**trainer["state"])
    s.enter(state_then.phase)  # now that the weights are those that what is frozen is computed with
    optimizer = s.training.optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state.items():
        like = parameters[number]
        for key, value in values.items():
            # Fused kernels walk through memory: a moment must lie there as its parameter does.
            if isinstance(value, Tensor) and value.shape == like.shape:
                values[key] = torch.empty_like(like, dtype=value.dtype).copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if s.scaler is not None and trainer["scaler"] is not None:
        s.scaler.load_state_dict(trainer["scaler"])
    # A run that was made longer goes on, also when it was killed before the first checkpoint of its new length.
    finished = state_then.finished and total <= state_then.total
    s.state = dataclasses.replace(state_then, total=total, finished=finished)
    if s.ranks.first and (
        s.state.best_step == s.state.step or s.training.validate is None
    ):  # killed between the save and the link to it
        writer.point(s.run / "checkpoints", "best", saved.path)
    for what, then, now in (
        ("threads", trainer["threads"], torch.get_num_threads()),
        ("ranks", trainer["ranks"], s.ranks.world),
    ):
        if then != now:
            say(f"this run used {then} {what} and now has {now}: it goes on with the same samples, but not bit for bit")
