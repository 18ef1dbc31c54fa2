"""Plan a run without writing anything: build its parts, read its data, and time a few steps (`fmeco check`)."""

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
from fmeco.checkpoints.fetching import announce, needed
from fmeco.config.run_config import RunConfig
from fmeco.core.data import Samples
from fmeco.core.training import Groups
from fmeco.data.reading import check_classes
from fmeco.data.twins import twins
from fmeco.errors import DataError, FmecoError, known_errors
from fmeco.files import free_bytes, replacing
from fmeco.inference.outputs import check_place
from fmeco.nn import precision
from fmeco.reports.pictures import check_drawable, draw_training

STEPS = 3  # timed steps, after one for warm-up


@known_errors()
def check(config: RunConfig, *, profile: bool = False, pictures: Path | None = None) -> dict[str, Any]:
    """Build the parts of a run, read every sample, and time a few steps.

    profile: also trace a few steps, and report what they cost. This writes profile-TIME.json into the current folder.
    pictures: PNG file to draw augmented training samples in.

    Returns the plan: config, samples, parameters, groups, steps, seconds, memory and disk. If it says `only_solves`, the
    steps are for a head that turns out to have no direct solution.

    Raises the error that the run would end with; for unreadable samples one DataError that lists them.
    """
    announce(files := needed(config))
    check_place("--pictures", pictures, (".png",), force=True)
    training = assemble(config)
    if pictures is not None:
        check_drawable(training.data.spec)
    bad = _unreadable(training)
    drawn = draw_training(training.data, training.loader, pictures) if pictures is not None else 0
    phases = [
        phase_groups(training, number) for number in range(len(training.model.transfer.phases))
    ]  # the last call leaves the last phase set up
    section = training.config.optimizer
    automatic = section.options["lr"] == "auto"  # the run will find the rate; no result here depends on it
    if automatic:
        section = dataclasses.replace(section, options={**section.options, "lr": 1.0})
    optimizer = build_optimizer(section, phases[-1])
    step_seconds = min(_steps(training, optimizer, STEPS + 1)[1:])
    costs = _profile(training, optimizer, Path(time.strftime("profile-%Y%m%d-%H%M%S.json"))) if profile else None
    total = None if training.config.train.budget else training.total
    loaded = training.model.report
    weights = sum(t.numel() * t.element_size() for t in training.objective.state_dict().values())
    return {
        "config": training.config.to_dict(),
        **_about_data(training, bad),
        **_about_parameters(training, phases, section.options, automatic),
        "files": [file.to_json() for file in files],
        "transplant": loaded.lines("--json") if loaded is not None else [],
        "pairs": dict(loaded.pairs) if loaded is not None else {},
        "only_solves": training.model.only_solves,
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
        **({"pictures": str(pictures.resolve()), "drawn": drawn} if pictures is not None else {}),
    }


def _about_data(training: Training, bad: list[str]) -> dict[str, Any]:
    """Describe the samples, targets and inputs of the plan."""
    spec = training.data.spec
    return {
        "samples": dict(spec.sizes),
        "unreadable": bad,
        "twins": twins(training.data, whole=True),
        "targets": {
            name: {"kind": one.kind, "classes": list(one.classes), "counts": list(one.counts)}
            for name, one in spec.targets.items()
        },
        "inputs": {name: list(one.shape) for name, one in spec.inputs.items()},
    }


def _about_parameters(
    training: Training, phases: list[Groups], options: Mapping[str, Any], automatic: bool
) -> dict[str, Any]:
    """Count parameters, and describe the groups of every phase.

    automatic: whether the run finds the learning rate.
    """
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
    """Read every sample. Returns the errors; raises them as one DataError if `train.on_bad_sample` is error."""
    bad: list[str] = []
    skip = training.config.train.on_bad_sample == "skip"
    for name in ("train", "val", "test"):
        samples: Samples | None = getattr(training.data, name)
        if samples is None or samples.in_memory:
            continue
        read: list[int] = []
        for index in tqdm(range(len(samples)), desc=f"reading {name}", disable=None, leave=False):
            try:
                samples[index]
                read.append(index)
            except FmecoError as error:
                bad.append(error.message)
        if skip:
            check_classes(training.data.spec, samples, torch.tensor(read, dtype=torch.int64), name)
    if bad and not skip:
        more = [f"and {len(bad) - 20} more"] if len(bad) > 20 else []
        raise DataError(
            "\n".join([f"{len(bad)} samples cannot be read", *bad[:20], *more]),
            "repair or remove them, or train with --set train.on_bad_sample=skip",
        )
    return bad


