"""Cache a split in the memory of the model's device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fmeco.core.data import DataSpec, Inputs, Samples, move
from fmeco.errors import FmecoError


class Held:
    """Hold the inputs and targets of a split on the model's device.

    A split that is in memory is copied at the start; otherwise each sample is stored when it is first read. All samples
    must have the same shape, and no augmentation may run before they are stored.

    inputs: name -> tensor (N, ...).
    targets: name -> tensor (N, ...) or list.
    missing: (N,) bool on the CPU, samples that are not stored yet; None = all are stored.
    bad: position -> error of a sample that could not be read.
    """

    def __init__(self, samples: Samples, spec: DataSpec, device: torch.device, tensors: Inputs | None) -> None:
        """Create an empty cache, or one that holds `tensors`: the split's, cut to the shapes of the spec."""
        n = len(samples)
        self.device, self.targets = device, {}
        for name, values in samples.targets.items():
            self.targets[name] = move(values, device) if isinstance(values, Tensor) else values
        if tensors is not None:
            self.inputs = {name: x.to(device) for name, x in tensors.items()}
            self.missing = None
        else:
            self.inputs = {
                name: torch.empty(n, *stored.shape, dtype=getattr(torch, stored.dtype), device=device)
                for name, stored in spec.inputs.items()
            }
            self.missing = torch.ones(n, dtype=torch.bool)
        self.bad: dict[int, FmecoError] = {}

    def fill(self, positions: Tensor, read: Callable[[Sequence[int]], list[Inputs | FmecoError]]) -> None:
        """Read and store the samples at `positions` (B,) that are not stored yet."""
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
        """Return the bytes that storing a split takes; 0 if the split is in memory already."""
        if samples.tensors is not None:
            return 0.0
        per_sample = sum(torch.Size(x.shape).numel() * getattr(torch, x.dtype).itemsize for x in spec.inputs.values())
        return float(len(samples) * per_sample)
