"""From a config to the parts of a run: data, weights, objective, augmentation, loader, optimizer."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import refs, transplant
from fmeco.config.load import choose
from fmeco.config.run_config import Choice, RunConfig
from fmeco.config.sections import seconds, size
from fmeco.core import (
    Augment,
    Backbone,
    Batch,
    Constraint,
    Data,
    DataSpec,
    Groups,
    Objective,
    Role,
    Roles,
    Teacher,
    Transfer,
    known,
    parameter_groups,
    same_modality,
    seed_torch,
)
from fmeco.core.training import frozen
from fmeco.data import disk_cache as cache
from fmeco.data.loader import Loader, channels_last
from fmeco.data.reading import Reading, choose_reading
from fmeco.data.subset import fraction
from fmeco.distributed.ranks import ALONE, Ranks
from fmeco.errors import CheckpointError, ConfigError, DataError, clean, listing, nearest
from fmeco.log import say
from fmeco.plugins.registry import plugins
from fmeco.training import autotune as tune

DEFAULT_OBJECTIVE = {
    "class": "classification",
    "multilabel": "multilabel",
    "number": "regression",
    "series": "forecast",
    "text": "ctc",
}
FINETUNE_STEPS = 200  # a default finetune takes 10 epochs, or as many (up to 50) as make this many steps
MICRO_BATCH = 256  # largest automatic micro-batch
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
CALIBRATED = 512  # samples that a new backbone is fitted to before it learns
TRIED = 8  # samples in a batch that something is measured with


@dataclass(frozen=True)
class Plan:
    """The parts of a run, built and not yet running."""

    settings: RunConfig  # complete: what was chosen automatically is filled in
    data: Data
    objective: Objective
    augment: Augment
    loader: Loader
    roles: Roles
    transfer: Transfer
    constraint: Constraint | None
    device: torch.device
    precision: str
    ranks: Ranks
    total: int  # steps
    probes: tuple[str, ...]  # of the backbone's vectors, at evaluations
    directions: Mapping[str, Literal["max", "min"]]  # of all that evaluations measure
    best: str  # the metric that picks the best checkpoint
    report: transplant.Report | None  # of a transplant just done
    transplanted: dict[str, Any] | None  # the report that the run's checkpoints hold
    parents: list[str]  # ids of the checkpoints that the weights come from
    licence: str | None  # of the weights that the run started from


def prepare(
    settings: RunConfig,
    data: Data | None = None,
    own_backbone: Backbone | None = None,
    resumed: checkpoint.Checkpoint | None = None,
    ranks: Ranks = ALONE,
) -> Plan:
    """Data, weights, objective, optimizer: everything up to the first step.

    resumed: the run's own checkpoint, whose weights the caller restores; the source is not needed any more.
    """
    if settings.backbone is not None:
        settings = settings.replace(backbone=refs.completed(settings.backbone))
    source = _source(settings, own_backbone) if resumed is None else None
    teachers = _teachers(settings)
    known = source.spec.preprocessing_only() if source is not None else None
    if known is None and teachers:  # a student sees what its teacher sees
        known = next(iter(teachers.values())).spec.preprocessing_only()
    if resumed is not None and (settings.source is not None or _weights(settings) is not None or teachers):
        known = resumed.spec.preprocessing_only()
    data = data or _data_from(source, settings, known)
    if source is not None:
        _check_modality(source, data.spec, settings)
    data = _described(fraction(_cached(data, settings), settings.train.label_fraction, settings.seed))

    # Initialisation, in order: the seed's random values; then the source's backbone; then head rows of shared classes.
    seed_torch(settings.seed, 0x696E6974)  # "init": apart from the seeds of steps
    chosen = source.backbone if source is not None else settings.backbone
    backbone = own_backbone or build_backbone(chosen, data.spec)
    described = settings.objective or _default_objective(data.spec, backbone)
    _check_values(described, data)
    if (complete := getattr(described.plugin.load(), "complete", None)) is not None:
        one = teachers[described.options[described.plugin.refs[0]]]
        described = dataclasses.replace(described, options=complete(dict(described.options), one))
    given = {"backbone": backbone, "spec": data.spec}
    objective: Objective = described.plugin.build(given, described.options, teachers.__getitem__)
    if objective.about:
        say(clean(", ".join(f"{key}: {value}" for key, value in objective.about.items())))
    roles = _roles(objective)
    strategy = settings.transfer or choose("transfer", "full")
    unfrozen: Transfer = strategy.plugin.build({"roles": roles}, strategy.options)
    transfer = frozen(unfrozen, settings.carry.freeze, roles)
    fresh = source is None or transfer.fresh
    report = _transplant(objective, source, settings, data.spec) if source is not None and not fresh else None

    varied = settings.augment or choose("augment", _default_augment(data.spec, len(objective.views)))
    given = {"spec": data.spec, "arch": varied.arch, "train": data.split("train")}
    augment: Augment = varied.plugin.build(given, varied.options)
    if len(objective.views) > 1 and not augment.varies:
        raise ConfigError(
            f"objective {described.name} compares views of a sample, and with augment {varied.spelled} they are all the same"
        )
    settings = settings.replace(
        backbone=None if own_backbone is not None else chosen, objective=described, augment=varied
    )
    device = _device(settings, ranks)
    settings, loader = _loader(settings, data, objective, augment, device, ranks)
    settings = _scaled_rate(settings, loader.batch_size)
    objective.to(device)
    if loader.channels_last:
        objective.to(memory_format=torch.channels_last)
    if settings.train.sync_batch_norm and ranks.world > 1:
        if device.type != "cuda":
            raise ConfigError("train.sync_batch_norm needs GPUs", "torch has it for no other device")
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(objective)
    if fresh and resumed is None:
        calibrate(objective.product, loader)
    objective.begin()
    constraint = transfer.bind(dict(objective.named_parameters())) if transfer.bind is not None else None
    if constraint is not None and constraint.own:
        if settings.train.ema is not None:
            raise ConfigError(f"train.ema: the average of {strategy.name}'s changes is no such change itself")
        if settings.train.precision == "fp16":
            raise ConfigError(f"train.precision: fp16 cannot be combined with {strategy.name}", "bf16 can")
    settings, total = _length(settings, loader.steps_per_epoch)
    settings = _tune(settings, loader, objective, total, ranks)
    if settings.train.compile:
        objective.backbone.compile()
    probes, directions = _probes(settings, objective, data, augment)
    best = _best_metric(settings, directions, data)
    parents = [source.checkpoint.id] if source is not None and source.checkpoint is not None and not fresh else []
    parents += [one.id for one in teachers.values() if one.id is not None]
    transplanted = report.to_json() if report is not None else None
    licence = source.licence if source is not None and not fresh else None
    if resumed is not None:
        for one in teachers.values():
            if one.id is not None and one.id not in resumed.manifest["parents"]:
                raise CheckpointError(f"{clean(one.ref)} is not the teacher that this run began with")
        parents, transplanted = list(resumed.manifest["parents"]), resumed.meta["transplant"]
        licence = resumed.meta.get("licence")
    return Plan(
        settings,
        data,
        objective,
        augment,
        loader,
        roles,
        transfer,
        constraint,
        device,
        settings.train.precision,
        ranks,
        total,
        probes,
        directions,
        best,
        report,
        transplanted,
        parents,
        licence,
    )


def _data_from(source: refs.Source | None, settings: RunConfig, known: DataSpec | None) -> Data:
    """The dataset, prepared as for the source (`known`). With transfer.cross_modality data of another kind is welcome,
    which nothing of the source's preparation fits: it is prepared in its own way, and only weights come over."""
    if source is None or not settings.carry.cross_modality:
        return _build_data(settings, known)
    data = _build_data(settings, None)
    if data.spec.modality == source.spec.modality:
        return _build_data(settings, known)
    return data


