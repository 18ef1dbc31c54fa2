"""Compute gradients of a loss that couples the samples of a batch, across micro-batches and ranks (gradient caching).

1. Represent every micro-batch, without gradients.
2. Compute the loss of all representations of the step, and its gradient with respect to each of them.
3. Run every micro-batch again, and backpropagate its part of that gradient.

The result is the gradient of the whole step, with the memory of one micro-batch. Only batch norm sees one micro-batch
at a time. https://arxiv.org/abs/2101.06983 section 3
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fmeco.core.data import Batch
from fmeco.core.random import seed_torch
from fmeco.training.session import Session


def backward(
    s: Session, model: Any, micros: Sequence[Batch], weight: float, cast: Callable[[], Any]
) -> tuple[Tensor, float]:
    """Backpropagate the step's loss, a sum over samples, times `weight`.

    model: the objective, wrapped for ranks.
    cast: makes the autocast context.

    Returns this rank's share of the loss, and of the number of terms in it.
    """
    objective, step = s.objective, s.state.step
    single = len(micros) == 1  # one forward pass is enough

    def represent(module: Any, number: int) -> tuple[Tensor, ...]:
        seed_torch(s.own_seed, step, number)  # the same dropout in both passes
        with cast():
            representations: tuple[Tensor, ...] = module(micros[number], "represent")
        return representations

    if single:
        parts = [represent(model, 0)]
    else:
        before = [buffer.clone() for buffer in objective.buffers()]
        with torch.no_grad():
            parts = [represent(objective, number) for number in range(len(micros))]
            for buffer, value in zip(objective.buffers(), before, strict=True):
                buffer.copy_(value)  # the second pass updates batch-norm statistics, once
    leaves = [torch.cat(column).detach().requires_grad_() for column in zip(*parts, strict=True)]
    tensors = [name for name, values in micros[0].target.items() if isinstance(values, Tensor)]
    target = {name: torch.cat([torch.as_tensor(batch.target[name]) for batch in micros]) for name in tensors}
    with cast():
        loss = objective.compare(
            tuple(torch.cat(s.ranks.gather_tensor(x)) for x in leaves),
            {name: torch.cat(s.ranks.gather_tensor(x)) for name, x in target.items()},
        )
    scaled = loss.sum if s.scaler is None else s.scaler.scale(loss.sum)
    (scaled * weight).backward()
    gradients = [x.grad for x in leaves]
    start = 0
    for number, batch in enumerate(micros):
        last = number == len(micros) - 1  # ranks exchange gradients once per step
        with contextlib.nullcontext() if s.ranks.world == 1 or last else model.no_sync():
            outputs = parts[0] if single else represent(model, number)
            outputs_and_gradients = [
                (z, g[start : start + len(batch)])
                for z, g in zip(outputs, gradients, strict=True)
                if z.requires_grad and g is not None
            ]
            torch.autograd.backward([z for z, _ in outputs_and_gradients], [g for _, g in outputs_and_gradients])
        start += len(batch)
    return loss.sum.detach() / s.ranks.world, float(loss.count) / s.ranks.world
