"""Train and evaluate: the only loop. It names no plug-in and no modality."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

from torch import Tensor
from tqdm import tqdm

from fmeco.checkpoints.transplant import load_exactly, split_state
from fmeco.data.reading import check_classes
from fmeco.data.twins import twins
from fmeco.errors import ConfigError, Diverged, Stopped, clean, listing
from fmeco.log import duration, say
from fmeco.reports.findings import keep_rows
from fmeco.training.budget import Clock, Pace, more_time
from fmeco.training.session import Session, evaluated_weights, pack_optimizer, save, update_average
from fmeco.training.state import Measured
from fmeco.training.step import settle, take_step, train_mode

MIN_SECONDS_BETWEEN_SAVES = 20.0  # with save_every: auto
QUIET_SECONDS = 30.0  # without a bar, after which a line says how far training is


def train(s: Session) -> None:
    """Train a session from its state to its end, phase by phase.

    Raises Diverged, Stopped (after saving), and the errors of reading data.
    """
    state, pace, clock = s.state, Pace(s.state, s.training), Clock(s.state)
    started, s.saved_at, s.said_at = time.monotonic() - state.seconds, state.seconds, state.seconds
    bar = tqdm(
        total=None if s.train.budget else state.total,
        initial=state.step,
        unit="step",
        disable=None if s.ranks.first else True,
        dynamic_ncols=True,
        leave=False,
    )

    def agree() -> bool:
        """Set the clock of every rank to the latest one, so that ranks evaluate, save and stop together.

        Returns whether any rank was asked to stop.
        """
        stop, state.seconds = s.ranks.most(float(s.stop()), time.monotonic() - started)
        return stop > 0

    def enter(phase: int) -> None:
        """Set up a phase, once the writer is idle."""
        began = time.monotonic()
        s.writer.wait()  # fork loader workers while no other thread runs
        s.enter(phase)
        clock.charge("data", began)
        agree()
        pace.enter()

    with bar, s.writer:
        if s.entered is None:
            enter(state.phase)
        s.read_from = s.epoch
        if s.training.solved:
            _keep_source(s, pace, clock)
        if state.step == 0 and s.training.new_head is not None:
            _load_head(s, s.training.new_head)
        try:
            _phase(s, pace, clock, agree, bar)
            while not state.finished and not pace.last:
                if state.source is None and state.kept is not None and s.training.model.transfer.penalties is not None:
                    # The head has no direct solution, and was trained alone: its best checkpoint is what to beat.
                    state.source, state.source_step = state.kept[0], state.best_step
                    say(f"the head was trained alone until step {state.step}; step {state.best_step} is what to beat")
                state.phase_start, state.phase_history, state.waited = pace.position, len(state.history), 0
                enter(state.phase + 1)
                _phase(s, pace, clock, agree, bar)
        except Diverged as error:
            _back_to_source(s, error)
    state.seconds = time.monotonic() - started
    _say_where_time_went(s)
    if pace.timed and state.history and not _enough(s):
        measures, size = s.training.measures, s.training.validation_size
        told = more_time(state.history, measures.sign, measures.best, s.epoch, s.error, steps=state.step, samples=size)
        say(told)


def _keep_source(s: Session, pace: Pace, clock: Clock) -> None:
    """Evaluate and save the solved head on the source's backbone, as step 0: what training has to beat."""
    state, began = s.state, time.monotonic()
    state.source_step = 0
    if s.setup.validate is not None:
        source_head = s.training.source_head
        _evaluate(s, _keep_better_head(s, source_head) if source_head is not None else None)
        state.source = state.history[-1]
        clock.charge("evaluate", began)
        pace.evaluated(*s.ranks.most(time.monotonic() - began))
    began = time.monotonic()
    if not state.finished and pace.over():
        state.finished = True
        say("the time is used up: the solved head on the source's backbone is the result")
    save(s, full=True, best=True)
    clock.charge("save", began)
    say(f"saved the solved head as step 0: {s.run / 'checkpoints'}")


