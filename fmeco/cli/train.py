"""Train: `fmeco pretrain`, `fmeco finetune` and `fmeco resume`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmeco.cli.options import Datasets, Force, From, Nproc, Out, Partial, Sets, command, one_dataset, signals
from fmeco.cli.tables import comparison_table, figure_line, metrics_table, table
from fmeco.errors import ConfigError, FmecoError, clean
from fmeco.evaluation.verdict import SOURCE

if TYPE_CHECKING:
    from fmeco.config.run_config import RunConfig
    from fmeco.training.api import Result

ORDER = 1  # of the families in `fmeco --help`


def register(app: typer.Typer) -> None:
    for function in (pretrain, finetune, resume):
        app.command()(function)


def _show(result: Mapping[str, Any]) -> None:
    if "tasks" in result:
        print(_tasks(result["tasks"]))
    elif "rows" in result:
        print(_efficiency(result))
        if result["plot"]:
            print(result["plot"])
    else:
        title = f"{result['run']}  ({result['seconds']:.1f} s)"
        print(metrics_table(title, result["metrics"], result["directions"]))
        if "test" in result:
            print(figure_line(result["test"]))
        if "gain" in result:
            print(clean(result["gain"]["sentence"]))
        if "remembered" in result:
            print(clean(result["remembered"]["sentence"]))
        if "comparison" in result:
            print("\n" + comparison_table(result["comparison"]))


@command(_show, downloads=True)
def pretrain(
    config: Annotated[Path, typer.Argument(help="A YAML file; `fmeco init` writes one.")],
    ref: From = None,
    set_: Sets = [],
    out: Out = None,
    force: Force = False,
    allow_partial: Partial = False,
    nproc: Nproc = None,
) -> Any:
    """Train a backbone, and save checkpoints."""
    from fmeco.config.load import read_config

    settings = read_config(config, stage="pretrain", ref=ref, overrides=set_, allow_partial=allow_partial)
    _in_parallel(nproc)
    from fmeco.training import api

    return api.train(settings, out=out, force=force, stop=signals.stop).to_json()


@command(_show, downloads=True)
def finetune(
    configs: Annotated[
        list[Path] | None, typer.Argument(metavar="[CONFIG]...", help="YAML files, one per task.")
    ] = None,
    ref: From = None,
    dataset: Datasets = [],
    set_: Sets = [],
    out: Out = None,
    force: Force = False,
    allow_partial: Partial = False,
    control: Annotated[
        str | None,
        typer.Option(
            help="Other strategies to train with the same config and compare, as in scratch,probe; source = the source as it is."
        ),
    ] = None,
    remember: Annotated[
        str | None,
        typer.Option(metavar="X", help="Measure the source on its own task X, with its own head, before and after."),
    ] = None,
    label_fractions: Annotated[
        str | None,
        typer.Option(help="Train a run with each of these shares of the labels, and draw a curve, as in 0.01,0.1,1."),
    ] = None,
    nproc: Nproc = None,
) -> Any:
    """Train a checkpoint on a new task, with a new head. Several configs are several tasks."""
    from fmeco.config.check import choose
    from fmeco.config.load import read_config

    strategies = [name.strip() for name in control.split(",")] if control else []
    fractions = _fractions(label_fractions) if label_fractions else []
    if not configs and not dataset:
        raise ConfigError("finetuning needs a config, or --dataset X")
    files: list[Path | None] = [*configs] if configs else [None]
    if len(files) > 1 and dataset:
        raise ConfigError("--dataset would give every task the same data", "each config names its own dataset")
    if (strategies or fractions) and nproc is not None:
        raise ConfigError("--control and --label-fractions cannot be combined with --nproc", "leave --nproc out")
    if remember is not None and (fractions or len(files) > 1 or nproc is not None):
        raise ConfigError("--remember takes one task, without --label-fractions and --nproc")
    if fractions and len(files) > 1:
        raise ConfigError("--label-fractions takes one task", "pass a single config")
    if len(set(strategies)) < len(strategies):
        raise ConfigError(f"--control names a strategy twice: {clean(control)}")
    for name in strategies:
        if name != SOURCE:
            choose("transfer", name)  # refuse a wrong name before an hour of training
    dataset_name = one_dataset(dataset)
    settings = [
        read_config(file, stage="finetune", ref=ref, dataset=dataset_name, overrides=set_, allow_partial=allow_partial)
        for file in files
    ]
    stems = [file.stem for file in files if file is not None]
    if len(set(stems)) < len(stems):
        raise ConfigError(
            f"two configs have the same name: {', '.join(stems)}",
            "rename one of them: a task's run is named after its config",
        )
    _in_parallel(nproc)
    from fmeco.checkpoints import refs

    with refs.held():
        if fractions:
            return _with_fractions(settings[0], fractions, out or _new_folder("labels"), strategies, force)
        if len(files) == 1:
            return _with_controls(settings[0], out, strategies, force, remember)
        parent = out or _new_folder(f"{len(files)}-tasks")
        with _folder_of_runs(parent):
            return {
                "tasks": [
                    {"task": stem, **_task(file, task, parent / stem, strategies, force)}
                    for stem, file, task in zip(stems, files, settings, strict=True)
                ]
            }


@command(_show, downloads=True)
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory.")],
    epochs: Annotated[str | None, typer.Option(help="Extend the run to N epochs in all, or by +N.")] = None,
    set_: Sets = [],
    nproc: Nproc = None,
) -> Any:
    """Continue a run that was stopped or killed, bit for bit."""
    _in_parallel(nproc)
    from fmeco.training import api

    return _answer(api.resume(run, epochs=epochs, overrides=set_, stop=signals.stop))


def _in_parallel(nproc: int | None) -> None:
    """With --nproc, launch the ranks with the same arguments, and exit with their code.

    In a rank, do nothing.
    """
    from fmeco.distributed import launch

    if nproc is not None and nproc > 1 and launch.place().world == 1:
        sys.exit(launch.launch(nproc, sys.argv[1:]))


def _new_folder(what: str) -> Path:
    return Path("runs") / f"finetune-{what}-{time.strftime('%Y%m%d-%H%M%S')}"


@contextlib.contextmanager
def _folder_of_runs(parent: Path) -> Iterator[None]:
    """Remove the folder of several runs if they fail and it is empty: a run that never began leaves nothing in it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            parent.rmdir()
        raise


