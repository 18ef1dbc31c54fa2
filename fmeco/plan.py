"""`fmeco check`: what a run would do, from its real parts and a few real steps, without writing anything."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fmeco import build, checkpoint, config, loop
from fmeco.core import Samples
from fmeco.errors import DataError, FmecoError, clean

STEPS = 3  # timed, after one that warms up


@loop.known_errors()
def check(
    source: Path | None,
    *,
    stage: Any,
    ref: str | None,
    dataset: str | None,
    overrides: list[str],
    allow_partial: bool = False,
) -> dict[str, Any]:
    """Build everything, read every sample, and time a few steps.

    Raises the error that the run would end in; all unreadable samples at once, as one DataError.
    """
    settings = config.read(source, stage=stage, ref=ref, dataset=dataset, overrides=overrides).replace(
        allow_partial=allow_partial
    )
    built = build.prepare(settings)
    bad: list[str] = []
    for name in ("train", "val", "test"):
        samples: Samples | None = getattr(built.data, name)
        if samples is not None and not samples.in_memory:
            bad += _unreadable(samples, name)
    if bad and built.settings.train.on_bad_sample == "error":
        raise DataError(
            "\n".join(
                [
                    f"{len(bad)} samples cannot be read",
                    *bad[:20],
                    *([f"and {len(bad) - 20} more"] if len(bad) > 20 else []),
                ]
            ),
            "repair or remove them, or train with --set train.on_bad_sample=skip",
        )
    step_seconds = _time_steps(built)
    weights = sum(t.numel() * t.element_size() for t in built.objective.state_dict().values())
    trained = sum(p.numel() for group in built.groups for p in group["params"])
    total = None if built.settings.train.budget else built.total
    lr = built.settings.optimizer.options["lr"]
    return {
        "config": built.settings.to_dict(),
        "samples": dict(built.data.spec.sizes),
        "unreadable": bad,
        "targets": {
            name: {"kind": one.kind, "classes": list(one.classes), "counts": list(one.counts)}
            for name, one in built.data.spec.targets.items()
        },
        "inputs": {name: list(one.shape) for name, one in built.data.spec.inputs.items()},
        "parameters": {"all": sum(p.numel() for p in built.objective.parameters()), "trained": trained},
        "groups": [
            {
                "tensors": len(g["params"]),
                "parameters": sum(p.numel() for p in g["params"]),
                "lr": lr * g["scale"],
                "decay": built.settings.optimizer.options.get("weight_decay", 0.0) if g["decay"] else 0.0,
            }
            for g in built.groups
        ],
        "frozen": sum(not p.requires_grad for p in built.objective.parameters()),
        "transplant": built.report.lines() if built.report else [],
        "steps": total,
        "steps_per_epoch": built.loader.steps_per_epoch,
        "step_seconds": round(step_seconds, 4),
        "train_seconds": None if total is None else round(total * step_seconds, 1),
        "peak_memory_mb": _peak_mb(),
        "checkpoint_mb": round(weights * 3 / 1e6, 1),
        "device": str(built.device),
        "precision": built.precision,
        "free_disk_mb": round(checkpoint.free_bytes(Path.cwd()) / 1e6),
    }


def text(plan: Mapping[str, Any]) -> str:
    """The plan for a terminal."""
    minutes = plan["train_seconds"]
    lines = [
        "data       "
        + ", ".join(f"{n:,} {part}" for part, n in plan["samples"].items())
        + "; inputs "
        + ", ".join(f"{name} {tuple(shape)}" for name, shape in plan["inputs"].items()),
        *(
            f"target     {clean(name)}: {one['kind']}"
            + (
                f", {len(one['classes'])} classes, {min(one['counts'])} to {max(one['counts'])} training samples each"
                if one["counts"]
                else ""
            )
            for name, one in plan["targets"].items()
        ),
        *([f"unreadable {len(plan['unreadable'])} samples will be left out"] if plan["unreadable"] else []),
        *(f"weights    {line}" for line in plan["transplant"]),
        f"model      {plan['config'].get('backbone', {}).get('name', 'given')}, {plan['parameters']['all']:,} parameters, {plan['parameters']['trained']:,} trained, {plan['frozen']} tensors frozen",
        *(
            f"group      {g['tensors']} tensors, {g['parameters']:,} parameters, lr {g['lr']:g}, decay {g['decay']:g}"
            for g in plan["groups"]
        ),
        f"steps      {'as many as fit the budget' if plan['steps'] is None else plan['steps']}, {plan['steps_per_epoch']} per epoch, {plan['step_seconds'] * 1000:.0f} ms each on {plan['device']} in {plan['precision']}",
        *(
            [
                f"time       about {minutes / 60:.1f} minutes of training"
                if minutes > 90
                else f"time       about {minutes:.0f} seconds of training"
            ]
            if minutes is not None
            else []
        ),
        f"memory     {plan['peak_memory_mb']} MB at most so far",
        f"disk       {plan['checkpoint_mb']} MB per checkpoint, {plan['free_disk_mb']:,} MB free",
        "ok         nothing stands in the way of this run",
    ]
    return "\n".join(lines)


def _unreadable(samples: Samples, split: str) -> list[str]:
    bad = []
    for index in tqdm(range(len(samples)), desc=f"reading {split}", disable=None, leave=False):
        try:
            samples[index]
        except FmecoError as error:
            bad.append(error.message)
    return bad


def _time_steps(built: build.Plan) -> float:
    """Seconds per step, forward and backward and update, on the first batches."""
    loader, objective = built.loader, built.objective
    steps = min(STEPS + 1, built.total)
    batches = loader.batches(0, steps)
    objective.train()
    seconds = []
    for step in range(steps):
        start = time.monotonic()
        for _ in loader.micros(step):
            batch = next(batches)
            if len(batch):
                with loop.autocast(built.device, built.precision):
                    loss = objective(batch, "loss")
                loss.sum.backward()
        built.optimizer.zero_grad(set_to_none=True)
        if built.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - start)
    batches.close()
    return min(seconds[1:] or seconds)


def _peak_mb() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))