def _keep_better_head(s: Session, source_head: Mapping[str, Tensor]) -> Measured:
    """Begin with the source's own head unless the solved one scores higher on the validation split.

    Returns the evaluation of the head that is kept.
    """
    assert s.setup.validate is not None
    parameters, measures = split_state(s.objective)[1], s.training.measures
    heads = [{name: tensor.clone() for name, tensor in parameters.items()}, source_head]
    measured, scores = [], []
    for head in heads:
        load_exactly(parameters, head, "the head")
        measured.append(s.setup.validate())
        scores.append(measures.sign * measured[-1].metrics.get(measures.best, math.nan))
    kept = int(scores[1] >= scores[0])
    if kept:
        say(
            f"the source's own head for these classes is as good as the solved one or better ({measures.best}), and is kept"
        )
    _load_head(s, heads[kept])
    return measured[kept]


def _load_head(s: Session, head: Mapping[str, Tensor]) -> None:
    """Replace the head, and that of the averaged weights."""
    load_exactly(split_state(s.objective)[1], head, "the head")
    if s.average is not None:
        load_exactly({name: s.average[name] for name in head}, head, "the head")


def _back_to_source(s: Session, error: Diverged) -> None:
    """End a diverged run with the best checkpoint so far, if one holds the source with a fitted head; otherwise raise the error."""
    s.writer.wait()
    if s.state.source_step is None:
        raise error
    s.state.finished = True
    result = "the solved head on the source's backbone" if s.state.best_step == 0 else f"step {s.state.best_step}"
    say(clean(f"training diverged: {error.message}"))
    say(f"the run ends here, and {result} is the result: it was the best on the validation split")


def _phase(s: Session, pace: Pace, clock: Clock, agree: Callable[[], bool], bar: Any) -> None:
    """Train to the end of the phase: step, log, evaluate, save, in that order."""
    state, setup, last, first = s.state, s.setup, pace.last, s.state.step
    model = s.ranks.parallel(s.objective, s.training.device)
    batches = setup.loader.batches(state.step, state.total if pace.timed else min(state.total, int(pace.end)))
    train_mode(s)
    history = state.history[state.phase_history :]
    fits_head = not last and state.source is None and s.training.model.transfer.penalties is not None
    with contextlib.closing(batches):
        stop = agree()
        while state.step < state.total and not state.finished and (last or not (pace.phase_over() or _enough(s))):
            if stop:
                settle(s)
                save(s, full=True)
                s.writer.wait()
                s.ranks.barrier()
                raise Stopped(f"stopped at step {state.step}; everything is saved", f"fmeco resume {s.run}")
            factor = _set_rate(s, pace, history)
            take_step(s, model, batches, clock, factor)
            if state.step == first:
                pack_optimizer(setup.optimizer)  # refuse a state that cannot be saved before there is work to lose
            state.step += 1
            state.samples += setup.loader.samples_in(state.step - 1)
            if s.average is not None:
                update_average(s.average, s.objective, s.train.ema or 0.0, state.step)
            s.objective.after_step(pace.progress)
            bar.update()

            logs = state.step % s.train.log_every == 0 or state.step == state.total
            if logs:  # the loop waits for a GPU only here, and before evaluations and saves
                settle(s)
                if state.window:
                    _show_progress(s, bar, _log(s, clock), pace.progress)
            stop = agree()
            ends = pace.stepped()
            # With a time budget, an evaluation must leave time for the last one, and for training.
            scheduled = state.step % s.training.evaluate_every == 0 and not pace.over(2) and not pace.measured_enough()
            evaluated = setup.validate is not None and (scheduled or ends or (fits_head and pace.phase_over()))
            improved = False
            if evaluated:
                began = time.monotonic()
                improved = _evaluate(s)
                history = state.history[state.phase_history :]
                clock.charge("evaluate", began)
                pace.evaluated(*s.ranks.most(time.monotonic() - began))
                stop = agree() or stop
                if enough := _enough(s):
                    say(f"early stop: {s.training.measures.best} did not improve in {state.waited} evaluations")
                ends = ends or pace.over() or (enough and last)
            state.finished = ends
            if s.train.save_every == "auto":
                due = evaluated and state.seconds - s.saved_at > MIN_SECONDS_BETWEEN_SAVES
            else:
                due = state.step % s.train.save_every == 0
            if ends or due or improved:
                began = time.monotonic()
                settle(s)
                save(s, full=ends or due, best=improved or setup.validate is None)
                clock.charge("save", began)
                s.saved_at = state.seconds if ends or due else s.saved_at


