"""train() and evaluate(): the only loop. It names no plug-in and no modality."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fmeco import checkpoint
from fmeco.config import Train, seconds
from fmeco.core import Batch, Objective, seed_torch
from fmeco.dist import ALONE, Ranks
from fmeco.errors import ConfigError, DataError, Diverged, ResourceError, Stopped, clean, listing
from fmeco.loader import Loader, epoch_order, unreadable
from fmeco.log import Log, say

MAX_SKIPPED_STEPS = 20  # in a row, with on_nonfinite: skip
MIN_SECONDS_BETWEEN_SAVES = 20.0  # with save_every: auto


@dataclass
class State:
    """What changes while a run trains, beside weights and optimizer. Saved in trainer.json."""

    step: int = 0
    total: int = 0  # steps of the whole run
    seconds: float = 0.0  # of training so far, over all resumes
    spent: dict[str, float] = field(default_factory=lambda: {"data": 0.0, "evaluate": 0.0, "save": 0.0})  # of them
    samples: int = 0  # trained on so far
    history: list[float] = field(default_factory=list)  # validation scores, higher is better
    best: float | None = None  # the best of them
    best_step: int = 0
    waited: int = 0  # evaluations since the best
    bad_samples: list[str] = field(default_factory=list)
    window: list[tuple[float, float, int]] = field(default_factory=list)  # loss, norm, samples of unlogged steps
    finished: bool = False


@dataclass
class Session:
    """Everything that one run holds. run.py puts it together."""

    run: Path
    objective: Objective
    ranks: Ranks
    loader: Loader
    validate: Callable[[], tuple[dict[str, float], list[str]]] | None  # metrics of the validation split, bad samples
    optimizer: torch.optim.Optimizer
    schedule: Callable[[float, float, list[float]], float]
    train: Train
    validation_size: int  # samples
    evaluate_every: int  # steps
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
    scaler: torch.amp.GradScaler | None = None  # for fp16
    writer: checkpoint.Writer = field(default_factory=checkpoint.Writer)
    pending: list[Outcome] = field(default_factory=list)  # steps whose numbers are still on the device
    skipped: int = 0  # steps in a row that were not finite


class Outcome(NamedTuple):
    """What a step gave, as tensors that nobody has waited for yet."""

    step: int
    loss: Tensor | float  # a sum
    over: Tensor | float  # what it is a sum over
    norm: Tensor | float
    factor: float  # on the learning rate


class Pace:
    """How far a run is: in steps, or in a budget of time, of which the last evaluation must have its part."""

    def __init__(self, s: Session) -> None:
        self.state, self.size = s.state, s.validation_size
        self.budget = seconds(s.train.budget) if s.train.budget else math.inf
        self.evaluation = 0.0  # seconds that one takes, as far as is known
        self.measured = False
        self.first: tuple[float, int] | None = None  # seconds and samples after the first step, which pays for all else

    @property
    def place(self) -> tuple[float, float]:
        """(done, whole): a schedule is a function of the finished share."""
        if self.budget == math.inf:
            return float(self.state.step), float(self.state.total)
        return self.state.seconds, max(self.budget - self.evaluation, 1.0)

    @property
    def progress(self) -> float:
        done, whole = self.place
        return min(1.0, done / whole)

    def stepped(self) -> None:
        if self.budget == math.inf or self.measured:
            return
        if self.first is None:
            self.first = (self.state.seconds, self.state.samples)
            return
        # No evaluation was timed yet: a forward pass is about a third of a step.
        guess = (self.state.seconds - self.first[0]) / (self.state.samples - self.first[1]) / 3 * self.size
        self.evaluation = min(guess, self.budget / 2)

    def evaluated(self, took: float) -> None:
        self.evaluation, self.measured = took, True

    def over(self, more: int = 1) -> bool:
        """Whether the run is at its end, when `more` evaluations are to come."""
        return self.state.step >= self.state.total or self.state.seconds + more * self.evaluation >= self.budget


def train(s: Session) -> None:
    """Run the session from its state to its end. Step, log, evaluate, save: in that order, below.

    Raises Diverged, Stopped (after saving) and what reading data raises.
    """
    state, pace, clock = s.state, Pace(s), Clock(s.state)
    started, last_save = time.monotonic() - state.seconds, state.seconds
    parameters = [p for p in s.objective.parameters() if p.requires_grad]
    model = s.ranks.parallel(s.objective, s.device)
    batches = s.loader.batches(state.step, state.total)
    _train_mode(s.objective)
    bar = tqdm(
        total=None if s.train.budget else state.total,
        initial=state.step,
        unit="step",
        disable=None if s.ranks.first else True,
        dynamic_ncols=True,
        leave=False,
    )

    def agree() -> bool:
        """Set the clock to that of the rank that is furthest, so that ranks evaluate, save and stop together. Returns
        whether one of them was asked to stop."""
        stop, state.seconds = s.ranks.most(float(s.stop()), time.monotonic() - started)
        return stop > 0

    with bar, contextlib.closing(batches), s.writer:
        stop = agree()
        while state.step < state.total and not state.finished:
            if stop:
                _save(s, full=True)
                s.writer.wait()
                s.ranks.barrier()
                raise Stopped(f"stopped at step {state.step}; everything is saved", f"fmeco resume {s.run}")
            factor = s.schedule(*pace.place, state.history)
            for group in s.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            _step(s, model, _micro_batches(s, batches, clock), parameters, factor)
            state.step += 1
            state.samples += s.loader.samples_in(state.step - 1)
            if s.average is not None:
                _average(s.average, s.objective, s.train.ema or 0.0, state.step)
            s.objective.after_step(pace.progress)
            bar.update()

            logs = state.step % s.train.log_every == 0 or state.step == state.total
            if logs or immediate(s.device):  # a GPU is waited for only here, and before evaluations and saves
                _settle(s)
            if logs and state.window:
                bar.set_postfix_str(_log(s, clock), refresh=False)
            stop = agree()
            pace.stepped()
            ends = pace.over()
            # In a budget, an evaluation on the way must leave time for the last one.
            on_the_way = state.step % s.evaluate_every == 0 and not pace.over(2)
            evaluated = s.validate is not None and (on_the_way or ends)
            improved = False
            if evaluated:
                began = time.monotonic()
                improved = _evaluate(s)
                clock.charge("evaluate", began)
                pace.evaluated(time.monotonic() - began)
                stop = agree() or stop
                ends = ends or pace.over()
                if s.train.early_stop is not None and state.waited >= s.train.early_stop:
                    say(f"early stop: no better {s.best_metric} in {state.waited} evaluations")
                    ends = True
            state.finished = ends
            if s.train.save_every == "auto":
                due = evaluated and state.seconds - last_save > MIN_SECONDS_BETWEEN_SAVES
            else:
                due = state.step % s.train.save_every == 0
            if ends or due or improved:
                began = time.monotonic()
                _save(s, full=ends or due, best=improved or s.validate is None)
                clock.charge("save", began)
                last_save = state.seconds if ends or due else last_save
    state.seconds = time.monotonic() - started
    _say_where_time_went(s)


class Clock:
    """Charges the time of a run to what it went to; what is not charged is computing."""

    def __init__(self, state: State) -> None:
        self.state, self.since = state, time.monotonic()
        self.before = dict(state.spent)

    def charge(self, what: str, began: float) -> None:
        """Everything since `began` was for this."""
        self.state.spent[what] += time.monotonic() - began

    def lap(self) -> tuple[float, float]:
        """Since the last lap: seconds of training, evaluations and saves not counted; of them waiting for data."""
        now, spent = time.monotonic(), self.state.spent
        data, evaluate, save = (spent[what] - self.before[what] for what in ("data", "evaluate", "save"))
        training = max(now - self.since - evaluate - save, 1e-9)
        self.since, self.before = now, dict(spent)
        return training, data


def _log(s: Session, clock: Clock) -> str:
    """Write the mean of the steps since the last line, and return it for the progress bar."""
    window = s.state.window
    loss, norm = (sum(step[k] for step in window) / len(window) for k in (0, 1))
    training, data = clock.lap()
    rate = sum(step[2] for step in window) / training
    values = {
        "loss": loss,
        "grad_norm": norm,
        "lr": s.optimizer.param_groups[0]["lr"],
        "samples_per_second": rate,
        "data_share": data / training,
    }
    s.log.write("train", s.state.step, s.state.step / s.loader.steps_per_epoch, values)
    s.state.window = []
    return f"loss {loss:.4f}, {rate:.0f} samples/s"


def _evaluate(s: Session) -> bool:
    """Measure the validation split. Returns whether it is the best so far."""
    assert s.validate is not None
    _settle(s)
    s.writer.wait()  # loader workers are forked from a process that does nothing else
    s.ranks.broadcast_(list(s.objective.buffers()))
    epoch = s.state.step / s.loader.steps_per_epoch
    with evaluated_weights(s):
        s.metrics, bad = s.validate()
    s.measured_at = s.state.step
    s.state.bad_samples = list(dict.fromkeys([*s.state.bad_samples, *bad]))
    _train_mode(s.objective)
    improved = _score(s)
    s.log.write("val", s.state.step, epoch, s.metrics)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in s.metrics.items() if "/" not in name)
    say(f"epoch {epoch:g}, step {s.state.step}: {shown}{'  *' if improved else ''}")
    return improved


def _micro_batches(s: Session, batches: Iterator[Batch], clock: Clock) -> Iterator[tuple[Batch, bool]]:
    """This rank's micro-batches of the step that hold samples, each with whether it is the last of them."""
    ahead: Batch | None = None
    for _ in s.loader.micros(s.state.step):
        began = time.monotonic()
        batch = next(batches)
        clock.charge("data", began)
        if batch.skipped:
            s.state.bad_samples = list(dict.fromkeys([*s.state.bad_samples, *batch.skipped]))
        if len(batch):
            if ahead is not None:
                yield ahead, False
            ahead = batch
    if ahead is not None:
        yield ahead, True


