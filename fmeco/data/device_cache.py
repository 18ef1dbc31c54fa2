"""A split held in the memory of the model's device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fmeco.core.data import DataSpec, Inputs, Samples, fit
from fmeco.errors import FmecoError


class Held:
    """A split as the model's device holds it: what is in memory from the start, or each sample from its first reading
    on. Only for inputs of one shape, whose crop does not vary."""

    def __init__(self, samples: Samples, spec: DataSpec, device: torch.device) -> None:
        n = len(samples)
        self.device, self.targets = device, {}
        for name, values in samples.targets.items():
            self.targets[name] = values.to(device) if isinstance(values, Tensor) else values
        if samples.tensors is not None:
            whole = fit(samples.tensors, spec, leading=1)
            self.inputs = {name: x.to(device) for name, x in whole.items()}
            self.missing = None
        else:
            self.inputs = {
                name: torch.empty(n, *one.shape, dtype=getattr(torch, one.dtype), device=device)
                for name, one in spec.inputs.items()
            }
            self.missing = torch.ones(n, dtype=torch.bool)
        self.bad: dict[int, FmecoError] = {}

    def fill(self, positions: Tensor, read: Callable[[Sequence[int]], list[Inputs | FmecoError]]) -> None:
        """Read those of `positions` (B,) that are not here yet."""
        if self.missing is None:
            return
        absent = positions[self.missing[positions]].unique().tolist()
        for index, inputs in zip(absent, read(absent) if absent else [], strict=True):
            if isinstance(inputs, FmecoError):
                self.bad[index] = inputs
            else:
                for name, x in inputs.items():
                    self.inputs[name][index] = x
        self.missing[absent] = False
        if not self.bad and not bool(self.missing.any()):
            self.missing = None

    @staticmethod
    def size(samples: Samples, spec: DataSpec) -> float:
        """Bytes that holding a split takes beyond what it takes already."""
        if samples.tensors is not None:
            return 0.0
        each = sum(torch.Size(one.shape).numel() * getattr(torch, one.dtype).itemsize for one in spec.inputs.values())
        return float(len(samples) * each)
