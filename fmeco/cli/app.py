"""The command line: it parses, calls, prints. torch is not imported here, so that help and config errors come at once."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from fmeco.errors import STOPPING, ConfigError, Elsewhere, FmecoError, Stopped, clean

app = typer.Typer(
    help="Transfer learning you can trust: pretrain once, finetune on many tasks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Start with `fmeco demo`, or `fmeco init` in an empty folder.",
)

Sets = Annotated[
    list[str],
    typer.Option("--set", metavar="K=V", help="Override a config key, as in --set optimizer.lr=3e-4."),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run's directory (default: runs/STAGE-NAME-TIME).")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier run or file there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Plugins = Annotated[
    list[Path], typer.Option("--plugin", metavar="PATH", help="Use a plug-in from a file, or those of a folder.")
]
Partial = Annotated[bool, typer.Option("--allow-partial", help="Load what fits, even if it is little.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Nproc = Annotated[
    int | None, typer.Option("--nproc", metavar="N", min=1, help="Train with N processes (GPUs) of this machine.")
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="REF", help="A run, a checkpoint, a file of weights, or SOURCE/ARCH@WEIGHTS."),
]
Datasets = Annotated[list[str], typer.Option("--dataset", metavar="X", help="A folder, a table, or a dataset's name.")]


class Signals:
    """The first SIGINT, SIGTERM or SIGUSR1 asks a training loop to save and leave; a second one leaves at once."""

    def __init__(self) -> None:
        self.received = False
        self.training = False
        self.answered = False  # a command began: it prints its own answer

    def install(self) -> None:
        for number in STOPPING:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received or not self.training:
            raise KeyboardInterrupt
        self.received = True
        print("\nstopping after this step; once more to leave at once", file=sys.stderr)

    def stop(self) -> bool:
        """Polled by the loop before each step."""
        self.training = True
        return self.received


signals = Signals()


def _run(
    work: Callable[[], Any],
    *,
    json_mode: bool,
    debug: bool,
    plugin: list[Path] = [],
    show: Callable[[Any], None] | None = None,
) -> None:
    """Do a command's work, print its result, and turn every failure into a message and an exit code."""
    from fmeco.distributed import launch
    from fmeco.log import to_terminal

    launch.keep_memory()
    rank = launch.place().rank
    to_terminal(quiet=rank > 0)  # of several ranks one speaks
    signals.answered = True
    try:
        from fmeco.plugins import registry as plugins

        for path in plugin:
            plugins.add(path)
        result = work()
        if rank > 0:
            return
        if json_mode:
            print(json.dumps(result, ensure_ascii=False, allow_nan=False, default=str))
        elif show is not None:
            show(result)
    except FmecoError as error:
        if debug:
            traceback.print_exc()
        if rank > 0 and isinstance(error, ConfigError | Stopped | Elsewhere):  # rank 0 says the same, or the reason
            raise typer.Exit(error.exit_code) from None
        whose = f"rank {rank}: " if rank > 0 else ""
        _fail(error.exit_code, error.code, whose + error.message, error.hints, json_mode and rank == 0)
    except KeyboardInterrupt:
        _fail(130, "interrupted", "interrupted", (), json_mode)
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        _fail(
            1,
            "bug",
            f"a bug in fmeco: {type(error).__name__}: {clean(error)} ({Path(where.filename).name}:{where.lineno})",
            ("run again with --debug for the traceback, and please report it",),
            json_mode,
        )


def _fail(exit_code: int, code: str, message: str, hints: tuple[str, ...], json_mode: bool) -> NoReturn:
    if json_mode:
        print(json.dumps({"error": {"code": code, "message": message, "hints": list(hints)}}, ensure_ascii=False))
    lines = message.splitlines()
    head = "stopped" if code == Stopped.code else "error"
    print(
        "\n".join(
            [
                f"{head}: {lines[0]}" if len(lines) == 1 else f"{head}:\n" + "\n".join(f"  {line}" for line in lines),
                *(f"  hint: {hint}" for hint in hints),
            ]
        ),
        file=sys.stderr,
    )
    raise typer.Exit(exit_code)


