"""The promises of an optimizer: it obeys the rates of its groups, and goes on exactly from its saved state."""

from __future__ import annotations

import copy
import functools
import json

import torch
from torch import nn

from fmeco.assembly.optimizer import build_optimizer
from fmeco.config.run_config import Choice
from fmeco.core.random import seed_torch
from fmeco.core.training import parameter_groups
from fmeco.errors import CheckpointError, listing
from fmeco.testing.bench import Bench
from fmeco.testing.report import Broken, Checks
from fmeco.training.session import pack_optimizer, parameter_names, restore_optimizer

STEPS = 3
SLOW = 0.5  # scale of the first layer's rate
HIDDEN = {"2.weight"}  # of the model below


def checks(choice: Choice, bench: Bench) -> Checks:
    """Check an optimizer on a small network."""
    _optimizer(choice, _model())
    if not (yield "rates", functools.partial(_rates, choice)):
        return
    yield "a step", functools.partial(_step, choice)
    yield "saving and loading", functools.partial(_saving, choice)


def _model() -> nn.Module:
    seed_torch(3)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def _optimizer(choice: Choice, model: nn.Module, slow: float = SLOW) -> torch.optim.Optimizer:
    named = dict(model.named_parameters())
    scales = {name: slow if name.startswith("0.") else 1.0 for name in named}
    return build_optimizer(choice, parameter_groups(named.items(), scales, HIDDEN))


def _take(optimizer: torch.optim.Optimizer, model: nn.Module, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        model.zero_grad()
        model(torch.randn(16, 4, generator=generator)).square().mean().backward()
        optimizer.step()


def _rate_of_each(choice: Choice, slow: float) -> dict[str, float]:
    model = _model()
    names = {id(p): name for name, p in model.named_parameters()}
    rates: dict[str, float] = {}
    for group in _optimizer(choice, model, slow).param_groups:
        own = group.get("names") or [names[id(p)] for p in group["params"] if id(p) in names]
        rates |= dict.fromkeys(own, group["lr"])
    return rates


def _rates(choice: Choice) -> str | None:
    plain, slowed = _rate_of_each(choice, 1.0), _rate_of_each(choice, SLOW)
    for name, rate in slowed.items():
        wanted = plain[name] * (SLOW if name.startswith("0.") else 1.0)
        if abs(rate - wanted) > 1e-9 * max(rate, wanted):
            raise Broken(
                f"with a scale of {SLOW} for its first layer, {name} has the rate {rate:g} in place of {wanted:g}; "
                "training multiplies `lr` by the scale, the plug-in does not"
            )
    return None


def _step(choice: Choice) -> str | None:
    model = _model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = _optimizer(choice, model)
    _take(optimizer, model, range(1))
    after = dict(model.named_parameters())
    if wrong := [name for name, p in after.items() if not p.isfinite().all()]:
        raise Broken(f"a step makes {listing(wrong, 5)} not finite")
    if still := [name for name, p in after.items() if torch.equal(p, before[name])]:
        raise Broken(f"a step does not move {listing(still, 5)}")
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    _take(optimizer, model, range(1, 2))
    if moved := [name for name, p in model.named_parameters() if not torch.allclose(p, kept[name], atol=1e-7)]:
        raise Broken(f"a step at lr 0 moves {listing(moved, 5)}: schedules write group['lr'], which step() must use")
    return None


def _saving(choice: Choice) -> str | None:
    """Stop after a few steps, save, load into a new model and optimizer, and compare with going on."""
    model = _model()
    optimizer = _optimizer(choice, model)
    _take(optimizer, model, range(STEPS))
    tensors, numbers = pack_optimizer(optimizer)
    numbers = json.loads(json.dumps(numbers))
    other = copy.deepcopy(model)
    resumed = _optimizer(choice, other)
    kept = {name: x.clone() for name, x in tensors.items()}
    try:
        restore_optimizer(resumed, kept, numbers, parameter_names(optimizer), choice.plugin.file.name)
    except (CheckpointError, ValueError, KeyError, IndexError) as error:
        raise Broken(f"its saved state cannot be loaded: {error}") from error
    _take(optimizer, model, range(STEPS, 2 * STEPS))
    _take(resumed, other, range(STEPS, 2 * STEPS))
    theirs = dict(other.named_parameters())
    if strange := [name for name, p in model.named_parameters() if not torch.equal(p, theirs[name])]:
        raise Broken(
            f"after loading its state, {listing(strange, 3)} go on differently: keep what changes in self.state[parameter]"
        )
    return None
