"""`fmeco check`: what a run would do, from its real parts and a few real steps, without writing anything."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fmeco.assembly.optimizer import build_optimizer, phase_groups
from fmeco.assembly.stages import Training
from fmeco.assembly.training import assemble
from fmeco.config.run_config import RunConfig
from fmeco.core.data import Samples
from fmeco.core.training import Groups
from fmeco.errors import DataError, FmecoError, known_errors
from fmeco.files import disk_error, free_bytes
from fmeco.nn import precision

STEPS = 3  # timed, after one that warms up


@known_errors()
def check(config: RunConfig, *, profile: bool = False) -> dict[str, Any]:
    """Build everything, read every sample, and time a few steps; with `profile` also say what they cost.

    Raises the error that the run would end in; all unreadable samples at once, as one DataError.
    """
    training = assemble(config)
    bad = _unreadable(training)
    phases = [
        phase_groups(training, number) for number in range(len(training.model.transfer.phases))
    ]  # the last stays set
    section = training.config.optimizer
    automatic = section.options["lr"] == "auto"  # the run finds it; nothing here depends on it
    if automatic:
        section = dataclasses.replace(section, options={**section.options, "lr": 1.0})
    optimizer = build_optimizer(section, phases[-1])
    step_seconds = min(_steps(training, optimizer, STEPS + 1)[1:])
    costs = _profile(training, optimizer, Path(time.strftime("profile-%Y%m%d-%H%M%S.json"))) if profile else None
    total = None if training.config.train.budget else training.total
    weights = sum(t.numel() * t.element_size() for t in training.objective.state_dict().values())
    return {
        "config": training.config.to_dict(),
        **_about_data(training, bad),
        **_about_parameters(training, phases, section.options, automatic),
        "transplant": training.model.report.lines() if training.model.report else [],
        "steps": total,
        "steps_per_epoch": training.loader.steps_per_epoch,
        "step_seconds": round(step_seconds, 4),
        "train_seconds": None if total is None else round(total * step_seconds, 1),
        "peak_memory_mb": _peak_mb(),
        "checkpoint_mb": round(weights * 3 / 1e6, 1),
        "device": str(training.device),
        "precision": training.config.train.precision,
        "free_disk_mb": round(free_bytes(Path.cwd()) / 1e6),
        **({"profile": costs} if costs is not None else {}),
    }


def _about_data(training: Training, bad: list[str]) -> dict[str, Any]:
    spec = training.data.spec
    return {
        "samples": dict(spec.sizes),
        "unreadable": bad,
        "targets": {
            name: {"kind": one.kind, "classes": list(one.classes), "counts": list(one.counts)}
            for name, one in spec.targets.items()
        },
        "inputs": {name: list(one.shape) for name, one in spec.inputs.items()},
    }


def _about_parameters(
    training: Training, phases: list[Groups], options: Mapping[str, Any], automatic: bool
) -> dict[str, Any]:
    """Count the parameters, and describe the groups of every phase. automatic: the rate is found by the run."""
    trained = {id(p): p.numel() for groups in phases for g in groups for p in g["params"]}
    learning = [p for name, p in training.objective.named_parameters() if name in training.model.roles]
    groups = [
        {
            "phase": number,
            "share": round(phase.share, 4),
            "tensors": len(g["params"]),
            "parameters": sum(p.numel() for p in g["params"]),
            "lr": f"auto * {g['scale']:g}" if automatic else options["lr"] * g["scale"],
            "decay": (options.get("weight_decay") or 0.0) if g["decay"] else 0.0,
        }
        for number, (phase, groups) in enumerate(zip(training.model.transfer.phases, phases, strict=True), 1)
        for g in groups
    ]
    return {
        "parameters": {"all": sum(p.numel() for p in learning), "trained": sum(trained.values())},
        "groups": groups,
        "frozen": sum(not p.requires_grad for p in learning),
    }


def _unreadable(training: Training) -> list[str]:
    """Read every sample. Returns what cannot be read; raises DataError of all of it where the run would not skip it."""
    bad = []
    for name in ("train", "val", "test"):
        samples: Samples | None = getattr(training.data, name)
        if samples is None or samples.in_memory:
            continue
        for index in tqdm(range(len(samples)), desc=f"reading {name}", disable=None, leave=False):
            try:
                samples[index]
            except FmecoError as error:
                bad.append(error.message)
    if bad and training.config.train.on_bad_sample == "error":
        more = [f"and {len(bad) - 20} more"] if len(bad) > 20 else []
        raise DataError(
            "\n".join([f"{len(bad)} samples cannot be read", *bad[:20], *more]),
            "repair or remove them, or train with --set train.on_bad_sample=skip",
        )
    return bad


def _steps(
    training: Training, optimizer: torch.optim.Optimizer, most: int, part: Callable[[str], Any] = nullcontext
) -> list[float]:
    """Train a few steps on the first batches. Returns the seconds of each; `part` is entered with the name of each part."""
    loader, objective, constraint = training.loader, training.objective, training.constraint
    steps = min(most, training.total)
    objective.train()
    seconds = []
    with closing(loader.batches(0, steps)) as batches:
        for step in range(steps):
            start = time.monotonic()
            for _ in loader.micros(step):
                with part("data"):
                    batch = next(batches)
                if len(batch):
                    with part("forward"), precision.autocast(training.device, training.config.train.precision):
                        loss = objective(batch, "loss")
                    with part("backward"):
                        loss.sum.backward()
            with part("optimizer"):
                if constraint is not None:
                    constraint.gradients(1.0)
                optimizer.step()
                if constraint is not None:
                    constraint.stepped()
                objective.zero_grad(set_to_none=True)
            if training.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.monotonic() - start)
    return seconds if steps > 1 else seconds * 2


PARTS = ("data", "forward", "backward", "optimizer")  # of a step, as the trace names them


def _profile(training: Training, optimizer: torch.optim.Optimizer, trace: Path) -> dict[str, Any]:
    """A torch profiler trace of a few real steps, the shares of their parts, the operations that cost most, and advice."""
    from torch.profiler import ProfilerActivity, profile, record_function

    gpu = training.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as found:
        steps = len(_steps(training, optimizer, STEPS, record_function))
    try:
        found.export_chrome_trace(str(trace))
    except OSError as error:
        raise disk_error(error, trace, 0) from None
    events = found.key_averages()
    spent = {one.key: one.cpu_time_total for one in events if one.key in PARTS}
    whole = sum(spent.values())

    def own(event: Any) -> float:
        return float(event.self_device_time_total if gpu else event.self_cpu_time_total)

    operations = sorted((one for one in events if one.key.startswith("aten::")), key=own, reverse=True)
    total = sum(map(own, operations)) or 1.0
    return {
        "trace": str(trace.resolve()),
        "shares": {name: round(spent.get(name, 0.0) / whole, 4) for name in PARTS},
        "operations": [
            {"name": one.key.removeprefix("aten::"), "share": round(own(one) / total, 4), "calls": one.count // steps}
            for one in operations[:8]
        ],
        "advice": _advice({name: spent.get(name, 0.0) / whole for name in PARTS}, operations, own, total, training),
    }


def _advice(
    shares: Mapping[str, float], operations: list[Any], own: Callable[[Any], float], total: float, training: Training
) -> str:
    """The one thing that would help most, as far as the numbers tell."""

    def part(*words: str) -> float:
        return sum(own(one) for one in operations if any(word in one.key for word in words)) / total

    calls = sum(one.count for one in operations)
    if shares["data"] > 0.2:
        where = (
            "epoch one decodes; later ones read the cache"
            if training.config.train.cache != "off"
            else "turn on the cache"
        )
        return f"reading takes {shares['data']:.0%} of a step: {where}; smaller images or train.workers may help"
    if total / max(calls, 1) < 10 and shares["optimizer"] < 0.5:
        return "the operations are too small to fill the machine: a larger train.batch_size costs little more time"
    if shares["optimizer"] > 0.25:
        return f"the optimizer takes {shares['optimizer']:.0%} of a step: a larger train.batch_size takes fewer steps"
    if part("copy_", "contiguous", "_to_copy") > 0.2:
        return "copies take a fifth of a step or more: try train.channels_last the other way round"
    if training.config.train.precision == "fp32" and part("conv", "mm", "linear") > 0.4:
        return (
            "the model itself takes the time: train.precision=bf16 may be faster here, as a smaller image_size would be"
        )
    return "the model itself takes the time: a smaller dataset.image_size or backbone is what would be faster"


def _peak_mb() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))