def main() -> None:
    """The console script. A wrong option is exit code 2, as every usage error."""
    signals.install()
    try:
        app()
    except SystemExit as end:
        # Words that the parser itself refuses never reach a command; with --json they are an object all the same.
        if end.code == 2 and "--json" in sys.argv and not signals.answered:
            print(
                json.dumps(
                    {"error": {"code": "config", "message": "wrong usage; the reason is on stderr", "hints": []}}
                )
            )
        raise


@app.command()
def pretrain(
    config: Annotated[Path, typer.Argument(help="A YAML file; `fmeco init` writes one.")],
    ref: From = None,
    set_: Sets = [],
    out: Out = None,
    force: Force = False,
    json_: Json = False,
    plugin: Plugins = [],
    allow_partial: Partial = False,
    nproc: Nproc = None,
    debug: Debug = False,
) -> None:
    """Train a backbone and save checkpoints."""

    def work() -> Any:
        _check_first(config, stage="pretrain", ref=ref, overrides=set_)
        _in_parallel(nproc)
        from fmeco.training import api as run

        return run.pretrain(
            config,
            ref=ref,
            overrides=set_,
            out=out,
            force=force,
            allow_partial=allow_partial,
            stop=signals.stop,
        ).to_json()

    _run(work, json_mode=json_, debug=debug, plugin=plugin, show=_show_result)


@app.command()
def finetune(
    configs: Annotated[
        list[Path] | None, typer.Argument(metavar="[CONFIG]...", help="YAML files, one per task.")
    ] = None,
    ref: From = None,
    dataset: Datasets = [],
    set_: Sets = [],
    out: Out = None,
    force: Force = False,
    json_: Json = False,
    plugin: Plugins = [],
    allow_partial: Partial = False,
    control: Annotated[
        str | None, typer.Option(help="Strategies to train as well, all else equal, and compare: scratch,probe.")
    ] = None,
    label_fractions: Annotated[
        str | None, typer.Option(help="Shares of the labels to train on, one run each, and a curve: 0.01,0.1,1.")
    ] = None,
    nproc: Nproc = None,
    debug: Debug = False,
) -> None:
    """Train a checkpoint on a new task, with a new head. Several configs are several tasks."""
    strategies = [name.strip() for name in control.split(",")] if control else []
    fractions = _fractions(label_fractions) if label_fractions else []

    def work() -> Any:
        if not configs and not dataset:
            raise ConfigError("finetuning needs a config or --dataset X")
        tasks: list[Path | None] = [*configs] if configs else [None]
        if len(tasks) > 1 and dataset:
            raise ConfigError("--dataset would give every task the same data", "each config names its own dataset")
        if (strategies or fractions) and nproc is not None:
            raise ConfigError("--control and --label-fractions compare runs of one process", "leave --nproc out")
        if fractions and len(tasks) > 1:
            raise ConfigError("--label-fractions is for one task", "give one config")
        for name in strategies:
            from fmeco.config.load import choose

            choose("transfer", name)  # a wrong name is said before an hour of training
        for task in tasks:
            _check_first(task, stage="finetune", ref=ref, dataset=_one(dataset), overrides=set_)
        stems = [task.stem for task in tasks if task is not None]
        if len(set(stems)) < len(stems):
            raise ConfigError(
                f"two configs have the same name: {', '.join(stems)}",
                "a task's run is named after its config",
            )
        _in_parallel(nproc)
        from fmeco.checkpoints import refs
        from fmeco.training import api as run

        def train(task: Path | None, out: Path | None, *more: str) -> Any:
            return run.finetune(
                task,
                ref=ref,
                dataset=_one(dataset),
                overrides=[*set_, *more],
                out=out,
                force=force,
                allow_partial=allow_partial,
                stop=signals.stop,
            )

        def one(task: Path | None, out: Path | None) -> dict[str, Any]:
            trained = train(task, out)
            answer: dict[str, Any] = trained.to_json()
            if not strategies:
                return answer
            from fmeco.evaluation import compare

            found = compare.controls(trained.run, strategies, force=force, stop=signals.stop)
            return {**answer, "comparison": found}

        what = "labels" if fractions else f"{len(tasks)}-tasks"
        parent = out or Path("runs") / f"finetune-{what}-{time.strftime('%Y%m%d-%H%M%S')}"
        with refs.held():
            if fractions:
                from fmeco.evaluation import compare

                return compare.label_efficiency(
                    fractions,
                    lambda share, out: train(tasks[0], out, f"train.label_fraction={share}").run,
                    parent,
                    strategies,
                    force=force,
                    stop=signals.stop,
                )
            if len(tasks) == 1:
                return one(tasks[0], out)
            return {
                "tasks": [{"task": task.stem, **one(task, parent / task.stem)} for task in tasks if task is not None]
            }

    _run(work, json_mode=json_, debug=debug, plugin=plugin, show=_show_efficiency if fractions else _show_result)