def _steps(
    training: Training, optimizer: torch.optim.Optimizer, limit: int, part: Callable[[str], Any] = nullcontext
) -> list[float]:
    """Train a few steps on the first batches.

    part: context manager that is entered with the name of each part of a step.

    Returns the seconds of each step.
    """
    loader, objective, constraint = training.loader, training.objective, training.constraint
    steps = min(limit, training.total)
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


PARTS = ("data", "forward", "backward", "optimizer")  # parts of a step, by their names in the trace


def _profile(training: Training, optimizer: torch.optim.Optimizer, trace: Path) -> dict[str, Any]:
    """Trace a few steps with torch's profiler. Returns shares of their parts, the costliest operations, and advice."""
    from torch.profiler import ProfilerActivity, profile, record_function

    gpu = training.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as profiler:
        steps = len(_steps(training, optimizer, STEPS, record_function))
    with replacing(trace) as temporary:
        profiler.export_chrome_trace(str(temporary))
    events = profiler.key_averages()
    part_times = {entry.key: entry.cpu_time_total for entry in events if entry.key in PARTS}
    all_parts = sum(part_times.values())

    def self_time(event: Any) -> float:
        return float(event.self_device_time_total if gpu else event.self_cpu_time_total)

    operations = sorted((entry for entry in events if entry.key.startswith("aten::")), key=self_time, reverse=True)
    total = sum(map(self_time, operations)) or 1.0
    return {
        "trace": str(trace.resolve()),
        "shares": {name: round(part_times.get(name, 0.0) / all_parts, 4) for name in PARTS},
        "operations": [
            {
                "name": entry.key.removeprefix("aten::"),
                "share": round(self_time(entry) / total, 4),
                "calls": entry.count // steps,
            }
            for entry in operations[:8]
        ],
        "advice": _advice(
            {name: part_times.get(name, 0.0) / all_parts for name in PARTS}, operations, self_time, total, training
        ),
    }


def _advice(
    shares: Mapping[str, float],
    operations: list[Any],
    self_time: Callable[[Any], float],
    total: float,
    training: Training,
) -> str:
    """Name the one change that would save the most time, judging by the profile."""

    def share_of(*words: str) -> float:
        return sum(self_time(entry) for entry in operations if any(word in entry.key for word in words)) / total

    calls = sum(entry.count for entry in operations)
    if shares["data"] > 0.2:
        cache_note = (
            "the first epoch decodes, later ones read the cache"
            if training.config.train.cache != "off"
            else "turn on the cache"
        )
        return f"reading takes {shares['data']:.0%} of a step: {cache_note}; smaller images or train.workers may help"
    if total / max(calls, 1) < 10 and shares["optimizer"] < 0.5:
        return "operations are too small to keep the machine busy: a larger train.batch_size costs little more time per step"
    if shares["optimizer"] > 0.25:
        return f"the optimizer takes {shares['optimizer']:.0%} of a step: a larger train.batch_size needs fewer steps"
    if share_of("copy_", "contiguous", "_to_copy") > 0.2:
        return "copies take a fifth of a step or more: try the other value of train.channels_last"
    if training.config.train.precision == "fp32" and share_of("conv", "mm", "linear") > 0.4:
        return "the model takes most of the time: try train.precision=bf16, or a smaller image_size"
    return "the model takes most of the time: only a smaller dataset.image_size or backbone would be faster"


def _peak_mb() -> int:
    """Return the peak memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))
