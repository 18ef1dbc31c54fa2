"""Forecast ETTh1 with a transformer, from scratch and after masked pretraining, and compare with plain forecasts.

    python scripts/results_series.py FILE OUT [--seeds 0 1 2] [--horizons 96 336] [--steps 400]

FILE is ETTh1.csv. As in the literature, its first 14,400 hours are used: 12 months for training, 4 for validation and 4
for testing. Runs that exist in OUT are not trained again. Prints a table of docs/results.md. Intervals are from a
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
# Columns to pretrain on, and columns to transfer to.
HIGH, OTHER = ["HUFL", "HULL", "MUFL", "MULL"], ["LUFL", "LULL", "OT"]
AGAINST = {
    "seasonal_naive": [],
    "dlinear": ["seasonal_naive"],
    "scratch": ["dlinear"],
    "masked pretraining": ["scratch", "dlinear"],
    "masked pretraining on the others": ["scratch", "dlinear"],
    "forecaster of the others": ["scratch", "dlinear"],
}


class TestResult(NamedTuple):
    """Hold a model's outputs on the test windows.

    rows: outputs (N, ...) that metrics are computed from.
    block: neighbouring windows that a bootstrap draws together.
    """

    objective: Objective
    rows: dict[str, Tensor]
    block: int

    def metrics(self, at: Tensor | None = None) -> dict[str, float]:
        """Compute the metrics of all test windows, or of those at the positions `at`."""
        rows = self.rows if at is None else {name: x[at] for name, x in self.rows.items()}
        return self.objective.metrics(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--horizons", type=int, nargs="+", default=[96, 336])
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "hours.csv"
    if not table.exists():
        table.write_text("".join(args.file.open().readlines()[: HOURS + 1]))
    results: dict[tuple[str, str], list[TestResult]] = {}
    for seed in args.seeds:
        for case, name, run in runs(args, table, seed):
            measured = measure(run, None, "test", ())
            seed_results = TestResult(measured.model.objective, measured.rows, measured.samples.block)
            results.setdefault((case, name), []).append(seed_results)
            print(f"{case}, seed {seed}, {name}: {seed_results.metrics()}", flush=True)
            for baseline in ("seasonal_naive", "dlinear") if (case, "dlinear") not in results else ():
                rows = fit_baseline(measured, baseline, run)[0]
                results[case, baseline] = [TestResult(measured.model.objective, rows, measured.samples.block)]
    machine = platform.processor() or platform.machine()
    print(f"\n{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print("| test windows | | MSE | MAE | MASE | MSE of each seed | MSE is lower by, 95% interval |")
    print("|---|---|---|---|---|---|---|")
    cases = list(dict.fromkeys(case for case, _ in results))
    for case, name in sorted(results, key=lambda entry: (cases.index(entry[0]), list(AGAINST).index(entry[1]))):
        seed_results = results[case, name]
        metrics = [entry.metrics() for entry in seed_results]
        means = " | ".join(
            f"{statistics.mean(entry[metric] for entry in metrics):.3f}" for metric in ("mse", "mae", "mase")
        )
        seeds = ", ".join(f"{entry['mse']:.3f}" for entry in metrics) if len(metrics) > 1 else ""
        gains = "; ".join(gained(seed_results, results[case, other], other) for other in AGAINST[name])
        print(f"| {case} | {name} | {means} | {seeds} | {gains} |")


def runs(args: argparse.Namespace, table: Path, seed: int) -> list[tuple[str, str, Path]]:
    """Train all runs of a seed. Returns (case, name, run) of each."""
    finished: list[tuple[str, str, Path]] = []

    def train(name: str, horizon: int, columns: list[str] | None, start: Path | None = None) -> Path:
        data = {"name": "series", "path": str(table), "time": "date", "season": 24}
        raw: dict[str, Any] = {
            **SHARED,
            "dataset": {**data, "columns": columns, "horizon": horizon},
            "objective": FORECAST if horizon else "mask",
            "train": {"steps": args.steps, "batch_size": 128, "tensorboard": False},
            "evaluate": {"every": 0.3},
            "seed": seed,
        }
        run: Path = args.out / f"{name}-{seed}"
        if start is None:
            return source(run, **raw, backbone=BODY)
        if not (run / "report.html").exists():
            fmeco.finetune(raw, ref=start, out=run, force=True)
        return run

    masked = train("masked", 0, None)
    for horizon in args.horizons:
        case = f"{horizon} hours"
        finished.append((case, "scratch", train(f"{horizon}-scratch", horizon, None)))
        finished.append((case, "masked pretraining", train(f"{horizon}-masked", horizon, None, masked)))
    horizon = args.horizons[0]
    case = f"{horizon} hours of {', '.join(OTHER)}"
    sources = {
        "masked pretraining on the others": train("others-masked", 0, HIGH),
        "forecaster of the others": train("others-forecast", horizon, HIGH),
    }
    finished.append((case, "scratch", train("moved-scratch", horizon, OTHER)))
    for number, (name, start) in enumerate(sources.items()):
        finished.append((case, name, train(f"moved-{number}", horizon, OTHER, start)))
    return finished


def gained(mine: list[TestResult], theirs: list[TestResult], other: str) -> str:
    """Format how much lower the MSE is than another method's, and whether one of them wins.

    It is the mean over seeds, with a 95% interval from a bootstrap over blocks of test windows.
    """

    def difference(at: Tensor | None = None) -> float:
        ours, others = (statistics.mean(result.metrics(at)["mse"] for result in method) for method in (mine, theirs))
        return others - ours

    low, high = bootstrap(len(mine[0].rows["index"]), DRAWS, 0, difference, mine[0].block)
    wins = f": **{other} wins**" if high < 0 else ": wins" if low > 0 else ""
    return f"{difference():+.3f} ({low:+.3f} to {high:+.3f}) than {other}{wins}"


if __name__ == "__main__":
    main()
