"""One optimizer step."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from fmeco.core.data import Batch
from fmeco.core.random import seed_torch
from fmeco.errors import Diverged, listing
from fmeco.log import say
from fmeco.nn.precision import NOTHING, autocast, immediate
from fmeco.training import cross_batch as coupled
from fmeco.training.budget import Clock
from fmeco.training.session import Session
from fmeco.training.state import Outcome

MAX_SKIPPED_STEPS = 20  # in a row, with on_nonfinite: skip


def _next(s: Session, batches: Iterator[Batch], clock: Clock) -> Batch:
    began = time.monotonic()
    batch = next(batches)
    clock.charge("data", began)
    if batch.skipped:
        s.state.bad_samples = list(dict.fromkeys([*s.state.bad_samples, *batch.skipped]))
    return batch


def take_step(s: Session, model: Any, batches: Iterator[Batch], clock: Clock, factor: float) -> None:
    """One optimizer step. Nothing here waits for the device: a step that is not finite is left out by the optimizer's
    own kernel, and found out by `settle`."""
    # What layers draw (dropout) comes from a seed of this step alone: a resume needs no generator state.
    seed_torch(s.own_seed, s.state.step)
    optimizer, parameters, loader, _ = s.setup
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
        cast = functools.partial(autocast, s.training.device, s.train.precision)
        sums, micros = [coupled.backward(s, model, list(micros), s.ranks.world / expected, cast)], ()
    for number, batch in enumerate(micros, 1):
        together = s.ranks.world == 1 or number == many  # gradients travel between ranks once per step
        with NOTHING if together else model.no_sync():
            with autocast(s.training.device, s.train.precision):
                loss = model(batch, "loss")
            scaled = loss.sum if s.scaler is None else s.scaler.scale(loss.sum)
            # Data parallel training takes the mean over ranks; what is wanted is the sum over them, divided once.
            torch.autograd.backward(scaled, _constant(s.ranks.world / expected, scaled.dtype, s.training.device))
        sums.append((loss.sum.detach(), loss.count))
    if s.scaler is not None:
        s.scaler.unscale_(optimizer)
    total, count = sums[0] if len(sums) == 1 else (sum(column) for column in zip(*sums, strict=True))
    if s.ranks.world > 1:
        both = [torch.as_tensor(value, dtype=torch.float64, device=s.training.device) for value in (total, count)]
        total, count = s.ranks.sum_(torch.stack(both))
    rescale: Tensor | float | None = None
    if not isinstance(count, float) or count != expected:
        rescale = expected / count
    if s.training.constraint is not None:
        s.training.constraint.gradients(1.0 if rescale is None else rescale)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    norm: Any = math.hypot(*norms) if immediate(s.training.device) else torch.linalg.vector_norm(torch.stack(norms))
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
    if s.training.constraint is not None:
        s.training.constraint.stepped()
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
    elif not immediate(s.training.device) and optimizer.param_groups[0].get("fused"):
        optimizer.found_inf = (~size.isfinite()).float()  # type: ignore[attr-defined]  # the fused kernels look at it
        optimizer.step()
    elif math.isfinite(size):
        optimizer.step()


def settle(s: Session) -> None:
    """Wait for the numbers of the newest steps, and enter them into the log's window.

    Raises Diverged for a step that was not finite, or skips it, as `train.on_nonfinite` says.
    """
    for one in s.pending:
        loss, norm = float(one.loss) / float(one.over), float(one.norm)
        if math.isfinite(loss) and math.isfinite(norm):
            s.state.window.append((loss, norm, s.setup.loader.samples_in(one.step)))
            s.skipped = 0
        elif s.scaler is None:  # in fp16 an overflow only asks for a smaller scale
            s.skipped += 1
            _not_finite(s, one.step, loss, norm, one.factor)
    s.pending = []


def _not_finite(s: Session, step: int, loss: float, norm: float, factor: float) -> None:
    """The step was left out; say what is known of it, and stop or go on."""
    loader = s.setup.loader
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


def train_mode(s: Session) -> None:
    """Training mode; evaluation mode for whatever is frozen: its dropout would be noise to nobody's benefit, and the
    statistics of a batch norm belong to its weights, unless they are to adapt."""
    s.objective.train()
    for module in s.objective.product.modules():
        parameters = list(module.parameters())
        own = module.weight if isinstance(module, BatchNorm) and module.affine else None
        if (parameters and not any(p.requires_grad for p in parameters)) or (own is not None and not own.requires_grad):
            module.eval()
    if s.training.config.carry.batch_norm == "adapt":
        for module in s.objective.product.modules():
            if isinstance(module, BatchNorm):
                module.train()