def _fractions(text: str) -> list[float]:
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not 0 < found[0] <= found[-1] <= 1:
        raise typer.BadParameter(f"{clean(text)}: expected shares above 0 and up to 1, as in 0.01,0.1,1")
    return found


def _show_efficiency(result: Any) -> None:
    table = [["strategy", "labels", "samples", f"{result['split']} {result['metric']}", "95% interval"]]
    for row in result["rows"]:
        low, high = row["interval"]
        numbers = [f"{row['fraction']:.4g}", f"{row['samples']:,}", f"{row['value']:.4f}", f"{low:.4f} to {high:.4f}"]
        table.append([clean(row["strategy"]), *numbers])
    print(_columns(table))
    if result["plot"]:
        print(result["plot"])


@app.command()
def resume(
    run_: Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory.")],
    epochs: Annotated[str | None, typer.Option(help="N epochs in all, or +N more.")] = None,
    set_: Sets = [],
    json_: Json = False,
    plugin: Plugins = [],
    nproc: Nproc = None,
    debug: Debug = False,
) -> None:
    """Continue a run that was stopped or killed, bit for bit."""

    def work() -> Any:
        _in_parallel(nproc)
        from fmeco.training import api as run

        return run.resume(run_, epochs=epochs, overrides=set_, stop=signals.stop).to_json()

    _run(work, json_mode=json_, debug=debug, plugin=plugin, show=_show_result)


@app.command()
def evaluate(
    ref: Annotated[str, typer.Argument(metavar="REF")],
    dataset: Datasets = [],
    split: Annotated[str | None, typer.Option(help="val or test (default: test where there is one).")] = None,
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Also measure each group: a column of the table, or label.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Also measure a plain method on the same samples; for tables: gbdt."),
    ] = None,
    set_: Sets = [],
    json_: Json = False,
    plugin: Plugins = [],
    debug: Debug = False,
) -> None:
    """Measure a checkpoint on a split, of its own dataset or another with the same classes."""

    def work() -> Any:
        if split not in (None, "train", "val", "test"):
            raise ConfigError(f"--split {clean(split)}: expected val or test")
        from fmeco.evaluation import evaluate as evaluation

        return evaluation.evaluate(ref, dataset=_one(dataset), split=split, overrides=set_, by=by, baseline=baseline)

    def show(result: Any) -> None:
        about = "".join(f", {key} {value}" for key, value in result["about"].items())
        _show_metrics(
            f"{result['split']} split, {result['samples']} samples, {result['checkpoint']}{about}", result["metrics"]
        )
        if "groups" in result:
            print("\n" + _groups(result))
        if "baseline" in result:
            print("\n" + _against(result))

    _run(work, json_mode=json_, debug=debug, plugin=plugin, show=show)


def _groups(result: Mapping[str, Any]) -> str:
    """The metrics of each group as a table; those of single classes are left to --json."""
    metric = result["metric"]
    others = [name for name in result["metrics"] if "/" not in name and name != metric]
    table = [[result["by"], "samples", metric, "95% interval", *(name.partition("_")[2] for name in others)]]
    for row in result["groups"]:
        low_high = "few samples" if row["few"] else "-"
        if row["interval"]:
            low_high = "{:.4f} to {:.4f}".format(*row["interval"])
        values = (f"{row['metrics'][name]:.4f}" if name in row["metrics"] else "-" for name in (metric, *others))
        value, *rest = values
        table.append([clean(row["group"] or "(missing)", 40), f"{row['samples']:,}", value, low_high, *rest])
    return _columns(table)


