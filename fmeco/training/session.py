"""Hold everything of a run during training; save and restore it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmeco.assembly.description import describe_run
from fmeco.assembly.stages import Training
from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import pointers, transplant, writer
from fmeco.checkpoints.writer import Writer
from fmeco.config.sections import Train
from fmeco.core.model import Objective
from fmeco.core.random import mix_numbers
from fmeco.distributed.ranks import Ranks
from fmeco.errors import CheckpointError, ConfigError, clean, listing
from fmeco.files import replacing
from fmeco.log import say
from fmeco.reports.metrics_files import Log
from fmeco.reports.model_card import model_card
from fmeco.training.state import Outcome, PhaseSetup, State


@dataclass
class Session:
    """Hold a run during training: what stays the same (`training`), and what changes.

    run: its directory.
    prepare: sets the model up for a phase: freezes parameters, builds the optimizer.
    schedule: (step, total, validation scores) -> factor on the learning rate.
    meta: description of the run that every checkpoint stores.
    stop: polled before each step; True asks to save and leave.
    average: EMA of every tensor of the objective, by name.
    metrics, measured_at, error: of the newest evaluation, its step, and its standard error.
    loss: mean training loss of the newest logged steps; None before them.
    scaler: of the loss, for fp16.
    pending: steps whose results are still on the device.
    skipped: steps in a row that were not finite.
    read: (N,) training samples that this rank has read since `read_from`, if unreadable ones are skipped; else None.
    read_from: epoch at which the process began.
    compared: whether equal samples in several splits or classes were looked for.
    saved_at: second of the last checkpoint to resume from.
    said_at: second of the last line about progress.
    entered: setup of the current phase.
    objective, ranks, train: shortcuts to those of `training`; `train` is the config's section.
    """

    run: Path
    training: Training
    prepare: Callable[[int], PhaseSetup]
    schedule: Callable[..., float]
    meta: Mapping[str, Any]
    log: Log
    stop: Callable[[], bool]
    state: State
    average: dict[str, Tensor] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    measured_at: int = -1
    error: float = 0.0
    loss: float | None = None
    scaler: torch.amp.GradScaler | None = None
    writer: Writer = field(default_factory=Writer)
    pending: list[Outcome] = field(default_factory=list)
    skipped: int = 0
    read: Tensor | None = None
    read_from: float = 0.0
    compared: bool = False
    saved_at: float = 0.0
    said_at: float = 0.0
    entered: PhaseSetup | None = None
    objective: Objective = field(init=False)
    ranks: Ranks = field(init=False)
    train: Train = field(init=False)

    def __post_init__(self) -> None:
        self.objective, self.ranks, self.train = (
            self.training.objective,
            self.training.ranks,
            self.training.config.train,
        )

    @property
    def setup(self) -> PhaseSetup:
        """Setup of the current phase."""
        assert self.entered is not None, "a phase was entered"
        return self.entered

    @property
    def epoch(self) -> float:
        """Passes over the training data so far."""
        return self.state.step / self.setup.loader.steps_per_epoch

    def enter(self, phase: int) -> None:
        """Begin a phase, or continue it after a resume."""
        self.state.phase, self.entered = phase, self.prepare(phase)

    @functools.cached_property
    def own_seed(self) -> int:
        """Seed of this rank."""
        return mix_numbers(self.training.config.seed, self.ranks.rank)


def begin(
    run: Path, training: Training, prepare: Callable[[int], PhaseSetup], log: Log, stop: Callable[[], bool]
) -> Session:
    """Start a session of an assembled training."""
    config, device = training.config, training.device
    return Session(
        run=run,
        training=training,
        prepare=prepare,
        schedule=config.schedule.plugin.bound(config.schedule.options),
        meta=describe_run(training),
        log=log,
        stop=stop,
        # The first phase is for heads that cannot be solved. If there is no other one, the solved head is the result.
        state=State(
            total=training.total,
            phase=int(training.solved and len(training.model.transfer.phases) > 1),
            finished=training.solved and len(training.model.transfer.phases) == 1,
        ),
        average={n: t.detach().clone() for n, t in training.objective.state_dict().items()}
        if config.train.ema
        else None,
        scaler=torch.amp.GradScaler(device.type) if config.train.precision == "fp16" else None,
        read=torch.zeros(len(training.data.split("train"))) if config.train.on_bad_sample == "skip" else None,
    )


# ---------------------------------------------------------------- averaged weights


def update_average(average: dict[str, Tensor], objective: Objective, decay: float, step: int) -> None:
    """Update the EMA: average <- decay * average + (1 - decay) * weights.

    The decay is smaller in the first steps, when weights change fast.
    """
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, tensor in objective.state_dict().items():
            if tensor.is_floating_point():
                average[name].lerp_(tensor, 1 - decay)
            else:
                average[name].copy_(tensor)


@contextlib.contextmanager
def evaluated_weights(s: Session) -> Iterator[None]:
    """Put the averaged weights, if any, into the objective within the context, for evaluating and saving."""
    if s.average is None:
        yield
        return
    tensors = s.objective.state_dict()
    raw = {name: tensor.clone() for name, tensor in tensors.items()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(s.average[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(raw[name])


# ---------------------------------------------------------------- saving and restoring


def save(s: Session, *, full: bool, best: bool = False) -> None:
    """Write a checkpoint in the background.

    Tensors that training changes are copied here; `s.writer` does the rest.

    full: include the training state, so that the run can be resumed from it.
    best: mark it as the best so far.
    """
    if not s.ranks.first:
        return
    s.writer.wait()  # one at a time
    _list_bad_samples(s)
    optimizer, numbers = pack_optimizer(s.setup.optimizer) if full else ({}, {})
    trainer = (
        {
            "state": asdict(s.state),
            "optimizer": numbers,
            "order": parameter_names(s.setup.optimizer),
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
        # Metrics belong to the weights that were evaluated; a save between evaluations has none.
        "metrics": {f"val_{k}": v for k, v in s.metrics.items()} if s.measured_at == s.state.step else {},
        "epoch": s.epoch,
        "best": best,
    }
    tensors: dict[str, Mapping[str, Tensor]] = {}
    if full:
        raw = {f"raw/{name}": x for name, x in s.objective.state_dict().items()} if s.average is not None else {}
        bound = (
            {f"constraint/{name}": x for name, x in s.training.constraint.state().items()}
            if s.training.constraint
            else {}
        )
        tensors["trainer"] = writer.snapshot({**raw, **optimizer, **bound})
    with evaluated_weights(s):
        product, rest = transplant.split_state(s.objective)
        tensors |= {"backbone": writer.snapshot(product), "objective": writer.snapshot(rest)}
    if s.training.constraint is not None and (adapter := s.training.constraint.adapter()):
        tensors["adapter"] = writer.snapshot(adapter)
    folder, step = s.run / "checkpoints", s.state.step

    def write() -> None:
        path = writer.write(
            folder, step, tensors, meta, trainer, s.training.model.origin.parents, model_card(meta | {"step": step})
        )
        if full:
            pointers.point(folder, "last", path)
        if best or pointers.marked(folder, "best") is None:
            pointers.point(folder, "best", path)
        writer.tidy(folder, s.train.keep, source=s.state.source_step)

    s.writer.start(write)


def _list_bad_samples(s: Session) -> None:
    """Write bad_samples.txt, if samples could not be read."""
    if s.state.bad_samples:
        with replacing(s.run / "bad_samples.txt", resumable=True) as temporary:
            temporary.write_text("\n".join(clean(name) for name in s.state.bad_samples) + "\n", "utf-8")


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors, and values for JSON.

    Raises ConfigError for state that cannot be saved and restored exactly.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        if not isinstance(index, int):
            raise _unsavable(optimizer, f"state['{clean(index)}'] belongs to no parameter")
        for key, value in values.items():
            if not isinstance(key, str):
                raise _unsavable(optimizer, f"the key {clean(key)} of a parameter's state is not a string")
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            elif value is None or isinstance(value, bool | int | float | str):
                numbers[f"{index}/{key}"] = value
            else:
                raise _unsavable(optimizer, f"'{clean(key)}' of a parameter's state is a {type(value).__name__}")
    return tensors, numbers


def _unsavable(optimizer: torch.optim.Optimizer, what: str) -> ConfigError:
    return ConfigError(
        f"optimizer: the state of {type(optimizer).__name__} cannot be saved: {what}",
        "its state must hold tensors, numbers, texts or None for each parameter, under keys that are strings",
    )


def parameter_names(optimizer: torch.optim.Optimizer) -> list[str] | None:
    """List the parameters' names in the optimizer's order. None if its groups hold no names."""
    groups = optimizer.param_groups
    named = all(len(group.get("names", ())) == len(group["params"]) for group in groups)
    return [name for group in groups for name in group["names"]] if named else None


def unpack_optimizer(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Undo `pack_optimizer`. Returns the state of each parameter, by its number."""
    state: dict[int, dict[str, Any]] = {}
    stored = {name.removeprefix("optimizer/"): x for name, x in tensors.items() if name.startswith("optimizer/")}
    for name, value in {**stored, **numbers}.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    return state


