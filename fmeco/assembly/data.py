"""Stage 2: read the data of a run, and describe its targets."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from fmeco.assembly.stages import RunData, RunSource
from fmeco.config.run_config import RunConfig
from fmeco.config.sections import size
from fmeco.core.data import Data, DataSpec, same_modality
from fmeco.core.target import known
from fmeco.data import disk_cache
from fmeco.data.subset import fraction
from fmeco.errors import ConfigError, DataError, clean, listing
from fmeco.log import say


def read_data(start: RunSource, own: Data | None = None) -> RunData:
    """Read the dataset, prepared as its source's inputs were. own: data that was handed in as an object.

    Raises ConfigError, DataError, and CheckpointError for data of another modality than the source's.
    """
    data = own or _build(start)
    if start.source is not None:
        _check_modality(start, data.spec)
    data = fraction(_cached(data, start.config), start.config.train.label_fraction, start.config.seed)
    return RunData(start, described(data))


def _build(start: RunSource) -> Data:
    """Build the dataset. With transfer.cross_modality data of another modality is welcome, which nothing of the source's
    preparation fits: it is prepared in its own way, and only weights come over."""
    chosen, known = start.config.dataset, start.known
    if chosen is None:
        raise ConfigError("dataset: missing", "add `dataset: {name: ...}` to the config, or --dataset X")
    crossing = known is not None and chosen.plugin.modality not in ("", known.modality)
    if crossing and start.config.carry.cross_modality:
        known = None
    data: Data = chosen.plugin.build({"known": known, "whole": False, "arch": chosen.arch}, chosen.options)
    return data


def _check_modality(start: RunSource, spec: DataSpec) -> None:
    source = start.source
    assert source is not None
    if source.spec.modality == spec.modality or not start.config.carry.cross_modality:
        same_modality(source.spec, spec.modality)
        return
    say(
        f"across modalities, as transfer.cross_modality says: {source.ref} was made with {source.spec.modality} data. Only "
        f"its weights come over; the {spec.modality} data is prepared in its own way"
    )


def _cached(data: Data, config: RunConfig) -> Data:
    """Put the data behind a cache of what its files decode to."""
    wanted = config.train.cache
    room: str | float = wanted if wanted in ("auto", "off") else size(wanted)
    train, val = (part and disk_cache.decoded(part, room) for part in (data.train, data.val))
    return dataclasses.replace(data, train=train, val=val)


def described(data: Data) -> Data:
    """Add the statistics of the training targets; says the data's notes, and refuses classes that only validation has."""
    for note in data.notes:
        say(note)
    samples = data.split("train")
    targets = dict(data.spec.targets)
    for name, target in targets.items():
        values = samples.targets.get(name)
        if isinstance(values, Tensor):
            if not known(values).any():
                raise DataError(f"no training sample has a value of the target '{clean(name)}'")
            targets[name] = target.described(values)
    if data.val is not None:
        _check_classes(data)
    return dataclasses.replace(data, spec=dataclasses.replace(data.spec, targets=targets))


def _check_classes(data: Data) -> None:
    """Refuse a class that only validation has, as it cannot be learned; report one that validation lacks."""
    assert data.train is not None and data.val is not None
    for name, target in data.spec.targets.items():
        train, val = data.train.targets.get(name), data.val.targets.get(name)
        if not target.traits.one_class or not isinstance(train, Tensor) or not isinstance(val, Tensor):
            continue
        trained, validated = (set(labels[known(labels)].tolist()) for labels in (train, val))
        if never := [target.classes[c] for c in sorted(validated - trained)]:
            raise DataError(
                f"no training samples of {listing(never)} ({clean(name)}), which the validation split has",
                "train on more of them: a larger train.label_fraction, or limit_per_class",
            )
        if absent := [target.classes[c] for c in sorted(trained - validated)]:
            say(f"no validation samples of {listing(absent)}: their accuracy is not measured")


def classes_of(data: Data) -> str | None:
    """Find the target that vectors are probed by: the first with one class per sample, which at least two validation
    samples have."""
    for name, target in data.spec.targets.items():
        values = data.val.targets.get(name) if data.val is not None else None
        if target.traits.one_class and isinstance(values, Tensor) and int(known(values).sum()) > 1:
            return name
    return None
