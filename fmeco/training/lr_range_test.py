"""Find a learning rate by a range test: train a few steps at rising rates, then restore everything."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable

import torch

from fmeco.assembly.stages import Training
from fmeco.assembly.training import finetune_default
from fmeco.config.sections import seconds
from fmeco.errors import ConfigError
from fmeco.log import say
from fmeco.reports.metrics_files import Log
from fmeco.training.budget import Clock
from fmeco.training.session import Session
from fmeco.training.step import take_step, train_mode

LOWEST, HIGHEST = 1e-6, 1.0  # learning rates of the range test
RANGE_STEPS, FEWEST = 100, 30  # steps of the test: a tenth of the run, within these bounds
SMOOTHING, SETTLING = 0.85, 8  # of the loss, over steps; steps that determine its initial level
FALLEN = 0.98  # the loss must fall to this share of its initial level
DIVERGED = 3.0  # stop when the loss exceeds its minimum this many times
BELOW = 10.0  # the result is the rate at the lowest loss, divided by this


def range_test(s: Session, budget: float) -> tuple[float | None, list[tuple[float, float]]]:
    """Train a few steps at rising rates, then restore weights, buffers and constraint.

    The test runs the last phase, which trains the most, with an optimizer that was built with a rate of 1. The result
    is a tenth of the rate at which the smoothed loss was lowest: rates close to divergence work best.
    https://arxiv.org/abs/1506.01186 section 3.3

    budget: seconds of the run; inf if its length is given in steps.

    Returns the learning rate, and the curve of rates and losses. The rate is None if the loss did not fall, or if a
    tenth of the budget holds too few steps.
    """
    tensors = {
        **s.objective.state_dict(),
        **(s.training.constraint.state() if s.training.constraint is not None else {}),
    }
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    total = s.state.total
    s.enter(len(s.training.model.transfer.phases) - 1)
    model = s.ranks.parallel(s.objective, s.training.device)
    train_mode(s)
    steps = min(RANGE_STEPS, max(FEWEST, total // 10))
    curve: list[tuple[float, float]] = []
    smooth, initial, lowest, best = 0.0, math.inf, math.inf, LOWEST
    started = time.monotonic()
    with contextlib.closing(s.setup.loader.batches(0, steps)) as batches:
        while len(curve) < steps:
            rate = LOWEST * (HIGHEST / LOWEST) ** (len(curve) / (steps - 1))
            for group in s.setup.optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate
            take_step(s, model, batches, Clock(s.state), rate)
            s.state.step += 1
            if not s.pending:
                break  # none of its samples could be read
            outcome = s.pending.pop()
            loss = float(outcome.loss) / float(outcome.over)
            if not math.isfinite(loss):
                break
            curve.append((rate, loss))
            smooth = SMOOTHING * smooth + (1 - SMOOTHING) * loss
            level = smooth / (1 - SMOOTHING ** len(curve))
            if len(curve) <= SETTLING:  # rates too low to change anything: they give the initial level of the loss
                initial = lowest = level
            elif level < lowest:
                lowest, best = level, rate
            elif level > DIVERGED * lowest:
                break
            if len(curve) == 2 and budget < math.inf:  # use a tenth of the time at most
                step_seconds = s.ranks.most((time.monotonic() - started) / 2)[0]
                steps = min(steps, int(budget / 10 / step_seconds))
                if steps < 2 * SETTLING:
                    break
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(before[name])
    return (float(f"{best / BELOW:.1e}") if lowest < FALLEN * initial else None), curve


def with_rate(training: Training, begin: Callable[[Training], Session], log: Log) -> Training:
    """Find the learning rate of a training whose config says `auto`, and fill it in.

    begin: starts a session of it.
    """
    config = training.config
    budget = seconds(config.train.budget) if config.train.budget else math.inf
    rate, curve = range_test(begin(_filled_in(training, 1.0)), budget)
    if rate is None:
        plugin = config.optimizer.plugin
        usual = plugin.model.model_fields["lr"].default
        default_rate = finetune_default(plugin) if config.stage == "finetune" else usual
        finding = f"a range test of {len(curve)} steps found no rate at which the loss falls"
        if not isinstance(default_rate, int | float):
            raise ConfigError(f"optimizer.lr: {finding}", "set a learning rate")
        say(f"optimizer.lr: {default_rate:g}, the default: {finding}")
        return _filled_in(training, default_rate)
    for step, (tried, loss) in enumerate(curve):
        log.write("range", step, 0.0, {"lr": tried, "loss": loss})
    say(f"optimizer.lr: {rate:g}, from a range test of {len(curve)} steps; see its curve in report.html")
    return _filled_in(training, rate)


def _filled_in(training: Training, rate: float) -> Training:
    """Set the learning rate in a training's config."""
    optimizer = training.config.optimizer
    optimizer = dataclasses.replace(optimizer, options={**optimizer.options, "lr": rate})
    return dataclasses.replace(training, config=dataclasses.replace(training.config, optimizer=optimizer))
