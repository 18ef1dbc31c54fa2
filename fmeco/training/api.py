"""Run training from Python: pretrain, finetune and resume.

Each function takes a config (a path or a mapping) and a REF, as the command of the same name does, and returns plain
values.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmeco.assembly.solved_head import with_solved_head
from fmeco.assembly.stages import Training
from fmeco.assembly.training import assemble
from fmeco.checkpoints import pointers
from fmeco.checkpoints.format import META, Checkpoint, newest, open_checkpoint, steps
from fmeco.checkpoints.refs import check_run
from fmeco.checkpoints.writer import rehearse, tidy
from fmeco.config.arguments import checked
from fmeco.config.load import read_config
from fmeco.config.resuming import check_overrides, check_unedited, extended, is_sealed, sealed, was_edited
from fmeco.config.run_config import RunConfig
from fmeco.core.data import Data
from fmeco.core.model import Backbone
from fmeco.distributed.ranks import Ranks, together
from fmeco.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DiskError,
    Diverged,
    Stopped,
    clean,
    known_errors,
)
from fmeco.files import absence, free_bytes
from fmeco.log import say
from fmeco.reports.metrics_files import Log
from fmeco.reports.run_report import report
from fmeco.training import loop, lr_range_test
from fmeco.training.phase import set_up
from fmeco.training.run_directory import abandon, claim, describe_result, locked, settle, write_config, write_transplant
from fmeco.training.session import Session, begin, restore

Config = Path | str | Mapping[str, Any] | None


def never() -> bool:
    """Return False: the default `stop` of a run."""
    return False


@dataclass(frozen=True)
class Result:
    """Hold the result of a training run.

    run: its directory.
    checkpoint: the best one.
    metrics: of that checkpoint.
    seconds: of training.
    directions: "max" for a metric that is better if it is higher, else "min".
    selects: the metric that selects the best checkpoint.
    """

    run: Path
    checkpoint: Path
    metrics: dict[str, float]
    seconds: float
    directions: dict[str, str] = field(default_factory=dict)
    selects: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the result as a command prints it with --json."""
        return {
            "run": str(self.run.resolve()),
            "checkpoint": str(self.checkpoint.resolve()),
            "metrics": self.metrics,
            "directions": self.directions,
            "seconds": round(self.seconds, 3),
        }


