"""Plan a run without running it: `fmeco check`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fmeco.cli.options import Datasets, From, Partial, Sets, command, one_dataset
from fmeco.cli.tables import table
from fmeco.errors import ConfigError, clean, listing
from fmeco.log import duration

ORDER = 4


def register(app: typer.Typer) -> None:
    app.command()(check)


def _show(result: Mapping[str, Any]) -> None:
    for plan in result.get("tasks", [result]):
        print(_plan(plan))


@command(_show, downloads=True)
def check(
    configs: Annotated[list[Path] | None, typer.Argument(metavar="[CONFIG]...")] = None,
    ref: From = None,
    dataset: Datasets = [],
    set_: Sets = [],
    allow_partial: Partial = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a profiler trace of a few steps, and show what costs most.")
    ] = False,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="A .png file to draw training samples in, as the model gets them: augmented, with masks and boxes."
        ),
    ] = None,
) -> Any:
    """Show what a run would do, without running it: errors, files to download, data, parameter groups, time and memory."""
    from fmeco.config.load import read_config

    read = functools.partial(
        read_config, ref=ref, dataset=one_dataset(dataset), overrides=set_, allow_partial=allow_partial
    )
    settings = [read(file) for file in configs] if configs else [read(None, stage="finetune")]
    from fmeco.evaluation import check as checking

    if pictures is not None and len(settings) > 1:
        raise ConfigError("--pictures is for one config", "name one")
    plans = [checking.check(config, profile=profile, pictures=pictures) for config in settings]
    return plans[0] if len(plans) == 1 else {"tasks": plans}


def _plan(plan: Mapping[str, Any]) -> str:
    """Format the plan of a run, a line per topic."""
    data = ", ".join(f"{n:,} {part}" for part, n in plan["samples"].items())
    inputs = ", ".join(f"{name} {tuple(shape)}" for name, shape in plan["inputs"].items())
    rows = [["data", f"{data}; inputs {inputs}"]]
    for name, target in plan["targets"].items():
        counts = target["counts"]
        class_counts = (
            f", {len(target['classes'])} classes, {min(counts)} to {max(counts)} training samples each"
            if counts
            else ""
        )
        classes = f": {listing(target['classes'], 10)}" if counts else ""
        rows.append(["target", f"{clean(name)}: {target['kind']}{class_counts}{classes}"])
    if plan["unreadable"]:
        rows.append(["unreadable", f"{len(plan['unreadable'])} samples will be skipped"])
    rows += [["twins", line] for line in plan["twins"]]
    rows += [["file", _published(file)] for file in plan["files"]]
    rows += [["weights", line] for line in plan["transplant"]]
    name, size = plan["config"].get("backbone", {}).get("name", "given"), plan["parameters"]
    trained = f"{size['trained']:,} trained, {plan['frozen']} tensors frozen"
    rows.append(["model", f"{name}, {size['all']:,} parameters, {trained}"])
    has_phases = plan["groups"][-1]["phase"] > 1
    for group in plan["groups"]:
        phase = f"phase {group['phase']} ({group['share']:.0%}): " if has_phases else ""
        tensors = f"{group['tensors']} tensors, {group['parameters']:,} parameters"
        rate = group["lr"] if isinstance(group["lr"], str) else f"{group['lr']:g}"
        rows.append(["group", f"{phase}{tensors}, lr {rate}, decay {group['decay']:g}"])
    steps = "as many as fit in the budget" if plan["steps"] is None else plan["steps"]
    step_time = f"{plan['step_seconds'] * 1000:.0f} ms each on {plan['device']} in {plan['precision']}"
    length = f"{steps}, {plan['steps_per_epoch']} per epoch, {step_time}"
    solves = "none: the head is solved on frozen features; if it cannot be, "
    rows.append(["steps", (solves if plan["only_solves"] else "") + length])
    if (seconds := plan["train_seconds"]) is not None and not plan["only_solves"]:
        rows.append(["time", f"about {duration(seconds)} of training"])
    rows += [
        ["memory", f"{plan['peak_memory_mb']} MB at the peak of this check"],
        ["disk", f"{plan['checkpoint_mb']} MB per checkpoint, {plan['free_disk_mb']:,} MB free"],
        *(_costs(plan["profile"]) if "profile" in plan else []),
        *([["pictures", f"{plan['drawn']} training samples in {plan['pictures']}"]] if "pictures" in plan else []),
        ["ok", "no problems found: this run can start"],
    ]
    return table(rows, ["<10", "<"], gap=" ")


def _published(file: Mapping[str, Any]) -> str:
    """Format a published file: its address, size, hash and licence, and where its copy is."""
    from fmeco.download import show_size

    facts = [
        show_size(file["size"]) if file["size"] else "size not known",
        str(file["digest"] or "no hash known").replace(":", " "),
        f"licence {clean(file['licence'])}" if file["licence"] else "licence not stated",
    ]
    return f"{clean(file['url'])} ({', '.join(facts)}), in {clean(file['path'])}"


def _costs(profile: Mapping[str, Any]) -> list[list[str]]:
    """Format a profile: its trace, the shares of a step, the costliest operations, and advice."""
    shares = ", ".join(f"{name} {share:.0%}" for name, share in profile["shares"].items())
    top = ", ".join(
        f"{operation['name']} {operation['share']:.0%} ({operation['calls']} calls)"
        for operation in profile["operations"]
    )
    return [
        ["profile", f"{profile['trace']} (open it in https://ui.perfetto.dev)"],
        ["a step", shares],
        ["costs", top],
        ["advice", profile["advice"]],
    ]
