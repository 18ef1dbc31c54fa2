"""The promises of a strategy: every phase has a rate for every parameter, and trains something."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fmeco.assembly import defaults
from fmeco.assembly.model import roles_of
from fmeco.config.run_config import Choice
from fmeco.core.data import Data
from fmeco.core.model import Objective
from fmeco.core.training import Constraint, Transfer, checked
from fmeco.errors import ConfigError, listing
from fmeco.testing.bench import Bench, batches
from fmeco.testing.report import Broken, Checks


def checks(choice: Choice, bench: Bench) -> Checks:
    """Check a strategy on a small model."""
    objective, data = _model(bench)
    roles = roles_of(objective)
    transfer = checked(choice.build(roles=dict(roles)), roles, choice.plugin.file.name)
    yield "what is trained", functools.partial(_trained, transfer)
    if transfer.bind is not None:
        yield "constraint", functools.partial(_constraint, transfer, objective, data)


def _model(bench: Bench) -> tuple[Objective, Data]:
    """Build a small model, with the objective that its data has by default."""
    for _, data in bench.trials():
        for backbone in bench.backbones(data):
            try:
                objective: Objective = defaults.objective(data.spec, backbone).build(backbone=backbone, spec=data.spec)
            except ConfigError:
                continue
            return objective, data
    raise Broken("no model could be built for the data there is")


def _trained(transfer: Transfer) -> str | None:
    for number, phase in enumerate(transfer.phases, 1):
        if not any(scale > 0 for scale in phase.scales.values()) and transfer.bind is None:
            raise Broken(f"phase {number} trains nothing: every scale is 0")
    counts = [sum(scale > 0 for scale in phase.scales.values()) for phase in transfer.phases]
    return "parameters: " + ", ".join(map(str, counts))


def _constraint(transfer: Transfer, objective: Objective, data: Data) -> str | None:
    """Take the steps of training around a backward pass."""
    assert transfer.bind is not None
    named = dict(objective.named_parameters())
    constraint = transfer.bind(named)
    if not isinstance(constraint, Constraint):
        raise Broken(f"bind() must return a core.Constraint, not {type(constraint).__name__}")
    if taken := sorted(set(constraint.own) & set(named)):
        raise Broken(f"Constraint.own adds {listing(taken, 3)}, a name that the model has already")
    constraint.thaw()
    loss = objective.train()(batches(data, size=8)[0], "loss")
    (loss.sum / loss.count).backward()
    constraint.gradients(1.0)
    constraint.stepped()
    state = constraint.state()
    if wrong := [name for name, x in state.items() if not isinstance(x, Tensor)]:
        raise Broken(f"Constraint.state()['{wrong[0]}'] must be a tensor")
    again = constraint.state()
    if moved := [name for name, x in state.items() if again[name].data_ptr() != x.data_ptr()]:
        raise Broken(f"Constraint.state()['{moved[0]}'] is a copy: resuming writes into the tensors that it returns")
    if not all(torch.isfinite(p).all() for p in named.values()):
        raise Broken("a step makes weights not finite")
    return None