def _against(result: Mapping[str, Any]) -> str:
    """Model and baseline side by side, and whether a difference can be told."""
    other, metric = result["baseline"], result["metric"]
    table = [["", "model", other["name"]]]
    for name, value in result["metrics"].items():
        if "/" not in name:
            table.append([name, f"{value:.4f}", f"{other['metrics'][name]:.4f}" if name in other["metrics"] else "-"])
    value, low, high = other["difference"]
    return (
        f"{_columns(table)}\n{other['name']} learned from {other['trained_on']:,} rows; on {metric} the model is better by "
        f"{value:+.4f}, 95% interval {low:+.4f} to {high:+.4f}"
    )


@app.command()
def predict(
    ref: Annotated[str, typer.Argument(metavar="REF")],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, folders, or tables.")],
    output: Annotated[Path | None, typer.Option(help="A .csv or .jsonl file (default: CSV on stdout).")] = None,
    plot: Annotated[Path | None, typer.Option(help="A .png file, for a picture of forecasts.")] = None,
    force: Force = False,
    json_: Json = False,
    plugin: Plugins = [],
    debug: Debug = False,
) -> None:
    """Predict new files: input, prediction, probability, error."""

    def work() -> Any:
        from fmeco.inference import model as use
        from fmeco.log import say

        rows = use.predict(ref, inputs, output=output, plot=plot, force=force)
        if failed := sum(row["error"] is not None for row in rows):
            say(f"{failed} of {len(rows)} inputs could not be read; see the column `error`")
        if output is not None:
            say(f"{len(rows)} rows in {output}")
        return {"predictions": rows, "output": str(output.resolve()) if output else None}

    def show(result: Any) -> None:
        from fmeco.inference import model as use

        if output is None:
            use.write_csv(result["predictions"], sys.stdout)

    _run(work, json_mode=json_, debug=debug, plugin=plugin, show=show)


@app.command()
def embed(
    ref: Annotated[str, typer.Argument(metavar="REF")],
    output: Annotated[Path, typer.Option(help="An .npz file: features, names, labels.")],
    dataset: Datasets = [],
    split: Annotated[str | None, typer.Option(help="train, val or test.")] = None,
    set_: Sets = [],
    force: Force = False,
    json_: Json = False,
    plugin: Plugins = [],
    debug: Debug = False,
) -> None:
    """Write the backbone's features of a dataset to a file."""

    def work() -> Any:
        from fmeco.inference import model as use

        return use.embed(ref, dataset=_one(dataset), output=output, split=split, overrides=set_, force=force)

    _run(
        work,
        json_mode=json_,
        debug=debug,
        plugin=plugin,
        show=lambda r: print(f"{r['samples']} x {r['width']} features in {r['output']}"),
    )


@app.command("compare")
def compare_(
    refs: Annotated[list[str], typer.Argument(metavar="REF REF...")],
    dataset: Datasets = [],
    split: Annotated[str | None, typer.Option(help="val or test.")] = None,
    set_: Sets = [],
    json_: Json = False,
    plugin: Plugins = [],
    debug: Debug = False,
) -> None:
    """Compare finished runs on the same samples: the first with each of the others, with intervals."""

    def work() -> Any:
        from fmeco.evaluation import compare

        return compare.compare(refs, dataset=_one(dataset), split=split, overrides=set_)

    _run(work, json_mode=json_, debug=debug, plugin=plugin, show=lambda r: print(_comparison(r)))


def _comparison(found: Mapping[str, Any]) -> str:
    """A comparison as a table, with a sentence on each difference."""
    metric = found["metric"]
    table = [["run", f"{found['split']} {metric}", "first is better by", "95% interval", "p"]]
    for row in found["runs"]:
        cells = [clean(row["run"]), f"{row['metrics'][metric]:.4f}", "", "", ""]
        if "difference" in row:
            value, low, high = row["difference"]
            p = f"{row['p']:.3g}" if "p" in row else "-"
            cells[2:] = [f"{value:+.4f}", f"{low:+.4f} to {high:+.4f}", p]
        table.append(cells)
    verdicts = [row["verdict"] for row in found["runs"] if "verdict" in row]
    return "\n".join([_columns(table), f"on {found['samples']:,} samples", *verdicts])


