"""Compare finished runs on the same samples, with intervals and tests for their differences."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fmeco.assembly.training import backbone_rate
from fmeco.checkpoints.format import open_checkpoint, step_folder
from fmeco.checkpoints.pointers import marked
from fmeco.config.arguments import checked
from fmeco.config.load import load_config
from fmeco.config.parser import parse_yaml, peek
from fmeco.config.sections import Carry
from fmeco.errors import ConfigError, DataError, FmecoError, clean, known_errors
from fmeco.evaluation.describe import described
from fmeco.evaluation.measure import Measured, measure
from fmeco.evaluation.verdict import SOURCE, better, verdict
from fmeco.files import replacing
from fmeco.log import say
from fmeco.nn.intervals import METRIC_DRAWS, bootstrap, holm, interval, mcnemar, measure_at
from fmeco.reports.metrics_files import added_to_log, read_metrics
from fmeco.reports.run_report import report
from fmeco.training.api import finetune

PATIENCE = 30.0  # seconds that the interval of the test figure may take at the end of a finetune


@known_errors()
@checked
def compare(
    refs: Sequence[str | Path],
    *,
    dataset: str | Path | None = None,
    split: str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare the first run with each of the others, on the same samples.

    refs: runs or checkpoints, at least two.
    dataset: to measure all of them on; None for each one's own.
    split: default test if there is one.

    Returns {"split", "samples", "metric", "runs"}. Each run but the first has `difference`: how much better the first
    is (negative: worse) and its 95% interval by a paired bootstrap over samples. If answers are right or wrong, it also
    has `p` of McNemar's exact test, of several runs corrected by Holm's method.

    Raises ConfigError for another objective, DataError for runs that were not measured on the same samples.
    """
    if len(refs) < 2:
        raise ConfigError("a comparison needs two runs or more")
    return _against(measure(refs[0], dataset, split, overrides), refs, dataset, overrides)