def _step(
    s: Session, model: Any, micros: Iterator[tuple[Batch, bool]], parameters: list[nn.Parameter], factor: float
) -> None:
    """One optimizer step. Nothing here waits for the device: a step that is not finite is left out by the optimizer's
    own kernel, and found out by `_settle`."""
    # What layers draw (dropout) comes from a seed of this step alone: a resume needs no generator state.
    seed_torch(s.seed, s.state.step, s.ranks.rank)
    expected = float(s.loader.samples_in(s.state.step))
    sums: list[Any] = []  # (loss, count) of each micro-batch: numbers, or tensors that are not waited for
    first = next(micros, None)
    nothing = first is None
    if s.train.on_bad_sample == "skip":
        nothing = s.ranks.most(float(nothing))[0] > 0  # where one rank has nothing to send, none may wait for it
    if nothing or first is None:
        collections.deque(micros, maxlen=0)
        return
    for batch, last in itertools.chain([first], micros):
        together = s.ranks.world == 1 or last  # gradients travel between ranks once per step
        with contextlib.nullcontext() if together else model.no_sync():
            with autocast(s.device, s.precision):
                loss = model(batch, "loss")
            scaled = loss.sum if s.scaler is None else s.scaler.scale(loss.sum)
            # Data parallel training takes the mean over ranks; what is wanted is the sum over them, divided once.
            scaled.backward(_constant(s.ranks.world / expected, scaled.dtype, s.device))
        sums.append((loss.sum.detach(), loss.count))
    if s.scaler is not None:
        s.scaler.unscale_(s.optimizer)
    gradients = [p.grad for p in parameters if p.grad is not None]
    total, count = sums[0] if len(sums) == 1 else (sum(column) for column in zip(*sums, strict=True))
    if s.ranks.world > 1:
        both = [torch.as_tensor(value, dtype=torch.float64, device=s.device) for value in (total, count)]
        total, count = s.ranks.sum_(torch.stack(both))
    norms = torch._foreach_norm(gradients)
    norm: Any = math.hypot(*norms) if immediate(s.device) else torch.linalg.vector_norm(torch.stack(norms))
    rescale: Tensor | float | None = None
    if not isinstance(count, float) or count != expected:
        rescale = expected / count
        norm = norm * rescale
    if s.train.clip_norm is not None:
        if isinstance(norm, Tensor):
            clip: Any = (s.train.clip_norm / norm).clamp(max=1.0)
        else:
            clip = s.train.clip_norm / max(norm, s.train.clip_norm)
        rescale = clip if rescale is None else rescale * clip
    if rescale is not None:
        torch._foreach_mul_(gradients, rescale)
    _update(s, norm + total)
    for parameter in parameters:
        parameter.grad = None
    s.pending.append(Outcome(s.state.step, total, count, norm, factor))


