"""The promises of an objective: its loss is a sum, its metrics are pure, and learning lowers the loss."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from fmeco.assembly import defaults
from fmeco.assembly.model import roles_of
from fmeco.assembly.optimizer import build_optimizer
from fmeco.checkpoints.transplant import split_state
from fmeco.config.check import DEFAULT_NAMES, choose
from fmeco.config.run_config import Choice
from fmeco.core.data import Batch, Data
from fmeco.core.model import Backbone, Loss, Objective, Teacher
from fmeco.core.page import Cases, Table
from fmeco.core.random import seed_torch
from fmeco.core.training import parameter_groups
from fmeco.data.loader import Loader
from fmeco.errors import ConfigError, FmecoError, listing
from fmeco.features import forward
from fmeco.testing.bench import ALONE, CPU, Bench, batches, with_targets
from fmeco.testing.report import Broken, Checks

TOLERANCE = 1e-4  # between a sum and the sum of its parts
STEPS, RATE = 20, 3e-3
SIZE = 16  # samples of a step


class Match(NamedTuple):
    """An objective that works, and what it works with."""

    objective: Objective
    data: Data
    batch: Batch
    words: str


def checks(choice: Choice, bench: Bench) -> Checks:
    """Check an objective with the first data and backbone that it takes."""
    found = match(choice, bench)
    if isinstance(found, Exception):
        yield "loss", functools.partial(_again, found)
        return
    objective, batch = found.objective, found.batch
    if not (yield f"loss ({found.words})", functools.partial(_loss, objective, batch)):
        return
    yield "parts of a batch", functools.partial(_parts, objective, batch)
    yield "rows and metrics", functools.partial(_metrics, objective, found.data)
    yield "predictions", functools.partial(_predictions, objective, found.data)
    yield "state dict", functools.partial(_state, objective)
    yield f"{STEPS} steps", functools.partial(_learning, objective, batch)


def _again(error: Exception) -> str | None:
    raise error


def match(choice: Choice, bench: Bench) -> Match | Exception:
    """Find data and a backbone that the objective takes, and a batch whose loss it can tell.

    Where it can tell none, returns the error of the first data and backbone that it was built for. Raises Broken where it
    was built for none.
    """
    refused: dict[str, None] = {}
    failed: Exception | None = None
    for words, data, backbone in _offers(bench):
        try:
            objective = _build(choice, data, backbone)
        except (FmecoError, KeyError, TypeError, AttributeError) as error:
            said = error.message if isinstance(error, FmecoError) else f"{type(error).__name__}: {error}"
            refused[said] = None
            continue
        try:
            batch = _batch(objective, data)
            objective.begin()
            objective(batch, "loss")
        except Exception as error:
            failed = failed or error
            continue
        return Match(objective, data, batch, words)
    if failed is not None:
        return failed
    raise Broken(
        f"it takes none of the data there is ({listing(refused, 3)}); give what it is for with --plugin or --dataset"
    )


def _offers(bench: Bench) -> Iterator[tuple[str, Data, Backbone]]:
    """Data as it is first, then with generated targets; for each the backbones that take it."""
    offered = ((name, list(with_targets(data))) for name, data in bench.trials())
    held = list[tuple[str, list[tuple[str, Data]]]]()
    for name, variants in offered:
        held.append((name, variants))
        yield from ((f"{name}, its own targets", variants[0][1], body) for body in bench.backbones(variants[0][1]))
    for name, variants in held:
        for target, data in variants[1:]:
            yield from ((f"{name}, {target}", data, body) for body in bench.backbones(data))


def _build(choice: Choice, data: Data, backbone: Backbone) -> Objective:
    def teacher(ref: str) -> Teacher:
        return Teacher(ref, backbone.eval().requires_grad_(False), None, data.spec, None)

    objective = choice.plugin.build({"backbone": backbone, "spec": data.spec}, choice.options, teacher)
    if not isinstance(objective, Objective):
        raise Broken(f"build() must return a core.Objective, not {type(objective).__name__}")
    return objective


def _batch(objective: Objective, data: Data) -> Batch:
    """Read a training batch of as many views as the objective asks for."""
    samples = data.split("train")
    varied = choose("augment", defaults.augment(data.spec, len(objective.views)))
    augment = varied.build(spec=data.spec, train=samples)
    size = min(SIZE, len(samples))
    return next(Loader(data, samples, objective.views, augment, size, size, 0, ALONE, CPU).batches(0, 1))


def _mean(loss: Loss) -> float:
    return float(loss.sum.detach()) / float(loss.count)


def _loss(objective: Objective, batch: Batch) -> str | None:
    loss = objective.train()(batch, "loss")
    if not isinstance(loss, Loss):
        raise Broken(f"loss() must return a core.Loss, not {type(loss).__name__}")
    if not isinstance(loss.sum, torch.Tensor) or loss.sum.ndim or not loss.sum.requires_grad:
        raise Broken("Loss.sum must be a tensor without dimensions that gradients flow from")
    if not float(loss.count) > 0:
        raise Broken(f"Loss.count is {float(loss.count)}: it is what `sum` is a sum over, such as len(batch)")
    if not math.isfinite(_mean(loss)):
        raise Broken(f"the loss of a batch is {_mean(loss)}")
    return None


def _parts(objective: Objective, batch: Batch) -> str | None:
    """Micro-batches: sums and counts of the halves of a batch add up to its own."""
    objective.eval()
    half = len(batch) // 2
    halves = list(batch.split([half, len(batch) - half]))
    with torch.no_grad():
        whole: Loss = objective(batch, "loss")
        if objective.coupled and type(objective).represent is Objective.represent:
            return "the loss needs the batch whole"
        if objective.coupled:
            parts = zip(*(objective(one, "represent") for one in halves), strict=True)
            together = objective.compare(tuple(torch.cat(one) for one in parts), batch.target)
            sums, counts = float(together.sum), float(together.count)
        else:
            losses: list[Loss] = [objective(one, "loss") for one in halves]
            sums, counts = sum(float(one.sum) for one in losses), sum(float(one.count) for one in losses)
    if not math.isclose(counts, float(whole.count), rel_tol=TOLERANCE):
        raise Broken(f"Loss.count of a batch is {float(whole.count):g}, and its halves count {counts:g}")
    if not math.isclose(sums, float(whole.sum), rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        about = "give the sum over samples, not their mean; a loss that compares samples says `coupled = True`"
        raise Broken(f"Loss.sum of a batch is {float(whole.sum):g}, and its halves sum to {sums:g}: {about}")
    return None


def _metrics(objective: Objective, data: Data) -> str | None:
    part = "val" if data.val is not None and len(data.val) else "train"
    few = batches(data, part, size=8, count=4)
    for batch in few:
        one = forward.forward(objective, batch, "rows", CPU, "fp32")
        if wrong := [name for name, values in one.items() if len(values) != len(batch)]:
            raise Broken(f"rows()['{wrong[0]}'] has {len(one[wrong[0]])} rows for {len(batch)} samples")
    metrics, rows = forward.evaluate(objective, few, CPU, "fp32")
    if not objective.directions:
        raise Broken("`directions` is empty: it says of each metric whether max or min is better")
    if strange := [name for name, way in objective.directions.items() if way not in ("max", "min")]:
        raise Broken(f"directions['{strange[0]}'] must be 'max' or 'min'")
    first = next(iter(objective.directions))
    if first not in metrics:
        raise Broken(f"metrics() has no '{first}', the first of `directions`, which picks the best checkpoint")
    if unsaid := [name for name in metrics if "/" not in name and name not in objective.directions]:
        raise Broken(f"`directions` does not say of '{unsaid[0]}' whether max or min is better")
    if wrong := [name for name, value in metrics.items() if type(value) not in (float, int)]:
        raise Broken(f"metrics()['{wrong[0]}'] must be a number, not {type(metrics[wrong[0]]).__name__}")
    again = objective.metrics(rows)
    if changed := [name for name in metrics if metrics[name] != again.get(name) and not math.isnan(metrics[name])]:
        raise Broken(f"metrics() of the same rows gives another '{changed[0]}' the second time")
    right = objective.correct(rows)
    if right is not None and not math.isclose(float(right.double().mean()), metrics[first], abs_tol=1e-6):
        raise Broken(
            f"the share of correct(rows) is {float(right.double().mean()):g}, and '{first}' {metrics[first]:g}"
        )
    for shown in objective.page(rows):
        if isinstance(shown, Cases) and not (
            len(shown.at) == len(shown.captions) and all(0 <= at < len(rows["index"]) for at in shown.at)
        ):
            raise Broken(f"page(): '{shown.title}' needs a caption for each position, and positions in the rows")
        if isinstance(shown, Table) and any(len(row) != len(shown.columns) for row in shown.rows):
            raise Broken(f"page(): a row of '{shown.title}' has more or fewer cells than there are columns")
    return listing(metrics)


def _predictions(objective: Objective, data: Data) -> str | None:
    if type(objective).predict is Objective.predict:
        return "it makes none"
    few = batches(data, size=4, count=2)
    try:
        outputs = forward.rows_of(objective, few, "predict", CPU, "fp32")
    except ConfigError as error:
        return error.message
    outputs.pop("index")
    answers, count = objective.decode(outputs), sum(map(len, few))
    if len(answers) != count:
        raise Broken(f"decode() gives {len(answers)} answers for {count} samples")
    forms = {name for one in data.spec.riders.values() if (name := one.form)}
    rows = [row for answer in answers for row in objective.told(answer)]
    told = [{key: value for key, value in row.items() if key not in forms} for row in rows]
    if bare := [row for row in told if "prediction" not in row]:
        raise Broken(f"decode(), or told(), gives an answer without the key 'prediction': {listing(bare[0])}")
    try:
        json.dumps(told, default=_not_plain)
    except TypeError as error:
        where = (
            f"; what lies on images is a tensor under the name of its form, {listing(sorted(forms))}" if forms else ""
        )
        raise Broken(f"decode(), or told(), gives an answer that is no JSON: {error}{where}") from None
    return None


def _not_plain(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__}; use plain numbers and text")


def _state(objective: Objective) -> str | None:
    """A checkpoint stores the backbone in one file, and the rest in another."""
    product, rest = split_state(objective)
    if len(product) + len(rest) != len(objective.state_dict()):
        raise Broken("a tensor of the state dict is neither the backbone's nor the rest's: is `product` part of it?")
    own = dict(objective.named_parameters())
    for name, classes in objective.class_rows().items():
        if name not in own or len(own[name]) != len(classes):
            raise Broken(f"class_rows(): '{name}' is no parameter with a row for each of {len(classes)} classes")
    return None


def _learning(objective: Objective, batch: Batch) -> str | None:
    """Steps on one batch lower its loss."""
    roles = roles_of(objective)
    learning = [(name, p) for name, p in objective.named_parameters() if name in roles and p.requires_grad]
    if not learning:
        raise ConfigError("no parameter learns")
    groups = parameter_groups(learning, {name: 1.0 for name, _ in learning})
    optimizer = build_optimizer(choose("optimizer", {"name": DEFAULT_NAMES["optimizer"], "lr": RATE}), groups)
    losses = []
    objective.train()
    for step in range(STEPS):
        seed_torch(0, step)
        optimizer.zero_grad()
        loss: Loss = objective(batch, "loss")
        (loss.sum / loss.count).backward()
        if step == 1:  # a head that starts at zero passes no gradient on before the first step
            _gradients(learning)
        optimizer.step()
        objective.after_step((step + 1) / STEPS)
        losses.append(_mean(loss))
    first, last = losses[0], sum(losses[-5:]) / 5
    moving = type(objective).after_step is not Objective.after_step  # a teacher, whose answers change
    if not last < first and not moving:
        raise Broken(f"the loss of one batch went from {first:.4g} to {last:.4g} in {STEPS} steps on it")
    return f"loss {first:.3g} to {last:.3g}"


def _gradients(learning: list[tuple[str, torch.nn.Parameter]]) -> None:
    without = [name for name, p in learning if p.grad is None and not name.startswith("backbone.")]
    if without:
        raise Broken(f"no gradient reaches {listing(itertools.islice(without, 5))}: freeze it when it is built")
