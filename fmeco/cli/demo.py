"""Compare pretraining with training from scratch on real handwritten digits: `fmeco demo`."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fmeco.cli.options import command, signals
from fmeco.cli.tables import table
from fmeco.errors import ConfigError
from fmeco.files import replacing

ORDER = 7
# Learning rate of the control: the best one of those that docs/LOG.md lists, on seeds that the demo does not show.
CONTROL_LR = 2e-3


def register(app: typer.Typer) -> None:
    app.command()(demo)


@command(lambda result: print(_text(result)), plugins=False)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for its runs.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 5,
) -> Any:
    """Pretrain on five digits, finetune on the other five with few labels, and compare with training from scratch."""
    return run(out, range(seeds), signals.stop)


def configs() -> Path:
    """Return the folder of the configs that come with fmeco."""
    package = Path(__file__).parent.parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def run(out: Path, seeds: Sequence[int], stop: Callable[[], bool], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Pretrain on digits 0-4, finetune on 5-9 with few labels, and train a control from scratch.

    The control has the same network, steps and labels, random initial weights, and a learning rate that suits them. Accuracy is
    on the test split, which no choice was based on.

    overrides: of every run, such as train.precision=bf16.

    Returns {"accuracy", "gains", "labels", "curves", "run"}. The gains are paired: one per seed.
    """
    from fmeco.config.parser import peek
    from fmeco.evaluation.evaluate import evaluate
    from fmeco.log import quietly, say
    from fmeco.training.api import finetune, pretrain

    own_names = re.compile(r"curves\.png|(pretrain|transfer|scratch)-\d+")
    if out.exists() and not (out.is_dir() and all(own_names.fullmatch(path.name) for path in out.iterdir())):
        raise ConfigError(f"{out} holds files that are not from an earlier demo", "choose another folder with --out")
    folder = configs() / "digits"
    source, task = peek(folder / "pretrain.yaml"), peek(folder / "finetune.yaml")
    labels = task["dataset"]["limit_per_class"]
    control = {**task, "transfer": None, "backbone": source["backbone"]}
    control_overrides = [f"optimizer.lr={CONTROL_LR}", f"dataset.image_size={source['dataset']['image_size']}"]
    accuracy: dict[str, list[float]] = {"transfer": [], "scratch": []}
    for count, seed in enumerate(seeds, 1):
        say(
            f"seed {count} of {len(seeds)}: pretrain on digits 0-4, then {labels} labels for each of 5-9, from it and from scratch"
        )
        keys = [f"seed={seed}", *overrides]
        with quietly():
            pretrained = pretrain(
                folder / "pretrain.yaml", overrides=keys, out=out / f"pretrain-{seed}", force=True, stop=stop
            )
            keys.append(f"dataset.limit_seed={seed}")
            finetuned = finetune(
                folder / "finetune.yaml",
                ref=pretrained.run,
                overrides=keys,
                out=out / f"transfer-{seed}",
                force=True,
                stop=stop,
            )
            scratch = pretrain(
                control, overrides=[*keys, *control_overrides], out=out / f"scratch-{seed}", force=True, stop=stop
            )
            for name, result in (("transfer", finetuned), ("scratch", scratch)):
                accuracy[name].append(evaluate(result.run)["metrics"]["test_accuracy"])
        say(
            f"  test accuracy: {accuracy['transfer'][-1]:.3f} after pretraining, {accuracy['scratch'][-1]:.3f} from scratch"
        )
    return {
        "accuracy": accuracy,
        "gains": [after - before for before, after in zip(accuracy["scratch"], accuracy["transfer"], strict=True)],
        "labels": labels,
        "curves": _curves(out, seeds, labels),
        "run": str(out.resolve()),
    }


def _text(result: Mapping[str, Any]) -> str:
    """Format the accuracy of both, per seed, with mean and standard deviation, and the gain with its interval."""
    from fmeco.nn.intervals import t_interval

    accuracy: Mapping[str, list[float]] = result["accuracy"]
    rows = [["", "mean", "std", " each seed"]]
    for name, label in (("scratch", "from scratch"), ("transfer", "pretrained on 0-4")):
        values = accuracy[name]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        per_seed = "".join(f" {value:.3f} " for value in values).rstrip()
        rows.append([label, f"{statistics.mean(values):.3f}", f"{spread:.3f}", per_seed])
    points = [100 * gain for gain in result["gains"]]
    word = "gains" if statistics.mean(points) >= 0 else "loses"
    gain = f"Transfer {word} {abs(statistics.mean(points)):.1f} points"
    if len(points) > 1:
        low, high = t_interval(points)
        gain += f" on average, 95% t-interval of the paired gains {low:+.1f} to {high:+.1f}"
        gain += f" (each seed: {', '.join(f'{point:+.1f}' for point in points)})"
    gain += "."
    curves = "Learning curves are not drawn, as matplotlib is not installed: pip install 'fmeco[plots]'"
    if result["curves"]:
        curves = f"Learning curves: {result['curves']}"
    return "\n".join(
        [
            f"Test accuracy on digits 5-9, {result['labels']} labels per class, {len(points)} seed{'s'[: len(points) > 1]}",
            "",
            table(rows, ["<22", ">6", ">6", "<"]),
            "",
            gain,
            curves,
            f"Runs: {result['run']}; try `fmeco info`, `fmeco evaluate` and `fmeco predict` on one of them.",
        ]
    )


def _curves(out: Path, seeds: Sequence[int], labels: int) -> str | None:
    """Draw validation accuracy over epochs, a line per seed. Returns the PNG's path; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    from fmeco.reports.metrics_files import read_metrics

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, colour, label in (
        ("scratch", "#d62728", "from scratch"),
        ("transfer", "#1f77b4", "pretrained on digits 0-4"),
    ):
        curves = [
            [
                (line["epoch"], line["accuracy"])
                for line in read_metrics(out / f"{name}-{seed}")
                if line["kind"] == "val"
            ]
            for seed in seeds
        ]
        for curve in curves:
            axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.35, linewidth=1)
        mean = [statistics.mean(values) for values in zip(*([y for _, y in curve] for curve in curves), strict=True)]
        axes.plot([x for x, _ in curves[0]], mean, color=colour, linewidth=2.5, label=f"{label} (mean of {len(seeds)})")
    axes.set(
        xlabel="epoch of finetuning",
        ylabel="validation accuracy",
        ylim=(0, 1.02),
        title=f"Digits 5-9 with {labels} labels per class",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    path = out / "curves.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return str(path.resolve())
