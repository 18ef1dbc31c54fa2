"""Set a model up for a phase of its transfer strategy: parameters, optimizer, batches and validation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from fmeco.assembly.optimizer import build_optimizer, phase_groups
from fmeco.assembly.stages import Training
from fmeco.core.data import Data
from fmeco.data.loader import evaluation_batches
from fmeco.data.reading import check_classes, choose_reading
from fmeco.features import forward
from fmeco.training import frozen_features, monitor
from fmeco.training.state import Measured, PhaseSetup


def set_up(training: Training, phase: int) -> PhaseSetup:
    """Freeze the parameters that the phase does not train, and build its optimizer.

    If it pays, outputs of the frozen part are computed once and used as the data.
    """
    groups = phase_groups(training, phase)
    optimizer = build_optimizer(training.config.optimizer, groups)
    trained = [parameter for group in groups for parameter in group["params"]]
    data, loader = training.data, training.loader
    phases = training.model.transfer.phases
    share = phases[phase].share / sum(each.share for each in phases)
    has_budget = training.config.train.budget is not None
    epochs = 0.0 if has_budget else share * training.total / loader.steps_per_epoch
    if (stored := frozen_features.stored(training, epochs)) is not None:
        data, views = stored
        samples = data.split("train")
        reading = choose_reading("auto", data, samples, training.device)
        loader = dataclasses.replace(loader, data=data, samples=samples, augment=views, reading=reading)
    validate = _validation(training, data) if data.val is not None and len(data.val) else None
    return PhaseSetup(optimizer, trained, loader, validate)


def _validation(training: Training, data: Data) -> Callable[[], Measured]:
    """Build the function that evaluates on the validation split."""
    train, samples, ranks, best = training.config.train, data.split("val"), training.ranks, training.measures.best
    objective = training.objective
    reading = choose_reading(train.workers, data, samples, training.device, world=ranks.local_world)
    probe = monitor.watcher(training)

    def validate() -> Measured:
        bad: list[str] | None = [] if train.on_bad_sample == "skip" else None
        batches = evaluation_batches(
            data,
            samples,
            batch_size=training.config.evaluate.batch_size or 2 * training.loader.micro_batch,
            reading=reading,
            device=training.device,
            channels_last=training.loader.channels_last,
            rank=ranks.rank,
            world=ranks.world,
        )
        metrics, rows = forward.evaluate(objective, batches, training.device, train.precision, bad=bad, ranks=ranks)
        if bad:
            check_classes(data.spec, samples, rows["index"], "validation")
        if probe is not None:
            metrics = {**probe(rows), **metrics}
        correct = objective.correct(rows) if best == next(iter(objective.directions), None) else None
        error = float(correct.double().std(correction=0)) / math.sqrt(len(correct)) if correct is not None else 0.0
        if best in monitor.SHARES:
            error = math.sqrt(metrics[best] * (1 - metrics[best]) / min(len(samples), monitor.WATCHED))
        return Measured(metrics, bad or [], error, rows)

    return validate
