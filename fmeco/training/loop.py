"""train() and evaluate(): the only loop. It names no plug-in and no modality."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from tqdm import tqdm

from fmeco.core import Batch, Objective, seed_torch
from fmeco.data.loader import unreadable
from fmeco.distributed.ranks import ALONE, Ranks
from fmeco.errors import ConfigError, DataError, Diverged, ResourceError, Stopped, clean, listing
from fmeco.log import say
from fmeco.training import cross_batch as coupled
from fmeco.training.budget import Clock, Pace
from fmeco.training.session import Outcome, Session, evaluated_weights, save, update_average

NOTHING = contextlib.nullcontext()
MAX_SKIPPED_STEPS = 20  # in a row, with on_nonfinite: skip
MIN_SECONDS_BETWEEN_SAVES = 20.0  # with save_every: auto


def train(s: Session) -> None:
    """Run the session from its state to its end, phase by phase.

    Raises Diverged, Stopped (after saving) and what reading data raises.
    """
    state, pace, clock = s.state, Pace(s), Clock(s.state)
    started, s.saved_at = time.monotonic() - state.seconds, state.seconds
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

    def enter(phase: int) -> None:
        began = time.monotonic()
        s.writer.wait()  # loader workers are forked from a process that does nothing else
        s.enter(phase)
        clock.charge("data", began)
        agree()
        pace.enter()

    with bar, s.writer:
        if s.gear is None:
            enter(state.phase)
        _phase(s, pace, clock, agree, bar)
        while not state.finished and not pace.last:
            state.phase_start, state.phase_history, state.waited = pace.position, len(state.history), 0
            enter(state.phase + 1)
            _phase(s, pace, clock, agree, bar)
    state.seconds = time.monotonic() - started
    _say_where_time_went(s)
    if pace.timed and state.history and not _enough(s):
        say(more_time(state.history, s.best_sign, s.best_metric, s.epoch, s.error))


def _phase(s: Session, pace: Pace, clock: Clock, agree: Callable[[], bool], bar: Any) -> None:
    """Train to the end of the phase. Step, log, evaluate, save: in that order."""
    state, gear, last = s.state, s.training, pace.last
    model = s.ranks.parallel(s.objective, s.device)
    batches = gear.loader.batches(state.step, state.total if pace.timed else min(state.total, int(pace.end)))
    train_mode(s)
    history = state.history[state.phase_history :]
    with contextlib.closing(batches):
        stop = agree()
        while state.step < state.total and not state.finished and (last or not (pace.phase_over() or _enough(s))):
            if stop:
                _settle(s)
                save(s, full=True)
                s.writer.wait()
                s.ranks.barrier()
                raise Stopped(f"stopped at step {state.step}; everything is saved", f"fmeco resume {s.run}")
            factor = s.schedule(*pace.place, history)
            for group in gear.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            take_step(s, model, batches, clock, factor)
            state.step += 1
            state.samples += gear.loader.samples_in(state.step - 1)
            if s.average is not None:
                update_average(s.average, s.objective, s.train.ema or 0.0, state.step)
            s.objective.after_step(pace.progress)
            bar.update()

            logs = state.step % s.train.log_every == 0 or state.step == state.total
            if logs:  # a GPU is waited for only here, and before evaluations and saves
                _settle(s)
                if state.window:
                    bar.set_postfix_str(_log(s, clock), refresh=False)
            stop = agree()
            ends = pace.stepped()
            # In a budget, an evaluation on the way must leave time for the last one, and for training.
            on_the_way = state.step % s.evaluate_every == 0 and not pace.over(2) and not pace.measured_enough()
            evaluated = gear.validate is not None and (on_the_way or ends)
            improved = False
            if evaluated:
                began = time.monotonic()
                improved = _evaluate(s)
                history = state.history[state.phase_history :]
                clock.charge("evaluate", began)
                pace.evaluated(*s.ranks.most(time.monotonic() - began))
                stop = agree() or stop
                if enough := _enough(s):
                    say(f"early stop: no better {s.best_metric} in {state.waited} evaluations")
                ends = ends or pace.over() or (enough and last)
            state.finished = ends
            if s.train.save_every == "auto":
                due = evaluated and state.seconds - s.saved_at > MIN_SECONDS_BETWEEN_SAVES
            else:
                due = state.step % s.train.save_every == 0
            if ends or due or improved:
                began = time.monotonic()
                _settle(s)
                save(s, full=ends or due, best=improved or gear.validate is None)
                clock.charge("save", began)
                s.saved_at = state.seconds if ends or due else s.saved_at


def _enough(s: Session) -> bool:
    """Whether evaluations have not become better for so long that the phase ends."""
    return s.train.early_stop is not None and s.state.waited >= s.train.early_stop


def _log(s: Session, clock: Clock) -> str:
    """Write the mean of the steps since the last line, and return it for the progress bar."""
    window = s.state.window
    loss, norm = (sum(step[k] for step in window) / len(window) for k in (0, 1))
    training, data = clock.lap()
    rate = sum(step[2] for step in window) / training
    values = {
        "loss": loss,
        "grad_norm": norm,
        "lr": s.training.optimizer.param_groups[0]["lr"],
        "samples_per_second": rate,
        "data_share": data / training,
    }
    s.log.write("train", s.state.step, s.epoch, values)
    s.state.window = []
    return f"loss {loss:.4f}, {rate:.0f} samples/s"


def _evaluate(s: Session) -> bool:
    """Measure the validation split. Returns whether it is the best so far."""
    assert s.training.validate is not None
    _settle(s)
    s.writer.wait()  # loader workers are forked from a process that does nothing else
    s.ranks.broadcast_(list(s.objective.buffers()))
    with evaluated_weights(s):
        s.metrics, bad, s.error = s.training.validate()
    s.measured_at = s.state.step
    s.state.bad_samples = list(dict.fromkeys([*s.state.bad_samples, *bad]))
    train_mode(s)
    ill = s.objective.ailing(s.metrics) if s.health != "off" else None
    if ill is not None and s.health == "stop":
        s.log.write("val", s.state.step, s.epoch, s.metrics)
        raise Diverged(f"step {s.state.step}: {ill}", "evaluate.health: warn goes on all the same")
    if ill is not None:
        say(f"step {s.state.step}: {ill}")
    improved = _score(s)
    s.log.write("val", s.state.step, s.epoch, s.metrics)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in s.metrics.items() if "/" not in name)
    say(f"epoch {s.epoch:g}, step {s.state.step}: {shown}{'  *' if improved else ''}")
    return improved


def _next(s: Session, batches: Iterator[Batch], clock: Clock) -> Batch:
    began = time.monotonic()
    batch = next(batches)
    clock.charge("data", began)
    if batch.skipped:
        s.state.bad_samples = list(dict.fromkeys([*s.state.bad_samples, *batch.skipped]))
    return batch


def take_step(s: Session, model: Any, batches: Iterator[Batch], clock: Clock, factor: float) -> None:
    """One optimizer step. Nothing here waits for the device: a step that is not finite is left out by the optimizer's
    own kernel, and found out by `_settle`."""
    # What layers draw (dropout) comes from a seed of this step alone: a resume needs no generator state.
    seed_torch(s.own_seed, s.state.step)
    optimizer, parameters, loader, _ = s.training
    expected = float(loader.samples_in(s.state.step))
    many = len(loader.micros(s.state.step))
    micros: Iterable[Batch] = (_next(s, batches, clock) for _ in range(many))
    if s.train.on_bad_sample == "skip":
        micros = [batch for batch in micros if len(batch)]
        many = len(micros)
        if s.ranks.most(float(not many))[0] > 0:  # where one rank has nothing to send, none may wait for it
            return
    sums: list[Any] = []  # (loss, count) of each micro-batch: numbers, or tensors that are not waited for
    if s.objective.coupled and (s.ranks.world > 1 or many > 1):
        cast = functools.partial(autocast, s.device, s.precision)
        sums, micros = [coupled.backward(s, model, list(micros), s.ranks.world / expected, cast)], ()
    for number, batch in enumerate(micros, 1):
        together = s.ranks.world == 1 or number == many  # gradients travel between ranks once per step
        with NOTHING if together else model.no_sync():
            with autocast(s.device, s.precision):
                loss = model(batch, "loss")
            scaled = loss.sum if s.scaler is None else s.scaler.scale(loss.sum)
            # Data parallel training takes the mean over ranks; what is wanted is the sum over them, divided once.
            torch.autograd.backward(scaled, _constant(s.ranks.world / expected, scaled.dtype, s.device))
        sums.append((loss.sum.detach(), loss.count))
    if s.scaler is not None:
        s.scaler.unscale_(optimizer)
    total, count = sums[0] if len(sums) == 1 else (sum(column) for column in zip(*sums, strict=True))
    if s.ranks.world > 1:
        both = [torch.as_tensor(value, dtype=torch.float64, device=s.device) for value in (total, count)]
        total, count = s.ranks.sum_(torch.stack(both))
    rescale: Tensor | float | None = None
    if not isinstance(count, float) or count != expected:
        rescale = expected / count
    if s.constraint is not None:
        s.constraint.gradients(1.0 if rescale is None else rescale)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    norm: Any = math.hypot(*norms) if immediate(s.device) else torch.linalg.vector_norm(torch.stack(norms))
    if rescale is not None:
        norm = norm * rescale
    if s.train.clip_norm is not None:
        if isinstance(norm, Tensor):
            clip: Any = (s.train.clip_norm / norm).clamp(max=1.0)
        else:
            clip = s.train.clip_norm / max(norm, s.train.clip_norm)
        rescale = clip if rescale is None else rescale * clip
    if rescale is not None:
        torch._foreach_mul_(gradients, rescale)
    _update(s, optimizer, norm + total)
    if s.constraint is not None:
        s.constraint.stepped()
    for parameter in parameters:
        parameter.grad = None
    s.pending.append(Outcome(s.state.step, total, count, norm, factor))


@functools.lru_cache(maxsize=64)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def _update(s: Session, optimizer: torch.optim.Optimizer, size: Tensor) -> None:
    """Take the step if `size`, of its loss and gradient, is finite, which ranks agree on, as all of them have the sums."""
    if s.scaler is not None:
        s.scaler.step(optimizer)
        s.scaler.update()
    elif not immediate(s.device) and optimizer.param_groups[0].get("fused"):
        optimizer.found_inf = (~size.isfinite()).float()  # type: ignore[attr-defined]  # the fused kernels look at it
        optimizer.step()
    elif math.isfinite(size):
        optimizer.step()


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
            s.state.window.append((loss, norm, s.training.loader.samples_in(one.step)))
            s.skipped = 0
        elif s.scaler is None:  # in fp16 an overflow only asks for a smaller scale
            s.skipped += 1
            _not_finite(s, one.step, loss, norm, one.factor)
    s.pending = []


def _not_finite(s: Session, step: int, loss: float, norm: float, factor: float) -> None:
    """The step was left out; say what is known of it, and stop or go on."""
    loader = s.training.loader
    start, end = loader.steps[step % loader.steps_per_epoch]
    epoch = step // loader.steps_per_epoch
    order = loader.orders(range(epoch, epoch + 1))[0]
    names = [loader.samples.name(i) for i in order[start:end].tolist()]
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
    s.log.write("time", state.step, s.epoch, {**shares, "samples_per_second": rate})
    words = {"compute": "computing", "data": "waiting for data", "evaluate": "evaluating", "save": "saving"}
    told = ", ".join(f"{shares[f'{what}_share']:.0%} {word}" for what, word in words.items())
    say(f"{state.seconds:.1f} s: {told}; {rate:,.0f} samples/s in training")


def more_time(history: list[float], sign: int, metric: str, epochs: float, error: float = 0.0) -> str:
    """What more time would do to a run that a budget ended, as far as its evaluations tell. history: their scores, higher
    is better; sign: -1 where the metric itself is to be low; error: a standard error, below which a difference is luck."""
    passed = f"the budget was enough for {epochs:.3g} epochs"
    if len(history) < 4:
        return f"{passed}; too few evaluations to tell what more time would do"
    late = len(history) * 3 // 4
    before, after = max(history[:late]), max(history[late:])
    if after < before - error:
        at = history.index(before) + 1
        return f"{passed}; {metric} was best in evaluation {at} of {len(history)}: more time would not help, more or other data might"
    if f"{after:.4f}" == f"{before:.4f}" or after <= before + error:
        return (
            f"{passed}; {metric} did not become better in the last quarter of the time: more of it would change little"
        )
    return f"{passed}; {metric} still went from {sign * before:.4f} to {sign * after:.4f} in the last quarter of the time: more of it is likely to help"


def _score(s: Session) -> bool:
    """Enter the newest metrics into the history. Returns whether they are the best so far: within a standard error of the
    highest, as a difference below it is luck, and later weights have learned more (the rule of one standard error,
    https://doi.org/10.1007/978-0-387-84858-7 section 7.10)."""
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
        s.state.best, s.state.waited = score, 0
    else:
        s.state.waited += 1
    if score < s.state.best - s.error:
        return False
    s.state.best_step = s.state.step
    return True


def evaluate(
    objective: Objective,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    *,
    bad: list[str] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics of a whole split, and its rows, ordered by index. Has no side effect on training."""
    rows = rows_of(objective, batches, "rows", device, precision, bad=bad, ranks=ranks)
    return objective.metrics(rows), rows


def rows_of(
    objective: Objective,
    batches: Iterable[Batch],
    mode: str,
    device: torch.device,
    precision: str,
    *,
    bad: list[str] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Tensor]:
    """What the objective gives of each sample (N, ...) of a split, ordered by "index".

    batches: with ranks, this one's share of the split; rows are of all of it. bad: collects the samples that could not be
    read, which are left out; None makes them an error.
    """
    gathered: list[dict[str, Tensor]] = []
    skipped: list[str] = []
    for batch in batches:
        if batch.skipped and bad is None:
            raise unreadable(batch)
        skipped += batch.skipped
        if len(batch):
            rows = forward(objective, batch, mode, device, precision)
            gathered.append({**rows, "index": batch.index})
    mine = {name: torch.cat([part[name] for part in gathered]) for name in (gathered[0] if gathered else {})}
    rows, skipped = ranks.gather_rows(mine, skipped)
    if bad is not None:
        bad += skipped
    if not rows:
        raise DataError("no sample of this split could be read")
    order = rows["index"].argsort(stable=True)
    return {name: values[order] for name, values in rows.items()}


def forward(objective: Objective, batch: Batch, mode: str, device: torch.device, precision: str) -> dict[str, Tensor]:
    """One pass in evaluation mode without gradients; per-sample outputs on the CPU, in float32."""
    if objective.training:
        objective.eval()
    with torch.inference_mode(), autocast(device, precision):
        outputs: dict[str, Tensor] = objective(batch, mode)
    return {name: (value.float() if value.is_floating_point() else value).cpu() for name, value in outputs.items()}


def autocast(device: torch.device, precision: str) -> Any:
    if precision == "fp32":
        return NOTHING
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def train_mode(s: Session) -> None:
    """Training mode; evaluation mode for whatever is frozen: its dropout would be noise to nobody's benefit, and the
    statistics of a batch norm belong to its weights, unless they are to adapt."""
    s.objective.train()
    for module in s.objective.product.modules():
        parameters = list(module.parameters())
        own = module.weight if isinstance(module, BatchNorm) and module.affine else None
        if (parameters and not any(p.requires_grad for p in parameters)) or (own is not None and not own.requires_grad):
            module.eval()
    if s.batch_norm == "adapt":
        for module in s.objective.product.modules():
            if isinstance(module, BatchNorm):
                module.train()


@contextlib.contextmanager
def known_errors() -> Iterator[None]:
    """Turn what torch raises for memory, loader workers and lone samples into one sentence. Also a decorator."""
    try:
        yield
    except (RuntimeError, MemoryError, ValueError, ConnectionError) as error:
        said = str(error)
        memory = ("not enough memory", "can't allocate memory")
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in said for words in memory):
            raise ResourceError(
                "out of memory",
                "--set train.micro_batch=8 (or smaller) needs less and learns the same",
                "a smaller dataset.image_size or backbone also helps",
            ) from None
        if "DataLoader worker" in said or "DataLoader timed out" in said or isinstance(error, ConnectionError):
            raise DataError(
                f"a loader worker died or hung: {clean(said.splitlines()[0] if said else type(error).__name__)}",
                "--set train.workers=0 reads in the main process and shows the cause",
                "workers are killed when memory, or /dev/shm, runs out",
            ) from None
        if "Expected more than 1 value per channel" in said:
            raise ConfigError(
                "batch norm cannot train on a batch of one sample", "train.batch_size, and micro_batch, must be larger"
            ) from None
        raise