def _check_modality(source: refs.Source, spec: DataSpec, settings: RunConfig) -> None:
    if source.spec.modality == spec.modality or not settings.carry.cross_modality:
        same_modality(source.spec, spec.modality)
        return
    say(
        f"across modalities, as transfer.cross_modality says: {source.ref} was made with {source.spec.modality} data. Only "
        f"its weights come over; the {spec.modality} data is prepared in its own way"
    )


def _build_data(settings: RunConfig, known: DataSpec | None) -> Data:
    chosen = settings.dataset
    if chosen is None:
        raise ConfigError("dataset: missing", "add `dataset: {name: ...}` to the config, or --dataset X")
    data: Data = chosen.plugin.build({"known": known, "whole": False, "arch": chosen.arch}, chosen.options)
    return data


def _described(data: Data) -> Data:
    """The data with the statistics of its training targets; says its notes, refuses classes that only validation has."""
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


def _cached(data: Data, settings: RunConfig) -> Data:
    """The data behind a cache of what its files decode to."""
    wanted = settings.train.cache
    room: str | float = wanted if wanted in ("auto", "off") else size(wanted)
    train, val = (part and cache.decoded(part, room) for part in (data.train, data.val))
    return dataclasses.replace(data, train=train, val=val)


def _tune(settings: RunConfig, loader: Loader, objective: Objective, total: int, ranks: Ranks) -> RunConfig:
    """Measure what is `auto`: the precision, which is written into the config, and who reads."""
    train, device = settings.train, loader.device
    step_seconds: float | None = None
    if train.precision == "auto" and device.type != "cpu":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        train = train.model_copy(update={"precision": "bf16" if half else "fp32"})
    if train.precision == "auto" or (train.workers == "auto" and device.type == "cuda"):
        batch = few(loader, TRIED)
        if train.precision == "auto":
            samples = total * len(loader.samples) / loader.steps_per_epoch / ranks.world
            limit = seconds(train.budget) if train.budget else math.inf

            def measure() -> str:
                chosen, gain = tune.faster_precision(objective, batch, device, samples, limit)
                if gain != 1.0:
                    say(f"precision: {chosen}; here bf16 trains this model {gain:.1f} times as fast as fp32")
                return chosen

            train = train.model_copy(update={"precision": ranks.from_first(measure)})
        if device.type == "cuda":
            tune.step_seconds(objective, batch, device, train.precision)  # the first one pays for the start
            step_seconds = tune.step_seconds(objective, batch, device, train.precision) / len(batch)
    loader.reading = choose_reading(
        train.workers,
        loader.data,
        loader.samples,
        device,
        views=loader.views,
        augment=loader.augment,
        step_seconds=step_seconds,
        world=ranks.local_world,
    )
    return settings.replace(train=train)


