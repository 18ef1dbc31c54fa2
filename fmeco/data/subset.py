"""Select samples of a split."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fmeco.core.data import Data, Form, Inputs, Samples, Wrapped


class Part(Wrapped):
    """Hold the samples of a split at the positions `at` (n,)."""

    def __init__(self, samples: Samples, at: Tensor) -> None:
        super().__init__(samples)
        self.at = at.tolist()
        self.targets = {
            name: values[at] if isinstance(values, Tensor) else [values[i] for i in self.at]
            for name, values in samples.targets.items()
        }
        self.groups = {name: [values[i] for i in self.at] for name, values in samples.groups.items()}
        self.tensors = None if samples.tensors is None else {name: x[at] for name, x in samples.tensors.items()}
        self.lengths = None if samples.lengths is None else samples.lengths[at]
        digest = hashlib.sha256(f"{samples.content} {self.at}".encode()).hexdigest()
        self.content = digest if samples.content else ""
        self.stamps = None if samples.stamps is None else samples.stamps[at]
        self.sizes = None if samples.sizes is None else samples.sizes[at]
        # A subset has proportionally fewer neighbours that resemble each other.
        self.block = max(1, round(samples.block * len(self.at) / max(1, len(samples))))

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: int) -> Inputs:
        return self.samples[self.at[index]]

    def name(self, index: int) -> str:
        return self.samples.name(self.at[index])

    def answers(self, index: int, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.samples.answers(self.at[index], answer)

    def back(self, index: int, form: Form, answer: Tensor) -> Tensor:
        return self.samples.back(self.at[index], form, answer)

    def digest(self, index: int, *, stored: bool = False) -> bytes | None:
        return self.samples.digest(self.at[index], stored=stored)


def fraction(data: Data, share: float, seed: int) -> Data:
    """Keep a share of the training samples, per class of the first target with classes, at least one per class.

    The choice depends on the samples' names and the seed. A larger share keeps all samples of a smaller one.
    """
    samples = data.split("train")
    if share == 1:
        return data
    draws = [hashlib.blake2b(f"{seed}/{samples.name(i)}".encode()).digest() for i in range(len(samples))]
    order = torch.tensor(sorted(range(len(samples)), key=draws.__getitem__))
    columns = (x for x in samples.targets.values() if isinstance(x, Tensor) and x.dtype == torch.int64 and x.ndim == 1)
    classes = next(columns, torch.zeros(len(samples)))
    parts = [order[classes[order] == label] for label in classes.unique()]
    kept = torch.cat([part[: max(1, round(share * len(part)))] for part in parts]).sort().values
    spec = dataclasses.replace(data.spec, sizes={**data.spec.sizes, "train": len(kept)})
    return dataclasses.replace(data, spec=spec, train=Part(samples, kept))
