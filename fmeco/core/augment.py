"""Define the interface of augmentations, which vary training samples and make an objective's views of them."""

from __future__ import annotations

from abc import ABC
from collections.abc import Set

from torch import Tensor

from fmeco.core.data import DataSpec, Form, Inputs, View
from fmeco.errors import ConfigError, listing


class Augment(ABC):
    """Vary training samples in two steps, `sample` and `batch`. Both must be pure functions of the inputs and the random keys.

    carries: forms of riders (core/geometry.py) that stay where they belong: they are moved as their image is, by the same
        keys, or the image is not moved. Data with riders of other forms is refused.
    """

    carries: Set[Form] = frozenset()

    @property
    def per_sample(self) -> bool:
        """Tell whether `sample` changes anything. If not, a split can be kept on the device, and batches
        are indexed out of its tensors."""
        return type(self).sample is not Augment.sample

    @property
    def varies(self) -> bool:
        """Tell whether `sample` or `batch` changes anything."""
        return self.per_sample or type(self).batch is not Augment.batch

    def for_view(self, view: View) -> Augment:
        """Return the augmentation that makes this view. Raises ConfigError if it cannot crop to the view's size or area.

        A view whose size differs from the input's must be made by `sample`.
        """
        if view.size != 1 or view.area is not None:
            raise ConfigError(
                f"this augmentation cannot make '{view.name}', a view with its own crop size or area",
                "for images, set augment to views; with objective.local=0, the objective dino needs no such views",
            )
        return self

    def sample(self, inputs: Inputs, key: int) -> Inputs:
        """Augment one sample (no batch dimension), such as by a random crop. Runs in a loader worker or a thread."""
        return inputs

    def batch(self, inputs: Inputs, keys: Tensor) -> Inputs:
        """Augment B samples at once on the device, for steps that are cheaper there. keys: (B,) int64 on the CPU."""
        return inputs


def check_riders(augment: Augment, spec: DataSpec, called: str) -> None:
    """Raise ConfigError if an augmentation would leave riders of the data behind when it moves their images."""
    left = {name: one.form for name, one in spec.riders.items() if one.form not in augment.carries}
    if left and augment.varies:
        raise ConfigError(
            f"augment: '{called}' moves images, but not the {listing(sorted(set(left.values())))} of this dataset with them",
            "augment: standard moves both; augment: none moves nothing",
        )
