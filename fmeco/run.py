"""The wiring: pretrain, finetune, resume, evaluate, predict, embed. The only file that knows every part, and the Python
face of the command line: each function takes a config (a path or a mapping) and a REF, and returns plain values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fmeco
from fmeco import card, checkpoint, config, loop, optim, refs
from fmeco.config import Choice, RunConfig
from fmeco.core import Augment, Backbone, Data, DataSpec, Objective, Samples, mix
from fmeco.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DiskError,
    FmecoError,
    clean,
    listing,
    nearest,
)
from fmeco.loader import Loader, choose_workers, evaluation_batches
from fmeco.log import Log, say

Config = Path | str | Mapping[str, Any] | None
OWN_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "run.log",
    "report.html",
    "transplant.json",
    "bad_samples.txt",
    "tensorboard",
    "checkpoints",
    ".lock",
)
DEFAULT_OBJECTIVE = {"class": "classification", "multilabel": "multilabel", "number": "regression"}
FINETUNE_STEPS = 200  # a default finetune takes 10 epochs, or as many (up to 50) as make this many steps
MICRO_BATCH = 256  # largest automatic micro-batch


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
    settings = config.read(
        source,
        stage=stage,
        ref=ref,
        dataset=dataset,
        overrides=overrides,
        name=name,
        own_backbone=backbone is not None,
    )
    if allow_partial:
        settings = settings.replace(allow_partial=True)
    run = _claim(Path(out) if out else None, settings, force)
    with _locked(run):
        return _train(run, settings, data, backbone, stop, resume_from=None)


def resume(
    run: str | Path,
    *,
    epochs: str | None = None,
    overrides: Sequence[str] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Continue a run that was stopped or killed, bit for bit; `epochs` ("20", or "+5") extends a finished one.

    The schedule is a function of the finished share: with more epochs, the rate goes on where a run of the new length
    would be. Only where data is and how it is read may be changed by `overrides`.
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
    settings = config.load(folder / "config.yaml", overrides=overrides, stage=_stage_of(folder), name=folder.name)
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
        if wanted <= current:
            raise ConfigError(f"--epochs {clean(epochs)}: the run already has {current:g} epochs", "+N adds N more")
        settings = settings.replace(train=settings.train.model_copy(update={"epochs": wanted}))
    with _locked(folder):
        checkpoint.tidy(folder / "checkpoints", 10**9)
        saved = checkpoint.newest(folder / "checkpoints", say)
        if saved is None and checkpoint.steps(folder / "checkpoints"):
            say("no checkpoint to resume from is whole: starting again at step 0")
        return _train(folder, settings, None, None, stop, resume_from=saved, resuming=True, extend=epochs is not None)


def _stage_of(folder: Path) -> Any:
    tree, _ = config.parse_yaml((folder / "config.yaml").read_text("utf-8"), str(folder / "config.yaml"))
    return tree.get("stage", "pretrain") if isinstance(tree, dict) else "pretrain"


def _train(
    run: Path,
    settings: RunConfig,
    data: Data | None,
    own_backbone: Backbone | None,
    stop: Callable[[], bool],
    *,
    resume_from: checkpoint.Checkpoint | None,
    resuming: bool = False,
    extend: bool = False,
) -> Result:
    trainer = resume_from.trainer() if resume_from is not None else None
    log = Log(
        run,
        tensorboard=settings.train.tensorboard,
        size=trainer["metrics_size"] if trainer else 0,
        resume_at=(resume_from.meta["step"] if resume_from else 0) if resuming else None,
    )
    try:
        plan = prepare(settings, data, own_backbone)
        settings = plan.settings
        _write_config(run, settings)
        if plan.report is not None and not resuming:
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
            loop.restore(session, resume_from)
            say(f"resuming {run} at step {session.state.step} of {session.state.total}")
            if extend and session.state.finished:
                session.state.finished = False
            elif session.state.finished:
                say("this run is finished; --epochs +N adds more")
        elif resuming:
            say(f"resuming {run} at step 0: it was stopped before its first checkpoint")
        _check_disk(run, session)
        with loop.memory_errors():
            loop.train(session)
        best = checkpoint.open_checkpoint((run / "checkpoints" / "best").resolve())
        if session.state.bad_samples:
            say(
                f"left out {len(session.state.bad_samples)} samples that could not be read; they are listed in {run / 'bad_samples.txt'}"
            )
        card.report(run)
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


# ---------------------------------------------------------------- from a config to parts


@dataclass(frozen=True)
class Plan:
    """The parts of a run, built and not yet running."""

    settings: RunConfig  # complete: what was chosen automatically is filled in
    data: Data
    objective: Objective
    augment: Augment
    loader: Loader
    optimizer: torch.optim.Optimizer
    groups: optim.Groups
    device: torch.device
    precision: str
    total: int  # steps
    report: checkpoint.Report | None
    parent: str | None  # id of the checkpoint that the weights come from


def prepare(settings: RunConfig, data: Data | None = None, own_backbone: Backbone | None = None) -> Plan:
    """Data, weights, objective, optimizer: everything up to the first step."""
    if settings.dataset is None and data is None:
        raise ConfigError("dataset: missing", "add `dataset: {name: ...}` to the config, or --dataset X")
    source = _source(settings, own_backbone)
    known = source.spec.preprocessing_only() if source is not None else None
    if data is None:
        assert settings.dataset is not None
        data = settings.dataset.plugin.build(
            {"known": known, "whole": False, "arch": settings.dataset.arch}, settings.dataset.options
        )
    for note in data.notes:
        say(note)
    samples = data.split("train")
    described = {
        name: target.described(samples.targets[name]) if isinstance(samples.targets.get(name), Tensor) else target  # type: ignore[arg-type]
        for name, target in data.spec.targets.items()
    }
    data = dataclasses.replace(data, spec=dataclasses.replace(data.spec, targets=described))
    if known is not None and known.modality != data.spec.modality:
        raise CheckpointError(
            f"the weights are for {known.modality} data, and this dataset holds {data.spec.modality} data"
        )
    if data.val is not None:
        _check_classes(data)

    # Initialisation, in order: the seed's random values; then the source's backbone; then head rows of shared classes.
    torch.default_generator.manual_seed(int(mix(settings.seed, 0x696E6974)) & 0x7FFFFFFFFFFFFFFF)
    chosen = source.backbone if source is not None else settings.backbone
    backbone = own_backbone or build_backbone(chosen, data.spec)
    objective_choice = settings.objective or _default_objective(data.spec)
    objective: Objective = objective_choice.plugin.build(
        {"backbone": backbone, "spec": data.spec}, objective_choice.options
    )
    report = None
    if source is not None:
        report = checkpoint.transplant(backbone, source.state, source=source.ref, allow_partial=settings.allow_partial)
        old, rows = {}, {}
        if source.checkpoint is not None and settings.head == "auto":
            old, rows = source.checkpoint.tensors("objective"), source.checkpoint.meta.get("class_rows", {})
        report.carried = checkpoint.carry_rows(objective, old, rows)
        report.new = [name for name in checkpoint.split_state(objective)[1] if not report.carried or name not in rows]

    augment_choice = settings.augment or config.choice("augment", _default_augment(data.spec))
    augment: Augment = augment_choice.plugin.build(
        {"spec": data.spec, "arch": augment_choice.arch}, augment_choice.options
    )
    settings = settings.replace(
        backbone=None if own_backbone is not None else chosen,
        objective=objective_choice,
        augment=augment_choice,
    )
    device, precision = _device(settings)
    channels_last = settings.train.channels_last is True or (
        settings.train.channels_last == "auto" and any(len(one.shape) == 3 for one in data.spec.inputs.values())
    )
    objective.to(device)
    if channels_last:
        objective.to(memory_format=torch.channels_last)
    if settings.train.compile:
        objective.backbone.compile()

    names = {id(p): name for name, p in objective.product.library.named_parameters()}
    depths = {
        name: objective.product.depth_of(names[id(p)]) if id(p) in names else None
        for name, p in objective.named_parameters()
    }
    strategy = settings.transfer or config.choice("transfer", {"strategy": "full"})
    scales = strategy.plugin.build({"depths": depths}, strategy.options)
    groups = optim.parameter_groups(objective.named_parameters(), scales)
    optimizer = settings.optimizer.plugin.build({"params": groups}, settings.optimizer.options)

    wanted = settings.train.batch_size
    if wanted == "auto":
        wanted = min(64, max(8, len(samples) // 10))
        settings = settings.replace(train=settings.train.model_copy(update={"batch_size": wanted}))
    size = len(samples) if wanted == "full" else min(wanted, len(samples))
    micro = min(size, MICRO_BATCH) if settings.train.micro_batch == "auto" else min(size, settings.train.micro_batch)
    if objective.coupled and micro < size:
        raise ConfigError(
            f"train.micro_batch {micro} is smaller than the batch of {size}: the loss of {objective_choice.name} needs the batch whole"
        )
    balance = samples.targets.get("label") if settings.train.sampler == "balanced" else None
    if settings.train.sampler == "balanced" and (
        not isinstance(balance, Tensor) or balance.dtype != torch.int64 or balance.ndim != 1
    ):
        raise ConfigError("train.sampler: balanced needs a class label")
    loader = Loader(
        data,
        samples,
        objective.views,
        augment,
        size,
        micro,
        settings.seed,
        choose_workers(settings.train.workers, samples),
        device,
        balance if isinstance(balance, Tensor) else None,
        settings.train.on_bad_sample,
        channels_last,
    )
    settings, total = _length(settings, loader.steps_per_epoch)
    parent = source.checkpoint.id if source is not None and source.checkpoint is not None else None
    return Plan(
        settings,
        data,
        objective,
        augment,
        loader,
        optimizer,
        groups,
        device,
        precision,
        total,
        report,
        parent,
    )


def build_backbone(chosen: Choice | None, spec: DataSpec) -> Backbone:
    if chosen is None:
        raise ConfigError("backbone: missing", "name one, as in `backbone: resnet18`, or hand in your own object")
    backbone: Backbone = chosen.plugin.build({"spec": spec, "arch": chosen.arch}, chosen.options)
    return backbone


def _source(settings: RunConfig, own_backbone: Backbone | None) -> refs.Source | None:
    """Weights to start from: --from, else the backbone's `weights`."""
    if settings.source is not None:
        if own_backbone is not None:
            found = refs.find_checkpoint(settings.source)
            return refs.Source(
                settings.source,
                config.choice("backbone", "mlp"),
                found.tensors("backbone"),
                found.spec,
                found,
            )
        return refs.resolve(settings.source, settings.backbone)
    weights = settings.backbone.options.get("weights") if settings.backbone is not None else None
    if settings.backbone is None or weights is None:
        return None
    if os.path.exists(weights):
        return refs.resolve(weights, settings.backbone)
    return refs.published(settings.backbone, weights)


