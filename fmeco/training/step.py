"""Take one optimizer step."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from fmeco.checkpoints.format import steps
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
    """Read the next micro-batch: charge the wait to data, and record unreadable samples."""
    began = time.monotonic()
    batch = next(batches)
    clock.charge("data", began)
    if s.read is not None:
        s.read[batch.index] = 1.0
    if batch.skipped:
        s.state.bad_samples = list(dict.fromkeys([*s.state.bad_samples, *batch.skipped]))
    return batch


def take_step(s: Session, model: Any, batches: Iterator[Batch], clock: Clock, factor: float) -> None:
    """Take one optimizer step.

    Nothing here waits for the device. For a loss or gradient that is not finite, the fused optimizer kernel skips the
    update by itself; `settle` detects such steps later.
    """
    # Dropout depends on a seed for this step alone, so that resuming needs no generator state.
    seed_torch(s.own_seed, s.state.step)
    optimizer, parameters, loader, _ = s.setup
    expected = float(loader.samples_in(s.state.step))
    micro_count = len(loader.micros(s.state.step))
    micros: Iterable[Batch] = (_next(s, batches, clock) for _ in range(micro_count))
    if s.train.on_bad_sample == "skip":
        micros = [batch for batch in micros if len(batch)]
        micro_count = len(micros)
        if s.ranks.most(float(not micro_count))[0] > 0:  # if one rank has no gradients, all skip the step
            return
    sums: list[Any] = []  # (loss, count) of each micro-batch: floats, or tensors on the device
    if s.objective.coupled and (s.ranks.world > 1 or micro_count > 1):
        cast = functools.partial(autocast, s.training.device, s.train.precision)
        sums, micros = [coupled.backward(s, model, list(micros), s.ranks.world / expected, cast)], ()
    for number, batch in enumerate(micros, 1):
        synchronise = s.ranks.world == 1 or number == micro_count  # ranks exchange gradients once per step
        with NOTHING if synchronise else model.no_sync():
            with autocast(s.training.device, s.train.precision):
                loss = model(batch, "loss")
            scaled = loss.sum if s.scaler is None else s.scaler.scale(loss.sum)
            # DDP averages gradients over ranks; we need their sum divided by the samples of the step.
            torch.autograd.backward(scaled, _constant(s.ranks.world / expected, scaled.dtype, s.training.device))
        sums.append((loss.sum.detach(), loss.count))
    if s.scaler is not None:
        s.scaler.unscale_(optimizer)
    total, count = sums[0] if len(sums) == 1 else (sum(column) for column in zip(*sums, strict=True))
    if s.ranks.world > 1:
        pair = [torch.as_tensor(value, dtype=torch.float64, device=s.training.device) for value in (total, count)]
        total, count = s.ranks.sum_(torch.stack(pair))
    count = count + (count == 0)  # class weights of 0 may leave no term, and then all gradients are 0
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
    """Return a cached scalar tensor, so that the hot path copies nothing to the device."""
    return torch.tensor(value, dtype=dtype, device=device)


def _update(s: Session, optimizer: torch.optim.Optimizer, size: Tensor) -> None:
    """Take the step if its loss and gradient are finite.

    size: sum of the loss and the gradient's norm. Ranks agree on it, as all of them hold the sums.
    """
    if s.scaler is not None:
        s.scaler.step(optimizer)
        s.scaler.update()
    elif not immediate(s.training.device) and optimizer.param_groups[0].get("fused"):
        optimizer.found_inf = (~size.isfinite()).float()  # type: ignore[attr-defined]  # read by the fused kernels
        optimizer.step()
    elif math.isfinite(size):
        optimizer.step()


def settle(s: Session) -> None:
    """Wait for the results of the newest steps, and add them to the log window.

    A step that was not finite raises Diverged, or is skipped, as `train.on_nonfinite` says.
    """
    for outcome in s.pending:
        loss, norm = float(outcome.loss) / float(outcome.over), float(outcome.norm)
        if math.isfinite(loss) and math.isfinite(norm):
            s.state.window.append((loss, norm, s.setup.loader.samples_in(outcome.step)))
            s.skipped = 0
        elif s.scaler is None:  # in fp16 an overflow is normal: the scaler lowers its scale
            s.skipped += 1
            _not_finite(s, outcome.step, loss, norm, outcome.factor)
    s.pending = []


def _not_finite(s: Session, step: int, loss: float, norm: float, factor: float) -> None:
    """Report a step that was not finite and therefore not taken. Raises Diverged, or logs the step."""
    loader = s.setup.loader
    start, end = loader.steps[step % loader.steps_per_epoch]
    epoch = step // loader.steps_per_epoch
    order = loader.orders(range(epoch, epoch + 1))[0]
    names = [loader.samples.name(i) for i in order[start:end].tolist()]
    description = f"step {step}: the loss is {loss}, the gradient's norm {norm}, the learning rate factor {factor:.3g}"
    if s.train.on_nonfinite == "stop" or s.skipped >= MAX_SKIPPED_STEPS:
        raise Diverged(
            f"{description}; the step was not taken. Its samples: {listing(names, 5)}",
            "lower optimizer.lr, set train.clip_norm: 1.0, or use train.precision: fp32",
            f"the last checkpoint of {s.run} is intact" if steps(s.run / "checkpoints") else "",
        )
    say(f"skipped {description}")


def train_mode(s: Session) -> None:
    """Set training mode, but keep frozen modules in eval mode.

    Dropout in them would only add noise, and their batch-norm statistics must keep matching the frozen weights, unless
    `transfer.batch_norm` is "adapt". The same holds for all batch norms, if the strategy keeps the statistics.
    """
    s.objective.train()
    keep = s.training.model.transfer.keep_statistics
    for module in s.objective.product.modules():
        parameters = list(module.parameters())
        weight = module.weight if isinstance(module, BatchNorm) and module.affine else None
        if (parameters and not any(p.requires_grad for p in parameters)) or (
            isinstance(module, BatchNorm) and (keep or (weight is not None and not weight.requires_grad))
        ):
            module.eval()
    if s.training.config.carry.batch_norm == "adapt":
        for module in s.objective.product.modules():
            if isinstance(module, BatchNorm):
                module.train()