def _against(
    first: Measured, refs: Sequence[str | Path], dataset: str | Path | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Compare the first of `refs`, which is measured, with each of the others. Returns and raises what `compare` does."""
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
        for one in (first, other):
            _defined(one, metric)
        positions = {name: i for i, name in enumerate(other.names)}
        order = torch.tensor([positions[name] for name in first.names])
        other_rows = {name: values[order] for name, values in other.rows.items()}
        difference = sign * (first.metrics[metric] - other.metrics[metric])
        block = first.samples.block
        low, high = interval(first.model.objective, first.rows, other.model.objective, other_rows, metric, sign, block)
        row: dict[str, Any] = {"run": str(ref), "metrics": dict(other.metrics), "difference": [difference, low, high]}
        first_correct = first.model.objective.correct(first.rows)
        other_correct = other.model.objective.correct(other_rows)
        if first_correct is not None and other_correct is not None:
            row["p"] = mcnemar(int((first_correct & ~other_correct).sum()), int((other_correct & ~first_correct).sum()))
        rows.append(row)
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p"] = p
    return {"split": first.split, "samples": len(first.names), "metric": metric, "runs": rows}


def _defined(measured: Measured, metric: str) -> None:
    """Raise DataError for a metric that is not defined on the measured samples, such as on images without any object."""
    if metric not in measured.metrics:
        raise DataError(
            f"{metric} is not defined on the {len(measured.names)} {measured.split} samples of this data",
            "they may have no object, or no label at all",
        )


@known_errors()
def controls(
    run: str | Path,
    strategies: Sequence[str],
    *,
    force: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train a finetuning run again with other strategies, and compare. All else stays the same.

    strategies: such as scratch and probe; each run is written to RUN/controls/STRATEGY. SOURCE is no strategy, but the
        source as it is: the run's own checkpoint of it, as `source_of` finds it, or else a probe.

    Returns the result of `compare`, with a `verdict` on each control. It is also written to
    RUN/controls/comparison.json.
    """
    run = Path(run)
    config = parse_yaml((run / "config.yaml").read_text("utf-8"), str(run / "config.yaml"))[0]
    shared = {key: value for key, value in config["transfer"].items() if key in Carry.model_fields}
    optimizer = _with_own_rate(run, config["optimizer"])
    others = []
    for name in strategies:
        if name == SOURCE and (fitted := source_of(run)) is not None:
            others.append(fitted)
            continue
        say(f"control: {name}")
        transfer = {**shared, "strategy": "probe" if name == SOURCE else name}
        control_config = {**config, "optimizer": optimizer, "transfer": transfer}
        others.append(finetune(control_config, out=run / "controls" / name, force=force, name=name, stop=stop).run)
    comparison = compare([run, *others])
    for name, row in zip(strategies, comparison["runs"][1:], strict=True):
        row["name"] = name
        row["verdict"] = verdict(row, f"{config['transfer']['strategy']} instead of {name}", comparison["metric"])
    (run / "controls").mkdir(exist_ok=True)
    with replacing(run / "controls" / "comparison.json") as temporary:
        temporary.write_text(json.dumps(comparison, indent=1) + "\n", "utf-8")
    _record(run, [row["verdict"] for row in comparison["runs"][1:]])
    return comparison


def _record(run: Path, sentences: Sequence[str]) -> None:
    """Add what was found after a run to its run.log and report.html."""
    with added_to_log(run):
        for sentence in sentences:
            say(sentence)
    report(run)


def _with_own_rate(run: Path, optimizer: dict[str, Any]) -> dict[str, Any]:
    """Leave the learning rate out of an optimizer's section if the run's strategy chose it, as others choose their own."""
    config = load_config(run / "config.yaml", name="-")
    chosen = backbone_rate(config.optimizer, config.backbone)
    return {key: value for key, value in optimizer.items() if key != "lr" or value != chosen}


def source_of(run: Path) -> Path | None:
    """Find a run's checkpoint of the source as it is, with a fitted head: what training had to beat.

    It is step 0 if the head was solved. A head that cannot be solved is trained alone first, and its best checkpoint counts.
    None for strategies that do not fit the head first.
    """
    step = _progress(run).get("source_step")
    folder = step_folder(run / "checkpoints", step) if step is not None else None
    return folder if folder is not None and folder.is_dir() else None


def _progress(run: Path) -> dict[str, Any]:
    """Read the state of a run as its last checkpoint holds it; {} without one."""
    last = marked(run / "checkpoints", "last")
    state: dict[str, Any] = open_checkpoint(last).trainer()["state"] if last is not None else {}
    return state


@known_errors()
def gain(run: str | Path, selects: str, first: Measured | None = None) -> dict[str, Any] | None:
    """Compare a finetune with the source as it is, with a fitted head (`source_of`).

    selects: the metric that selects the run's best checkpoint.
    first: that checkpoint on the split to compare on, if it is measured.

    The result is also written to RUN/gain.json, run.log and report.html.

    Returns {"metric", "split", "samples", "source", "finetuned", "sentence"}. If training beat the source, the figures are of
    the test split, if there is one, and otherwise of the validation split; "difference" has the interval. If it did not,
    they are of the validation split: "finetuned" is the best that training reached, or None without an evaluation. None for
    a run without a checkpoint of the source, or without held-out samples.
    """
    source, best = source_of(Path(run)), marked(Path(run) / "checkpoints", "best")
    if best is None or source is None:
        return None
    saved = open_checkpoint(best)
    if not (saved.spec.sizes.get("test") or saved.spec.sizes.get("val")):
        return None
    if best.resolve() == source.resolve():
        found = _unbeaten(Path(run), saved.spec.sizes.get("val", 0), selects)
    else:
        found = _gained(best, source, first)
    with replacing(Path(run) / "gain.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    _record(Path(run), [found["sentence"]])
    return found


def _unbeaten(run: Path, samples: int, metric: str) -> dict[str, Any]:
    """Compare the source, which is the result, with the best that training reached, by the evaluations in metrics.jsonl.

    samples: of the validation split.
    """
    state, logged = _progress(run), read_metrics(run)
    source = state["source_step"]
    measured = [line for line in logged if line["kind"] == "val" and math.isfinite(line.get(metric, math.nan))]
    before = next((line[metric] for line in measured if line["step"] == source), None)
    # Evaluations before the phase are of the head that was trained alone.
    later = [line for line in measured[state["phase_history"] :] if line["step"] > source]
    if before is None:  # without a validation split
        return {"sentence": "the result is step 0, the source as it is: no training step was taken"}
    on = f"{samples:,} val samples"
    after = None
    if later:
        closest = min(later, key=lambda line: abs(line[metric] - before))  # none was better, so that it is the best
        after = closest[metric]
        words = (
            f"was not beaten: finetuned at best {after:.4f} (step {closest['step']}) on {on}; the source is the result"
        )
    elif any(line["step"] > source for line in logged if line["kind"] != "range"):
        words = f"on {on} is the result: training ended before it was evaluated"
    else:
        words = f"on {on}; no training step was taken"
    return {
        "metric": metric,
        "split": "val",
        "samples": samples,
        "source": before,
        "finetuned": after,
        "sentence": f"{metric}: the source as it is {before:.4f} {words}",
    }


def _gained(best: Path, source: Path, first: Measured | None) -> dict[str, Any]:
    """Compare the best checkpoint with that of the source."""
    compared = compare([best, source]) if first is None else _against(first, [best, source])
    metric, difference = compared["metric"], compared["runs"][1]["difference"]
    after, before = (run["metrics"][metric] for run in compared["runs"])
    held_out = f"on {compared['samples']:,} {compared['split']} samples"
    where = held_out if compared["split"] == "test" else f"{held_out}, the ones that chose it"
    words, between = better(difference)
    return {
        "metric": metric,
        "split": compared["split"],
        "samples": compared["samples"],
        "source": before,
        "finetuned": after,
        "difference": difference,
        "sentence": f"{metric}: the source as it is {before:.4f}, finetuned {after:.4f} ({words}, {between}) {where}",
    }


def outcome(run: str | Path, selects: str) -> dict[str, Any]:
    """Return what `_outcome` does. A failure is said, and never costs the result of a run that has ended."""
    try:
        return _outcome(run, selects)
    except Exception as error:
        told = error.message if isinstance(error, FmecoError) else f"{type(error).__name__}: {clean(error)}"
        say(f"what the run came to could not be measured: {told}; `fmeco report {clean(run)}` tries again")
        return {}


def _outcome(run: str | Path, selects: str) -> dict[str, Any]:
    """Measure the best checkpoint of a finetune on its test split, if it has one, and what it gained over its source.

    selects: the metric that selects the run's best checkpoint.

    Returns "test", as `describe` does, and "gain", as `gain` does; each only if there is one. Both are in the
    report, too.
    """
    run = Path(run)
    best = marked(run / "checkpoints", "best")
    saved = open_checkpoint(best) if best is not None else None
    if saved is None or saved.meta["config"].get("stage") != "finetune":
        return {}
    measured = measure(saved.path, None, "test", ()) if saved.spec.sizes.get("test") else None
    answer: dict[str, Any] = {} if measured is None else {"test": described(run, measured, PATIENCE)}
    if measured is not None and measured.metric not in measured.metrics:
        say(f"{measured.metric} is not defined on the test samples: nothing is compared on them")
        report(run)
    elif (gained := gain(run, selects, measured)) is not None:
        answer["gain"] = gained
    else:
        report(run)
    return answer


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
    """Train a run with each fraction of the labels, and its controls.

    It shows what labels are worth, and what the source's weights are.

    train: (fraction, the run's directory) -> the run.
    strategies: of the controls.

    Writes out/label_efficiency.json and, if matplotlib is installed, label_efficiency.png. Returns {"metric", "split",
    "rows", "plot"}; a row has strategy, fraction, samples, run, value and its 95% interval.
    """
    rows: list[dict[str, Any]] = []
    split = metric = ""
    for fraction in fractions:
        run = train(fraction, out / f"labels-{fraction:g}")
        row_names = [str(peek(run / "config.yaml")["transfer"]["strategy"])]
        if strategies:
            controls(run, strategies, force=force, stop=stop)
            row_names += strategies
        for name in row_names:
            place = run if name == row_names[0] else run / "controls" / name
            if name == SOURCE and not place.is_dir():
                place = source_of(run) or place
            measured = measure(place, None, None, ())
            split, metric = measured.split, next(iter(measured.model.objective.directions))
            _defined(measured, metric)
            figure = functools.partial(measure_at, measured.model.objective, measured.rows, metric)
            low, high = bootstrap(len(measured.names), METRIC_DRAWS, 0x6C616265, figure, measured.samples.block)
            samples = measured.model.spec.sizes["train"]
            row = {"strategy": name, "fraction": fraction, "samples": samples, "run": str(place.resolve())}
            rows.append({**row, "value": measured.metrics[metric], "interval": [low, high]})
    out.mkdir(parents=True, exist_ok=True)
    plot = _plot(rows, f"{split} {metric}", out / "label_efficiency.png")
    answer = {"metric": metric, "split": split, "rows": rows, "plot": str(plot.resolve()) if plot else None}
    with replacing(out / "label_efficiency.json") as temporary:
        temporary.write_text(json.dumps(answer, indent=1) + "\n", "utf-8")
    return answer


def _plot(rows: Sequence[Mapping[str, Any]], metric: str, file: Path) -> Path | None:
    """Draw the metric over training samples, a line per strategy. Returns the file; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("the curve is not drawn, as matplotlib is not installed: pip install 'fmeco[plots]'")
        return None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["strategy"] for row in rows):
        strategy_rows = [row for row in rows if row["strategy"] == name]
        x, y = [row["samples"] for row in strategy_rows], [row["value"] for row in strategy_rows]
        # A percentile interval need not contain the value itself, but an error bar cannot be negative.
        errors = [
            (max(0.0, r["value"] - r["interval"][0]), max(0.0, r["interval"][1] - r["value"])) for r in strategy_rows
        ]
        axes.errorbar(x, y, yerr=list(zip(*errors, strict=True)), marker="o", capsize=3, label=name)
    axes.set_xscale("log")
    ticks = sorted({row["samples"] for row in rows})
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training samples")
    axes.set_ylabel(f"{metric}, 95% interval over samples")
    axes.grid(alpha=0.3)
    axes.legend(title="strategy")
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=150)
    return file
