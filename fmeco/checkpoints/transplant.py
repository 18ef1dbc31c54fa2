"""The transplant: the only place where weights change hands. Every tensor is loaded, excused by name, or an error."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fmeco.checkpoints.format import Checkpoint
from fmeco.core.model import Backbone, Objective
from fmeco.errors import CheckpointError, clean, listing

# Of several networks in one file, the one that its method's paper hands on, and wins here where no `prefix` is named:
# DINO's teacher, MoCo's query encoder, BYOL's online network.
HANDED_ON = ("teacher", "encoder_q", "online", "online_network", "online_encoder")

MINIMUM = 0.95  # share of the backbone's parameters below which loading is refused


@dataclass
class Report:
    """What the transplant did with every tensor, by name."""

    source: str
    share: float = 0.0  # of the backbone's parameters that were loaded
    crossing: str = ""  # "image -> audio", where the source's data was of another modality
    prefix: str = ""  # stripped from the source's names
    loaded: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)  # loaded after a change of shape that is well defined
    missing: list[str] = field(default_factory=list)  # of the backbone, not in the source: kept their initial value
    mismatched: list[str] = field(default_factory=list)  # in both, of different shapes
    left_out: list[str] = field(default_factory=list)  # of the source, excused by name: the old class layer
    unexpected: list[str] = field(default_factory=list)  # of the source, with no place in the backbone
    new: list[str] = field(default_factory=list)  # heads that start afresh
    carried: list[str] = field(default_factory=list)  # classes whose head rows were carried over by name

    def lines(self) -> list[str]:
        out = [
            f"weights from {self.source}: {self.share:.1%} of the backbone's parameters ({len(self.loaded)} tensors)"
        ]
        if self.crossing:
            out.append(f"  across modalities, {self.crossing}: --control scratch says what they are worth there")
        if self.prefix:
            out.append(f"  stripped the prefix '{self.prefix}'")
        for label, names in (
            ("reshaped", self.reshaped),
            ("not in the source, kept as initialised", self.missing),
            ("of another shape, kept as initialised", self.mismatched),
            ("left out, not of the backbone", self.left_out),
            ("left out, no place for", self.unexpected),
            ("new", self.new),
            ("head rows carried over for the classes", self.carried),
        ):
            if names:
                out.append(f"  {label}: {listing(names, 6)}")
        return out

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def transplant(
    backbone: Backbone,
    state: Mapping[str, Tensor],
    *,
    source: str,
    allow_partial: bool = False,
    prefix: str | None = None,
) -> Report:
    """Load `state` into a backbone. Every tensor is loaded, excused by name, or an error.

    prefix: what the names of the backbone's tensors begin with in `state`; None finds it. Raises CheckpointError when less than MINIMUM of the parameters are loaded, or when the source has tensors that
    belong to another architecture, unless `allow_partial`.
    """
    library = backbone.library
    own = library.state_dict()
    if prefix is None:
        prefix = _best_prefix(state, own, source)
    elif not any(name.startswith(prefix) for name in state):
        raise CheckpointError(f"transfer.prefix: no tensor of {source} begins with '{clean(prefix)}'")
    report = Report(source, prefix=prefix)
    theirs = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    report.left_out = sorted(name for name in state if not name.startswith(prefix))
    theirs, report.reshaped = backbone.adapt(theirs)
    accepted: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if name not in own:
            excused = name.startswith(backbone.class_layers)
            (report.left_out if excused else report.unexpected).append(name)
        elif own[name].shape != tensor.shape:
            report.mismatched.append(f"{name} {tuple(tensor.shape)} for {tuple(own[name].shape)}")
        else:
            accepted[name] = tensor
            report.loaded.append(name)
    # Counters of batch norm are absent from old files and change no output.
    report.missing = [name for name in own if name not in theirs and not name.endswith("num_batches_tracked")]
    weights = {name: parameter.numel() for name, parameter in library.named_parameters()}
    report.share = sum(n for name, n in weights.items() if name in accepted) / max(1, sum(weights.values()))
    # Without its running statistics a trained batch norm computes something else: they count as much as all parameters.
    statistics = [name for name in report.missing if name not in weights]
    if (report.share < MINIMUM or report.unexpected or statistics) and not allow_partial:
        problems = [
            f"{label}: {listing(names, 6)}"
            for label, names in (
                ("of another shape", report.mismatched),
                ("not in the source", report.missing),
                ("no place for", report.unexpected),
            )
            if names
        ]
        raise CheckpointError(
            f"{source} does not fit this backbone: {report.share:.1%} of its parameters would be loaded\n  "
            + "\n  ".join(problems),
            "name the architecture the file was made with: --set backbone=NAME",
            "--allow-partial loads what fits and leaves the rest as initialised",
        )
    with torch.no_grad():
        for name, tensor in accepted.items():
            own[name].copy_(tensor)
    return report


def _best_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> str:
    """What to strip from the names so that most of them fit. Raises CheckpointError where that is not one answer."""
    fitting: collections.Counter[str] = collections.Counter()
    for name in state:
        starts = [0, *(at + 1 for at, letter in enumerate(name) if letter == ".")]
        fitting.update(name[:start] for start in starts if name[start:] in own)
    most = max(fitting.values(), default=0)
    best = sorted((prefix for prefix, count in fitting.items() if count == most), key=len)
    if len(best) < 2 or best[0] == "":
        return best[0] if best else ""
    for word in HANDED_ON:
        if named := [prefix for prefix in best if word in prefix.split(".")]:
            return named[0]
    raise CheckpointError(
        f"{source} holds several networks that fit this backbone: {listing(best)}",
        f"name one: --set transfer.prefix={best[0]}",
    )


def carry_rows(objective: Objective, old: Mapping[str, Tensor], old_rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Copy head rows from a checkpoint's objective for the classes that both have, matched by name.

    old_rows: tensor name -> class names of its rows, as the checkpoint recorded. Returns the classes carried over.
    """
    mine = dict(objective.named_parameters())
    carried: list[str] = []
    for name, classes in objective.class_rows().items():
        before, theirs = old.get(name), old_rows.get(name, ())
        if before is None or name not in mine or before.shape[1:] != mine[name].shape[1:] or len(theirs) != len(before):
            continue
        places = {label: row for row, label in enumerate(theirs)}
        both = [(row, places[label]) for row, label in enumerate(classes) if label in places]
        if both:
            rows, sources = (list(column) for column in zip(*both, strict=True))
            with torch.no_grad():
                mine[name][rows] = before[sources].to(mine[name])
            carried += [classes[row] for row in rows]
    return list(dict.fromkeys(carried))


def load_objective(objective: Objective, saved: Checkpoint) -> None:
    """Load a checkpoint into the objective that its own config describes."""
    load_exactly(objective.product.library, saved.tensors("backbone"), f"{saved.path / 'backbone.safetensors'}")
    load_exactly(split_state(objective)[1], saved.tensors("objective"), f"{saved.path / 'objective.safetensors'}")


def load_exactly(module: nn.Module | dict[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Load a state that must fit name by name and shape by shape."""
    own = module.state_dict() if isinstance(module, nn.Module) else module
    wrong = sorted(set(own) ^ set(state)) + [
        name for name in own if name in state and own[name].shape != state[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{source} does not fit the model that its own config describes: {listing(wrong)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def split_state(objective: Objective) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An objective's tensors as (backbone under the library's names, everything else)."""
    inside = {id(tensor) for tensor in objective.product.state_dict(keep_vars=True).values()}
    rest = {name: tensor for name, tensor in objective.state_dict(keep_vars=True).items() if id(tensor) not in inside}
    return dict(objective.product.library.state_dict()), rest
