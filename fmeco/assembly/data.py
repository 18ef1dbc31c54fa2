"""Stage 2: read the data of a run, and compute the statistics of its targets."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from fmeco.assembly.stages import RunData, RunSource
from fmeco.config.run_config import RunConfig
from fmeco.config.sections import size
from fmeco.core.data import Data, DataSpec
from fmeco.core.modality import same_modality
from fmeco.core.target import known
from fmeco.data.decoded_cache import decoded
from fmeco.data.spec_reader import shown_by_reader
from fmeco.data.subset import fraction
from fmeco.errors import ConfigError, DataError, clean, listing
from fmeco.log import say


def read_data(run_source: RunSource, own_data: Data | None = None) -> RunData:
    """Read the dataset, preprocessed as the source's inputs were.

    own_data: data that was passed as an object, in place of the config's dataset.

    Raises ConfigError, DataError, and CheckpointError for data of another modality than the source's.
    """
    data = own_data or build_data(run_source)
    if run_source.source is not None:
        check_modality(run_source, data.spec)
    if (shown := shown_by_reader(data.spec)) is not None:
        say(f"inputs: {shown}")
    data = fraction(_cached(data, run_source.config), run_source.config.train.label_fraction, run_source.config.seed)
    return RunData(run_source, described(data))


def build_data(run_source: RunSource, *, whole: bool = False) -> Data:
    """Build the dataset.

    whole: use a path without split folders as one split.

    With transfer.cross_modality, data of another modality is not preprocessed as the source's was: only weights are
    transferred.
    """
    chosen, known = run_source.config.dataset, run_source.known
    if chosen is None:
        raise ConfigError("dataset: missing", "add `dataset: {name: ...}` to the config, or --dataset X")

    def build(known: DataSpec | None) -> Data:
        data: Data = chosen.plugin.build({"known": known, "whole": whole, "arch": chosen.arch}, chosen.options)
        return data

    modality = chosen.plugin.modality
    if known is None or not run_source.config.carry.cross_modality or modality == known.modality:
        return build(known)
    data = build(None)
    # A plug-in that does not declare its modality tells it only when it is built.
    return build(known) if not modality and data.spec.modality == known.modality else data


def check_modality(run_source: RunSource, spec: DataSpec) -> None:
    """Refuse data of another modality than the source's, unless transfer.cross_modality is set."""
    source = run_source.source
    assert source is not None
    if source.spec.modality == spec.modality or not run_source.config.carry.cross_modality:
        same_modality(source.spec, spec.modality)
        return
    say(
        f"transfer across modalities: {source.ref} was trained on {source.spec.modality} data. Only its weights are loaded; "
        f"the {spec.modality} data keeps its own preprocessing"
    )


def _cached(data: Data, config: RunConfig) -> Data:
    """Cache decoded samples on disk, as train.cache says."""
    setting = config.train.cache
    limit: str | float = setting if setting in ("auto", "off") else size(setting)
    train, val = (split and decoded(split, limit) for split in (data.train, data.val))
    return dataclasses.replace(data, train=train, val=val)


def described(data: Data) -> Data:
    """Add the statistics of the training targets to the spec, and log the data's notes.

    Raises DataError for a target without any training value, or for a class that only the validation split has.
    """
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
    _tell_untrained(data)
    return dataclasses.replace(data, spec=dataclasses.replace(data.spec, targets=targets))


def _check_classes(data: Data) -> None:
    """Refuse a class that only the validation split has: it cannot be learned.

    A class that only the training split has is logged.
    """
    assert data.train is not None and data.val is not None
    for name, target in data.spec.targets.items():
        train, val = data.train.targets.get(name), data.val.targets.get(name)
        if not target.traits.one_class or not isinstance(train, Tensor) or not isinstance(val, Tensor):
            continue
        trained, validated = (set(labels[known(labels)].tolist()) for labels in (train, val))
        if unlearnable := [target.classes[c] for c in sorted(validated - trained)]:
            raise DataError(
                f"no training samples of {listing(unlearnable)} ({clean(name)}), but the validation split has some",
                "if dataset.group_split keeps all samples of a class together, group by another column or split in another way",
                "raise train.label_fraction or limit_per_class, so that the training split has some",
            )
        if unmeasured := [target.classes[c] for c in sorted(trained - validated)]:
            say(f"no validation samples of {listing(unmeasured)}: the accuracy of these classes is not measured")


def _tell_untrained(data: Data) -> None:
    """Log the classes that only the test split has: a model cannot learn them, and answers each of their samples wrongly."""
    for name, target in data.spec.targets.items():
        train, test = (part.targets.get(name) if part is not None else None for part in (data.train, data.test))
        if target.traits.one_class and isinstance(train, Tensor) and isinstance(test, Tensor):
            only = set(test[known(test)].tolist()) - set(train[known(train)].tolist())
            if untrained := [target.classes[c] for c in sorted(only)]:
                say(f"no training samples of {listing(untrained)}, but the test split has some: they cannot be learned")


def classes_of(data: Data) -> str | None:
    """Find the target that probes predict from vectors; None if there is none.

    It is the first target with one class per sample that at least two validation samples have a value of.
    """
    for name, target in data.spec.targets.items():
        values = data.val.targets.get(name) if data.val is not None else None
        if target.traits.one_class and isinstance(values, Tensor) and int(known(values).sum()) > 1:
            return name
    return None
