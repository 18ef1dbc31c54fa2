"""The wiring of a training run: pretrain, finetune, resume. The Python face of the command line: each function takes a
config (a path or a mapping) and a REF, and returns plain values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fmeco
from fmeco.assembly import model as build
from fmeco.assembly.model import Plan, prepare
from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import refs, writer
from fmeco.config import check as config
from fmeco.config.load import read_config
from fmeco.config.parser import parse_yaml
from fmeco.config.run_config import RunConfig
from fmeco.config.sections import seconds
from fmeco.core import Backbone, Data
from fmeco.data.loader import evaluation_batches
from fmeco.data.reading import choose_reading
from fmeco.distributed import ranks as dist
from fmeco.distributed.ranks import Ranks
from fmeco.errors import (
    ConfigError,
    DataError,
    DiskError,
    FmecoError,
    clean,
    known_errors,
)
from fmeco.features import forward
from fmeco.files import free_bytes
from fmeco.log import say
from fmeco.reports import model_card as card
from fmeco.reports import run_report
from fmeco.reports.metrics_files import Log
from fmeco.training import autotune as tune
from fmeco.training import frozen_features as features
from fmeco.training import loop
from fmeco.training import monitor as watch
from fmeco.training.optimizer import build_optimizer
from fmeco.training.run_directory import claim, locked, settle, write_config
from fmeco.training.session import Gear, Measured, Session, State, restore

Config = Path | str | Mapping[str, Any] | None


@dataclass(frozen=True)
class Result:
    """What a training run leaves: its directory, its best checkpoint and that checkpoint's metrics."""

    run: Path
    checkpoint: Path
    metrics: dict[str, float]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "run": str(self.run.resolve()),
            "checkpoint": str(self.checkpoint.resolve()),
            "metrics": self.metrics,
            "seconds": round(self.seconds, 3),
        }


# ---------------------------------------------------------------- training


def pretrain(source: Config, *, data: Data | None = None, backbone: Backbone | None = None, **how: Any) -> Result:
    """Train from the config's initialisation. `data` and `backbone` may be your own objects.

    Further keywords: overrides (`["a.b=c"]`), out (the run's directory), force (replace an earlier run there),
    ref (start from its weights), stop (a function that says when to save and leave).
    Raises the errors of fmeco.errors.
    """
    return _start(source, "pretrain", data, backbone, **how)


def finetune(
    source: Config = None,
    *,
    ref: str | Path | None = None,
    dataset: str | None = None,
    data: Data | None = None,
    backbone: Backbone | None = None,
    **how: Any,
) -> Result:
    """Train on a new task from the weights of `ref`, with a new head. Without a config, a dataset is enough.

    dataset: as `--dataset`: a path, or a dataset's name. Further keywords as for `pretrain`, and allow_partial.
    """
    return _start(source, "finetune", data, backbone, ref=ref, dataset=dataset, **how)


