"""List the runs of a folder, with what each trained and how good it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fmeco.checkpoints.format import open_checkpoint
from fmeco.checkpoints.pointers import marked
from fmeco.config.arguments import checked
from fmeco.errors import CheckpointError, ConfigError, clean, known_errors, listing, nearest
from fmeco.reports import findings

DEPTH = 3  # folders below the given one to look in, such as tasks of several, or controls


@known_errors()
@checked
def runs(folder: str | Path = "runs", *, sort: str | None = None) -> list[dict[str, Any]]:
    """List the runs in a folder, the newest first.

    sort: a metric; the best run is then first, and those without it last.

    Returns rows of run, stage, backbone, dataset, metric, value, test, epoch and ended: the metric that selected the best checkpoint,
    or `sort`, on the validation split, and on the test split as far as the run measured it; seconds since the epoch. A run
    without a checkpoint has only run. Raises ConfigError for a folder without runs, and a metric that no run has.
    """
    folder = Path(folder)
    found = sorted(
        {config.parent for depth in range(1, DEPTH + 1) for config in folder.glob("*/" * depth + "config.yaml")}
    )
    found = [run for run in found if (run / "checkpoints").is_dir()]
    if not found:
        raise ConfigError(f"{clean(folder)}: no runs in this folder", "name the folder that holds them")
    known: dict[str, str] = {"loss": "min"}
    rows = [_row(run, folder, sort, known) for run in found]
    if sort is not None and sort not in known:
        raise ConfigError(
            f"--sort {clean(sort)}: no run has this metric{nearest(sort, known)}; there are: {listing(sorted(known), 30)}"
        )
    rows.sort(key=lambda row: -row.get("ended", math.inf))
    if sort is not None:
        if known[sort] not in ("max", "min"):
            raise ConfigError(
                f"--sort {clean(sort)}: none of these runs says whether higher or lower is better",
                "`fmeco report RUN` measures a run, and writes it down",
            )
        sign = -1 if known[sort] == "max" else 1
        rows.sort(key=lambda row: sign * row["value"] if row.get("value") is not None else math.inf)
    return rows


def _row(run: Path, folder: Path, sort: str | None, known: dict[str, str]) -> dict[str, Any]:
    """Describe a run. Adds its metrics to `known`, with the better direction, or "" as long as no run tells it."""
    name = str(run.relative_to(folder))
    best = marked(run / "checkpoints", "best")
    try:
        meta = open_checkpoint(best).meta if best is not None else None
    except CheckpointError:
        meta = None
    if best is None or meta is None:
        return {"run": name}
    config, measured = meta["config"], {found["split"]: found for found in findings.read(run, meta["step"])}
    metrics = {key.removeprefix("val_"): value for key, value in meta["metrics"].items()}
    for key in metrics:
        if "/" not in key:
            known.setdefault(key, "")
    for found in measured.values():
        known |= {key: way for key, way in found["directions"].items() if key in known}
    selects = str((config.get("evaluate") or {}).get("best") or "").removeprefix("val_")
    wanted = (
        sort or selects or next((found["metric"] for found in measured.values()), None) or next(iter(metrics), None)
    )
    return {
        "run": name,
        "stage": config.get("stage", "pretrain"),
        "backbone": (config.get("backbone") or {}).get("name"),
        "dataset": (config.get("dataset") or {}).get("name"),
        "metric": wanted,
        "value": metrics.get(wanted) if wanted is not None else None,
        "test": measured["test"]["metrics"].get(wanted) if "test" in measured else None,
        "epoch": meta["epoch"],
        "ended": (run / "checkpoints").stat().st_mtime,
    }
