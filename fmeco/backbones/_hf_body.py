"""Define the base class of the transformers backbones: it translates tensor names of older files and fits the first convolution."""

from __future__ import annotations

import importlib
import re
from typing import NamedTuple

from torch import Tensor, nn

from fmeco.backbones._images import fit_channels
from fmeco.core import Backbone


class Pooling(NamedTuple):
    """Describe how the vectors of tokens become one vector per sample.

    by: "model" (as the model's own classifier does), "mean", "first", "last" or "max".
    normalize: whether that vector is divided by its length.
    """

    by: str
    normalize: bool = False


class Body(Backbone):
    """Wrap a network of transformers; base of the text, image and speech backbones.

    class_layers: names of tensors that a file may hold beyond this network's, namely a pooler that the library's classifier
        does not use, and tensors of older files that the library itself ignores.
    computed: names of buffers that are computed, not saved.
    first: names of the first convolution's weight, if it has one.
    """

    input: str

    def __init__(self, net: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.net, self.pooling = net, pooling
        self.class_layers = () if any(name.startswith("pooler.") for name in net.state_dict()) else ("pooler.",)
        kept = net.state_dict()
        self.computed = {name for name, _ in net.named_buffers() if name not in kept}
        self.first: list[str] = []

    @property
    def library(self) -> nn.Module:
        return self.net

    def adapt(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Fit a file's tensors to this network.

        Names of older versions are translated as the library does. A first convolution for another number of channels is
        summed (to one channel) or spread (from one channel).
        """
        own = self.net.state_dict()
        names = {name: name if name in own else _renamed(name, self.net) for name in state}
        # Two tensors that would get the same name keep their own names, so that the error about them names the file's.
        translated = [*names.values()]
        state = {(new if translated.count(new) == 1 else old): state[old] for old, new in names.items()}
        ignored = tuple(getattr(self.net, "_keys_to_ignore_on_load_unexpected", None) or ())
        stale = (
            name
            for name in state
            if name not in own and (name in self.computed or any(re.search(pattern, name) for pattern in ignored))
        )
        self.class_layers = (*self.class_layers, *stale)
        changed = fit_channels(state, own, self.first)
        return {**state, **changed}, list(changed)


def _renamed(name: str, net: nn.Module) -> str:
    """Translate a tensor name of an older version of the library, as the library's own loading does."""
    mapping = importlib.import_module("transformers.conversion_mapping")
    loading = importlib.import_module("transformers.core_model_loading")
    for change in mapping.get_model_conversion_mapping(net):
        if isinstance(change, loading.WeightRenaming):
            name = change.rename_source_key(name)[0]
    return name
