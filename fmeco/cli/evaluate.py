"""Measure and compare: `fmeco evaluate`, `fmeco report`, `fmeco runs`, `fmeco compare`, `fmeco probe` and `fmeco rank`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fmeco.cli.options import Datasets, Ref, Sets, command, one_dataset
from fmeco.cli.tables import comparison_table, figure_line, metrics_table, table
from fmeco.errors import ConfigError, clean
from fmeco.evaluation.verdict import better
from fmeco.log import moment

ORDER = 2


def register(app: typer.Typer) -> None:
    for function in (evaluate, report, runs, compare, probe, rank):
        app.command()(function)


def _show_evaluation(result: Mapping[str, Any]) -> None:
    about = "".join(f", {key}: {value}" for key, value in result["about"].items())
    title = f"{result['split']} split, {result['samples']} samples, {result['checkpoint']}{about}"
    print(metrics_table(title, result["metrics"], result["directions"]))
    if "groups" in result:
        print("\n" + _groups(result))
    if "baseline" in result:
        print("\n" + _beside_baseline(result))


def _show_report(result: Mapping[str, Any]) -> None:
    for found in result["splits"]:
        print(figure_line(found))
    print(f"written: {result['report']}")


def _show_runs(result: Mapping[str, Any]) -> None:
    rows = [["run", "stage", "backbone", "dataset", "metric", "val", "test", "epoch", "ended"]]
    for row in result["runs"]:
        if "stage" not in row:
            rows.append([clean(row["run"], 60), "no checkpoint", *[""] * 7])
            continue
        figures = [f"{row[key]:.4f}" if row[key] is not None else "-" for key in ("value", "test")]
        words = [clean(row[key] or "-", 40) for key in ("stage", "backbone", "dataset", "metric")]
        rows.append([clean(row["run"], 60), *words, *figures, f"{row['epoch']:.3g}", moment(row["ended"])])
    print(table(rows, ["<", "<", "<", "<", "<", ">", ">", ">", "<"]))


def _show_ranking(result: Mapping[str, Any]) -> None:
    print(_ranking(result["ranking"]))
    advice = result["advice"]
    print(f"\nfinetune {advice['source']} with transfer.strategy={advice['strategy']}: {advice['reason']}")


@command(_show_evaluation, downloads=True)
def evaluate(
    ref: Ref,
    dataset: Datasets = [],
    split: Annotated[str | None, typer.Option(help="val or test (default: test if there is one).")] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Also measure each group of samples: a column of the table, or label."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Also measure a baseline method on the same samples, such as gbdt for tables."
        ),
    ] = None,
    set_: Sets = [],
) -> Any:
    """Measure a checkpoint on a split of its own dataset, or of another with the same classes."""
    if split not in (None, "train", "val", "test"):
        raise ConfigError(f"--split {clean(split)}: expected val or test")
    from fmeco.evaluation import evaluate as evaluation

    return evaluation.evaluate(ref, dataset=one_dataset(dataset), split=split, overrides=set_, by=by, baseline=baseline)


@command(_show_report, downloads=True)
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory.")],
    set_: Sets = [],
) -> Any:
    """Write a run's report.html anew: its result on every split, per class, and the worst mistakes with their samples."""
    from fmeco.evaluation.describe import describe

    return {"splits": describe(run, overrides=set_), "report": str(run / "report.html")}


@command(_show_runs)
def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds runs.")] = Path("runs"),
    sort: Annotated[
        str | None,
        typer.Option(metavar="METRIC", help="Show the runs with the best METRIC first (default: the newest)."),
    ] = None,
) -> Any:
    """List the runs of a folder: what each trained, and how good it is."""
    from fmeco.evaluation.runs import runs as listed

    return {"runs": listed(folder, sort=sort)}


@command(lambda result: print(comparison_table(result)), downloads=True)
def compare(
    refs: Annotated[list[str], typer.Argument(metavar="REF REF...")],
    dataset: Datasets = [],
    split: Annotated[str | None, typer.Option(help="val or test (default: test if there is one).")] = None,
    set_: Sets = [],
) -> Any:
    """Compare the first of several finished runs with each other one, on the same samples, with intervals."""
    from fmeco.evaluation import compare as comparing

    return comparing.compare(refs, dataset=one_dataset(dataset), split=split, overrides=set_)