@app.command()
def probe(
    ref: Annotated[str, typer.Argument(metavar="REF")],
    dataset: Datasets = [],
    set_: Sets = [],
    json_: Json = False,
    plugin: Plugins = [],
    debug: Debug = False,
) -> None:
    """Judge a checkpoint's features on a dataset, without training the network: nearest neighbours, a linear head."""

    def work() -> Any:
        from fmeco.evaluation import probe as probing

        return probing.probe(ref, dataset=_one(dataset), overrides=set_)

    _run(work, json_mode=json_, debug=debug, plugin=plugin, show=lambda r: print(_ranking([r])))


@app.command()
def rank(
    refs: Annotated[list[str], typer.Argument(metavar="REF...")],
    dataset: Datasets = [],
    set_: Sets = [],
    json_: Json = False,
    plugin: Plugins = [],
    debug: Debug = False,
) -> None:
    """Which of several sources suits a dataset: their features are judged, and nothing is finetuned."""

    def work() -> Any:
        from fmeco.evaluation import probe as probing

        return probing.rank(refs, dataset=_one(dataset), overrides=set_)

    def show(result: Any) -> None:
        print(_ranking(result["ranking"]))
        advice = result["advice"]
        print(f"\nfinetune {advice['source']} with transfer.strategy={advice['strategy']}: {advice['reason']}")

    _run(work, json_mode=json_, debug=debug, plugin=plugin, show=show)


def _ranking(rows: list[dict[str, Any]]) -> str:
    """Probes of several sources as a table."""
    good = [row for row in rows if "metrics" in row]
    metric = good[0]["metric"]
    heads = ["source", f"{good[0]['split']} {metric}", "95% interval", "knn", "logme", "seconds"]
    table = [heads]
    for row in good:
        values, (low, high) = row["metrics"], row["interval"]
        nearest = f"{values['knn']:.3f}" if "knn" in values else "-"
        table.append(
            [
                clean(row["source"]),
                f"{values[metric]:.3f}",
                f"{low:.3f} to {high:.3f}",
                nearest,
                f"{values['logme']:.3f}" if "logme" in values else "-",
                f"{row['seconds']:.1f}",
            ]
        )
    failed = [f"{clean(row['source'])}: {row['error']}" for row in rows if "error" in row]
    return "\n".join([_columns(table), *failed])


def _columns(rows: list[list[str]]) -> str:
    """Rows of cells as aligned text, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove what is kept.")] = False,
    older_than: Annotated[float, typer.Option(help="Only what was not used for this many days.")] = 0.0,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show, or clear, what is kept on this machine: decoded samples, and features of frozen backbones."""

    def work() -> Any:
        from fmeco.data import disk_cache as cache

        if clear:
            files, size = cache.clear(86400 * older_than)
            return {"folder": str(cache.folder()), "removed": files, "bytes": size}
        return {"folder": str(cache.folder()), "entries": cache.entries()}

    def show(result: Any) -> None:
        if clear:
            print(f"removed {result['removed']} files, {result['bytes'] / 1e6:,.1f} MB, from {result['folder']}")
            return
        rows = [["kind", "MB", "last used", "file"]]
        for one in result["entries"]:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["used"]))
            rows.append([one["kind"], f"{one['bytes'] / 1e6:,.1f}", used, Path(one["file"]).name])
        total = sum(one["bytes"] for one in result["entries"])
        print(f"{len(rows) - 1} files, {total / 1e6:,.1f} MB, in {result['folder']}")
        if len(rows) > 1:
            print(_columns(rows))

    _run(work, json_mode=json_, debug=debug, show=show)


