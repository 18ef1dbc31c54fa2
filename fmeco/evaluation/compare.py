"""Compare finished runs on the same samples: was it worth it, or was it luck?"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fmeco.config.parser import parse_yaml, peek
from fmeco.config.sections import Carry
from fmeco.errors import ConfigError, DataError, clean, known_errors
from fmeco.evaluation.measure import measure
from fmeco.log import say
from fmeco.nn.intervals import METRIC_DRAWS, bootstrap, interval, mcnemar, measure_at
from fmeco.training.api import finetune


@known_errors()
def compare(
    refs: Sequence[str | Path],
    *,
    dataset: str | None = None,
    split: str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare the first run with each other one, on the same samples of its own dataset, or of `dataset`.

    Returns {"split", "samples", "metric", "runs"}. Each run but the first has `difference`: how much better the first is
    (negative: worse), with its 95% interval by a bootstrap over samples, the same ones for both; and, where answers are
    right or wrong, the p of McNemar's exact test.
    """
    if len(refs) < 2:
        raise ConfigError("a comparison takes two runs or more")
    first = measure(refs[0], dataset, split, overrides)
    metric = first.metric
    sign = 1 if first.model.objective.directions[metric] == "max" else -1
    rows: list[dict[str, Any]] = [{"run": str(refs[0]), "metrics": dict(first.metrics)}]
    for ref in refs[1:]:
        other = measure(ref, dataset, first.split, overrides)
        if type(other.model.objective) is not type(first.model.objective):
            raise ConfigError(f"{clean(ref)} has another objective than {clean(refs[0])}")
        if set(other.names) != set(first.names):
            raise DataError(
                f"{clean(ref)} and {clean(refs[0])} were not measured on the same samples",
                "--dataset X measures all of them on the same ones",
            )
        places = {name: i for i, name in enumerate(other.names)}
        order = torch.tensor([places[name] for name in first.names])
        theirs = {name: values[order] for name, values in other.rows.items()}
        difference = sign * (first.metrics[metric] - other.metrics[metric])
        block = first.samples.block
        low, high = interval(first.model.objective, first.rows, other.model.objective, theirs, metric, sign, block)
        row: dict[str, Any] = {"run": str(ref), "metrics": dict(other.metrics), "difference": [difference, low, high]}
        mine, right = first.model.objective.correct(first.rows), other.model.objective.correct(theirs)
        if mine is not None and right is not None:
            row["p"] = mcnemar(int((mine & ~right).sum()), int((right & ~mine).sum()))
        rows.append(row)
    return {"split": first.split, "samples": len(first.names), "metric": metric, "runs": rows}


@known_errors()
def controls(
    run: str | Path,
    strategies: Sequence[str],
    *,
    force: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train a finetuning run again with other strategies, all else equal, below RUN/controls, and compare.

    strategies: such as scratch and probe. Returns what `compare` does, with a `verdict` on each control, which is also
    written to RUN/controls/comparison.json.
    """
    run = Path(run)
    own = parse_yaml((run / "config.yaml").read_text("utf-8"), str(run / "config.yaml"))[0]
    shared = {key: value for key, value in own["transfer"].items() if key in Carry.model_fields}
    others = []
    for name in strategies:
        say(f"control: {name}")
        same = {**own, "transfer": {**shared, "strategy": name}}
        others.append(finetune(same, out=run / "controls" / name, force=force, name=name, stop=stop).run)
    found = compare([run, *others])
    for name, row in zip(strategies, found["runs"][1:], strict=True):
        row["verdict"] = verdict(row, f"{own['transfer']['strategy']} instead of {name}", found["metric"])
    (run / "controls" / "comparison.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


@known_errors()
def label_efficiency(
    fractions: Sequence[float],
    train: Callable[[float, Path], Path],
    out: Path,
    strategies: Sequence[str] = (),
    *,
    force: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train a run with each fraction of the labels, and its controls: what are labels worth, and the source's weights?

    train: (fraction, the run's directory) -> the run. Writes out/label_efficiency.json and, where matplotlib is installed,
    .png. Returns {"metric", "split", "rows", "plot"}; a row has strategy, fraction, samples, value and its 95% interval.
    """
    rows: list[dict[str, Any]] = []
    split = metric = ""
    for fraction in fractions:
        run = train(fraction, out / f"labels-{fraction:g}")
        names = [str(peek(run / "config.yaml")["transfer"]["strategy"])]
        if strategies:
            controls(run, strategies, force=force, stop=stop)
            names += strategies
        for name in names:
            found = measure(run if name == names[0] else run / "controls" / name, None, None, ())
            split, metric = found.split, next(iter(found.model.objective.directions))
            figure = functools.partial(measure_at, found.model.objective, found.rows, metric)
            low, high = bootstrap(len(found.names), METRIC_DRAWS, 0x6C616265, figure, found.samples.block)
            samples = found.model.spec.sizes["train"]
            own = {"strategy": name, "fraction": fraction, "samples": samples, "run": str(run.resolve())}
            rows.append({**own, "value": found.metrics[metric], "interval": [low, high]})
    out.mkdir(parents=True, exist_ok=True)
    plot = _plot(rows, f"{split} {metric}", out / "label_efficiency.png")
    answer = {"metric": metric, "split": split, "rows": rows, "plot": str(plot.resolve()) if plot else None}
    (out / "label_efficiency.json").write_text(json.dumps(answer, indent=1) + "\n", "utf-8")
    return answer


def _plot(rows: Sequence[Mapping[str, Any]], what: str, file: Path) -> Path | None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("no picture of the curve: pip install 'fmeco[plots]' brings matplotlib")
        return None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["strategy"] for row in rows):
        own = [row for row in rows if row["strategy"] == name]
        x, y = [row["samples"] for row in own], [row["value"] for row in own]
        # An interval by percentiles need not hold the figure itself; a bar cannot be negative.
        spans = [(max(0.0, r["value"] - r["interval"][0]), max(0.0, r["interval"][1] - r["value"])) for r in own]
        axes.errorbar(x, y, yerr=list(zip(*spans, strict=True)), marker="o", capsize=3, label=name)
    axes.set_xscale("log")
    ticks = sorted({row["samples"] for row in rows})
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training samples")
    axes.set_ylabel(f"{what}, 95% interval over samples")
    axes.grid(alpha=0.3)
    axes.legend(title="strategy")
    figure.savefig(file, dpi=150)
    return file


def verdict(row: dict[str, Any], what: str, metric: str) -> str:
    """Say in one sentence whether a difference can be told."""
    value, low, high = row["difference"]
    numbers = f"{value:+.3f} {metric}, 95% interval {low:+.3f} to {high:+.3f}" + (
        f", p {row['p']:.3g}" if "p" in row else ""
    )
    if low > 0:
        return f"{what} helped: {numbers}"
    if high < 0:
        return f"{what} hurt: {numbers}"
    return f"{what}: no difference can be told on these samples: {numbers}"
