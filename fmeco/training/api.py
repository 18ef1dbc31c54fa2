"""Training runs: pretrain, finetune, resume. The Python face of the command line: each function takes a config (a path or
a mapping) and a REF, and returns plain values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmeco.assembly.stages import Training
from fmeco.assembly.training import assemble
from fmeco.checkpoints.format import Checkpoint, newest, open_checkpoint, steps
from fmeco.checkpoints.refs import check_run
from fmeco.checkpoints.writer import tidy
from fmeco.config.load import read_config
from fmeco.config.run_config import RunConfig
from fmeco.core.data import Data
from fmeco.core.model import Backbone
from fmeco.distributed.ranks import Ranks, together
from fmeco.errors import ConfigError, DataError, DiskError, clean, known_errors
from fmeco.files import free_bytes
from fmeco.log import say
from fmeco.reports.metrics_files import Log
from fmeco.reports.run_report import report
from fmeco.training import loop, lr_range_test
from fmeco.training.phase import set_up
from fmeco.training.run_directory import claim, locked, settle, write_config
from fmeco.training.session import Session, begin, restore

Config = Path | str | Mapping[str, Any] | None
# What a resumed run may change: where its data is, and how it is read and reported.
CHANGEABLE = (
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


def never() -> bool:
    """Answer no to whether a run is to stop."""
    return False


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


def pretrain(
    source: Config,
    *,
    ref: str | Path | None = None,
    dataset: str | None = None,
    data: Data | None = None,
    backbone: Backbone | None = None,
    overrides: Sequence[str] = (),
    name: str | None = None,
    allow_partial: bool = False,
    out: str | Path | None = None,
    force: bool = False,
    stop: Callable[[], bool] = never,
) -> Result:
    """Train from the config's initialisation, or from the weights of `ref`.

    ref: a run, a checkpoint, a file of weights, or SOURCE/ARCH@WEIGHTS.
    dataset: as `--dataset`: a path, or a dataset's name.
    data, backbone: your own objects, in place of the config's.
    overrides: as --set, `["a.b=c"]`.
    name: of the run; None takes the config's stem or the dataset's name.
    allow_partial: load the weights that fit, even if they are few.
    out, force, stop: as for `train`.

    Raises the errors of fmeco.errors.
    """
    config = read_config(
        source,
        stage="pretrain",
        ref=ref,
        dataset=dataset,
        overrides=overrides,
        name=name,
        own_backbone=backbone is not None,
        allow_partial=allow_partial,
    )
    return train(config, data=data, backbone=backbone, out=out, force=force, stop=stop)


def finetune(
    source: Config = None,
    *,
    ref: str | Path | None = None,
    dataset: str | None = None,
    data: Data | None = None,
    backbone: Backbone | None = None,
    overrides: Sequence[str] = (),
    name: str | None = None,
    allow_partial: bool = False,
    out: str | Path | None = None,
    force: bool = False,
    stop: Callable[[], bool] = never,
) -> Result:
    """Train on a new task from the weights of `ref`, with a new head. Without a config, a dataset is enough.

    Keywords as for `pretrain`. Raises the errors of fmeco.errors.
    """
    config = read_config(
        source,
        stage="finetune",
        ref=ref,
        dataset=dataset,
        overrides=overrides,
        name=name,
        own_backbone=backbone is not None,
        allow_partial=allow_partial,
    )
    return train(config, data=data, backbone=backbone, out=out, force=force, stop=stop)


@known_errors()
def train(
    config: RunConfig,
    *,
    data: Data | None = None,
    backbone: Backbone | None = None,
    out: str | Path | None = None,
    force: bool = False,
    stop: Callable[[], bool] = never,
) -> Result:
    """Train as a checked config says, in a run directory of its own.

    out: the run's directory. force: replace an earlier run there. stop: says when to save and leave.
    """
    place = Path(out) if out else None
    with together(config.train.device) as ranks:
        run = Path(ranks.from_first(lambda: str(claim(place, f"{config.stage}-{config.name}", config.source, force))))
        with locked(run) if ranks.first else contextlib.nullcontext():
            try:
                if ranks.first:  # from here on it can be resumed, also when it is killed while it gets ready
                    write_config(run, config.to_yaml())
                return _run(run, config, data, backbone, stop, ranks)
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
    stop: Callable[[], bool] = never,
) -> Result:
    """Continue a run that was stopped or killed, bit for bit; `epochs` ("20", or "+5") extends a finished one.

    The schedule is a function of the finished share: with more epochs, the rate goes on where a run of the new length
    would be. Only where data is and how it is read may be changed by `overrides`. A run that was given `data` or
    `backbone` objects needs them again.
    """
    folder = Path(run)
    file = folder / "config.yaml"
    if not file.is_file():
        raise ConfigError(
            f"{clean(run)} is not a run: it holds no config.yaml", "fmeco resume takes the run's directory"
        )
    for item in overrides:
        if item.partition("=")[0].strip() not in CHANGEABLE:
            raise ConfigError(
                f"--set {clean(item)}: a resumed run is the same run; this would change it",
                f"allowed: {', '.join(CHANGEABLE)}",
                "start another run with --from to change more",
            )
    check_run(folder)
    config = read_config(file, overrides=overrides, name=folder.name, own_backbone=backbone is not None)
    if epochs is not None:
        config = _extended(config, epochs)
    with (
        together(config.train.device) as ranks,
        locked(folder) if ranks.first else contextlib.nullcontext(),
    ):
        found = ranks.from_first(lambda: _newest(folder / "checkpoints"))
        saved = open_checkpoint(Path(found)) if found else None
        return _run(folder, config, data, backbone, stop, ranks, saved, resuming=True)


def _extended(config: RunConfig, epochs: str) -> RunConfig:
    """Read --epochs N or +N. Raises ConfigError where it does not make the run longer."""
    current = config.train.epochs
    try:
        wanted = float(epochs.lstrip("+")) + (current or 0.0 if epochs.startswith("+") else 0.0)
    except ValueError:
        raise ConfigError(f"--epochs {clean(epochs)}: expected a number, or +N for N more") from None
    if current is None:
        raise ConfigError(
            "--epochs: this run's length is given in " + ("steps" if config.train.steps else "time"),
            "start another run with --from",
        )
    if not math.isfinite(wanted):
        raise ConfigError(f"--epochs {clean(epochs)}: expected a finite number")
    if wanted <= current:
        raise ConfigError(f"--epochs {clean(epochs)}: the run already has {current:g} epochs", "+N adds N more")
    return dataclasses.replace(config, train=config.train.model_copy(update={"epochs": wanted}))


def _newest(folder: Path) -> str:
    """Find the checkpoint to resume from, after clearing away what a killed process left; "" for none."""
    tidy(folder, 10**9)
    saved = newest(folder, say)
    if saved is None and steps(folder):
        say("no intact checkpoint found; restarting from step 0")
    return str(saved.path) if saved is not None else ""


def _run(
    run: Path,
    config: RunConfig,
    data: Data | None,
    backbone: Backbone | None,
    stop: Callable[[], bool],
    ranks: Ranks,
    resumed: Checkpoint | None = None,
    *,
    resuming: bool = False,
) -> Result:
    """Assemble the run, train it, and report. resumed: the checkpoint to go on from."""
    with _log(run, config, ranks, resumed, resuming) as log:
        training = assemble(config, data=data, backbone=backbone, resumed=resumed, ranks=ranks)
        began = time.monotonic()
        if training.config.optimizer.options["lr"] == "auto":
            training = lr_range_test.with_rate(training, lambda tried: _begin(run, tried, log, stop), log)
        tried = time.monotonic() - began
        if ranks.first:
            write_config(run, training.config.to_yaml())
            if not resuming:
                _write_transplant(run, training)
        session = _begin(run, training, log, stop)
        if resumed is not None:
            _go_on(session, resumed)
        elif config.train.budget is not None:  # which pays for the range test
            session.state.seconds = session.state.phase_start = tried
        if resuming and resumed is None:
            say(f"resuming {run} at step 0: it was stopped before its first checkpoint")
        _ready(session)
        loop.train(session)
        ranks.barrier()  # rank 0 has written the last checkpoint
        return _finished(session)


def _log(run: Path, config: RunConfig, ranks: Ranks, resumed: Checkpoint | None, resuming: bool) -> Log:
    """Open the run's log; on resuming, without what was logged after the checkpoint."""
    return Log(
        run,
        tensorboard=config.train.tensorboard,
        size=resumed.trainer()["metrics_size"] if resumed is not None else None,
        resume_at=(resumed.meta["step"] if resumed is not None else 0) if resuming else None,
        first=ranks.first,
    )


