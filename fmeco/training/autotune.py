"""What is measured rather than assumed: the precision of a run, and its learning rate."""

from __future__ import annotations

import contextlib
import math
import statistics
import time

import torch

from fmeco.core import Batch, Objective
from fmeco.nn.precision import autocast
from fmeco.training.budget import Clock
from fmeco.training.session import Session
from fmeco.training.step import take_step, train_mode

SHORT_RUN = 120.0  # seconds below which nothing is tried out
GAIN = 1.25  # bf16 must be this much faster than fp32 to be taken
SHARE, AT_MOST = 0.02, 5.0  # of the run, and seconds, to spend on trying
LOWEST, HIGHEST = 1e-6, 1.0  # learning rates of the range test
RANGE_STEPS, FEWEST = 100, 30  # of it: a tenth of the run, within these bounds
SMOOTHING, SETTLING = 0.85, 8  # of the loss over steps; steps until its level is known
FALLEN = 0.98  # of that level: what must be reached for a rate to count
DIVERGED = 3.0  # times the lowest loss: nothing more is to be learned
BELOW = 10.0  # the rate that is taken is that of the lowest loss, divided by this


def step_seconds(objective: Objective, batch: Batch, device: torch.device, precision: str) -> float:
    """Time of one forward and backward pass. Leaves weights, buffers and random numbers as they were."""
    buffers = [buffer.clone() for buffer in objective.buffers()]
    training = objective.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        objective.train()
        _wait(device)
        began = time.monotonic()
        with autocast(device, precision):
            loss = objective(batch, "loss")
        if loss.sum.requires_grad:
            loss.sum.backward()
        _wait(device)
        took = time.monotonic() - began
    objective.train(training)
    objective.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in zip(objective.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return took


def faster_precision(
    objective: Objective, batch: Batch, device: torch.device, samples: float, limit: float
) -> tuple[str, float]:
    """fp32 or bf16, whichever trains this model faster here, and how many times faster bf16 is (1 where it was not tried).

    batch: a few samples. samples: those of the whole run. limit: seconds of the run, inf where it is given in steps.
    """

    if not has_bf16_kernels():  # a single pass of a large model could then take an hour
        return "fp32", 1.0

    def once(precision: str) -> float:
        return step_seconds(objective, batch, device, precision)

    run = min(once("fp32") / len(batch) * samples, limit)
    if run < SHORT_RUN:
        return "fp32", 1.0
    began = time.monotonic()
    once("bf16")  # the first pass of each prepares its kernels
    ratios: list[float] = []
    while not ratios or time.monotonic() - began < min(AT_MOST, SHARE * run) / 2:
        ratios.append(once("fp32") / once("bf16"))
    gain = statistics.median(ratios)
    return ("bf16" if gain > GAIN else "fp32"), gain


def has_bf16_kernels() -> bool:
    """Whether torch's library for this CPU computes in bf16, if only by converting; where it does not, bf16 is never faster."""
    has = torch.cpu.get_capabilities()
    return has.get("architecture") != "x86_64" or any(has.get(name) for name in ("avx512_bw", "avx_ne_convert"))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def range_test(s: Session, budget: float) -> tuple[float | None, list[tuple[float, float]]]:
    """Train a few steps at ever higher rates, and put everything back: (the learning rate, the curve of rate and loss). The
    rate is None where the loss did not fall, or a tenth of the budget holds too few steps to tell.

    The last phase is tried, in which the most trains; its optimizer was built with a rate of 1. The rate is a tenth of
    that at which the smoothed loss was lowest: the highest that works is close to where it diverges.
    https://arxiv.org/abs/1506.01186 section 3.3. budget: seconds of the run, inf where it is given in steps.
    """
    tensors = {**s.objective.state_dict(), **(s.constraint.state() if s.constraint is not None else {})}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    total = s.state.total
    s.enter(len(s.phases) - 1)
    model = s.ranks.parallel(s.objective, s.device)
    train_mode(s)
    steps = min(RANGE_STEPS, max(FEWEST, total // 10))
    curve: list[tuple[float, float]] = []
    smooth, beginning, lowest, best = 0.0, math.inf, math.inf, LOWEST
    began = time.monotonic()
    with contextlib.closing(s.training.loader.batches(0, steps)) as batches:
        while len(curve) < steps:
            rate = LOWEST * (HIGHEST / LOWEST) ** (len(curve) / (steps - 1))
            for group in s.training.optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate
            take_step(s, model, batches, Clock(s.state), rate)
            s.state.step += 1
            if not s.pending:
                break  # none of its samples could be read
            one = s.pending.pop()
            loss = float(one.loss) / float(one.over)
            if not math.isfinite(loss):
                break
            curve.append((rate, loss))
            smooth = SMOOTHING * smooth + (1 - SMOOTHING) * loss
            level = smooth / (1 - SMOOTHING ** len(curve))
            if len(curve) <= SETTLING:  # rates that change nothing: how high the loss is, whatever a lucky batch says
                beginning = lowest = level
            elif level < lowest:
                lowest, best = level, rate
            elif level > DIVERGED * lowest:
                break
            if len(curve) == 2 and budget < math.inf:  # a tenth of the time, too
                took = s.ranks.most((time.monotonic() - began) / 2)[0]
                steps = min(steps, int(budget / 10 / took))
                if steps < 2 * SETTLING:
                    break
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(before[name])
    return (float(f"{best / BELOW:.1e}") if lowest < FALLEN * beginning else None), curve
