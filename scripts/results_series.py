"""ETTh1: a transformer from scratch and after masked pretraining, beside the forecasts that it must beat.

    python scripts/results_series.py FILE OUT [--seeds 0 1 2] [--horizons 96 336] [--steps 400]

FILE: ETTh1.csv, of which the first 14,400 hours are taken, 12 months for training, 4 for validation, 4 for testing, as in
the literature. What is in OUT already is not trained again. Prints a table of docs/results.md. Intervals are a
bootstrap over blocks of test windows, of the mean over seeds.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from results_modalities import source
from torch import Tensor

import fmeco
from fmeco.core import Objective
from fmeco.evaluation.baselines import fit_baseline
from fmeco.evaluation.measure import measure
from fmeco.nn.intervals import bootstrap

DRAWS = 300
HOURS = 14400
BODY = {"name": "transformer", "width": 64, "depth": 2, "dropout": 0.2}
SHARED: dict[str, Any] = {
    "optimizer": {"name": "adamw", "lr": 6e-3, "weight_decay": 0.05},
    "schedule": {"name": "cosine", "warmup": 0.05},
}
FORECAST = {"name": "forecast", "dropout": 0.2}
HIGH, OTHER = ["HUFL", "HULL", "MUFL", "MULL"], ["LUFL", "LULL", "OT"]  # learned from first, and moved to
AGAINST = {
    "seasonal_naive": [],
    "dlinear": ["seasonal_naive"],
    "scratch": ["dlinear"],
    "masked pretraining": ["scratch", "dlinear"],
    "masked pretraining on the others": ["scratch", "dlinear"],
    "forecaster of the others": ["scratch", "dlinear"],
}


class Tried(NamedTuple):
    objective: Objective
    rows: dict[str, Tensor]
    block: int

    def metrics(self, at: Tensor | None = None) -> dict[str, float]:
        rows = self.rows if at is None else {name: x[at] for name, x in self.rows.items()}
        return self.objective.metrics(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--horizons", type=int, nargs="+", default=[96, 336])
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    table = given.out / "hours.csv"
    if not table.exists():
        table.write_text("".join(given.file.open().readlines()[: HOURS + 1]))
    found: dict[tuple[str, str], list[Tried]] = {}
    for seed in given.seeds:
        for case, name, run in runs(given, table, seed):
            measured = measure(run, None, "test", ())
            tried = Tried(measured.model.objective, measured.rows, measured.samples.block)
            found.setdefault((case, name), []).append(tried)
            print(f"{case}, seed {seed}, {name}: {tried.metrics()}", flush=True)
            for plain in ("seasonal_naive", "dlinear") if (case, "dlinear") not in found else ():
                rows = fit_baseline(measured, plain, run)[0]
                found[case, plain] = [Tried(measured.model.objective, rows, measured.samples.block)]
    machine = platform.processor() or platform.machine()
    print(f"\n{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print("| test windows | | MSE | MAE | MASE | MSE of each seed | MSE is lower by, 95% interval |")
    print("|---|---|---|---|---|---|---|")
    cases = list(dict.fromkeys(case for case, _ in found))
    for case, name in sorted(found, key=lambda one: (cases.index(one[0]), list(AGAINST).index(one[1]))):
        tried = found[case, name]
        each = [one.metrics() for one in tried]
        means = " | ".join(f"{statistics.mean(one[metric] for one in each):.3f}" for metric in ("mse", "mae", "mase"))
        seeds = ", ".join(f"{one['mse']:.3f}" for one in each) if len(each) > 1 else ""
        gains = "; ".join(gained(tried, found[case, other], other) for other in AGAINST[name])
        print(f"| {case} | {name} | {means} | {seeds} | {gains} |")


def runs(given: argparse.Namespace, table: Path, seed: int) -> list[tuple[str, str, Path]]:
    """(case, name, run) of all that a seed trains."""
    done: list[tuple[str, str, Path]] = []

    def train(name: str, horizon: int, columns: list[str] | None, start: Path | None = None) -> Path:
        data = {"name": "series", "path": str(table), "time": "date", "season": 24}
        raw: dict[str, Any] = {
            **SHARED,
            "dataset": {**data, "columns": columns, "horizon": horizon},
            "objective": FORECAST if horizon else "mask",
            "train": {"steps": given.steps, "batch_size": 128, "tensorboard": False},
            "evaluate": {"every": 0.3},
            "seed": seed,
        }
        run: Path = given.out / f"{name}-{seed}"
        if start is None:
            return source(run, **raw, backbone=BODY)
        if not (run / "report.html").exists():
            fmeco.finetune(raw, ref=start, out=run, force=True)
        return run

    masked = train("masked", 0, None)
    for horizon in given.horizons:
        case = f"{horizon} hours"
        done.append((case, "scratch", train(f"{horizon}-scratch", horizon, None)))
        done.append((case, "masked pretraining", train(f"{horizon}-masked", horizon, None, masked)))
    horizon = given.horizons[0]
    case = f"{horizon} hours of {', '.join(OTHER)}"
    sources = {
        "masked pretraining on the others": train("others-masked", 0, HIGH),
        "forecaster of the others": train("others-forecast", horizon, HIGH),
    }
    done.append((case, "scratch", train("moved-scratch", horizon, OTHER)))
    for number, (name, start) in enumerate(sources.items()):
        done.append((case, name, train(f"moved-{number}", horizon, OTHER, start)))
    return done


def gained(mine: list[Tried], theirs: list[Tried], other: str) -> str:
    """How much lower the error is, mean over seeds, with its interval over blocks of test windows; and who wins, if
    anybody does."""

    def difference(at: Tensor | None = None) -> float:
        ours, others = (statistics.mean(one.metrics(at)["mse"] for one in each) for each in (mine, theirs))
        return others - ours

    low, high = bootstrap(len(mine[0].rows["index"]), DRAWS, 0, difference, mine[0].block)
    wins = f": **{other} wins**" if high < 0 else ": wins" if low > 0 else ""
    return f"{difference():+.3f} ({low:+.3f} to {high:+.3f}) than {other}{wins}"


if __name__ == "__main__":
    main()
