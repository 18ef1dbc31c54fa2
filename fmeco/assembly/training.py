"""Stage 4: choose batches, device, precision, length and measures, until the first step can run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import torch
from torch import Tensor

from fmeco.assembly import precision
from fmeco.assembly.data import read_data
from fmeco.assembly.measures import choose_measures
from fmeco.assembly.model import build_model
from fmeco.assembly.source import read_source
from fmeco.assembly.stages import RunModel, Training
from fmeco.checkpoints.format import Checkpoint
from fmeco.checkpoints.transplant import split_state
from fmeco.config.check import DEFAULT_NAMES, choose
from fmeco.config.run_config import Choice, RunConfig
from fmeco.config.sections import Train, seconds
from fmeco.core.data import Data
from fmeco.core.model import Backbone, Objective
from fmeco.core.training import Constraint
from fmeco.data.loader import Loader, channels_last, first_batch
from fmeco.data.reading import Reading, choose_reading
from fmeco.distributed.ranks import ALONE, Ranks
from fmeco.errors import ConfigError
from fmeco.log import say
from fmeco.plugins.registry import FINETUNE_LR, Plugin

FINETUNE_STEPS = 200  # a finetune's default length: this many steps, but 10 to 50 epochs
MICRO_BATCH = 256  # largest automatic micro-batch
UNLIMITED = 2**31  # total steps of a run that a time budget ends
CALIBRATION_SAMPLES = 512  # samples to calibrate a new backbone with
BENCHMARK_SAMPLES = 8  # samples per batch in benchmarks


def assemble(
    config: RunConfig,
    *,
    data: Data | None = None,
    backbone: Backbone | None = None,
    resumed: Checkpoint | None = None,
    ranks: Ranks = ALONE,
) -> Training:
    """Turn a config into a training run, through the four stages.

    data, backbone: your own objects, in place of the config's.
    resumed: the run's own checkpoint; the caller restores its weights.

    Raises ConfigError, DataError, CheckpointError, ResourceError.
    """
    source = read_source(config, ranks, backbone, resumed)
    return prepare_training(build_model(read_data(source, data)))


def prepare_training(model: RunModel) -> Training:
    """Prepare a model for training, and fill in what the config leaves to `auto`, by benchmarks if need be."""
    config, objective, data, ranks = model.config, model.objective, model.run_data.data, model.run_data.run_source.ranks
    device = choose_device(config.train, ranks)
    batch_size = _batch_size(config.train, objective, len(data.split("train")))
    loader = _loader(model, batch_size, device)
    optimizer = _scaled(_backbone_rate(model), config.train.lr_for_batch, loader.batch_size)
    _place(model, loader)
    if model.fresh:
        calibrate(objective.product, loader)
    objective.begin()
    constraint = _constraint(model)
    epochs, total = _length(config.train, config.stage, loader.steps_per_epoch)
    # A head that is solved takes no step, so that a benchmark of steps would be in vain.
    precision_name = _precision(config.train, loader, objective, 0 if model.only_solves else total, ranks)
    reading = _reading(config.train, loader, objective, precision_name, ranks)
    if config.train.compile:
        objective.backbone.compile()
    choices = {"batch_size": batch_size, "lr_for_batch": None, "epochs": epochs, "precision": precision_name}
    return Training(
        model=model,
        config=dataclasses.replace(config, train=config.train.model_copy(update=choices), optimizer=optimizer),
        objective=objective,
        data=data,
        ranks=ranks,
        loader=dataclasses.replace(loader, reading=reading),
        constraint=constraint,
        measures=choose_measures(model),
        device=device,
        total=total,
        evaluate_every=max(1, round(config.evaluate.every * loader.steps_per_epoch)),
        validation_size=len(data.val) if data.val is not None else 0,
        new_head=_new_head(model),
    )


def _new_head(model: RunModel) -> dict[str, Tensor] | None:
    """Copy the new head, if training is to begin with it. None also if rows of the source's head were copied into it."""
    transplanted = model.origin.transplanted
    if not model.transfer.new_head or (transplanted is not None and transplanted["carried"]):
        return None
    return {name: tensor.detach().clone() for name, tensor in split_state(model.objective)[1].items()}


