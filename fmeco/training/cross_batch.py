"""A step whose loss couples its samples, while these pass the model in parts, and on several ranks.

First every part is represented; then the loss is taken of the whole step's representations, and with it the gradient that
belongs to each; then every part passes once more, and takes its gradient back. The gradient is that of the whole step, at the
memory of one part. https://arxiv.org/abs/2101.06983 section 3. Only batch norm sees one part at a time.
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
    """Gradients of the step's loss, a sum over samples, times `weight`; returns this rank's part of that sum, and of what
    it is a sum over. model: the objective, as ranks share it. cast: the precision to compute in."""
    objective, step = s.objective, s.state.step
    together = len(micros) == 1  # then it passes once

    def represent(module: Any, number: int) -> tuple[Tensor, ...]:
        seed_torch(s.own_seed, step, number)  # both passes drop out the same
        with cast():
            found: tuple[Tensor, ...] = module(micros[number], "represent")
        return found

    if together:
        parts = [represent(model, 0)]
    else:
        before = [buffer.clone() for buffer in objective.buffers()]
        with torch.no_grad():
            parts = [represent(objective, number) for number in range(len(micros))]
            for buffer, value in zip(objective.buffers(), before, strict=True):
                buffer.copy_(value)  # statistics are to be gathered once
    own = [torch.cat(column).detach().requires_grad_() for column in zip(*parts, strict=True)]
    tensors = [name for name, values in micros[0].target.items() if isinstance(values, Tensor)]
    target = {name: torch.cat([torch.as_tensor(batch.target[name]) for batch in micros]) for name in tensors}
    with cast():
        loss = objective.compare(
            tuple(torch.cat(s.ranks.gather_tensor(x)) for x in own),
            {name: torch.cat(s.ranks.gather_tensor(x)) for name, x in target.items()},
        )
    scaled = loss.sum if s.scaler is None else s.scaler.scale(loss.sum)
    (scaled * weight).backward()
    gradients = [x.grad for x in own]
    start = 0
    for number, batch in enumerate(micros):
        last = number == len(micros) - 1  # gradients travel between ranks once per step
        with contextlib.nullcontext() if s.ranks.world == 1 or last else model.no_sync():
            part = parts[0] if together else represent(model, number)
            flows = [
                (z, g[start : start + len(batch)])
                for z, g in zip(part, gradients, strict=True)
                if z.requires_grad and g is not None
            ]
            torch.autograd.backward([z for z, _ in flows], [g for _, g in flows])
        start += len(batch)
    return loss.sum.detach() / s.ranks.world, float(loss.count) / s.ranks.world
