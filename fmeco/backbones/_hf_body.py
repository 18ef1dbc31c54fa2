"""Hold what backbones of transformers have in common: names of tensors, also of older files, and the first convolution."""

from __future__ import annotations

import importlib
import re

from torch import Tensor, nn

from fmeco.backbones._images import fit_channels
from fmeco.core import Backbone


class Body(Backbone):
    """Share what models of text, images and speech have in common.

    class_layers: a pooler that the library's classifier goes without, and tensors that the library itself ignores in its
    own older files.
    """

    input: str

    def __init__(self, net: nn.Module, pooling: str) -> None:
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
        """Names of older files are the library's to translate. A first convolution for another number of channels is
        summed (to one) or spread (from one)."""
        own = self.net.state_dict()
        names = {name: name if name in own else _renamed(name, self.net) for name in state}
        # Two tensors with one name are not translated: what has no place is then refused by its own.
        once = [*names.values()]
        state = {(new if once.count(new) == 1 else old): state[old] for old, new in names.items()}
        ignored = tuple(getattr(self.net, "_keys_to_ignore_on_load_unexpected", None) or ())
        stale = (
            name
            for name in state
            if name not in own and (name in self.computed or any(re.search(one, name) for one in ignored))
        )
        self.class_layers = (*self.class_layers, *stale)
        changed = fit_channels(state, own, self.first)
        return {**state, **changed}, list(changed)


def _renamed(name: str, net: nn.Module) -> str:
    """Translate a tensor's name of an older version of the library, as its own loading does."""
    mapping = importlib.import_module("transformers.conversion_mapping")
    loading = importlib.import_module("transformers.core_model_loading")
    for change in mapping.get_model_conversion_mapping(net):
        if isinstance(change, loading.WeightRenaming):
            name = change.rename_source_key(name)[0]
    return name