def calibrate(backbone: Backbone, loader: Loader) -> None:
    """Fit what a new backbone computes from data; most have nothing of the kind, and read nothing."""
    if type(backbone).calibrate is not Backbone.calibrate:
        with torch.no_grad():
            backbone.calibrate(few(loader, CALIBRATED).views[0])


def few(loader: Loader, count: int) -> Batch:
    """The first training samples that can be read, `count` of them or fewer."""
    size = min(max(count, loader.batch_size), len(loader.samples))
    alone = Reading(0, 1, None)
    short = dataclasses.replace(loader, batch_size=size, micro_batch=min(count, size), reading=alone, rank=0, world=1)
    batch = next((one for one in short.batches(0, short.steps_per_epoch) if len(one)), None)
    if batch is None:
        raise DataError("no training sample can be read")
    return batch


def _transplant(objective: Objective, source: refs.Source, settings: RunConfig, spec: DataSpec) -> transplant.Report:
    """The source's backbone into the objective's, and head rows for the classes that both have."""
    report = transplant.transplant(
        objective.product,
        source.state,
        source=source.ref,
        allow_partial=settings.carry.allow_partial,
        prefix=settings.carry.prefix,
    )
    if source.spec.modality != spec.modality:
        report.crossing = f"{source.spec.modality} -> {spec.modality}"
    rows: Mapping[str, Sequence[str]] = {}
    if source.checkpoint is not None and settings.carry.head == "auto":
        rows = source.checkpoint.meta.get("class_rows", {})
        report.carried = transplant.carry_rows(objective, source.checkpoint.tensors("objective"), rows)
    report.new = [name for name in transplant.split_state(objective)[1] if not report.carried or name not in rows]
    return report