def _begin(run: Path, training: Training, log: Log, stop: Callable[[], bool]) -> Session:
    return begin(run, training, functools.partial(set_up, training), log, stop)


def _write_transplant(run: Path, training: Training) -> None:
    """Say what was loaded from the source, and keep the whole report."""
    found = training.model.report
    if found is not None:
        for line in found.lines():
            say(line)
        (run / "transplant.json").write_text(json.dumps(found.to_json(), indent=1) + "\n", "utf-8")


def _go_on(session: Session, saved: Checkpoint) -> None:
    """Restore a session from a checkpoint. Raises DataError where the data is not what it was."""
    spec = session.training.data.spec
    if saved.spec.fingerprint != spec.fingerprint:
        raise DataError(
            f"the training data is not what it was when {saved.path} was saved",
            "its files, sizes or labels changed; start another run with --from to use the new data",
        )
    if saved.spec != spec:
        raise DataError(f"the data is described differently than when {saved.path} was saved")
    restore(session, saved)
    say(f"resuming {session.run} at step {session.state.step}")
    if session.state.finished:
        say("this run is finished; --epochs +N adds more")


def _ready(session: Session) -> None:
    """Check the disk, say what is about to happen, and let go of the run that this one replaces."""
    training, ranks = session.training, session.ranks
    if ranks.first:
        _check_disk(session)
    sizes = ", ".join(f"{n:,} {part}" for part, n in training.data.spec.sizes.items())
    length = training.config.train.budget or f"{training.total:,} steps"
    say(
        f"{sizes} samples; {length}, {training.loader.steps_per_epoch:,} steps per epoch; {training.device}, "
        f"{training.config.train.precision}" + (f", {ranks.world} ranks" if ranks.world > 1 else "")
    )
    if ranks.first:
        settle(session.run, keep_new=True)


def _check_disk(session: Session) -> None:
    """Raise DiskError before the first epoch, rather than after it, where two checkpoints have no room."""
    weights = sum(t.numel() * t.element_size() for t in session.objective.state_dict().values())
    needed = weights * (4 if session.average is None else 5) * 2  # Adam's two moments; two full checkpoints
    free = free_bytes(session.run)
    if free < needed:
        raise DiskError(
            f"{session.run}: two checkpoints need {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free",
            "free some space, or use --out on another disk",
        )


def _finished(session: Session) -> Result:
    run, bad = session.run, session.state.bad_samples
    best = open_checkpoint((run / "checkpoints" / "best").resolve())
    if bad:
        say(f"left out {len(bad)} samples that could not be read; they are listed in {run / 'bad_samples.txt'}")
    if session.ranks.first:
        report(run)
    return Result(run, best.path, dict(best.meta["metrics"]), session.state.seconds)
