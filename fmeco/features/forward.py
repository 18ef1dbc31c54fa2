"""Run a model in evaluation mode, and collect the outputs and metrics of a whole split."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fmeco.core.data import Batch
from fmeco.core.model import Objective
from fmeco.data.reading import unreadable
from fmeco.distributed.ranks import ALONE, Ranks
from fmeco.errors import DataError
from fmeco.nn.precision import autocast


def evaluate(
    objective: Objective,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    *,
    bad: list[str] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Compute the metrics of a whole split. Returns them, and the rows (N, ...) ordered by index.

    Arguments as for `rows_of`. The objective is left in evaluation mode.
    """
    rows = rows_of(objective, batches, "rows", device, precision, bad=bad, ranks=ranks)
    return objective.metrics(rows), rows


def rows_of(
    objective: Objective,
    batches: Iterable[Batch],
    mode: str,
    device: torch.device,
    precision: str,
    *,
    bad: list[str] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Tensor]:
    """Collect the objective's outputs for each sample (N, ...) of a split, ordered by "index".

    batches: with several ranks, this rank's share of the split; the rows returned are those of all ranks.
    mode: what the objective computes: "rows", "vector" or "predict".
    bad: list that unreadable samples are appended to; None makes them an error.

    Raises DataError for an unreadable sample, or if none can be read.
    """
    gathered: list[dict[str, Tensor]] = []
    skipped: list[str] = []
    for batch in batches:
        if batch.skipped and bad is None:
            raise unreadable(batch)
        skipped += batch.skipped
        if len(batch):
            rows = forward(objective, batch, mode, device, precision)
            gathered.append({**rows, "index": batch.index})
    mine = {name: torch.cat([part[name] for part in gathered]) for name in (gathered[0] if gathered else {})}
    rows, skipped = ranks.gather_rows(mine, skipped)
    if bad is not None:
        bad += skipped
    if not rows:
        raise DataError("no sample of this split could be read")
    order = rows["index"].argsort(stable=True)
    return {name: values[order] for name, values in rows.items()}


def forward(objective: Objective, batch: Batch, mode: str, device: torch.device, precision: str) -> dict[str, Tensor]:
    """Run a batch in evaluation mode without gradients. Returns per-sample outputs on the CPU.

    Floats are float32, but float64 stays: an objective computes in it where float32 loses the result.
    """
    if objective.training:
        objective.eval()
    with torch.inference_mode(), autocast(device, precision):
        outputs: dict[str, Tensor] = objective(batch, mode)
    half = (torch.float16, torch.bfloat16)
    return {name: (value.float() if value.dtype in half else value).cpu() for name, value in outputs.items()}
