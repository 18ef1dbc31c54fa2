"""train() and evaluate(): the only loop. It names no plug-in and no modality."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fmeco import checkpoint
from fmeco.config import Train, seconds
from fmeco.core import Batch, Objective, seed_torch
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


def train(s: Session) -> None:
    """Run the session from its state to its end. Evaluate, save, step, log: in that order, below.

    Raises Diverged, Stopped (after saving) and what reading data raises.
    """
    state, started = s.state, time.monotonic() - s.state.seconds
    budget = seconds(s.train.budget) if s.train.budget else math.inf
    evaluation_seconds, timed_from = 0.0, 0.0
    seen: int | None = None  # samples since the first step
    last_save = time.monotonic()
    window_start, skipped = time.monotonic(), 0
    parameters = [p for group in s.optimizer.param_groups for p in group["params"]]
    batches = s.loader.batches(state.step, state.total)
    _train_mode(s.objective)
    bar = tqdm(
        total=None if s.train.budget else state.total,
        initial=state.step,
        unit="step",
        disable=None,
        dynamic_ncols=True,
        leave=False,
    )
    with bar, contextlib.closing(batches):
        while state.step < state.total and not state.finished:
            state.seconds = time.monotonic() - started
            if s.stop():
                _save(s, full=True)
                raise Stopped(f"stopped at step {state.step}; everything is saved", f"fmeco resume {s.run}")
            # A schedule is a function of the finished share: of the steps, or of a time budget.
            place, length = float(state.step), float(state.total)
            if s.train.budget:
                place, length = state.seconds, max(budget - evaluation_seconds, 1.0)
            factor = s.schedule(place, length, state.history)
            for group in s.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor

            loss, norm = _gradients(s, batches, parameters)
            if math.isfinite(loss) and math.isfinite(norm):
                _update(s, parameters, norm)
                skipped = 0
            elif s.scaler is not None:
                s.scaler.update()  # an overflow in fp16 only asks for a smaller scale
            else:
                skipped += 1
                _not_finite(s, loss, norm, factor, skipped)
            s.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            epoch = state.step / s.loader.steps_per_epoch
            if s.average is not None:
                _average(s.average, s.objective, s.train.ema or 0.0, state.step)
            s.objective.after_step(
                min(1.0, (time.monotonic() - started) / budget if s.train.budget else state.step / state.total)
            )

            if math.isfinite(loss) and math.isfinite(norm):
                state.window.append((loss, norm, s.loader.samples_in(state.step - 1)))
            bar.update()
            if state.window and (state.step % s.train.log_every == 0 or state.step == state.total):
                bar.set_postfix_str(_log(s, epoch, time.monotonic() - window_start))
                window_start = time.monotonic()

            spent = time.monotonic() - started
            if seen is None:
                seen, timed_from = 0, spent  # the first step pays for what happens once
            elif s.measured_at < 0:  # no evaluation was timed yet: a forward pass is about a third of a step
                seen += s.loader.samples_in(state.step - 1)
                guess = (spent - timed_from) / seen / 3 * s.validation_size
                evaluation_seconds = min(guess, budget / 2)
            out_of_time = spent + evaluation_seconds >= budget
            ends = state.step == state.total or out_of_time
            # In a budget, an evaluation on the way must leave time for the last one.
            on_the_way = state.step % s.evaluate_every == 0 and spent + 2 * evaluation_seconds < budget
            evaluated = s.validate is not None and (on_the_way or ends)
            improved = False
            if evaluated:
                before = time.monotonic()
                improved = _evaluate(s, epoch)
                evaluation_seconds = time.monotonic() - before
                window_start += evaluation_seconds
                ends = ends or time.monotonic() - started + evaluation_seconds >= budget
                if s.train.early_stop is not None and state.waited >= s.train.early_stop:
                    say(f"early stop: no better {s.best_metric} in {state.waited} evaluations")
                    ends = True
            state.finished = ends
            state.seconds = time.monotonic() - started
            if s.train.save_every == "auto":
                due = evaluated and time.monotonic() - last_save > MIN_SECONDS_BETWEEN_SAVES
            else:
                due = state.step % s.train.save_every == 0
            if ends or due or improved:
                _save(s, full=ends or due, best=improved or s.validate is None)
                last_save = time.monotonic() if ends or due else last_save


def _log(s: Session, epoch: float, elapsed: float) -> str:
    """Write the mean of the steps since the last line, and return it for the progress bar."""
    window = s.state.window
    loss, norm = (sum(step[k] for step in window) / len(window) for k in (0, 1))
    rate = sum(step[2] for step in window) / max(elapsed, 1e-9)
    lr = s.optimizer.param_groups[0]["lr"]
    s.log.write("train", s.state.step, epoch, {"loss": loss, "grad_norm": norm, "lr": lr, "samples_per_second": rate})
    s.state.window = []
    return f"loss {loss:.4f}, {rate:.0f} samples/s"


def _evaluate(s: Session, epoch: float) -> bool:
    """Measure the validation split. Returns whether it is the best so far."""
    assert s.validate is not None
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


def _gradients(s: Session, batches: Iterator[Batch], parameters: list[nn.Parameter]) -> tuple[float, float]:
    """Forward and backward over the micro-batches of one step; gradients end up divided by the step's whole count.

    Returns (loss per count, norm of the gradient).
    """
    # What layers draw (dropout) comes from a seed of this step alone: a resume needs no generator state.
    seed_torch(s.seed, s.state.step)
    micros = s.loader.micros(s.state.step)
    expected = float(s.loader.samples_in(s.state.step))
    total, count = 0.0, 0.0
    for _ in micros:
        batch = next(batches)
        if batch.skipped:
            s.state.bad_samples = list(dict.fromkeys([*s.state.bad_samples, *batch.skipped]))
        if len(batch) == 0:
            continue
        with autocast(s.device, s.precision):
            loss = s.objective(batch, "loss")
        scaled = loss.sum / expected
        (s.scaler.scale(scaled) if s.scaler is not None else scaled).backward()
        total += float(loss.sum.detach())
        count += float(loss.count)
    if count == 0:
        return 0.0, 0.0
    if s.scaler is not None:
        s.scaler.unscale_(s.optimizer)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if count != expected:
        torch._foreach_mul_(gradients, expected / count)
    return total / count, float(nn.utils.get_total_norm(gradients))


def _update(s: Session, parameters: list[nn.Parameter], norm: float) -> None:
    if s.train.clip_norm is not None and norm > s.train.clip_norm:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], s.train.clip_norm / norm)
    if s.scaler is not None:
        s.scaler.step(s.optimizer)
        s.scaler.update()
    else:
        s.optimizer.step()


def _not_finite(s: Session, loss: float, norm: float, factor: float, skipped: int) -> None:
    """The weights are still those of before this step; say what is known of it, and stop or skip."""
    start, end = s.loader.micros(s.state.step)[0][0], s.loader.micros(s.state.step)[-1][1]
    order = epoch_order(len(s.loader.samples), s.seed, s.state.step // s.loader.steps_per_epoch, s.loader.balance)
    names = [s.loader.samples.name(i) for i in order[start:end].tolist()]
    what = f"step {s.state.step}: the loss is {loss}, the gradient's norm {norm}, the learning rate factor {factor:.3g}"
    if s.train.on_nonfinite == "stop" or skipped >= MAX_SKIPPED_STEPS:
        raise Diverged(
            f"{what}; the step was not taken. Its samples: {listing(names, 5)}",
            "lower optimizer.lr, set train.clip_norm: 1.0, or use train.precision: fp32",
            f"the last checkpoint of {s.run} is intact",
        )
    say(f"skipped {what}")


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
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics of a whole split, and its rows, ordered by index. Has no side effect on training.

    bad: collects the samples that could not be read, which are left out; None makes them an error.
    """
    gathered: list[dict[str, Tensor]] = []
    for batch in batches:
        if batch.skipped:
            if bad is None:
                raise unreadable(batch)
            bad += batch.skipped
        if len(batch):
            rows = forward(objective, batch, "rows", device, precision)
            gathered.append({**rows, "index": batch.index})
    if not gathered:
        raise DataError("no sample of this split could be read")
    rows = {name: torch.cat([part[name] for part in gathered]) for name in gathered[0]}
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
    """Write a checkpoint; without `full`, one to use but not to resume from."""
    folder = s.run / "checkpoints"
    if s.state.bad_samples:
        (s.run / "bad_samples.txt").write_text("\n".join(clean(name) for name in s.state.bad_samples) + "\n", "utf-8")
    raw = (
        {f"raw/{name}": tensor.clone() for name, tensor in s.objective.state_dict().items()}
        if full and s.average is not None
        else {}
    )
    optimizer, numbers = pack_optimizer(s.optimizer) if full else ({}, {})
    trainer = (
        {
            "state": asdict(s.state),
            "optimizer": numbers,
            "metrics_size": s.log.size(),
            "threads": torch.get_num_threads(),
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
    with evaluated_weights(s):
        product, rest = checkpoint.split_state(s.objective)
        tensors: dict[str, Mapping[str, Tensor]] = {"backbone": product, "objective": rest}
        if full:
            tensors["trainer"] = {**raw, **optimizer}
        path = checkpoint.write(
            folder, s.state.step, tensors, meta, trainer, s.parents, s.card(meta | {"step": s.state.step})
        )
    if full:
        checkpoint.point(folder, "last", path)
    if best or not (folder / "best").exists():
        checkpoint.point(folder, "best", path)
    checkpoint.tidy(folder, s.train.keep)


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
    s.optimizer.load_state_dict({"state": state, "param_groups": s.optimizer.state_dict()["param_groups"]})
    if s.scaler is not None and trainer["scaler"] is not None:
        s.scaler.load_state_dict(trainer["scaler"])
    total, state_then = s.state.total, State(**trainer["state"])
    # A run that was made longer goes on, also when it was killed before the first checkpoint of its new length.
    finished = state_then.finished and total <= state_then.total
    s.state = dataclasses.replace(state_then, total=total, finished=finished)
    if s.state.best_step == s.state.step or s.validate is None:  # killed between the save and the link to it
        checkpoint.point(s.run / "checkpoints", "best", saved.path)
    if trainer["threads"] != torch.get_num_threads():
        say(
            f"this run used {trainer['threads']} threads and now has {torch.get_num_threads()}: it goes on, but not bit for bit"
        )


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