def _set_rate(s: Session, pace: Pace, history: list[float]) -> float:
    """Set the learning rates of the next step. Returns the schedule's factor on them.

    Raises ConfigError for a factor below 0 or not finite.
    """
    step, total = pace.place
    factor: Any = s.schedule(step=step, total=total, history=history)
    if not (isinstance(factor, Real) and 0 <= float(factor) < math.inf):
        choice = s.training.config.schedule
        raise ConfigError(
            f"schedule: {choice.spelled} returned {clean(factor)} at step {s.state.step}: the factor on the learning "
            f"rate must be a number from 0 ({choice.plugin.file})"
        )
    for group in s.setup.optimizer.param_groups:
        group["lr"] = group["base_lr"] * float(factor)
    return float(factor)


def _enough(s: Session) -> bool:
    """Whether early stopping ends the phase: the last evaluations brought no improvement."""
    return s.train.early_stop is not None and s.state.waited >= s.train.early_stop


def _log(s: Session, clock: Clock) -> str:
    """Log the mean of the steps since the last line. Returns it as text for the progress bar."""
    window = s.state.window
    loss, norm = (sum(step[k] for step in window) / len(window) for k in (0, 1))
    training, data = clock.lap()
    rate = sum(step[2] for step in window) / training
    s.loss = loss
    values = {
        "loss": loss,
        "grad_norm": norm,
        "lr": s.setup.optimizer.param_groups[0]["lr"],
        "samples_per_second": rate,
        "data_share": data / training,
    }
    s.log.write("train", s.state.step, s.epoch, values)
    s.state.window = []
    return f"loss {loss:.4f}, {rate:.0f} samples/s"


def _show_progress(s: Session, bar: Any, told: str, progress: float) -> None:
    """Show figures of the last steps in the bar; without one, now and then in a line, with the time that is left."""
    bar.set_postfix_str(told, refresh=False)
    if bar.disable and s.state.seconds - s.said_at > QUIET_SECONDS:
        s.said_at = s.state.seconds
        left = duration(s.state.seconds * (1 / max(progress, 1e-9) - 1))
        say(f"epoch {s.epoch:.3g}, step {s.state.step}, {progress:.0%}: {told}, about {left} left")


def _evaluate(s: Session, measured: Measured | None = None) -> bool:
    """Evaluate on the validation split. Returns whether the weights are the best so far.

    measured: the evaluation of these weights, if there is one already.
    """
    assert s.setup.validate is not None
    settle(s)
    if window := s.state.window:
        s.loss = sum(step[0] for step in window) / len(window)
    s.writer.wait()  # fork loader workers while no other thread runs
    _check_classes_read(s)
    s.ranks.broadcast_(list(s.objective.buffers()))
    with evaluated_weights(s):
        s.metrics, bad, s.error, rows = measured or s.setup.validate()
    if s.measured_at < 0:
        say(ways({"training loss": "min", **s.training.measures.directions}, ["training loss", *s.metrics]))
    s.measured_at = s.state.step
    s.state.bad_samples = list(dict.fromkeys([*s.state.bad_samples, *bad]))
    train_mode(s)
    problem = s.objective.ailing(s.metrics) if s.training.config.evaluate.health != "off" else None
    if problem is not None and s.training.config.evaluate.health == "stop":
        s.log.write("val", s.state.step, s.epoch, s.metrics)
        raise Diverged(f"step {s.state.step}: {problem}", "evaluate.health: warn continues in spite of it")
    if problem is not None:
        say(f"step {s.state.step}: {problem}")
    highest = s.state.best
    improved = _score(s)
    if improved and s.ranks.first:
        keep_rows(s.run, s.objective, rows, s.state.step)
    s.log.write("val", s.state.step, s.epoch, s.metrics)
    _say_twins(s)
    figures = {**({} if s.loss is None else {"training loss": s.loss}), **s.metrics}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if "/" not in name)
    s.said_at = s.state.seconds
    star = "  *" if highest is None or s.state.history[-1] > highest else ""
    say(f"epoch {s.epoch:g}, step {s.state.step}: {shown}{star}")
    return improved