def choose_device(train: Train, ranks: Ranks) -> torch.device:
    """Choose the device of this rank.

    Raises ConfigError if the device is not available, or does not support the precision.
    """
    kind = train.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise ConfigError(f"train.device: {kind} is not available on this machine", "device: auto picks one that is")
    if train.precision == "fp16" and kind == "cpu":
        raise ConfigError("train.precision: fp16 needs a GPU", "bf16 works on every device")
    if kind == "cuda" and ranks.local >= torch.cuda.device_count():
        raise ConfigError(
            f"{ranks.local_world} ranks need as many GPUs, and this machine has {torch.cuda.device_count()}"
        )
    return torch.device(kind, ranks.local) if kind == "cuda" else torch.device(kind)


def _batch_size(train: Train, objective: Objective, samples: int) -> int | Literal["full"]:
    """Return the configured samples per step; for `auto`, the objective's, else a fifth of the samples within 16 and 64."""
    return (objective.batch_size or min(64, max(16, samples // 5))) if train.batch_size == "auto" else train.batch_size


def _loader(model: RunModel, batch_size: int | Literal["full"], device: torch.device) -> Loader:
    """Build the loader of training batches. How it reads samples is chosen later, once a step can be timed."""
    objective, data, ranks, train = (
        model.objective,
        model.run_data.data,
        model.run_data.run_source.ranks,
        model.config.train,
    )
    samples = data.split("train")
    size = len(samples) if isinstance(batch_size, str) else min(batch_size, len(samples))
    micro = min(size, MICRO_BATCH if isinstance(train.micro_batch, str) else train.micro_batch)
    needs_full_batch = objective.coupled and type(objective).represent is Objective.represent
    if needs_full_batch and micro < size:
        raise ConfigError(f"train.micro_batch: {micro}: this objective's loss needs the full batch of {size} at once")
    if objective.coupled and micro < size:
        say(
            f"batch of {size} with a coupled loss: computed in micro-batches of {micro}, with two forward passes (gradient caching)"
        )
    loader = Loader(
        data=data,
        samples=samples,
        views=objective.views,
        augment=model.augment,
        batch_size=size,
        micro_batch=micro,
        seed=model.config.seed,
        reading=Reading(0, 1, None),
        device=device,
        balance=_balance(samples.targets.get("label")) if train.sampler == "balanced" else None,
        on_bad_sample=train.on_bad_sample,
        channels_last=channels_last(train.channels_last, data.spec),
        rank=ranks.rank,
        world=ranks.world,
    )
    if ranks.world > 1 and needs_full_batch:
        raise ConfigError("this objective's loss needs the full batch at once: it cannot be trained by several ranks")
    if (smallest := min(end - start for start, end in loader.steps)) < ranks.world:
        raise ConfigError(f"{ranks.world} ranks cannot share a step of {smallest} samples", "raise train.batch_size")
    return loader


def _length(train: Train, stage: str, per_epoch: int) -> tuple[float | None, int]:
    """Choose the run's length. Returns epochs and steps; epochs are None if the config gives steps or a time budget.

    per_epoch: steps.
    """
    if train.budget is not None:
        return None, UNLIMITED
    if train.steps is not None:
        return None, train.steps
    if train.epochs is not None:
        return train.epochs, max(1, round(train.epochs * per_epoch))
    epochs = 10.0 if stage == "pretrain" else float(min(50, max(10, -(-FINETUNE_STEPS // per_epoch))))
    return epochs, max(1, round(epochs * per_epoch))


def _backbone_rate(model: RunModel) -> Choice:
    """Set the learning rate to the backbone's own finetuning rate, if the strategy wants it and the config gives no rate."""
    optimizer = model.config.optimizer
    if not model.transfer.backbone_rate or "lr" in optimizer.given:
        return optimizer
    rate = backbone_rate(optimizer, model.config.backbone)
    if rate is None:
        return optimizer
    say(f"optimizer.lr: {rate:g}, for the backbone")
    return dataclasses.replace(optimizer, options={**optimizer.options, "lr": rate})


def backbone_rate(optimizer: Choice, backbone: Choice | None) -> float | None:
    """Return the rate at which an optimizer finetunes a backbone; None if the optimizer's default is no number.

    The backbone's plug-in says it for adamw. For other optimizers it has the same ratio to the optimizer's default.
    """
    default = finetune_default(optimizer.plugin)
    if not isinstance(default, int | float):
        return None
    usual = finetune_default(choose("optimizer", DEFAULT_NAMES["optimizer"]).plugin)
    return float(f"{default / usual * (FINETUNE_LR if backbone is None else backbone.plugin.finetune_lr):.3g}")


def finetune_default(optimizer: Plugin) -> Any:
    """Return an optimizer's default learning rate in finetuning."""
    return optimizer.finetune.get("lr", optimizer.model.model_fields["lr"].default)


def _scaled(optimizer: Choice, lr_for_batch: int | None, size: int) -> Choice:
    """Scale a learning rate from the batch size that it was tuned for, `lr_for_batch`, to the run's own."""
    if lr_for_batch is None:
        return optimizer
    rate: Any = optimizer.options["lr"]
    if rate == "auto":
        raise ConfigError(
            "train.lr_for_batch cannot be combined with optimizer.lr: auto",
            "the range test already uses the run's own batches",
        )
    scaled = rate * size / lr_for_batch
    say(f"optimizer.lr: {scaled:g} = {rate:g} x {size} / {lr_for_batch}, for batches of {size}")
    return dataclasses.replace(optimizer, options={**optimizer.options, "lr": scaled})


def _balance(labels: object) -> Tensor:
    """Return the labels (N,) that a balanced sampler draws by. Raises ConfigError without one class per sample."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
        raise ConfigError("train.sampler: balanced needs one class per sample")
    return labels


def _place(model: RunModel, loader: Loader) -> None:
    """Move the objective to the loader's device and memory format."""
    objective = model.objective.to(loader.device)
    if loader.channels_last:
        objective.to(memory_format=torch.channels_last)
    if model.config.train.sync_batch_norm and loader.world > 1:
        if loader.device.type != "cuda":
            raise ConfigError("train.sync_batch_norm needs GPUs", "torch implements it for no other device")
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(objective)


def _constraint(model: RunModel) -> Constraint | None:
    """Build the transfer strategy's constraint on weights. Raises ConfigError for settings that conflict with it."""
    if model.transfer.bind is None:
        return None
    constraint = model.transfer.bind(dict(model.objective.named_parameters()))
    config = model.config
    if constraint.own and config.transfer is not None:
        if config.train.ema is not None:
            raise ConfigError(
                f"train.ema cannot be combined with {config.transfer.name}: averaged weights do not keep its constraint",
                "leave train.ema out",
            )
        if config.train.precision == "fp16":
            raise ConfigError(f"train.precision: fp16 cannot be combined with {config.transfer.name}", "bf16 can")
    return constraint


def calibrate(backbone: Backbone, loader: Loader) -> None:
    """Calibrate a new backbone from a few training samples. Backbones without `calibrate` read nothing."""
    if type(backbone).calibrate is not Backbone.calibrate:
        with torch.no_grad():
            backbone.calibrate(first_batch(loader, CALIBRATION_SAMPLES).views[0])


def _precision(train: Train, loader: Loader, objective: Objective, total: int, ranks: Ranks) -> str:
    """Choose the precision; on a CPU by a benchmark.

    total: steps of the run.
    """
    device = loader.device
    if train.precision != "auto":
        return train.precision
    if device.type != "cpu":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    batch = first_batch(loader, BENCHMARK_SAMPLES)
    samples = total * len(loader.samples) / loader.steps_per_epoch / ranks.world
    limit = seconds(train.budget) if train.budget else math.inf

    def measure() -> str:
        chosen, gain = precision.faster_precision(objective, batch, device, samples, limit)
        if gain != 1.0:
            say(f"precision: {chosen}; bf16 trains this model {gain:.1f} times as fast as fp32 on this machine")
        return chosen

    return ranks.from_first(measure)


def _reading(train: Train, loader: Loader, objective: Objective, precision_name: str, ranks: Ranks) -> Reading:
    """Choose how samples are read; with a GPU by timing steps.

    precision_name: as in train.precision.
    """
    device = loader.device

    def sample_seconds() -> float:
        batch = first_batch(loader, loader.micro_batch)
        return precision.steady_step_seconds(objective, batch, device, precision_name) / len(batch)

    return choose_reading(
        train.workers,
        loader.data,
        loader.samples,
        device,
        views=loader.views,
        augment=loader.augment,
        step_seconds=sample_seconds if device.type == "cuda" else None,
        world=ranks.local_world,
    )