@functools.lru_cache(maxsize=64)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def _update(s: Session, size: Tensor) -> None:
    """Take the step if `size`, of its loss and gradient, is finite, which ranks agree on, as all of them have the sums."""
    if s.scaler is not None:
        s.scaler.step(s.optimizer)
        s.scaler.update()
    elif not immediate(s.device) and s.optimizer.param_groups[0].get("fused"):
        s.optimizer.found_inf = (~size.isfinite()).float()  # type: ignore[attr-defined]  # the fused kernels look at it
        s.optimizer.step()
    elif math.isfinite(size):
        s.optimizer.step()


def immediate(device: torch.device) -> bool:
    """Whether a number is there as soon as it is asked for. Only CUDA computes behind the host's back, and has kernels of
    optimizers that leave out by themselves what is not finite."""
    return device.type != "cuda"


def _settle(s: Session) -> None:
    """Wait for the numbers of the newest steps, and enter them into the log's window.

    Raises Diverged for a step that was not finite, or skips it, as `train.on_nonfinite` says.
    """
    for one in s.pending:
        loss, norm = float(one.loss) / float(one.over), float(one.norm)
        if math.isfinite(loss) and math.isfinite(norm):
            s.state.window.append((loss, norm, s.loader.samples_in(one.step)))
            s.skipped = 0
        elif s.scaler is None:  # in fp16 an overflow only asks for a smaller scale
            s.skipped += 1
            _not_finite(s, one.step, loss, norm, one.factor)
    s.pending = []


