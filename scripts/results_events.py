"""Measure next-item recommendation: two objectives, two baselines, and transfer from an earlier period.

    python scripts/results_events.py next FILE OUT        FILE: u.data of MovieLens 100k (user, item, rating, time)
    python scripts/results_events.py transfer FILE OUT

next: train on the oldest 80% of all events, validate on the next 10%, test on the newest 10%.
transfer: pretrain on the older half of the events. Split the newer half in time in the same way, and train on a quarter
of its training sequences.

A seed ([--seeds 0 1 2]) determines a run's training, and the quarter that it trains on. Runs that exist in OUT are not
trained again. Prints a table of docs/results.md. The interval of a gain is from a bootstrap over test events, of the
mean over seeds. The baselines of `transfer` are fitted to the sequences of the first seed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping
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
METRIC = "ndcg@10"
COLUMNS = {"name": "events", "columns": ["user", "item", "rating", "time"]}
BODY = {"name": "transformer", "width": 64, "depth": 2, "heads": 2, "dropout": 0.2}
ADAMW = {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05}
Config = dict[str, Any]
SHARED: Config = {
    "optimizer": ADAMW,
    "schedule": {"name": "cosine", "warmup": 0.05},
    "train": {"epochs": 12, "batch_size": 32, "tensorboard": False, "precision": "fp32"},
    "evaluate": {"every": 12},
}


class TestResult(NamedTuple):
    """Hold a model's outputs on the test events.

    rows: outputs (N, ...) that metrics are computed from.
    """

    objective: Objective
    rows: dict[str, Tensor]

    def metrics(self) -> dict[str, float]:
        """Compute the metrics of all test events."""
        return self.objective.metrics(self.rows)


Record = Callable[[str, str, TestResult], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["next", "transfer"])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--objectives", choices=["next", "mask"], nargs="+", default=["next", "mask"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    results: dict[tuple[str, str], list[TestResult]] = {}

    def record(data: str, name: str, result: TestResult) -> None:
        results.setdefault((data, name), []).append(result)
        print(f"{data}, {name}: {result.metrics()[METRIC]:.4f}", flush=True)

    against = {"next": objectives, "transfer": transfer}[args.task](args, record)
    machine = platform.processor() or platform.machine()
    print(f"\n{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print("| trained on | | test NDCG@10 | each seed | HR@10 | MRR | coverage@10 | gain in NDCG@10, 95% interval |")
    print("|---|---|---|---|---|---|---|---|")
    for (data, name), seed_results in results.items():
        scores = [result.metrics() for result in seed_results]
        mean, *others = (statistics.mean(result[metric] for result in scores) for metric in scores[0])
        each = [result[METRIC] for result in scores]
        spread = f" ± {statistics.stdev(each):.4f}" if len(set(each)) > 1 else ""
        seeds = ", ".join(f"{score:.4f}" for score in each) if spread else ""
        control = results.get((data, against.get(name, "")))
        gain = f"{gained(seed_results, control)} over {against[name]}" if control is not None else ""
        print(f"| {data} | {name} | {mean:.4f}{spread} | {seeds} | {' | '.join(f'{x:.3f}' for x in others)} | {gain} |")


def gained(mine: list[TestResult], theirs: list[TestResult]) -> str:
    """Format the gain in NDCG@10 of one method over another: the mean over seeds, and its 95% interval."""

    def difference(at: Tensor) -> float:
        values = [
            result.objective.metrics({name: x[at] for name, x in result.rows.items()})[METRIC]
            for result in (*mine, *theirs)
        ]
        return statistics.mean(values[: len(mine)]) - statistics.mean(values[len(mine) :])

    count = len(mine[0].rows["index"])
    low, high = bootstrap(count, DRAWS, 0, difference)
    return f"{difference(torch.arange(count)):+.4f} ({low:+.4f} to {high:+.4f})"


def tested(run: Path) -> TestResult:
    """Measure a run on the test split."""
    measured = measure(run, None, "test", ())
    return TestResult(measured.model.objective, measured.rows)


def plain(run: Path) -> dict[str, TestResult]:
    """Fit the baselines to the training events of a run. Returns their test results by name."""
    measured = measure(run, None, "test", ())
    names = ("popularity", "transition")
    return {name: TestResult(measured.model.objective, fit_baseline(measured, name, run)[0]) for name in names}


def objectives(args: argparse.Namespace, record: Record) -> Mapping[str, str]:
    """Compare SASRec and BERT4Rec, with the same network, with popularity and item-to-item transitions."""
    data = {**COLUMNS, "path": str(args.data)}
    tasks: dict[str, Any] = {"next": "next", "mask": {"name": "mask", "rate": 0.3, "swap": False}}
    for seed in args.seeds:
        for name in args.objectives:
            backbone = {**BODY, "causal": name == "next"}
            raw: Config = {**SHARED, "dataset": data, "backbone": backbone, "objective": tasks[name], "seed": seed}
            record("80% of events", name, tested(source(args.out / f"{name}-{seed}", **raw)))
    for name, result in plain(args.out / f"{args.objectives[0]}-{args.seeds[0]}").items():  # the same for all seeds
        for _ in args.seeds:
            record("80% of events", name, result)
    return {"next": "transition", "mask": "next", "transition": "popularity"}


def transfer(args: argparse.Namespace, record: Record) -> Mapping[str, str]:
    """Train the same network on the newer half of the events, from random weights and from those of the older half."""
    lines = sorted(args.data.read_text().splitlines(), key=lambda line: int(line.split("\t")[3]))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in (("older", lines[: len(lines) // 2]), ("newer", lines[len(lines) // 2 :])):
        (args.out / f"{name}.tsv").write_text("\n".join(part) + "\n")
    earlier = source(
        args.out / "source",
        **SHARED,
        dataset={**COLUMNS, "path": str(args.out / "older.tsv"), "test_fraction": 0.0},
        backbone={**BODY, "causal": True},
        objective="next",
    )
    newer = {**COLUMNS, "path": str(args.out / "newer.tsv")}
    raw = {
        **SHARED,
        "dataset": newer,
        "optimizer": {**ADAMW, "lr": 1e-3},  # doubled by `scratch`
        "train": {**SHARED["train"], "label_fraction": 0.25},
    }
    for seed in args.seeds:
        for name, strategy in (("from the earlier period", "full"), ("scratch", "scratch")):
            run = args.out / f"{strategy}-{seed}"
            if not (run / "report.html").exists():
                fmeco.finetune({**raw, "transfer": strategy, "seed": seed}, ref=earlier, out=run, force=True)
            record("a quarter of the later period", name, tested(run))
    for name, result in plain(args.out / f"scratch-{args.seeds[0]}").items():
        for _ in args.seeds:
            record("a quarter of the later period", name, result)
    return {"from the earlier period": "scratch", "scratch": "transition", "transition": "popularity"}


if __name__ == "__main__":
    main()