@app.command()
def check(
    configs: Annotated[list[Path] | None, typer.Argument(metavar="[CONFIG]...")] = None,
    ref: From = None,
    dataset: Datasets = [],
    set_: Sets = [],
    json_: Json = False,
    plugin: Plugins = [],
    allow_partial: Partial = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a profiler trace of a few steps, and say what costs most.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show what a run would do, without running it: errors, data, parameter groups, time and memory."""

    def work() -> Any:
        tasks: list[Path | None] = [*configs] if configs else [None]
        stages = [
            "finetune" if ref is not None or task is None or _says_finetune(task) else "pretrain" for task in tasks
        ]
        for task, stage in zip(tasks, stages, strict=True):
            _check_first(task, stage=stage, ref=ref, dataset=_one(dataset), overrides=set_)
        from fmeco.evaluation import check as plan

        found = [
            plan.check(
                task,
                stage=stage,
                ref=ref,
                dataset=_one(dataset),
                overrides=set_,
                allow_partial=allow_partial,
                profile=profile,
            )
            for task, stage in zip(tasks, stages, strict=True)
        ]
        return found[0] if len(found) == 1 else {"tasks": found}

    def show(result: Any) -> None:
        from fmeco.evaluation import check as plan

        for one in result.get("tasks", [result]):
            print(plan.text(one))

    _run(work, json_mode=json_, debug=debug, plugin=plugin, show=show)


@app.command()
def info(ref: Annotated[str, typer.Argument(metavar="REF")], json_: Json = False, debug: Debug = False) -> None:
    """Show what a checkpoint is, after verifying every byte of it."""

    def work() -> Any:
        from fmeco.inference import model as use

        return use.info(ref)

    def show(result: Any) -> None:
        for name, value in result.items():
            if isinstance(value, dict):
                print(f"{name}:")
                for key, item in value.items():
                    print(f"  {clean(key)}: {clean(f'{item:.4f}' if isinstance(item, float) else item, 200)}")
            else:
                print(f"{name}: {clean(value, 200)}")

    _run(work, json_mode=json_, debug=debug, show=show)


@app.command("list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(help="datasets, backbones, objectives, augment, optimizers, schedules or strategies."),
    ],
    word: Annotated[str, typer.Argument(metavar="[WORD]", help="Only names that hold it.", show_default=False)] = "",
    json_: Json = False,
    plugin: Plugins = [],
    debug: Debug = False,
) -> None:
    """List the plug-ins of a kind."""

    def work() -> Any:
        from fmeco.plugins.registry import kind_of, plugins

        return {
            p.name: {
                "help": p.help,
                "names": [name for name in p.spellings[: len(p.names)] if word in f"{p.name}/{name}"],
                "from": p.module.split(".")[0] if p.module else str(p.file),
            }
            for p in plugins(kind_of(kind)).values()
            if any(word in name for name in (p.name, *p.spellings))
        }

    def show(result: Any) -> None:
        import textwrap

        for name, one in result.items():
            print(f"{name:16} {one['help']}" + ("" if one["from"] == "fmeco" else f"  ({one['from']})"))
            names = one["names"]
            if len(names) > 200 and not word:
                names = [f"{len(names)} names such as {names[0]}: `fmeco list {kind} WORD` shows those that hold WORD"]
            if names:
                print(
                    textwrap.fill(
                        ", ".join(names),
                        100,
                        initial_indent="    ",
                        subsequent_indent="    ",
                        break_on_hyphens=False,
                    )
                )

    _run(work, json_mode=json_, debug=debug, plugin=plugin, show=show)


@app.command()
def describe(
    kind: Annotated[str, typer.Argument(metavar="KIND")],
    name: Annotated[str, typer.Argument(metavar="NAME")],
    json_: Json = False,
    plugin: Plugins = [],
    debug: Debug = False,
) -> None:
    """Show a plug-in's keys, with their types, defaults and help."""

    def work() -> Any:
        from fmeco.config.sections import SECTIONS, Carry
        from fmeco.plugins.registry import find, kind_of, plugins

        sections: dict[str, Any] = {**SECTIONS, "transfer": Carry}
        if kind in ("section", "sections") and name in sections:
            model, text = sections[name], (sections[name].__doc__ or "").strip()
        else:
            known = plugins(kind_of(kind))
            plugin = known[name] if name in known else find(kind_of(kind), name)[0]
            model, text = plugin.model, plugin.help
        fields = model.model_json_schema().get("properties", {})
        return {
            "name": name,
            "help": text,
            "keys": {
                key: {**_typed(one), "required": key in model.model_json_schema().get("required", [])}
                for key, one in fields.items()
            },
        }

    def show(result: Any) -> None:
        print(f"{result['name']}: {result['help']}\n")
        for key, one in result["keys"].items():
            default = "required" if one["required"] else f"default {json.dumps(one['default'])}"
            print(f"  {key}: {one['type']}, {default}" + (f"\n      {one['help']}" if one["help"] else ""))
        if not result["keys"]:
            print("  no keys")

    _run(work, json_mode=json_, debug=debug, plugin=plugin, show=show)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write pretrain.yaml and finetune.yaml.")] = Path(),
    dataset: Datasets = [],
    backbone: Annotated[str | None, typer.Option(help="An architecture.")] = None,
    force: Force = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Write starter configs that run as they are."""

    def work() -> Any:
        from fmeco.cli.init import write

        return {"written": [str(path) for path in write(folder, _one(dataset), backbone, force)]}

    _run(work, json_mode=json_, debug=debug, show=lambda r: print("\n".join(r["written"])))


@app.command()
def schema(json_: Json = False, debug: Debug = False) -> None:
    """Print the JSON Schema of a config, for editors."""

    def work() -> Any:
        from fmeco.config.json_schema import json_schema

        return json_schema()

    _run(work, json_mode=json_, debug=debug, show=lambda r: print(json.dumps(r, indent=1, ensure_ascii=False)))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where its runs go.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Pretrain on five digits, finetune on the other five with ten labels each, and compare with training from scratch."""

    def work() -> Any:
        from fmeco.cli import demo as it

        return it.run(out, seeds, signals.stop)

    def show(result: Any) -> None:
        from fmeco.cli import demo as it

        print(it.table(result))

    _run(work, json_mode=json_, debug=debug, show=show)


def _one(dataset: list[str]) -> str | None:
    if len(dataset) > 1:
        raise ConfigError("--dataset was given more than once", "several tasks are several configs")
    return dataset[0] if dataset else None


def _check_first(config: Path | None, **how: Any) -> None:
    """Every mistake of a config, before torch is imported."""
    from fmeco.config.load import read_config

    read_config(config, **how)


def _in_parallel(nproc: int | None) -> None:
    """With --nproc, and not yet one of its ranks: start them with the same words, and end as they do."""
    from fmeco.distributed import launch

    if nproc is not None and nproc > 1 and launch.place().world == 1:
        sys.exit(launch.launch(nproc, sys.argv[1:]))


def _says_finetune(config: Path) -> bool:
    from fmeco.config.load import peek

    return ("stage" in (tree := peek(config)) and tree["stage"] == "finetune") or "from" in tree or "transfer" in tree


def _typed(one: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON-schema property as {type, default, help}."""

    def name(schema: Mapping[str, Any]) -> str:
        if "anyOf" in schema:
            return " or ".join(dict.fromkeys(name(option) for option in schema["anyOf"]))
        if "enum" in schema or "const" in schema:
            return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
        bounds = "".join(
            f" {sign} {schema[key]:g}"
            for key, sign in (
                ("exclusiveMinimum", ">"),
                ("minimum", ">="),
                ("exclusiveMaximum", "<"),
                ("maximum", "<="),
            )
            if key in schema
        )
        if schema.get("type") == "array":
            return f"list of {name(schema.get('items', {}))}"
        kind = schema.get("type", "any")
        words = {
            "string": "text",
            "integer": "whole number",
            "boolean": "true or false",
            "object": "mapping",
        }
        return words.get(kind, str(kind)) + bounds

    return {"type": name(one), "default": one.get("default"), "help": one.get("description", "")}


def _show_result(result: Mapping[str, Any]) -> None:
    if "tasks" not in result:
        _show_metrics(f"{result['run']}  ({result['seconds']:.1f} s)", result["metrics"])
        if "comparison" in result:
            print("\n" + _comparison(result["comparison"]))
        return
    # Tasks may have different objectives: a column for each metric that any of them has, per-class ones left out.
    names = list(dict.fromkeys(name for task in result["tasks"] for name in task["metrics"] if "/" not in name))
    width = max(4, *(len(task["task"]) for task in result["tasks"]))
    print(f"{'task':{width}}  " + "  ".join(f"{name:>12}" for name in names) + "       seconds  run")
    for task in result["tasks"]:
        cells = (f"{task['metrics'][name]:12.4f}" if name in task["metrics"] else f"{'-':>12}" for name in names)
        print(
            f"{clean(task['task']):{width}}  "
            + "  ".join(f"{cell:>{max(12, len(name))}}" for cell, name in zip(cells, names, strict=True))
            + f"  {task['seconds']:12.1f}  {task['run']}"
        )


def _show_metrics(title: str, metrics: Mapping[str, float]) -> None:
    print(clean(title))
    for name, value in metrics.items():
        print(f"  {clean(name):24} {value:.4f}")