def _not_finite(s: Session, step: int, loss: float, norm: float, factor: float) -> None:
    """The step was left out; say what is known of it, and stop or go on."""
    start, end = s.loader.steps[step % s.loader.steps_per_epoch]
    order = epoch_order(len(s.loader.samples), s.seed, step // s.loader.steps_per_epoch, s.loader.balance)
    names = [s.loader.samples.name(i) for i in order[start:end].tolist()]
    what = f"step {step}: the loss is {loss}, the gradient's norm {norm}, the learning rate factor {factor:.3g}"
    if s.train.on_nonfinite == "stop" or s.skipped >= MAX_SKIPPED_STEPS:
        raise Diverged(
            f"{what}; the step was not taken. Its samples: {listing(names, 5)}",
            "lower optimizer.lr, set train.clip_norm: 1.0, or use train.precision: fp32",
            f"the last checkpoint of {s.run} is intact",
        )
    say(f"skipped {what}")


def _say_where_time_went(s: Session) -> None:
    """The shares of the whole run's time, to metrics.jsonl and to the user."""
    state = s.state
    shares = {f"{what}_share": seconds / max(state.seconds, 1e-9) for what, seconds in state.spent.items()}
    shares = {"compute_share": max(0.0, 1 - sum(shares.values())), **shares}
    training = state.seconds - state.spent["evaluate"] - state.spent["save"]
    rate = state.samples / max(training, 1e-9)
    s.log.write("time", state.step, state.step / s.loader.steps_per_epoch, {**shares, "samples_per_second": rate})
    words = {"compute": "computing", "data": "waiting for data", "evaluate": "evaluating", "save": "saving"}
    told = ", ".join(f"{shares[f'{what}_share']:.0%} {word}" for what, word in words.items())
    say(f"{state.seconds:.1f} s: {told}; {rate:,.0f} samples/s in training")


def _score(s: Session) -> bool:
    """Enter the newest metrics into the history. Returns whether they are the best so far."""
    if bad := [name for name, value in s.metrics.items() if not math.isfinite(value)]:
        raise Diverged(f"step {s.state.step}: not finite on the validation split: {listing(bad)}", "lower optimizer.lr")
    if s.best_metric not in s.metrics:
        raise ConfigError(
            f"evaluate.best: {s.best_metric} cannot be measured on this validation split",
            f"measured: {listing([name for name in s.metrics if '/' not in name])}",
        )
    score = s.best_sign * s.metrics[s.best_metric]
    s.state.history.append(score)
    if s.state.best is None or score > s.state.best:
        s.state.best, s.state.best_step, s.state.waited = score, s.state.step, 0
        return True
    s.state.waited += 1
    return False


def evaluate(
    objective: Objective,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    *,
    bad: list[str] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics of a whole split, and its rows, ordered by index. Has no side effect on training.

    batches: with ranks, this one's share of the split; metrics and rows are of all of it. bad: collects the samples that
    could not be read, which are left out; None makes them an error.
    """
    gathered: list[dict[str, Tensor]] = []
    skipped: list[str] = []
    for batch in batches:
        if batch.skipped and bad is None:
            raise unreadable(batch)
        skipped += batch.skipped
        if len(batch):
            rows = forward(objective, batch, "rows", device, precision)
            gathered.append({**rows, "index": batch.index})
    mine = {name: torch.cat([part[name] for part in gathered]) for name in (gathered[0] if gathered else {})}
    rows, skipped = ranks.gather_rows(mine, skipped)
    if bad is not None:
        bad += skipped
    if not rows:
        raise DataError("no sample of this split could be read")
    order = rows["index"].argsort(stable=True)
    rows = {name: values[order] for name, values in rows.items()}
    return objective.metrics(rows), rows


def forward(objective: Objective, batch: Batch, mode: str, device: torch.device, precision: str) -> dict[str, Tensor]:
    """One pass in evaluation mode without gradients; per-sample outputs on the CPU, in float32."""
    if objective.training:
        objective.eval()
    with torch.inference_mode(), autocast(device, precision):
        outputs: dict[str, Tensor] = objective(batch, mode)
    return {name: (value.float() if value.is_floating_point() else value).cpu() for name, value in outputs.items()}


def autocast(device: torch.device, precision: str) -> Any:
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def _train_mode(objective: Objective) -> None:
    """Training mode, but for batch norms whose parameters are frozen: their statistics belong to those parameters."""
    objective.train()
    for module in objective.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and not module.weight.requires_grad:
            module.eval()


# ---------------------------------------------------------------- averaged weights


def _average(average: dict[str, Tensor], objective: Objective, decay: float, step: int) -> None:
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


def _save(s: Session, *, full: bool, best: bool = False) -> None:
    """Write a checkpoint; without `full`, one to use but not to resume from. What changes in training is copied here; the
    rest is done beside training, unless this is the end of it."""
    _settle(s)
    if not s.ranks.first:
        return
    s.writer.wait()  # one at a time
    if s.state.bad_samples:
        (s.run / "bad_samples.txt").write_text("\n".join(clean(name) for name in s.state.bad_samples) + "\n", "utf-8")
    optimizer, numbers = pack_optimizer(s.optimizer) if full else ({}, {})
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
        "epoch": s.state.step / s.loader.steps_per_epoch,
        "best": best,
    }
    tensors: dict[str, Mapping[str, Tensor]] = {}
    if full:
        raw = {f"raw/{name}": x for name, x in s.objective.state_dict().items()} if s.average is not None else {}
        tensors["trainer"] = checkpoint.snapshot({**raw, **optimizer})
    with evaluated_weights(s):
        product, rest = checkpoint.split_state(s.objective)
        tensors |= {"backbone": checkpoint.snapshot(product), "objective": checkpoint.snapshot(rest)}
    folder, step = s.run / "checkpoints", s.state.step

    def write() -> None:
        path = checkpoint.write(folder, step, tensors, meta, trainer, s.parents, s.card(meta | {"step": step}))
        if full:
            checkpoint.point(folder, "last", path)
        if best or not (folder / "best").exists():
            checkpoint.point(folder, "best", path)
        checkpoint.tidy(folder, s.train.keep)

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
    checkpoint.load_objective(s.objective, saved)
    if s.average is not None:
        s.average = {name: tensor.clone() for name, tensor in s.objective.state_dict().items()}
        checkpoint.load_exactly(s.objective, raw, str(saved.path))
    state: dict[int, dict[str, Any]] = {}
    for name, value in [
        *((n.removeprefix("optimizer/"), t) for n, t in tensors.items() if n.startswith("optimizer/")),
        *trainer["optimizer"].items(),
    ]:
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    parameters = [p for group in s.optimizer.param_groups for p in group["params"]]
    for number, values in state.items():
        like = parameters[number]
        for key, value in values.items():
            # Fused kernels walk through memory: a moment must lie there as its parameter does.
            if isinstance(value, Tensor) and value.shape == like.shape:
                values[key] = torch.empty_like(like, dtype=value.dtype).copy_(value)
    s.optimizer.load_state_dict({"state": state, "param_groups": s.optimizer.state_dict()["param_groups"]})
    if s.scaler is not None and trainer["scaler"] is not None:
        s.scaler.load_state_dict(trainer["scaler"])
    total, state_then = s.state.total, State(**trainer["state"])
    # A run that was made longer goes on, also when it was killed before the first checkpoint of its new length.
    finished = state_then.finished and total <= state_then.total
    s.state = dataclasses.replace(state_then, total=total, finished=finished)
    if s.ranks.first and (
        s.state.best_step == s.state.step or s.validate is None
    ):  # killed between the save and the link to it
        checkpoint.point(s.run / "checkpoints", "best", saved.path)
    for what, then, now in (
        ("threads", trainer["threads"], torch.get_num_threads()),
        ("ranks", trainer["ranks"], s.ranks.world),
    ):
        if then != now:
            say(f"this run used {then} {what} and now has {now}: it goes on with the same samples, but not bit for bit")


@contextlib.contextmanager
def known_errors() -> Iterator[None]:
    """Turn what torch raises for memory, loader workers and lone samples into one sentence. Also a decorator."""
    try:
        yield
    except (RuntimeError, MemoryError, ValueError, ConnectionError) as error:
        text = str(error)
        memory = ("not enough memory", "can't allocate memory")
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in text for words in memory):
            raise ResourceError(
                "out of memory",
                "--set train.micro_batch=8 (or smaller) needs less and learns the same",
                "a smaller dataset.image_size or backbone also helps",
            ) from None
        if "DataLoader worker" in text or "DataLoader timed out" in text or isinstance(error, ConnectionError):
            raise DataError(
                f"a loader worker died or hung: {clean(text.splitlines()[0] if text else type(error).__name__)}",
                "--set train.workers=0 reads in the main process and shows the cause",
                "workers are killed when memory, or /dev/shm, runs out",
            ) from None
        if "Expected more than 1 value per channel" in text:
            raise ConfigError(
                "batch norm cannot train on a batch of one sample", "train.batch_size, and micro_batch, must be larger"
            ) from None
        raise