@command(lambda result: print(_ranking([result])), downloads=True)
def probe(ref: Ref, dataset: Datasets = [], set_: Sets = []) -> Any:
    """Judge a checkpoint's features on a dataset by nearest neighbours and a linear head; no network is trained."""
    from fmeco.evaluation import probe as probing

    return probing.probe(ref, dataset=one_dataset(dataset), overrides=set_)


@command(_show_ranking, downloads=True)
def rank(refs: Annotated[list[str], typer.Argument(metavar="REF...")], dataset: Datasets = [], set_: Sets = []) -> Any:
    """Rank several sources for a dataset by probing their features; nothing is finetuned."""
    from fmeco.evaluation import probe as probing

    return probing.rank(refs, dataset=one_dataset(dataset), overrides=set_)


def _groups(result: Mapping[str, Any]) -> str:
    """Format the metrics of each group. Metrics of single classes are shown by --json only."""
    metric = result["metric"]
    others = [name for name in result["metrics"] if "/" not in name and name != metric]
    rows = [[result["by"], "samples", metric, "95% interval", *(name.partition("_")[2] for name in others)]]
    for row in result["groups"]:
        low_high = "few samples" if row["few"] else "-"
        if row["interval"]:
            low_high = "{:.4f} to {:.4f}".format(*row["interval"])
        values = (f"{row['metrics'][name]:.4f}" if name in row["metrics"] else "-" for name in (metric, *others))
        value, *rest = values
        rows.append([clean(row["group"] or "(missing)", 40), f"{row['samples']:,}", value, low_high, *rest])
    return "\n".join([table(rows), *map(_gap, result["gaps"])])


def _gap(gap: Mapping[str, Any]) -> str:
    """Say how far the groups that are furthest apart are, in one line."""
    between = ", 95% interval {:.4f} to {:.4f}".format(*gap["interval"]) if gap["interval"] else ""
    groups = f"{clean(gap['high'] or '(missing)', 40)} highest, {clean(gap['low'] or '(missing)', 40)} lowest"
    name = gap["name"] if gap["metric"].endswith(gap["name"]) else f"{gap['name']} ({clean(gap['metric'])})"
    return f"gap in {name}: {gap['difference']:.4f}{between}; {groups}"


def _beside_baseline(result: Mapping[str, Any]) -> str:
    """Format model and baseline side by side, with the interval of their difference."""
    baseline, metric = result["baseline"], result["metric"]
    rows = [["", "model", baseline["name"]]]
    for name, value in result["metrics"].items():
        if "/" not in name:
            rows.append(
                [name, f"{value:.4f}", f"{baseline['metrics'][name]:.4f}" if name in baseline["metrics"] else "-"]
            )
    words, interval = better(baseline["difference"])
    return (
        f"{table(rows)}\n{baseline['name']} was fitted to {baseline['trained_on']:,} samples; on {metric} the model is "
        f"{words}, 95% interval {interval}"
    )


def _ranking(probes: Sequence[Mapping[str, Any]]) -> str:
    """Format probes of several sources, and the errors of those that could not be probed."""
    measured = [row for row in probes if "metrics" in row]
    metric = measured[0]["metric"]
    rows = [["source", f"{measured[0]['split']} {metric}", "95% interval", "knn", "logme", "seconds"]]
    for row in measured:
        values, (low, high) = row["metrics"], row["interval"]
        knn, logme = (f"{values[name]:.3f}" if name in values else "-" for name in ("knn", "logme"))
        interval = f"{low:.3f} to {high:.3f}"
        rows.append([clean(row["source"]), f"{values[metric]:.3f}", interval, knn, logme, f"{row['seconds']:.1f}"])
    failed = [f"{clean(row['source'])}: {row['error']}" for row in probes if "error" in row]
    return "\n".join([table(rows), *failed])
