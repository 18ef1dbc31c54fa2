"""Augmentation: how training samples vary, and which views of them an objective asks for."""

from __future__ import annotations

from abc import ABC

from torch import Tensor

from fmeco.core.data import Inputs, View
from fmeco.errors import ConfigError


class Augment(ABC):
    """How training samples vary. Two pure parts; both must give the same for the same key."""

    @property
    def per_sample(self) -> bool:
        """Whether `sample` does anything: where it does not, a split in memory is cut into batches as it is."""
        return type(self).sample is not Augment.sample

    @property
    def varies(self) -> bool:
        """Whether any part does."""
        return self.per_sample or type(self).batch is not Augment.batch

    def for_view(self, view: View) -> Augment:
        """The augmentation that makes this kind of view, by `sample` where it has a size of its own. Raises ConfigError
        where it cannot."""
        if view.size != 1 or view.area is not None:
            raise ConfigError(
                f"this augmentation cannot make '{view.name}': a part of a sample, of a size of its own",
                "augment: views makes such of images; objective.local: 0 does without, where the objective is dino",
            )
        return self

    def sample(self, inputs: Inputs, key: int) -> Inputs:
        """Geometry of one sample, in the loader's worker."""
        return inputs

    def batch(self, inputs: Inputs, keys: Tensor) -> Inputs:
        """What is cheaper for B samples at once, on the device. keys: (B,) int64 on the CPU."""
        return inputs