def _fractions(text: str) -> list[float]:
    """Parse --label-fractions, ascending and without duplicates."""
    try:
        fractions = sorted({float(part) for part in text.split(",")})
    except ValueError:
        fractions = []
    if not fractions or not 0 < fractions[0] <= fractions[-1] <= 1:
        raise typer.BadParameter(f"{clean(text)}: expected shares above 0 and up to 1, as in 0.01,0.1,1")
    return fractions


def _with_controls(
    settings: RunConfig, out: Path | None, strategies: Sequence[str], force: bool, remember: str | None = None
) -> dict[str, Any]:
    """Finetune, then measure what was gained and forgotten, and train the controls of --control."""
    from fmeco.evaluation import compare
    from fmeco.evaluation.remember import Memory
    from fmeco.training import api

    memory = Memory(settings.source, remember) if remember is not None else None
    trained = api.train(settings, out=out, force=force, stop=signals.stop)
    answer = _answer(trained)
    if memory is not None:
        answer["remembered"] = memory.after(trained.run)
    if strategies:
        answer["comparison"] = compare.controls(trained.run, strategies, force=force, stop=signals.stop)
    return answer


def _answer(trained: Result) -> dict[str, Any]:
    """Return the result of a run, its figures on the test split, and what it gained over its source."""
    from fmeco.distributed import launch
    from fmeco.evaluation.compare import outcome

    answer = trained.to_json()
    return answer | (outcome(trained.run, trained.selects) if launch.place().rank == 0 else {})


def _task(file: Path | None, settings: RunConfig, out: Path, strategies: Sequence[str], force: bool) -> dict[str, Any]:
    """Finetune one of several tasks. Errors name its config."""
    try:
        return _with_controls(settings, out, strategies, force)
    except FmecoError as error:
        error.message = f"{clean(file)}: {error.message}"
        raise


def _with_fractions(
    settings: RunConfig, fractions: Sequence[float], parent: Path, strategies: Sequence[str], force: bool
) -> dict[str, Any]:
    """Finetune with each fraction of the labels, and measure these runs."""
    from fmeco.evaluation import compare
    from fmeco.training import api

    def train(fraction: float, out: Path) -> Path:
        section = settings.train.model_copy(update={"label_fraction": fraction})
        return api.train(settings.replace(train=section), out=out, force=force, stop=signals.stop).run

    with _folder_of_runs(parent):
        return compare.label_efficiency(fractions, train, parent, strategies, force=force, stop=signals.stop)


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Format several tasks: a column per metric, without those of single classes."""
    names = list(dict.fromkeys(name for task in tasks for name in task["metrics"] if "/" not in name))
    rows = [["task", *names, "seconds", "run"]]
    for task in tasks:
        values = (f"{task['metrics'][name]:.4f}" if name in task["metrics"] else "-" for name in names)
        rows.append([clean(task["task"]), *values, f"{task['seconds']:.1f}", task["run"]])
    return table(rows, ["<", *[">12"] * (len(names) + 1), "<"])


def _efficiency(result: Mapping[str, Any]) -> str:
    """Format the metric of each strategy with each fraction of the labels."""
    rows = [["strategy", "labels", "samples", f"{result['split']} {result['metric']}", "95% interval"]]
    for row in result["rows"]:
        low, high = row["interval"]
        numbers = [f"{row['fraction']:.4g}", f"{row['samples']:,}", f"{row['value']:.4f}", f"{low:.4f} to {high:.4f}"]
        rows.append([clean(row["strategy"]), *numbers])
    return table(rows)
