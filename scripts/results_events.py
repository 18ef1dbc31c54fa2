"""What will a user take next? Two objectives, two plain methods, and what weights of an earlier period are worth later.

    python scripts/results_events.py next FILE OUT        FILE: u.data of MovieLens 100k (user, item, rating, time)
    python scripts/results_events.py transfer FILE OUT

next: trained on the oldest 80% of all events, chosen on the next 10%, tested on the newest 10%. transfer: the older half of
the events is the source; the newer half is split in time in the same way, and a quarter of its training sequences are
learned from. A seed ([--seeds 0 1 2]) decides a run's training, and which sequences these are. What is in OUT already is
not trained again. Prints a table of docs/results.md; the interval of a gain is a bootstrap over test events of the mean
over seeds. The plain methods of `transfer` know the sequences of the first seed.
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


class Tried(NamedTuple):
    objective: Objective
    rows: dict[str, Tensor]  # of each test event, what metrics are computed from

    def metrics(self) -> dict[str, float]:
        return self.objective.metrics(self.rows)


Tell = Callable[[str, str, Tried], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["next", "transfer"])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--objectives", choices=["next", "mask"], nargs="+", default=["next", "mask"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    found: dict[tuple[str, str], list[Tried]] = {}

    def tell(data: str, name: str, tried: Tried) -> None:
        found.setdefault((data, name), []).append(tried)
        print(f"{data}, {name}: {tried.metrics()[METRIC]:.4f}", flush=True)

    against = {"next": objectives, "transfer": transfer}[given.task](given, tell)
    machine = platform.processor() or platform.machine()
    print(f"\n{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print("| trained on | | test NDCG@10 | each seed | HR@10 | MRR | coverage@10 | gain in NDCG@10, 95% interval |")
    print("|---|---|---|---|---|---|---|---|")
    for (data, name), tried in found.items():
        scores = [one.metrics() for one in tried]
        mean, *others = (statistics.mean(one[metric] for one in scores) for metric in scores[0])
        each = [one[METRIC] for one in scores]
        spread = f" ± {statistics.stdev(each):.4f}" if len(set(each)) > 1 else ""
        seeds = ", ".join(f"{score:.4f}" for score in each) if spread else ""
        control = found.get((data, against.get(name, "")))
        gain = f"{gained(tried, control)} over {against[name]}" if control is not None else ""
        print(f"| {data} | {name} | {mean:.4f}{spread} | {seeds} | {' | '.join(f'{x:.3f}' for x in others)} | {gain} |")


def gained(mine: list[Tried], theirs: list[Tried]) -> str:
    def difference(at: Tensor) -> float:
        each = [
            one.objective.metrics({name: x[at] for name, x in one.rows.items()})[METRIC] for one in (*mine, *theirs)
        ]
        return statistics.mean(each[: len(mine)]) - statistics.mean(each[len(mine) :])

    count = len(mine[0].rows["index"])
    low, high = bootstrap(count, DRAWS, 0, difference)
    return f"{difference(torch.arange(count)):+.4f} ({low:+.4f} to {high:+.4f})"


def tested(run: Path) -> Tried:
    found = measure(run, None, "test", ())
    return Tried(found.model.objective, found.rows)


def plain(run: Path) -> dict[str, Tried]:
    """The baselines, fitted to the training events of a run."""
    found = measure(run, None, "test", ())
    names = ("popularity", "transition")
    return {name: Tried(found.model.objective, fit_baseline(found, name, run)[0]) for name in names}


def objectives(given: argparse.Namespace, tell: Tell) -> Mapping[str, str]:
    """SASRec and BERT4Rec, with the same network, beside what is popular and what often comes next."""
    data = {**COLUMNS, "path": str(given.data)}
    tasks: dict[str, Any] = {"next": "next", "mask": {"name": "mask", "rate": 0.3, "swap": False}}
    for seed in given.seeds:
        for name in given.objectives:
            backbone = {**BODY, "causal": name == "next"}
            raw: Config = {**SHARED, "dataset": data, "backbone": backbone, "objective": tasks[name], "seed": seed}
            tell("80% of events", name, tested(source(given.out / f"{name}-{seed}", **raw)))
    for name, tried in plain(given.out / f"{given.objectives[0]}-{given.seeds[0]}").items():  # the same for all seeds
        for _ in given.seeds:
            tell("80% of events", name, tried)
    return {"next": "transition", "mask": "next", "transition": "popularity"}


def transfer(given: argparse.Namespace, tell: Tell) -> Mapping[str, str]:
    """The same network on the newer half of the events, from new weights and from those of the older half."""
    lines = sorted(given.data.read_text().splitlines(), key=lambda line: int(line.split("\t")[3]))
    given.out.mkdir(parents=True, exist_ok=True)
    for name, part in (("older", lines[: len(lines) // 2]), ("newer", lines[len(lines) // 2 :])):
        (given.out / f"{name}.tsv").write_text("\n".join(part) + "\n")
    earlier = source(
        given.out / "source",
        **SHARED,
        dataset={**COLUMNS, "path": str(given.out / "older.tsv"), "test_fraction": 0.0},
        backbone={**BODY, "causal": True},
        objective="next",
    )
    newer = {**COLUMNS, "path": str(given.out / "newer.tsv")}
    raw = {
        **SHARED,
        "dataset": newer,
        "optimizer": {**ADAMW, "lr": 1e-3},  # doubled by `scratch`
        "train": {**SHARED["train"], "label_fraction": 0.25},
    }
    for seed in given.seeds:
        for name, strategy in (("from the earlier period", "full"), ("scratch", "scratch")):
            run = given.out / f"{strategy}-{seed}"
            if not (run / "report.html").exists():
                fmeco.finetune({**raw, "transfer": strategy, "seed": seed}, ref=earlier, out=run, force=True)
            tell("a quarter of the later period", name, tested(run))
    for name, tried in plain(given.out / f"scratch-{given.seeds[0]}").items():
        for _ in given.seeds:
            tell("a quarter of the later period", name, tried)
    return {"from the earlier period": "scratch", "scratch": "transition", "transition": "popularity"}


if __name__ == "__main__":
    main()
