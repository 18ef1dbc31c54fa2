"""Compare pretraining with training from scratch on real handwritten digits: `fmeco demo`."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fmeco.cli.options import command, signals
from fmeco.cli.tables import table
from fmeco.errors import ConfigError
from fmeco.files import replacing

ORDER = 7
LABELS = 10  # per class


def register(app: typer.Typer) -> None:
    app.command()(demo)


@command(lambda result: print(_text(result)), plugins=False)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for its runs.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
) -> Any:
    """Pretrain on five digits, finetune on the other five with few labels, and compare with training from scratch."""
    return run(out, seeds, signals.stop)


def configs() -> Path:
    """Return the folder of the configs that come with fmeco."""
    package = Path(__file__).parent.parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def run(out: Path, seeds: int, stop: Callable[[], bool]) -> dict[str, Any]:
    """Pretrain on digits 0-4, finetune on 5-9 with ten labels per class, and train a control from scratch.

    The control has the same config, steps and labels, and random initial weights. Accuracy is on the test split, which
    no choice was based on. Returns {"accuracy", "curves", "run"}.
    """
    from fmeco.config.parser import peek
    from fmeco.evaluation.evaluate import evaluate
    from fmeco.log import quietly, say
    from fmeco.training.api import finetune, pretrain

    own_names = re.compile(r"curves\.png|(pretrain|transfer|scratch)-\d+")
    if out.exists() and not all(own_names.fullmatch(path.name) for path in out.iterdir()):
        raise ConfigError(f"{out} holds files that are not from an earlier demo", "choose another folder with --out")
    folder = configs() / "digits"
    task = peek(folder / "finetune.yaml")
    accuracy: dict[str, list[float]] = {"transfer": [], "scratch": []}
    for seed in range(seeds):
        say(
            f"seed {seed + 1} of {seeds}: pretrain on digits 0-4, then {LABELS} labels for each of 5-9, from it and from scratch"
        )
        overrides = [f"seed={seed}", f"dataset.limit_seed={seed}"]
        with quietly():
            pretrained = pretrain(
                folder / "pretrain.yaml", overrides=overrides[:1], out=out / f"pretrain-{seed}", force=True, stop=stop
            )
            finetuned = finetune(
                folder / "finetune.yaml",
                ref=pretrained.run,
                overrides=overrides,
                out=out / f"transfer-{seed}",
                force=True,
                stop=stop,
            )
            scratch = pretrain(
                {**task, "transfer": None, "backbone": peek(folder / "pretrain.yaml")["backbone"]},
                overrides=[*overrides, *_control_overrides(pretrained.run, finetuned.run)],
                out=out / f"scratch-{seed}",
                force=True,
                stop=stop,
            )
            for name, result in (("transfer", finetuned), ("scratch", scratch)):
                accuracy[name].append(evaluate(result.run)["metrics"]["test_accuracy"])
        say(
            f"  test accuracy: {accuracy['transfer'][-1]:.3f} after pretraining, {accuracy['scratch'][-1]:.3f} from scratch"
        )
    return {"accuracy": accuracy, "curves": _curves(out, seeds), "run": str(out.resolve())}


def _control_overrides(source: Path, tuned: Path) -> list[str]:
    """Return overrides for the control: the source's image size, and the finetuning run's learning rate."""
    from fmeco.config.parser import peek

    size = peek(source / "config.yaml")["dataset"]["image_size"]
    lr = peek(tuned / "config.yaml")["optimizer"]["lr"]
    return [f"optimizer.lr={lr}", f"dataset.image_size={size}"]


def _text(result: Mapping[str, Any]) -> str:
    """Format the accuracy of both, per seed, with mean and standard deviation."""
    accuracy: Mapping[str, list[float]] = result["accuracy"]
    rows = [["", "mean", "std", " each seed"]]
    for name, label in (("scratch", "from scratch"), ("transfer", "pretrained on 0-4")):
        values = accuracy[name]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        per_seed = "".join(f" {value:.3f} " for value in values).rstrip()
        rows.append([label, f"{statistics.mean(values):.3f}", f"{spread:.3f}", per_seed])
    gains = [after - before for before, after in zip(accuracy["scratch"], accuracy["transfer"], strict=True)]
    word, sign = ("gains", 100) if statistics.mean(gains) >= 0 else ("loses", -100)
    points = [sign * gain for gain in gains]
    curves = "Learning curves are not drawn, as matplotlib is not installed: pip install 'fmeco[plots]'"
    if result["curves"]:
        curves = f"Learning curves: {result['curves']}"
    return "\n".join(
        [
            f"Test accuracy on digits 5-9, {LABELS} labels per class, {len(accuracy['transfer'])} seeds",
            "",
            table(rows, ["<22", ">6", ">6", "<"]),
            "",
            f"Transfer {word} {statistics.mean(points):.1f} points on average ({min(points):+.1f} to {max(points):+.1f}).",
            curves,
            f"Runs: {result['run']}; try `fmeco info`, `fmeco evaluate` and `fmeco predict` on one of them.",
        ]
    )


def _curves(out: Path, seeds: int) -> str | None:
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
            for seed in range(seeds)
        ]
        for curve in curves:
            axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.35, linewidth=1)
        mean = [statistics.mean(values) for values in zip(*([y for _, y in curve] for curve in curves), strict=True)]
        axes.plot([x for x, _ in curves[0]], mean, color=colour, linewidth=2.5, label=f"{label} (mean of {seeds})")
    axes.set(
        xlabel="epoch of finetuning",
        ylabel="validation accuracy",
        ylim=(0, 1.02),
        title=f"Digits 5-9 with {LABELS} labels per class",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    path = out / "curves.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return str(path.resolve())
