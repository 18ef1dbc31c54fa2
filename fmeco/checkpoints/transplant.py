"""Load weights into models. This is the only place that does; every tensor is loaded, reported by name or an error."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fmeco.checkpoints.format import Checkpoint
from fmeco.core.model import Backbone, Objective
from fmeco.core.target import nfc
from fmeco.errors import CheckpointError, clean, listing

# Names of the network to load if a file holds several and no `prefix` is set, as in the papers: DINO's teacher, MoCo's
# query encoder, BYOL's online network.
HANDED_ON = ("teacher", "encoder_q", "online", "online_network", "online_encoder")

MINIMUM = 0.95  # share of the backbone's parameters below which loading is refused


@dataclass
class Report:
    """Record what happened to every tensor when weights were loaded.

    source: REF of the weights.
    share: share of the backbone's parameters that were loaded, 0..1.
    crossing: such as "image -> audio", if the source's data has another modality; "" = the same.
    prefix: prefix that was removed from the source's names.
    loaded: tensors that were loaded.
    reshaped: those of them that were reshaped first (`Backbone.adapt`).
    missing: tensors of the backbone that the source lacks; they keep their initial values.
    mismatched: tensors with another shape in the source; they keep their initial values.
    left_out: tensors of the source that are not part of the backbone, such as its class layer.
    unexpected: tensors of the source that have no counterpart in the backbone.
    new: tensors of heads that start from new values.
    carried: classes whose rows in the head were copied.
    """

    source: str
    share: float = 0.0
    crossing: str = ""
    prefix: str = ""
    loaded: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Format the report as lines for the user."""
        out = [
            f"weights from {self.source}: {self.share:.1%} of the backbone's parameters ({len(self.loaded)} tensors)"
        ]
        if self.crossing:
            out.append(f"  across modalities, {self.crossing}: --control scratch measures whether they help there")
        if self.prefix:
            out.append(f"  removed the prefix '{self.prefix}' from their names")
        for label, names in (
            ("reshaped", self.reshaped),
            ("not in the source, kept as initialised", self.missing),
            ("of another shape, kept as initialised", self.mismatched),
            ("left out, not part of the backbone", self.left_out),
            ("left out, no place for", self.unexpected),
            ("new", self.new),
            ("head rows copied for the classes", self.carried),
        ):
            if names:
                out.append(f"  {label}: {listing(names, 6)}")
        return out

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON, for transplant.json and meta.json."""
        return asdict(self)


def transplant(
    backbone: Backbone,
    state: Mapping[str, Tensor],
    *,
    source: str,
    allow_partial: bool = False,
    prefix: str | None = None,
) -> Report:
    """Load weights into a backbone. Returns a report on every tensor.

    state: tensors of the source, by name.
    source: REF of the weights, for messages.
    allow_partial: load the tensors that fit, whatever the others are.
    prefix: prefix of the backbone's tensor names in `state`; None = find it.

    Unless `allow_partial`, raises CheckpointError if less than MINIMUM of the parameters would be loaded, batch-norm
    statistics are missing, or the source has tensors of another architecture.
    """
    library = backbone.library
    expected = library.state_dict()
    if prefix is None:
        prefix = _best_prefix(state, expected, source)
    elif not any(name.startswith(prefix) for name in state):
        raise CheckpointError(f"transfer.prefix: no tensor of {source} begins with '{clean(prefix)}'")
    report = Report(source, prefix=prefix)
    available = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    report.left_out = sorted(name for name in state if not name.startswith(prefix))
    available, report.reshaped = backbone.adapt(available)
    accepted: dict[str, Tensor] = {}
    for name, tensor in available.items():
        if name not in expected:
            excused = name.startswith(backbone.class_layers)
            (report.left_out if excused else report.unexpected).append(name)
        elif expected[name].shape != tensor.shape:
            report.mismatched.append(f"{name} {tuple(tensor.shape)} for {tuple(expected[name].shape)}")
        else:
            accepted[name] = tensor
            report.loaded.append(name)
    # Old files lack batch norm's counters, which do not change outputs.
    report.missing = [name for name in expected if name not in available and not name.endswith("num_batches_tracked")]
    weights = {name: parameter.numel() for name, parameter in library.named_parameters()}
    report.share = sum(n for name, n in weights.items() if name in accepted) / max(1, sum(weights.values()))
    # Without its running statistics a trained batch norm gives wrong outputs, so one missing tensor of them is an error.
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
            "set the architecture of the weights: --set backbone=NAME",
            "--allow-partial loads the tensors that fit and leaves the others as initialised",
        )
    with torch.no_grad():
        for name, tensor in accepted.items():
            expected[name].copy_(tensor)
    return report


def _best_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> str:
    """Find the prefix to remove so that most names fit the backbone. Raises CheckpointError if several fit equally well."""
    fitting: collections.Counter[str] = collections.Counter()
    for name in state:
        starts = [0, *(at + 1 for at, letter in enumerate(name) if letter == ".")]
        fitting.update(name[:start] for start in starts if name[start:] in expected)
    most = max(fitting.values(), default=0)
    best = sorted((prefix for prefix, count in fitting.items() if count == most), key=len)
    if len(best) < 2 or best[0] == "":
        return best[0] if best else ""
    for word in HANDED_ON:
        if named := [prefix for prefix in best if word in prefix.split(".")]:
            return named[0]
    raise CheckpointError(
        f"{source} holds several networks that fit this backbone: {listing(best)}",
        f"choose one, such as: --set transfer.prefix={best[0]}",
    )


def carry_rows(objective: Objective, old: Mapping[str, Tensor], old_rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Copy head rows from a checkpoint's objective for the classes that both have, matched by name (Unicode NFC).

    old: tensors of the checkpoint's objective, by name.
    old_rows: tensor name -> class names of its rows, as recorded in the checkpoint.

    Returns the classes whose rows were copied.
    """
    parameters = dict(objective.named_parameters())
    carried: list[str] = []
    for name, classes in objective.class_rows().items():
        before, old_classes, new = old.get(name), old_rows.get(name, ()), parameters.get(name)
        if before is None or new is None or before.shape[1:] != new.shape[1:] or len(old_classes) != len(before):
            continue
        places = {label: row for row, label in enumerate(nfc(old_classes))}
        both = [(row, places[label]) for row, label in enumerate(nfc(classes)) if label in places]
        if both:
            rows, sources = (list(column) for column in zip(*both, strict=True))
            with torch.no_grad():
                new[rows] = before[sources].to(new)
            carried += [classes[row] for row in rows]
    return list(dict.fromkeys(carried))


def load_objective(objective: Objective, saved: Checkpoint) -> None:
    """Load a checkpoint into an objective built from the checkpoint's own config. Raises CheckpointError."""
    load_exactly(objective.product.library, saved.tensors("backbone"), f"{saved.path / 'backbone.safetensors'}")
    load_exactly(split_state(objective)[1], saved.tensors("objective"), f"{saved.path / 'objective.safetensors'}")


def load_exactly(module: nn.Module | dict[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Load a state whose names and shapes must all match. source: file for messages. Raises CheckpointError otherwise."""
    expected = module.state_dict() if isinstance(module, nn.Module) else module
    wrong = sorted(set(expected) ^ set(state)) + [
        name for name in expected if name in state and expected[name].shape != state[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{source} does not fit the model built from its own config: {listing(wrong)}")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(state[name])


def split_state(objective: Objective) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split an objective's tensors into those of the backbone, with the library's names, and all others."""
    inside = {id(tensor) for tensor in objective.product.state_dict(keep_vars=True).values()}
    rest = {name: tensor for name, tensor in objective.state_dict(keep_vars=True).items() if id(tensor) not in inside}
    return dict(objective.product.library.state_dict()), rest
