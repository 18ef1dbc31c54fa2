"""Refuse data of another modality than a checkpoint's."""

from __future__ import annotations

from fmeco.core.data import DataSpec
from fmeco.errors import CheckpointError, clean, listing
from fmeco.plugins.registry import plugins


def same_modality(known: DataSpec | None, modality: str, *, training: bool = True) -> None:
    """Raise CheckpointError if the checkpoint's data (`known`) has another modality than the dataset.

    training: the checkpoint is trained on the data, so that its weights may cross modalities.
    """
    if known is None or known.modality in (modality, ""):
        return
    fitting = [plugin.name for plugin in plugins("datasets").values() if plugin.modality == known.modality]
    raise CheckpointError(
        f"this checkpoint is for {clean(known.modality, 60)} data, but the dataset holds {modality} data",
        f"datasets of {clean(known.modality, 60)} data: {listing(fitting)}; --set dataset.name=NAME chooses one"
        if fitting
        else "",
        "if the architecture accepts both, finetune across modalities with transfer.cross_modality=true"
        if training
        else "",
    )