def _start(
    source: Config,
    stage: Any,
    data: Data | None,
    backbone: Backbone | None,
    *,
    ref: str | Path | None = None,
    dataset: str | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    force: bool = False,
    allow_partial: bool = False,
    name: str | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    settings = read_config(
        source,
        stage=stage,
        ref=ref,
        dataset=dataset,
        overrides=overrides,
        name=name,
        own_backbone=backbone is not None,
        allow_partial=allow_partial,
    )
    return train(settings, out=out, force=force, data=data, backbone=backbone, stop=stop)


@known_errors()
def train(
    config: RunConfig,
    *,
    out: str | Path | None = None,
    force: bool = False,
    data: Data | None = None,
    backbone: Backbone | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Train from a config that was read and checked before. Keywords and errors as for `pretrain`."""
    with dist.together(config.train.device) as ranks:
        run = Path(ranks.from_first(lambda: str(claim(Path(out) if out else None, config, force))))
        with locked(run) if ranks.first else contextlib.nullcontext():
            try:
                if ranks.first:  # from here on it can be resumed, also when it is killed while it gets ready
                    write_config(run, config)
                return _train(run, config, data, backbone, stop, ranks, resume_from=None)
            finally:
                if ranks.first:
                    settle(run, keep_new=False)  # does nothing once training has begun


@known_errors()
def resume(
    run: str | Path,
    *,
    data: Data | None = None,
    backbone: Backbone | None = None,
    epochs: str | None = None,
    overrides: Sequence[str] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Continue a run that was stopped or killed, bit for bit; `epochs` ("20", or "+5") extends a finished one.

    The schedule is a function of the finished share: with more epochs, the rate goes on where a run of the new length
    would be. Only where data is and how it is read may be changed by `overrides`. A run that was given `data` or
    `backbone` objects needs them again.
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{clean(run)} is not a run: it holds no config.yaml", "fmeco resume takes the run's directory"
        )
    allowed = (
        "dataset.path",
        "dataset.train",
        "dataset.val",
        "dataset.test",
        "dataset.root",
        "train.workers",
        "train.keep",
        "train.log_every",
        "train.save_every",
        "train.tensorboard",
        "train.micro_batch",
        "train.device",
    )
    for item in overrides:
        if item.partition("=")[0].strip() not in allowed:
            raise ConfigError(
                f"--set {clean(item)}: a resumed run is the same run; this would change it",
                f"allowed: {', '.join(allowed)}",
                "start another run with --from to change more",
            )
    refs.check_run(folder)
    settings = read_config(
        folder / "config.yaml",
        stage=_stage_of(folder),
        overrides=overrides,
        name=folder.name,
        own_backbone=backbone is not None,
    )
    if epochs is not None:
        current = settings.train.epochs
        try:
            wanted = float(epochs.lstrip("+")) + (current or 0.0 if epochs.startswith("+") else 0.0)
        except ValueError:
            raise ConfigError(f"--epochs {clean(epochs)}: expected a number, or +N for N more") from None
        if current is None:
            raise ConfigError(
                "--epochs: this run's length is given in " + ("steps" if settings.train.steps else "time"),
                "start another run with --from",
            )
        if not math.isfinite(wanted):
            raise ConfigError(f"--epochs {clean(epochs)}: expected a finite number")
        if wanted <= current:
            raise ConfigError(f"--epochs {clean(epochs)}: the run already has {current:g} epochs", "+N adds N more")
        settings = settings.replace(train=settings.train.model_copy(update={"epochs": wanted}))
    with (
        dist.together(settings.train.device) as ranks,
        locked(folder) if ranks.first else contextlib.nullcontext(),
    ):
        found = ranks.from_first(lambda: _newest(folder / "checkpoints"))
        saved = checkpoint.open_checkpoint(Path(found)) if found else None
        return _train(folder, settings, data, backbone, stop, ranks, resume_from=saved, resuming=True)


def _newest(folder: Path) -> str:
    """The checkpoint to resume from, after clearing away what a killed process left; "" for none."""
    writer.tidy(folder, 10**9)
    saved = checkpoint.newest(folder, say)
    if saved is None and checkpoint.steps(folder):
        say("no checkpoint to resume from is whole: starting again at step 0")
    return str(saved.path) if saved is not None else ""


def _stage_of(folder: Path) -> Any:
    tree, _ = parse_yaml((folder / "config.yaml").read_text("utf-8"), str(folder / "config.yaml"))
    return tree.get("stage", "pretrain") if isinstance(tree, dict) else "pretrain"


def _train(
    run: Path,
    settings: RunConfig,
    data: Data | None,
    own_backbone: Backbone | None,
    stop: Callable[[], bool],
    ranks: Ranks,
    *,
    resume_from: checkpoint.Checkpoint | None,
    resuming: bool = False,
) -> Result:
    trainer = resume_from.trainer() if resume_from is not None else None
    log = Log(
        run,
        tensorboard=settings.train.tensorboard,
        size=trainer["metrics_size"] if trainer else None,
        resume_at=(resume_from.meta["step"] if resume_from else 0) if resuming else None,
        first=ranks.first,
    )
    try:
        plan = prepare(settings, data, own_backbone, resume_from, ranks)
        began = time.monotonic()
        if plan.settings.optimizer.options["lr"] == "auto":
            plan = _with_rate(run, plan, log, stop)
        tried = time.monotonic() - began
        settings = plan.settings
        if ranks.first:
            write_config(run, settings)
        if plan.report is not None and not resuming and ranks.first:
            for line in plan.report.lines():
                say(line)
            (run / "transplant.json").write_text(json.dumps(plan.report.to_json(), indent=1) + "\n", "utf-8")
        session = _session(run, plan, log, stop)
        if resume_from is not None:
            if resume_from.spec.fingerprint != plan.data.spec.fingerprint:
                raise DataError(
                    f"the training data is not what it was when {resume_from.path} was saved",
                    "its files, sizes or labels changed; start another run with --from to use the new data",
                )
            if resume_from.spec != plan.data.spec:
                raise DataError(f"the data is described differently than when {resume_from.path} was saved")
            restore(session, resume_from)
            say(f"resuming {run} at step {session.state.step}")
            if session.state.finished:
                say("this run is finished; --epochs +N adds more")
        else:
            if settings.train.budget is not None:  # which pays for the range test
                session.state.seconds = session.state.phase_start = tried
            if resuming:
                say(f"resuming {run} at step 0: it was stopped before its first checkpoint")
        if ranks.first:
            _check_disk(run, session)
        sizes = ", ".join(f"{n:,} {part}" for part, n in plan.data.spec.sizes.items())
        length = settings.train.budget or f"{plan.total:,} steps"
        say(
            f"{sizes} samples; {length}, {plan.loader.steps_per_epoch:,} steps per epoch; {plan.device}, {plan.precision}"
            + (f", {ranks.world} ranks" if ranks.world > 1 else "")
        )
        if ranks.first:
            settle(run, keep_new=True)
        loop.train(session)
        ranks.barrier()  # rank 0 has written the last checkpoint
        best = checkpoint.open_checkpoint((run / "checkpoints" / "best").resolve())
        if session.state.bad_samples:
            say(
                f"left out {len(session.state.bad_samples)} samples that could not be read; they are listed in {run / 'bad_samples.txt'}"
            )
        if ranks.first:
            run_report.report(run)
        return Result(run, best.path, dict(best.meta["metrics"]), session.state.seconds)
    except FmecoError as error:
        for line in str(error).splitlines():
            log.handler.emit(_record(line))
        raise
    except Exception:
        import traceback

        log.handler.emit(_record(traceback.format_exc()))
        raise
    finally:
        log.close()


def _with_rate(run: Path, plan: Plan, log: Log, stop: Callable[[], bool]) -> Plan:
    """The plan with the learning rate that a range test finds."""

    def with_rate(rate: float) -> Plan:
        chosen = plan.settings.optimizer
        options = {**chosen.options, "lr": rate}
        return dataclasses.replace(
            plan, settings=plan.settings.replace(optimizer=dataclasses.replace(chosen, options=options))
        )

    budget = seconds(plan.settings.train.budget) if plan.settings.train.budget else math.inf
    rate, curve = tune.range_test(_session(run, with_rate(1.0), log, stop), budget)
    if rate is None:
        default = plan.settings.optimizer.plugin.model.model_fields["lr"].default
        usual = config.FINETUNE_LR if plan.settings.stage == "finetune" else default
        rate = usual if plan.settings.optimizer.name == "adamw" else default
        if not isinstance(rate, int | float):
            raise ConfigError(
                f"optimizer.lr: a range test of {len(curve)} steps found no rate at which the loss falls", "name one"
            )
        say(
            f"optimizer.lr: {rate:g}, the default: a range test of {len(curve)} steps found no rate at which the loss falls"
        )
        return with_rate(rate)
    for step, (tried, loss) in enumerate(curve):
        log.write("range", step, 0.0, {"lr": tried, "loss": loss})
    say(f"optimizer.lr: {rate:g}, by a range test of {len(curve)} steps; its curve is in report.html")
    return with_rate(rate)


def _session(run: Path, plan: Plan, log: Log, stop: Callable[[], bool]) -> Session:
    settings, data, objective = plan.settings, plan.data, plan.objective
    train, evaluate = settings.train, settings.evaluate
    schedule = settings.schedule.plugin.bound(settings.schedule.options)
    needs = settings.needs
    if settings.backbone is None:
        needs.append(
            f"a backbone given in Python ({type(objective.backbone).__module__}.{type(objective.backbone).__qualname__})"
        )
    meta = {
        "stage": settings.stage,
        "name": settings.name,
        "config": settings.to_dict("relative"),
        "spec": data.spec.to_json(),
        "class_rows": {name: list(classes) for name, classes in objective.class_rows().items()},
        "parameters": sum(p.numel() for name, p in objective.named_parameters() if name in plan.roles),
        "needs": needs,
        "licence": plan.licence,
        "precision": plan.precision,
        "threads": torch.get_num_threads(),
        "transplant": plan.transplanted,
        "versions": {
            "fmeco": fmeco.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "git": _git_commit(),
    }
    state = State(total=plan.total)
    average = {name: t.detach().clone() for name, t in objective.state_dict().items()} if train.ema else None
    return Session(
        run=run,
        objective=objective,
        ranks=plan.ranks,
        phases=plan.transfer.phases,
        prepare=functools.partial(_gear, plan),
        constraint=plan.constraint,
        batch_norm=settings.carry.batch_norm,
        schedule=schedule,
        train=train,
        validation_size=len(data.val) if data.val is not None else 0,
        evaluate_every=max(1, round(evaluate.every * plan.loader.steps_per_epoch)),
        health=evaluate.health,
        best_metric=plan.best,
        best_sign=1 if plan.directions[plan.best] == "max" else -1,
        seed=settings.seed,
        device=plan.device,
        precision=plan.precision,
        meta=meta,
        parents=plan.parents,
        card=card.model_card,
        log=log,
        stop=stop,
        state=state,
        average=average,
        scaler=torch.amp.GradScaler(plan.device.type) if plan.precision == "fp16" else None,
    )


def _gear(plan: Plan, phase: int) -> Gear:
    """Set the model up for a phase: what trains and how, on which batches, and what measures it."""
    groups = build.groups(plan, phase)
    settings = plan.settings
    optimizer = build_optimizer(settings.optimizer, groups)
    trained = [parameter for group in groups for parameter in group["params"]]
    data, loader = plan.data, plan.loader
    share = plan.transfer.phases[phase].share / sum(one.share for one in plan.transfer.phases)
    epochs = 0.0 if settings.train.budget is not None else share * plan.total / loader.steps_per_epoch
    if (stored := features.stored(plan, epochs)) is not None:
        data, views = stored
        samples = data.split("train")
        reading = choose_reading("auto", data, samples, plan.device)
        loader = dataclasses.replace(loader, data=data, samples=samples, augment=views, reading=reading)
    validate = _validation(plan, data) if data.val is not None and len(data.val) else None
    return Gear(optimizer, trained, loader, validate)


def _validation(plan: Plan, data: Data) -> Callable[[], Measured]:
    """Measures the validation split."""
    train, samples, ranks = plan.settings.train, data.split("val"), plan.ranks
    reading = choose_reading(train.workers, data, samples, plan.device, world=ranks.local_world)
    probe = watch.watcher(plan)

    def validate() -> Measured:
        bad: list[str] | None = [] if train.on_bad_sample == "skip" else None
        batches = evaluation_batches(
            data,
            samples,
            batch_size=plan.settings.evaluate.batch_size or 2 * plan.loader.micro_batch,
            reading=reading,
            device=plan.device,
            channels_last=plan.loader.channels_last,
            rank=ranks.rank,
            world=ranks.world,
        )
        metrics, rows = forward.evaluate(plan.objective, batches, plan.device, plan.precision, bad=bad, ranks=ranks)
        if probe is not None:
            metrics = {**probe(rows), **metrics}
        right = plan.objective.correct(rows) if plan.best == next(iter(plan.objective.directions), None) else None
        error = float(right.double().std(correction=0)) / math.sqrt(len(right)) if right is not None else 0.0
        if plan.best in watch.SHARES:
            error = math.sqrt(metrics[plan.best] * (1 - metrics[plan.best]) / min(len(samples), watch.WATCHED))
        return Measured(metrics, bad or [], error)

    return validate


def _check_disk(run: Path, session: Session) -> None:
    """Better to learn before the first epoch than after it that a checkpoint has no room."""
    weights = sum(t.numel() * t.element_size() for t in session.objective.state_dict().values())
    needed = weights * (4 if session.average is None else 5) * 2  # Adam's two moments; two full checkpoints
    free = free_bytes(run)
    if free < needed:
        raise DiskError(
            f"{run}: two checkpoints need {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free",
            "free some space, or use --out on another disk",
        )


def _git_commit() -> str | None:
    import subprocess

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        return done.stdout.strip() or None
    return None


def _record(line: str) -> Any:
    import logging

    return logging.LogRecord("fmeco", logging.ERROR, "", 0, line, None, sys.exc_info()[:0] or None)