def _renumbered(
    state: dict[int, dict[str, Any]], then: list[str] | None, now: list[str] | None, where: str
) -> dict[int, dict[str, Any]]:
    """Map each parameter's state from its number when saved to its number now, by name.

    Older checkpoints hold no names; their numbers are kept. Raises CheckpointError if the names are not the same.
    """
    if then is None or now is None:
        return state
    if mismatched := sorted(set(then) ^ set(now)):
        raise CheckpointError(f"{where}: the optimizer's state is of other parameters: {listing(mismatched, 5)}")
    place = {name: number for number, name in enumerate(now)}
    return {place[then[number]]: values for number, values in state.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
    order: list[str] | None,
    where: str,
) -> None:
    """Load what `pack_optimizer` gave into an optimizer. order: the parameters' names then. where: for the message.

    Raises CheckpointError for parameters of another name.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        state = _renumbered(unpack_optimizer(tensors, numbers), order, parameter_names(optimizer), where)
        for number, values in state.items():
            like = parameters[number]
            for key, value in values.items():
                # Fused kernels walk through memory: a moment must lie there as its parameter does.
                if isinstance(value, Tensor) and value.shape == like.shape:
                    values[key] = torch.empty_like(like, dtype=value.dtype).copy_(value)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{where}: the optimizer's state does not fit this run: {type(error).__name__}: {clean(error, 200)}"
        ) from None


def restore(s: Session, saved: checkpoint.Checkpoint, longer: bool = False) -> None:
    """Continue from a checkpoint: weights, averages, optimizer and state, bit for bit.

    longer: whether the run is to be longer than it was. After an early stop, its patience then starts anew.
    """
    trainer, tensors = saved.trainer(), saved.tensors("trainer")
    raw = {name.removeprefix("raw/"): tensor for name, tensor in tensors.items() if name.startswith("raw/")}
    transplant.load_objective(s.objective, saved)
    if s.average is not None:
        s.average = {name: tensor.clone() for name, tensor in s.objective.state_dict().items()}
        transplant.load_exactly(s.objective, raw, str(saved.path))
    if s.training.constraint is not None:
        bound = {n.removeprefix("constraint/"): x for n, x in tensors.items() if n.startswith("constraint/")}
        transplant.load_exactly(s.training.constraint.state(), bound, str(saved.path))
    total, state_then = s.state.total, State(**trainer["state"])
    if state_then.phase >= (phases := len(s.training.model.transfer.phases)):
        raise CheckpointError(
            f"{saved.path / checkpoint.TRAINER} is not valid: state.phase: {state_then.phase}, and the run has {phases} phases"
        )
    s.enter(state_then.phase)  # after loading weights: features of the frozen part depend on them
    restore_optimizer(s.setup.optimizer, tensors, trainer["optimizer"], trainer.get("order"), str(saved.path))
    if s.scaler is not None and trainer["scaler"] is not None:
        s.scaler.load_state_dict(trainer["scaler"])
    # A longer run continues, even if it was killed before its first checkpoint of the new length.
    longer = state_then.finished and (longer or total != state_then.total)
    stopped_early = state_then.step < state_then.total
    s.state = dataclasses.replace(
        state_then,
        total=total,
        finished=state_then.finished and not longer,
        waited=0 if longer and stopped_early else state_then.waited,
    )
    if s.ranks.first and (
        s.state.best_step == s.state.step or s.setup.validate is None
    ):  # killed after the save, before `best` marked it
        pointers.point(s.run / "checkpoints", "best", saved.path)
    if s.ranks.first and pointers.marked(s.run / "checkpoints", "last") != saved.path.resolve():
        pointers.point(s.run / "checkpoints", "last", saved.path)  # killed before `last` marked it
    for what, then, now in (
        ("threads", trainer["threads"], torch.get_num_threads()),
        ("ranks", trainer["ranks"], s.ranks.world),
        ("torch", saved.meta["versions"].get("torch"), str(torch.__version__)),
        ("device", saved.meta["config"]["train"].get("device"), s.training.config.train.device),
    ):
        if then and then != now:  # checkpoints need not state them
            say(
                f"{what}: this run had {then} and now has {now}. It continues with the same samples, but not bit for bit"
            )