def _loader(
    settings: RunConfig, data: Data, objective: Objective, augment: Augment, device: torch.device, ranks: Ranks
) -> tuple[RunConfig, Loader]:
    """Training batches; an automatic batch size is written into the config."""
    train, samples = settings.train, data.split("train")
    if train.batch_size == "auto":
        train = train.model_copy(update={"batch_size": min(64, max(16, len(samples) // 5))})
    size = len(samples) if isinstance(train.batch_size, str) else min(train.batch_size, len(samples))
    micro = min(size, MICRO_BATCH if isinstance(train.micro_batch, str) else train.micro_batch)
    whole = objective.coupled and type(objective).represent is Objective.represent
    if whole and micro < size:
        raise ConfigError(f"train.micro_batch: {micro}: this objective's loss needs the batch of {size} whole")
    if objective.coupled and micro < size:
        say(f"the {size} samples of a step are compared with each other, and pass the model twice, {micro} at a time")
    balance: Tensor | None = None
    if train.sampler == "balanced":
        labels = samples.targets.get("label")
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
            raise ConfigError("train.sampler: balanced needs one class per sample")
        balance = labels
    loader = Loader(
        data=data,
        samples=samples,
        views=objective.views,
        augment=augment,
        batch_size=size,
        micro_batch=micro,
        seed=settings.seed,
        reading=Reading(0, 1, None),  # chosen later, when a step can be timed
        device=device,
        balance=balance,
        on_bad_sample=train.on_bad_sample,
        channels_last=channels_last(train.channels_last, data.spec),
        rank=ranks.rank,
        world=ranks.world,
    )
    if ranks.world > 1 and whole:
        raise ConfigError("this objective's loss needs the batch whole; it cannot be trained by several ranks")
    if (smallest := min(end - start for start, end in loader.steps)) < ranks.world:
        raise ConfigError(f"{ranks.world} ranks cannot share steps of {smallest} samples", "raise train.batch_size")
    return settings.replace(train=train), loader


def _scaled_rate(settings: RunConfig, size: int) -> RunConfig:
    """The learning rate for the run's batch size, written into the config, where it was given for another one."""
    train, chosen = settings.train, settings.optimizer
    if train.lr_for_batch is None:
        return settings
    rate = chosen.options["lr"]
    if rate == "auto":
        raise ConfigError("train.lr_for_batch: a range test finds the rate of the run's own batches", "leave it out")
    scaled = rate * size / train.lr_for_batch
    say(f"optimizer.lr: {scaled:g} = {rate:g} x {size} / {train.lr_for_batch}, for batches of {size}")
    return settings.replace(
        train=train.model_copy(update={"lr_for_batch": None}),
        optimizer=dataclasses.replace(chosen, options={**chosen.options, "lr": scaled}),
    )


def _roles(objective: Objective) -> Roles:
    product = objective.product
    inside = {id(p): name for name, p in product.library.named_parameters()}
    norms = {id(p) for module in objective.modules() if isinstance(module, NORMS) for p in module.parameters(False)}

    def role(name: str, p: nn.Parameter) -> Role:
        depth = product.depth_of(inside[id(p)]) if id(p) in inside else None
        if id(p) in norms:
            return Role(depth, "norm")
        return Role(
            depth, "bias" if name.endswith("bias") else "weight" if name.endswith("weight") and p.ndim > 1 else "other"
        )

    # Teachers, which never learn, have no part to play.
    learning = {name: p for name, p in objective.named_parameters() if p.requires_grad or id(p) in inside}
    return {name: role(name, p) for name, p in learning.items()}


def groups(plan: Plan, phase: int) -> Groups:
    """The parameters that a phase trains, by learning-rate scale and decay; the others are frozen."""
    own, rate = (plan.constraint.own, plan.constraint.rate) if plan.constraint is not None else ({}, 1.0)
    scales = {**plan.transfer.phases[phase].scales, **dict.fromkeys(own, rate)}
    hidden = {name for name, role in plan.roles.items() if role.kind == "weight" and (role.depth or 0) > 0}
    undecayed = plan.constraint.undecayed if plan.constraint is not None else frozenset()
    learning = [(name, p) for name, p in plan.objective.named_parameters() if name in plan.roles]
    found = parameter_groups([*learning, *own.items()], scales, hidden, undecayed)
    if plan.constraint is not None:
        plan.constraint.thaw()
    return found


def build_backbone(chosen: Choice | None, spec: DataSpec) -> Backbone:
    if chosen is None:
        raise ConfigError("backbone: missing", "name one, as in `backbone: resnet18`, or hand in your own object")
    backbone: Backbone = chosen.plugin.build({"spec": spec, "arch": chosen.arch}, chosen.options)
    return backbone


def _source(settings: RunConfig, own_backbone: Backbone | None) -> refs.Source | None:
    """Weights to start from: --from, else the backbone's `weights`."""
    if settings.source is not None:
        if own_backbone is not None:
            found = refs.find_checkpoint(settings.source)
            return refs.Source(
                settings.source,
                choose("backbone", "mlp"),
                found.tensors("backbone"),
                found.spec,
                found,
                found.meta.get("licence"),
            )
        return refs.resolve(settings.source, settings.backbone)
    weights = _weights(settings)
    if settings.backbone is None or weights is None:
        return None
    if os.path.exists(weights):
        return refs.resolve(weights, settings.backbone)
    return refs.published(settings.backbone, weights)


def _teachers(settings: RunConfig) -> dict[str, Teacher]:
    """What the objective's section names by a Ref, loaded and frozen."""
    chosen = settings.objective
    if chosen is None:
        return {}
    return {ref: teacher(ref) for ref in (chosen.options[key] for key in chosen.plugin.refs)}


def teacher(ref: str) -> Teacher:
    """A trained model to learn from. Raises what `refs.resolve` does."""
    source = refs.resolve(ref, None)
    backbone = build_backbone(source.backbone, source.spec)
    saved, objective = source.checkpoint, None
    if saved is not None:
        refs.check_needs(saved, ref, "objectives")
        raw = choose("objective", saved.meta["config"]["objective"])
        made: Objective = raw.plugin.build({"backbone": backbone, "spec": source.spec}, raw.options)
        transplant.load_objective(made, saved)
        objective = made
    else:
        transplant.transplant(backbone, source.state, source=ref)
    (objective or backbone).eval().requires_grad_(False)
    say(f"the teacher: {clean(ref)}, {source.backbone.spelled}")
    return Teacher(ref, backbone, objective, source.spec, saved.id if saved is not None else None)


def _weights(settings: RunConfig) -> str | None:
    return settings.backbone.options.get("weights") if settings.backbone is not None else None


def _default_objective(spec: DataSpec, backbone: Backbone) -> Choice:
    if not spec.targets and (backbone.vocabulary or backbone.numbers):
        return choose("objective", "next" if backbone.causal and not backbone.numbers else "mask")
    if not spec.targets:
        raise ConfigError("this dataset has no labels to learn from", "name an `objective:`")
    if len(spec.targets) > 1:
        tasks = {name: DEFAULT_OBJECTIVE[target.kind] for name, target in spec.targets.items()}
        return choose("objective", {"name": "multi_task", "tasks": tasks})
    name, target = next(iter(spec.targets.items()))
    return choose("objective", {"name": DEFAULT_OBJECTIVE[target.kind], "target": name})


def _default_augment(spec: DataSpec, views: int) -> str:
    """What the first plug-in that fits the data would do; a plug-in without a default is for those who name it."""
    offers = (getattr(plugin.load(), "default", None) for plugin in plugins("augment").values())
    return next((name for offer in offers if offer is not None and (name := offer(spec, views)) is not None), "none")


def _check_values(objective: Choice, data: Data) -> None:
    """An objective of one target needs its value of every sample."""
    name = objective.options.get("target")
    for part, samples in (("training", data.train), ("validation", data.val)):
        values = samples.targets.get(name) if samples is not None and name is not None else None
        if isinstance(values, Tensor) and not (here := known(values)).all():
            raise DataError(
                f"the target '{clean(name)}' has no value in {len(here) - int(here.sum())} of {len(here)} {part} samples",
                "objective: multi_task leaves such samples out of that task alone; or remove these rows",
            )


def _check_classes(data: Data) -> None:
    """A class that only validation has cannot be learned; one that validation lacks is reported."""
    assert data.train is not None and data.val is not None
    for name, target in data.spec.targets.items():
        train, val = data.train.targets.get(name), data.val.targets.get(name)
        if target.kind != "class" or not isinstance(train, Tensor) or not isinstance(val, Tensor):
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
    """The target that vectors are probed by: the first of classes that at least two validation samples have."""
    for name, target in data.spec.targets.items():
        values = data.val.targets.get(name) if data.val is not None else None
        if target.kind == "class" and isinstance(values, Tensor) and int(known(values).sum()) > 1:
            return name
    return None


def _probes(
    settings: RunConfig, objective: Objective, data: Data, augment: Augment
) -> tuple[tuple[str, ...], Mapping[str, Literal["max", "min"]]]:
    """What evaluations probe the backbone's vectors by, and the directions of all their metrics, the probes' first."""
    asked = settings.evaluate.probes
    probes = objective.probes if asked is None else tuple(asked)
    if not probes or data.val is None or not len(data.val):
        return (), objective.directions
    named = probes if classes_of(data) is not None else ("retrieval",)
    if named == ("retrieval",) and not augment.varies:
        if asked is None:
            return (), objective.directions
        raise ConfigError(
            "evaluate.probes: the validation split has no classes, and without an augmentation no two views of a sample",
            "a table with a label column may leave most labels empty: a partly labelled split is enough",
        )
    directions: dict[str, Literal["max", "min"]] = {**dict.fromkeys(named, "max"), **objective.directions}
    if augment.varies:
        directions |= {"alignment": "min", "uniformity": "min"}
    return probes, directions


def _best_metric(settings: RunConfig, directions: Mapping[str, Any], data: Data) -> str:
    """The metric that picks the best checkpoint. Raises ConfigError for an unknown one, or where none can be measured."""
    name = (settings.evaluate.best or next(iter(directions), "loss")).removeprefix("val_")
    if name not in directions:
        raise ConfigError(
            f"evaluate.best: {clean(name)} is no metric of this run{nearest(name, directions)}",
            f"metrics: {', '.join(directions)}",
        )
    if (data.val is None or len(data.val) == 0) and (
        settings.train.early_stop is not None or settings.schedule.name == "plateau"
    ):
        raise ConfigError("early_stop and the plateau schedule need a validation split, and this dataset has none")
    return name


def _length(settings: RunConfig, per_epoch: int) -> tuple[RunConfig, int]:
    """The run's length in steps; the stage's default is written into the config."""
    train = settings.train
    if train.budget is not None:
        return settings, 2**31
    if train.steps is not None:
        return settings, train.steps
    if train.epochs is None:
        epochs = 10.0 if settings.stage == "pretrain" else float(min(50, max(10, -(-FINETUNE_STEPS // per_epoch))))
        train = train.model_copy(update={"epochs": epochs})
        say(f"training for {epochs:g} epochs of {per_epoch} steps")
    assert train.epochs is not None
    return settings.replace(train=train), max(1, round(train.epochs * per_epoch))


def _device(settings: RunConfig, ranks: Ranks) -> torch.device:
    """The run's device. Raises ConfigError for one that is not here, or has not the precision."""
    wanted, precision = settings.train.device, settings.train.precision
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if (wanted == "cuda" and not torch.cuda.is_available()) or (
        wanted == "mps" and not torch.backends.mps.is_available()
    ):
        raise ConfigError(f"train.device: {wanted} is not available here", "device: auto takes what there is")
    if precision == "fp16" and wanted == "cpu":
        raise ConfigError("train.precision: fp16 needs a GPU", "bf16 works on every device")
    if wanted == "cuda" and ranks.local >= torch.cuda.device_count():
        raise ConfigError(f"{ranks.local_world} ranks on this machine, which has {torch.cuda.device_count()} GPUs")
    return torch.device(wanted, ranks.local) if wanted == "cuda" else torch.device(wanted)