def _default_objective(spec: DataSpec) -> Choice:
    if not spec.targets:
        raise ConfigError("this dataset has no labels to learn from", "name an `objective:`")
    name = "label" if "label" in spec.targets else next(iter(spec.targets))
    return config.choice("objective", {"name": DEFAULT_OBJECTIVE[spec.targets[name].kind], "target": name})


def _default_augment(spec: DataSpec) -> str:
    if spec.modality != "image":
        return "none"
    return "light" if spec.preprocessing.get("size", 224) <= 96 else "standard"


def _check_classes(data: Data) -> None:
    """A class that only validation has cannot be learned; one that validation lacks is reported."""
    assert data.train is not None and data.val is not None
    for name, target in data.spec.targets.items():
        train, val = data.train.targets.get(name), data.val.targets.get(name)
        if target.kind != "class" or not isinstance(train, Tensor) or not isinstance(val, Tensor):
            continue
        trained, validated = set(train.tolist()), set(val.tolist())
        if never := [target.classes[c] for c in sorted(validated - trained)]:
            raise DataError(f"no training samples of {listing(never)}, which the validation split has")
        if absent := [target.classes[c] for c in sorted(trained - validated)]:
            say(f"no validation samples of {listing(absent)}: their accuracy is not measured")


def _length(settings: RunConfig, per_epoch: int) -> tuple[RunConfig, int]:
    """The run's length in steps; the stage's default is written into the config."""
    train = settings.train
    if train.budget is not None:
        return settings, 2**31
    if train.steps is not None:
        return settings, train.steps
    if train.epochs is None:
        epochs = 10.0 if settings.stage == "pretrain" else float(min(50, max(10, -(-FINETUNE_STEPS // per_epoch))))
        train = train.model_copy(update={"epochs": epochs})
        say(f"training for {epochs:g} epochs of {per_epoch} steps")
    assert train.epochs is not None
    return settings.replace(train=train), max(1, round(train.epochs * per_epoch))


def _device(settings: RunConfig) -> tuple[torch.device, str]:
    wanted, precision = settings.train.device, settings.train.precision
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if (wanted == "cuda" and not torch.cuda.is_available()) or (
        wanted == "mps" and not torch.backends.mps.is_available()
    ):
        raise ConfigError(f"train.device: {wanted} is not available here", "device: auto takes what there is")
    if precision == "auto":
        precision = "bf16" if wanted == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and wanted == "cpu":
        raise ConfigError("train.precision: fp16 needs a GPU", "bf16 works on every device")
    return torch.device(wanted), precision


def _session(run: Path, plan: Plan, log: Log, stop: Callable[[], bool]) -> loop.Session:
    settings, data, objective = plan.settings, plan.data, plan.objective
    train, evaluate = settings.train, settings.evaluate
    best = evaluate.best or next(iter(objective.directions), "loss")
    best = best.removeprefix("val_")
    if best not in objective.directions:
        raise ConfigError(
            f"evaluate.best: {clean(best)} is no metric of {type(objective).__name__}{nearest(best, objective.directions)}",
            f"metrics: {', '.join(objective.directions)}",
        )
    validate: Callable[[], dict[str, float]] | None = None
    if data.val is not None and len(data.val):
        validate = functools.partial(_validate, plan, data.val)
    elif train.early_stop is not None or settings.schedule.name == "plateau":
        raise ConfigError("early_stop and the plateau schedule need a validation split, and this dataset has none")
    schedule = functools.partial(
        getattr(settings.schedule.plugin.load(), settings.schedule.plugin.function),
        **settings.schedule.options,
    )
    needs = [
        f"{choice.kind}/{choice.name}"
        for choice in (settings.dataset, settings.backbone, settings.objective, settings.augment)
        if choice is not None and not choice.plugin.module.startswith("fmeco.")
    ]
    if settings.backbone is None:
        needs.append(
            f"a backbone given in Python ({type(objective.backbone).__module__}.{type(objective.backbone).__qualname__})"
        )
    meta = {
        "stage": settings.stage,
        "name": settings.name,
        "config": _portable(settings.to_dict()),
        "spec": data.spec.to_json(),
        "class_rows": {name: list(classes) for name, classes in objective.class_rows().items()},
        "parameters": sum(p.numel() for p in objective.parameters()),
        "needs": needs,
        "licence": None,
        "precision": plan.precision,
        "threads": torch.get_num_threads(),
        "transplant": plan.report.to_json() if plan.report is not None else None,
        "versions": {
            "fmeco": fmeco.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "git": _git_commit(),
    }
    state = loop.State(total=plan.total)
    average = {name: t.detach().clone() for name, t in objective.state_dict().items()} if train.ema else None
    return loop.Session(
        run=run,
        objective=objective,
        loader=plan.loader,
        validate=validate,
        optimizer=plan.optimizer,
        schedule=schedule,
        train=train,
        evaluate_every=max(1, round(evaluate.every * plan.loader.steps_per_epoch)),
        best_metric=best,
        best_sign=1 if objective.directions[best] == "max" else -1,
        seed=settings.seed,
        device=plan.device,
        precision=plan.precision,
        meta=meta,
        parents=[plan.parent] if plan.parent else [],
        card=card.model_card,
        log=log,
        stop=stop,
        state=state,
        average=average,
        scaler=torch.amp.GradScaler(plan.device.type) if plan.precision == "fp16" else None,
    )


def _validate(plan: Plan, samples: Samples) -> dict[str, float]:
    train = plan.settings.train
    bad: list[str] | None = [] if train.on_bad_sample == "skip" else None
    batches = evaluation_batches(
        plan.data,
        samples,
        batch_size=plan.settings.evaluate.batch_size or 2 * plan.loader.micro_batch,
        workers=choose_workers(train.workers, samples),
        device=plan.device,
        channels_last=plan.loader.channels_last,
    )
    metrics, _ = loop.evaluate(plan.objective, batches, plan.device, plan.precision, bad=bad)
    for one in bad or []:
        say(f"validation: {one}")
    return metrics


# ---------------------------------------------------------------- the run directory


def _claim(out: Path | None, settings: RunConfig, force: bool) -> Path:
    """Make the run's directory. Raises ConfigError when it is not empty, DiskError when it cannot be made."""
    try:
        if out is None:
            base = Path("runs") / f"{settings.stage}-{settings.name}-{time.strftime('%Y%m%d-%H%M%S')}"
            for suffix in ["", *(f"-{n}" for n in range(2, 1000))]:
                with contextlib.suppress(FileExistsError):
                    run = base.with_name(base.name + suffix)
                    run.mkdir(parents=True)
                    return run
        assert out is not None
        if out.is_dir() and any(out.iterdir()):
            if not force:
                raise ConfigError(
                    f"{out} is not empty",
                    "--force replaces the run that is there; `fmeco resume` continues it",
                )
            with _locked(out):
                for name in OWN_FILES[:-1]:
                    path = out / name
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        elif out.exists() and not out.is_dir():
            raise ConfigError(f"{out} is a file; a run needs a directory")
        out.mkdir(parents=True, exist_ok=True)
        return out
    except OSError as error:
        raise checkpoint.disk_error(error, out or Path("runs"), 0) from None


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    """One process per run. The lock goes with the process, however it ends."""
    try:
        handle = os.open(run / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise checkpoint.disk_error(error, run, 0) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ConfigError(f"{run} is in use by another process") from None
    try:
        yield
    finally:
        os.close(handle)


def _write_config(run: Path, settings: RunConfig) -> None:
    temporary = run / ".config.yaml"
    try:
        temporary.write_text(settings.to_yaml(absolute=True), "utf-8")
        os.replace(temporary, run / "config.yaml")
    except OSError as error:
        raise checkpoint.disk_error(error, run / "config.yaml", 0) from None


def _check_disk(run: Path, session: loop.Session) -> None:
    """Better to learn before the first epoch than after it that a checkpoint has no room."""
    weights = sum(t.numel() * t.element_size() for t in session.objective.state_dict().values())
    needed = weights * (4 if session.average is None else 5) * 2  # Adam's two moments; two full checkpoints
    free = checkpoint.free_bytes(run)
    if free < needed:
        raise DiskError(
            f"{run}: two checkpoints need {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free",
            "free some space, or use --out on another disk",
        )


def _portable(raw: dict[str, Any]) -> dict[str, Any]:
    """A config for a checkpoint that travels: absolute paths become relative to the current folder."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        return os.path.relpath(value) if isinstance(value, str) and os.path.isabs(value) else value

    out: dict[str, Any] = walk(raw)
    return out


def _git_commit() -> str | None:
    import subprocess

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        return done.stdout.strip() or None
    return None


def _record(line: str) -> Any:
    import logging

    return logging.LogRecord("fmeco", logging.ERROR, "", 0, line, None, sys.exc_info()[:0] or None)