@checked
def pretrain(
    source: Config,
    *,
    ref: str | Path | None = None,
    dataset: str | Path | None = None,
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


@checked
def finetune(
    source: Config = None,
    *,
    ref: str | Path | None = None,
    dataset: str | Path | None = None,
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

    out: the run's directory; None for a new one below runs/.
    force: replace an earlier run there.
    stop: polled before each step; once it returns True, the run saves and raises Stopped.
    """
    directory = Path(out) if out else None
    with together(config.train.device) as ranks:
        run = Path(
            ranks.from_first(lambda: str(claim(directory, f"{config.stage}-{config.name}", config.source, force)))
        )
        with locked(run) if ranks.first else contextlib.nullcontext():
            try:
                if ranks.first:  # from here on the run can be resumed, even if it is killed during set-up
                    write_config(run, sealed(config.undecided().to_yaml()))
                return _run(run, config, data, backbone, stop, ranks)
            except (Exception, KeyboardInterrupt) as error:  # also a plug-in's
                if ranks.first and not isinstance(error, Diverged | Stopped):
                    abandon(run)
                raise
            finally:
                if ranks.first:
                    settle(run, keep_new=False)  # restores a replaced run; does nothing once training has begun


@known_errors()
@checked
def resume(
    run: str | Path,
    *,
    data: Data | None = None,
    backbone: Backbone | None = None,
    epochs: str | float | None = None,
    overrides: Sequence[str] = (),
    stop: Callable[[], bool] = never,
) -> Result:
    """Continue a run that was stopped or killed, bit for bit.

    data, backbone: objects that the run was given must be passed again.
    epochs: "20" or 20 for 20 in all, or "+5" for 5 more; extends a finished run. After an early stop, both count from there.
    overrides: as --set, for the keys in CHANGEABLE: where data is, and how it is read.
    stop: as for `train`.

    The schedule is a function of the finished share of the run: with more epochs, the learning rate continues where a
    run of the new length would be.

    Raises ConfigError if config.yaml was edited in a key that must not change, and the errors of fmeco.errors.
    """
    folder = Path(run)
    file = folder / "config.yaml"
    if not file.is_file():
        what = f"config.yaml: {absence(file)}" if file.exists() else "it holds no config.yaml"
        raise ConfigError(f"{clean(run)} is not a run: {what}", "fmeco resume takes the run's directory")
    check_overrides(overrides)
    check_run(folder)
    config = read_config(file, overrides=overrides, name=folder.name, own_backbone=backbone is not None)
    written = file.read_text("utf-8")
    with (
        together(config.train.device) as ranks,
        locked(folder) if ranks.first else contextlib.nullcontext(),
    ):
        path = ranks.from_first(lambda: _newest(folder / "checkpoints"))
        saved = open_checkpoint(Path(path)) if path else None
        if saved is not None:
            check_unedited(file, config, _config_of(saved, backbone), own_length=is_sealed(written))
        elif was_edited(written):
            say(f"{file} was edited; the run has no checkpoint yet, so all of it follows the edited config")
        if epochs is not None:
            config = extended(config, str(epochs), _stopped_at(saved))
        return _run(folder, config, data, backbone, stop, ranks, saved, resuming=True, longer=epochs is not None)


def _config_of(saved: Checkpoint, backbone: Backbone | None) -> RunConfig:
    """Read the config in a checkpoint. Keys that its version of fmeco did not have get their defaults."""
    try:
        return read_config(saved.meta["config"], own_backbone=backbone is not None)
    except ConfigError as error:
        raise CheckpointError(f"{saved.path / META}: config: {error.message}", *error.hints) from None


def _stopped_at(saved: Checkpoint | None) -> float | None:
    """Return the epoch at which early stopping ended a run; None if it did not."""
    if saved is None:
        return None
    state = saved.trainer()["state"]
    return float(saved.meta["epoch"]) if state["finished"] and state["step"] < state["total"] else None


def _newest(folder: Path) -> str:
    """Find the checkpoint to resume from; "" for none. Leftovers of a killed process are removed first."""
    tidy(folder, 10**9)
    pointers.restore(folder)
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
    longer: bool = False,
) -> Result:
    """Assemble the run, train it, and report.

    resumed: checkpoint to continue from.
    resuming: whether the run continues, if only from step 0.
    longer: whether it is to be longer than before.
    """
    ranks.from_first(lambda: str(rehearse(run / "checkpoints")))
    with _log(run, config, ranks, resumed, resuming) as log:
        training = assemble(config, data=data, backbone=backbone, resumed=resumed, ranks=ranks)
        if ranks.first and not resuming and training.model.report is not None:
            write_transplant(run, training.model.report)
        preparing_began = time.monotonic()
        if resumed is None:
            training = with_solved_head(training)
        if training.config.optimizer.options["lr"] == "auto":
            training = lr_range_test.with_rate(training, lambda with_rate: _begin(run, with_rate, log, stop), log)
        preparing_seconds = time.monotonic() - preparing_began
        if ranks.first:
            write_config(run, sealed(training.config.to_yaml()))
        session = _begin(run, training, log, stop)
        if resumed is not None:
            _restore(session, resumed, longer)
        elif config.train.budget is not None:  # the budget includes the range test and the solved head
            session.state.seconds = session.state.phase_start = preparing_seconds
        if resuming and resumed is None:
            say(f"resuming {run} at step 0: it stopped before its first checkpoint")
        _announce(session)
        loop.train(session)
        ranks.barrier()  # rank 0 has written the last checkpoint
        return _result(session)


def _log(run: Path, config: RunConfig, ranks: Ranks, resumed: Checkpoint | None, resuming: bool) -> Log:
    """Open the run's log. On resuming, lines logged after the checkpoint are dropped."""
    return Log(
        run,
        tensorboard=config.train.tensorboard,
        size=resumed.trainer()["metrics_size"] if resumed is not None else None,
        resume_at=(resumed.meta["step"] if resumed is not None else 0) if resuming else None,
        first=ranks.first,
    )


def _begin(run: Path, training: Training, log: Log, stop: Callable[[], bool]) -> Session:
    """Start a session of an assembled training."""
    return begin(run, training, functools.partial(set_up, training), log, stop)


def _restore(session: Session, saved: Checkpoint, longer: bool) -> None:
    """Restore a session from a checkpoint. Raises DataError if the data has changed since."""
    spec = session.training.data.spec
    if saved.spec.fingerprint != spec.fingerprint:
        raise DataError(
            f"the training data is not what it was when {saved.path} was saved",
            "its files, sizes or labels changed; to use the new data, start a new run with --from",
        )
    if saved.spec != spec:
        raise DataError(
            f"the data has another spec (inputs, targets or preprocessing) than when {saved.path} was saved"
        )
    restore(session, saved, longer)
    say(f"resuming {session.run} at step {session.state.step}")
    if session.state.finished:
        say("this run is already finished; --epochs +N trains N more")


def _announce(session: Session) -> None:
    """Check the disk, log what is about to happen, and delete the run that this one replaces."""
    training, ranks = session.training, session.ranks
    if ranks.first:
        _check_disk(session)
    sizes = ", ".join(f"{n:,} {part}" for part, n in training.data.spec.sizes.items())
    workers = training.loader.reading.workers
    say(
        f"{sizes} samples; {_planned(session)}; {training.device}, {training.config.train.precision}"
        + (f", {workers} worker process{'es' * (workers > 1)}" if workers else "")
        + (f", {ranks.world} ranks" if ranks.world > 1 else "")
    )
    if ranks.first:
        settle(session.run, keep_new=True)


def _planned(session: Session) -> str:
    """Say how long the run is: no steps if its head was solved and is all that it fits, or if it is finished."""
    training = session.training
    if session.state.finished:
        return "no training steps" + (": the solved head is the result" if training.solved else "")
    train, per_epoch = training.config.train, training.loader.steps_per_epoch
    epochs = f" ({train.epochs:g} epochs)" if train.epochs is not None else ""
    return f"{train.budget or f'{training.total:,} steps{epochs}'}, {per_epoch:,} steps per epoch"


def _check_disk(session: Session) -> None:
    """Raise DiskError before the first epoch if two checkpoints do not fit on the disk."""
    weights = sum(t.numel() * t.element_size() for t in session.objective.state_dict().values())
    needed = weights * (4 if session.average is None else 5) * 2  # Adam's two moments; two full checkpoints
    free = free_bytes(session.run)
    if free < needed:
        raise DiskError(
            f"{session.run}: two checkpoints need {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free",
            "free some space, or choose --out on another disk",
        )


def _result(session: Session) -> Result:
    """Write report.html, and return the best checkpoint and its metrics."""
    run, bad = session.run, session.state.bad_samples
    marked = pointers.marked(run / "checkpoints", "best")
    assert marked is not None, "the first save marks a checkpoint"
    best = open_checkpoint(marked)
    if bad:
        say(f"skipped {len(bad)} samples that could not be read; they are listed in {run / 'bad_samples.txt'}")
    measures = session.training.measures
    if session.ranks.first:
        describe_result(session.training, run, best.meta["step"])
        report(run)
    directions = {f"val_{name}": str(way) for name, way in measures.directions.items()}
    return Result(run, best.path, dict(best.meta["metrics"]), session.state.seconds, directions, measures.best)
