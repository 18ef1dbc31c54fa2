"""Solve the head of a run on the frozen features of its training samples, before the first step."""

from __future__ import annotations

import dataclasses
import json
import time

import torch
from torch import Tensor

from fmeco.assembly.stages import Training
from fmeco.checkpoints.transplant import split_state
from fmeco.core.data import Data, Samples
from fmeco.core.model import Objective
from fmeco.data.loader import evaluation_batches
from fmeco.data.reading import choose_reading
from fmeco.errors import CheckpointError, DataError, clean
from fmeco.features import forward
from fmeco.features.extractor import Extractor, on_stored
from fmeco.features.split_network import Cut
from fmeco.log import say


def with_solved_head(training: Training) -> Training:
    """Solve the head, if the transfer strategy asks for it and the objective can.

    Returns the training with the chosen penalties in its config, and `solved` set.
    """
    transfer, objective = training.model.transfer, training.objective
    heads = [name for name, role in training.model.roles.items() if role.depth is None]
    trained = {name for phase in transfer.phases for name in heads if phase.scales[name] > 0}
    if transfer.penalties is None or not trained:
        return training
    began = time.monotonic()
    if type(objective).solve is Objective.solve:
        return _unsolved(training, "this objective's head has no direct solution")
    rows = _rows(training)
    if rows is None:
        return _unsolved(training, "its features of the training samples could not be collected")
    source_head = _source_head(training)
    penalties = json.loads(
        training.ranks.from_first(lambda: json.dumps(objective.solve(rows, transfer.penalties or {})))
    )
    # Also without a solution: of several tasks, some heads may have been written.
    training.ranks.broadcast_([parameter.detach() for parameter in objective.parameters()])
    if not penalties:
        return _unsolved(training, "this objective's head has no direct solution")
    shown = ", ".join(f"{clean(name)} {penalty:.3g}" for name, penalty in penalties.items())
    say(
        f"the head is solved on the frozen features of {len(rows['index']):,} samples in {time.monotonic() - began:.1f} s "
        f"(weight penalty: {shown})"
    )
    strategy = training.config.transfer
    assert strategy is not None
    strategy = dataclasses.replace(strategy, options={**strategy.options, "penalty": penalties})
    config = dataclasses.replace(training.config, transfer=strategy)
    again = rows.get("vector") if objective.vectors_only and len(transfer.phases) == 1 else None
    return dataclasses.replace(training, solved=True, source_head=source_head, train_vectors=again, config=config)


def _source_head(training: Training) -> dict[str, Tensor] | None:
    """Copy the head that was loaded from the source, row by row; None if any part of it is new."""
    report, objective = training.model.report, training.objective
    if report is None or not report.carried or report.new:
        return None
    return {name: tensor.detach().clone() for name, tensor in split_state(objective)[1].items()}


def _unsolved(training: Training, why: str) -> Training:
    say(f"{why}: the first part of the run trains the head alone")
    return training


def _rows(training: Training) -> dict[str, Tensor] | None:
    """Compute the rows that the objective solves its head from, and how often each sample is drawn.

    Returns None if they do not fit into memory, or if a sample cannot be read. Raises CheckpointError for features that are
    not finite.
    """
    samples, objective = training.data.split("train"), training.objective
    data: Data | None = training.data
    if objective.vectors_only:
        data = _vectors(training, samples)
    if data is None:
        return None
    try:
        rows = _computed(training, data)
    except DataError:
        if training.config.train.on_bad_sample == "skip":
            return None
        raise
    if not all(x.isfinite().all() for name, x in rows.items() if not name.startswith("target/")):
        raise CheckpointError("the features of the training samples under these weights are not finite")
    rows["weight"] = torch.ones(len(rows["index"]))
    if (classes := training.loader.balance) is not None:
        chosen = classes[rows["index"]]
        rows["weight"] = 1.0 / chosen.bincount()[chosen]
    return rows


def _vectors(training: Training, samples: Samples) -> Data | None:
    """Replace the training split by its features, from the cache if they are there."""
    extractor = extractor_of(training)
    values = extractor.values(samples, "train") if extractor.fits(len(samples)) else None
    return None if values is None else on_stored(training.data, values[:, None])


def _computed(training: Training, data: Data) -> dict[str, Tensor]:
    """Run the objective over the training split of `data`, as it is. Raises DataError for a sample that cannot be read."""
    samples = data.split("train")
    batches = evaluation_batches(
        data,
        samples,
        batch_size=training.config.evaluate.batch_size or 2 * training.loader.micro_batch,
        reading=choose_reading("auto", data, samples, training.device, once=True),
        device=training.device,
        channels_last=training.loader.channels_last,
        rank=training.ranks.rank,
        world=training.ranks.world,
    )
    precision = training.config.train.precision
    return forward.rows_of(training.objective, batches, "head_rows", training.device, precision, ranks=training.ranks)


def extractor_of(training: Training, place: Cut | None = None) -> Extractor:
    """Build what computes the features of a run's backbone, or of its part below a cut."""
    return Extractor(
        training.objective.product,
        training.data,
        training.device,
        training.config.train.precision,
        training.loader.channels_last,
        training.ranks,
        training.config.backbone,
        place,
        training.config.source,
    )