def _read_once(s: Session) -> bool:
    """Tell whether this process has read every training sample: whether a whole epoch began and ended in it."""
    return s.epoch >= math.ceil(s.read_from) + 1


def _check_classes_read(s: Session) -> None:
    """Refuse to go on if, after a whole epoch, no sample of a class could be read. Raises DataError that names it."""
    if s.read is None or not _read_once(s):
        return
    read = s.ranks.sum_(s.read.clone()).nonzero()[:, 0]
    if s.ranks.most(len(s.state.bad_samples))[0] > 0:
        check_classes(s.training.data.spec, s.training.data.split("train"), read, "training")


def _say_twins(s: Session) -> None:
    """Report, once and after a whole epoch, samples that occur in several splits or classes. By then they have been read."""
    if s.ranks.first and not s.compared and _read_once(s):
        s.compared = True
        for message in twins(s.training.data, whole=False):
            say(f"{message}. `fmeco check` lists them before a run")


def _say_where_time_went(s: Session) -> None:
    """Log how the whole run's time was spent, to metrics.jsonl and to the user."""
    state = s.state
    shares = {f"{what}_share": seconds / max(state.seconds, 1e-9) for what, seconds in state.spent.items()}
    shares = {"compute_share": max(0.0, 1 - sum(shares.values())), **shares}
    if not state.samples:
        say(f"{state.seconds:.1f} s, without training steps")
        return
    training = state.seconds - state.spent["evaluate"] - state.spent["save"]
    rate = state.samples / max(training, 1e-9)
    s.log.write("time", state.step, s.epoch, {**shares, "samples_per_second": rate})
    words = {"compute": "computing", "data": "waiting for data", "evaluate": "evaluating", "save": "saving"}
    spent = ", ".join(f"{shares[f'{what}_share']:.0%} {word}" for what, word in words.items())
    say(f"{state.seconds:.1f} s: {spent}; {rate:,.0f} samples/s in training")


def ways(directions: Mapping[str, str], names: Iterable[str]) -> str:
    """Say which metrics are better if they are higher, and which if they are lower. Those of single classes are left out."""
    shown = [name for name in names if "/" not in name]
    groups = {
        words: [name for name in shown if directions.get(name) == way]
        for way, words in (("max", "higher is better"), ("min", "lower is better"))
    }
    return "; ".join(f"{words}: {', '.join(group)}" for words, group in groups.items() if group)


def _score(s: Session) -> bool:
    """Add the newest metrics to the history. Returns whether the weights replace those that are kept as the best.

    They do if their score is within one standard error of the highest: a smaller difference is noise, and later
    weights have trained longer (one-standard-error rule, https://doi.org/10.1007/978-0-387-84858-7 section 7.10). But they
    must not be worse than the kept ones in both score and loss, nor score below the solved head that training began with.

    Raises Diverged for a metric that is not finite, and ConfigError if `evaluate.best` was not measured.
    """
    if bad := [name for name, value in s.metrics.items() if not math.isfinite(value)]:
        raise Diverged(f"step {s.state.step}: not finite on the validation split: {listing(bad)}", "lower optimizer.lr")
    if s.training.measures.best not in s.metrics:
        raise ConfigError(
            f"evaluate.best: {s.training.measures.best} cannot be measured on this validation split",
            f"measured: {listing([name for name in s.metrics if '/' not in name])}",
        )
    score = s.training.measures.sign * s.metrics[s.training.measures.best]
    s.state.history.append(score)
    if s.state.best is None or score > s.state.best:
        s.state.best, s.state.waited = score, 0
    else:
        s.state.waited += 1
    loss = [s.metrics["loss"]] if s.training.measures.directions.get("loss") == "min" and "loss" in s.metrics else []
    kept, source = s.state.kept, s.state.source
    worse = kept is not None and score < kept[0] and len(kept) > 1 and bool(loss) and loss[0] > kept[1]
    if score < s.state.best - s.error or worse or (source is not None and score < source):
        return False
    s.state.best_step, s.state.kept = s.state.step, [score, *loss]
    return True
