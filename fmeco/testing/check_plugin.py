"""Check whether plug-ins keep the promises of their kind."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fmeco.core.random import seed_torch
from fmeco.errors import ConfigError, FmecoError
from fmeco.plugins import registry
from fmeco.plugins.registry import Plugin
from fmeco.testing.bench import Bench, example, pick
from fmeco.testing.report import Broken, Checks, Report

MODULES = {  # kind -> the module of this folder with its `checks(choice, bench)`
    "datasets": "dataset",
    "backbones": "backbone",
    "objectives": "objective",
    "augment": "augment",
    "optimizers": "optimizer",
    "schedules": "schedule",
    "strategies": "strategy",
}


def check_plugin(
    path: Path | str,
    /,
    *,
    plugins: Iterable[Path | str] = (),
    dataset: str | None = None,
    backbone: Any = None,
    **options: Any,
) -> list[str]:
    """Check a plug-in file, or those of a folder. Returns a line for each promise that is broken; [] where all are kept.

    plugins: further files or folders that the plug-in needs, such as the dataset that a backbone is for.
    dataset: a folder, table or name to check with; None = small generated data of every modality.
    backbone: a name or section to check objectives with; None = those of `plugins`, then small ones of fmeco.
    options: keys of the plug-in.
    """
    return full_report(path, plugins=plugins, dataset=dataset, backbone=backbone, options=options).problems


def full_report(
    path: Path | str,
    *,
    plugins: Iterable[Path | str] = (),
    dataset: str | None = None,
    backbone: Any = None,
    options: Mapping[str, Any] = {},
) -> Report:
    """Check as `check_plugin` does, and also return what holds."""
    report, path = Report(), Path(path)
    with (
        registry.added([]),
        tempfile.TemporaryDirectory() as folder,
        torch.random.fork_rng(devices=[]),
    ):
        beside = [plugin for one in plugins for plugin in registry.add(Path(one))]
        checked = _read(path, report)
        if options and len(checked) > 1:
            raise ConfigError(f"{path} holds {len(checked)} plug-ins: keys (--set) belong to one file")
        bench = Bench(Path(folder), dataset, backbone, (*checked, *(one for one in beside if one not in checked)))
        for plugin in checked:
            report.run(plugin.file, _checks(plugin, bench, options))
    return report


def _read(path: Path, report: Report) -> list[Plugin]:
    """Read the plug-ins of a file or folder without importing them. What cannot be read is reported."""
    files = sorted(file for file in path.glob("*.py") if not file.stem.startswith("_")) if path.is_dir() else [path]
    if not files:
        report.failed(path, "read", Broken("the folder holds no plug-in: it takes files NAME.py"))
    found: list[Plugin] = []
    for file in files:
        try:
            plugin = registry.add_file(file)
        except FmecoError as error:
            report.failed(file, "read", error)
            continue
        if plugin.help:
            report.passed[plugin.file] = ["signature"]
        else:
            report.failed(file, "read", Broken("the file has no docstring, which `fmeco list` shows"))
        found.append(plugin)
    return found


def _checks(plugin: Plugin, bench: Bench, options: Mapping[str, Any]) -> Checks:
    """Give the checks of a plug-in's kind."""
    if not options and plugin.kind == "datasets":
        options = example(plugin, bench.folder) or {}
    if not options and (needed := [key for key, one in plugin.model.model_fields.items() if one.is_required()]):
        by_example = ", or let a function example(folder) return them" if plugin.kind == "datasets" else ""
        raise Broken(f"keys without a default: {', '.join(needed)}; give them with --set KEY=VALUE{by_example}")
    choice = pick(plugin, options)
    seed_torch(0)
    yield from importlib.import_module(f"fmeco.testing.{MODULES[plugin.kind]}").checks(choice, bench)
