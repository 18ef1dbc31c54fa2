"""Load weights into models. This is the only place that does; every tensor is loaded, reported by name or an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fmeco.checkpoints.foreign.names import COUNTER, best_prefix, described, in_order, rename, side_by_side
from fmeco.checkpoints.format import Checkpoint
from fmeco.core.model import Backbone, Objective
from fmeco.core.target import nfc
from fmeco.errors import CheckpointError, clean, listing

MINIMUM = 0.95  # share of the backbone's parameters below which loading is refused
PAIRS = 4  # tensors paired by order that the report shows, of the first and of the last ones


@dataclass
class Report:
    """Record what happened to every tensor when weights were loaded.

    source: REF of the weights.
    share: share of the backbone's parameters that were loaded, 0..1.
    crossing: such as "image -> audio", if the source's data has another modality; "" = the same.
    prefix: prefix that was removed from the source's names.
    renamed: rules of `transfer.rename`, with the number of names that each fitted.
    match: how tensors were paired: by "names" or by "order".
    pairs: source's name -> backbone's name of each loaded tensor, if they were renamed or paired by order.
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
    renamed: dict[str, int] = field(default_factory=dict)
    match: str = "names"
    pairs: dict[str, str] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)

    def lines(self, all_pairs: str = "") -> list[str]:
        """Format the report as lines for the user.

        all_pairs: file or option that lists all tensors paired by order; with it, the first and last pairs are shown.
        """
        out = [
            f"weights from {self.source}: {self.share:.1%} of the backbone's parameters ({len(self.loaded)} tensors)"
        ]
        if self.crossing:
            out.append(f"  across modalities, {self.crossing}: --control scratch measures whether they help there")
        if self.prefix:
            out.append(f"  removed the prefix '{self.prefix}' from their names")
        for rule, count in self.renamed.items():
            out.append(f"  renamed by {clean(rule, 200)}: {count} name{'' if count == 1 else 's'}")
        if self.match == "order":
            counted = f"  {len(self.pairs)} tensors paired by order"
            if all_pairs:
                out.append(f"{counted}, in the source and in the backbone; {all_pairs} lists all of them:")
                out += self._first_and_last_pairs()
            else:
                out.append(f"{counted}: `fmeco check` shows how")
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

    def _first_and_last_pairs(self) -> list[str]:
        """Format the pairs as aligned lines, and count those in the middle."""
        pairs = [(clean(theirs, 120), mine) for theirs, mine in self.pairs.items()]
        left_out = len(pairs) - 2 * PAIRS
        first, last = (pairs[:PAIRS], pairs[-PAIRS:]) if left_out > 1 else (pairs, [])
        width = max((len(theirs) for theirs, _ in first + last), default=0)
        rows = [[f"    {theirs:<{width}} -> {mine}" for theirs, mine in part] for part in (first, last)]
        return [*rows[0], *([f"    ... and {left_out} more"] if last else []), *rows[1]]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON, for transplant.json and meta.json."""
        return asdict(self)


@dataclass(frozen=True)
class Naming:
    """Say which tensor of a source belongs to which of a backbone.

    prefix: prefix of the backbone's tensor names in the source; None = find it.
    rename: regular expression -> replacement, applied to the source's names in order.
    match: pair tensors by their names, or by their order.
    """

    prefix: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    match: Literal["names", "order"] = "names"


class Sorted(NamedTuple):
    """Hold the tensors of a source, sorted by what is done with them.

    accepted: tensors to load, by the backbone's names.
    strange: descriptions of the tensors that have no place in the backbone.
    report: with all but the share.
    """

    accepted: dict[str, Tensor]
    strange: list[str]
    report: Report


def transplant(
    backbone: Backbone,
    state: Mapping[str, Tensor],
    *,
    source: str,
    allow_partial: bool = False,
    naming: Naming = Naming(),
    architecture: str = "",
) -> Report:
    """Load weights into a backbone. Returns a report on every tensor.

    state: tensors of the source, by name.
    source: REF of the weights, for messages.
    allow_partial: load the tensors that fit, whatever the others are.
    architecture: name of the backbone, if the user chose it for these weights.

    Unless `allow_partial`, raises CheckpointError if less than MINIMUM of the parameters would be loaded, batch-norm
    statistics are missing, or the source has tensors of another architecture. Always raises it if no parameter would be.
    """
    library = backbone.library
    expected = library.state_dict()
    accepted, strange, report = _sort(backbone, state, source, naming)
    weights = {name: parameter.numel() for name, parameter in library.named_parameters()}
    report.share = sum(n for name, n in weights.items() if name in accepted) / max(1, sum(weights.values()))
    # Without its running statistics a trained batch norm gives wrong outputs, so one missing tensor of them is an error.
    statistics = [name for name in report.missing if name not in weights]
    nothing = not any(name in accepted for name in weights)
    if nothing or ((report.share < MINIMUM or report.unexpected or statistics) and not allow_partial):
        what = "no parameter" if nothing else f"{report.share:.1%} of its parameters"
        lines = [f"of another shape: {listing(report.mismatched, 6)}"] if report.mismatched else []
        if strange or report.missing:
            counted = any(name.endswith(COUNTER) for name in report.unexpected)  # then both sides count alike
            absent = {*report.missing, *(name for name in expected if counted and name.endswith(COUNTER))}
            wanted = [name for name in expected if name in absent and name not in accepted]
            lines += side_by_side(strange, [described(name, expected[name]) for name in wanted])
        raise CheckpointError(
            "\n  ".join([f"{source} does not fit this backbone: {what} would be loaded", *lines]),
            *_ways_out(backbone, state, report, naming, architecture),
            ""
            if nothing or allow_partial
            else "--allow-partial loads the tensors that fit and leaves the others as initialised",
        )
    with torch.no_grad():
        for name, tensor in accepted.items():
            expected[name].copy_(tensor)
    return report


def _ways_out(
    backbone: Backbone, state: Mapping[str, Tensor], report: Report, naming: Naming, architecture: str
) -> list[str]:
    """Suggest keys that the user has not given yet, for weights that do not fit."""
    hints = []
    if report.unexpected and report.missing and not naming.rename:
        hints.append(
            "the same network under other names? transfer.rename changes names by regular expressions: "
            '--set \'transfer.rename={"^their_name": "our_name"}\''
        )
    inside = {name: tensor for name, tensor in state.items() if name.startswith(naming.prefix or "")}
    if naming.match == "names" and report.missing and not in_order(inside, backbone).problem:
        hints.append(
            "in their order, all tensors agree in shape: --set transfer.match=order pairs them so: read the pairs "
            "before you trust them (`fmeco check --json` lists all)"
        )
    if architecture:
        hints.append(f"another architecture than {architecture}? `fmeco list backbones WORD` finds names")
    return hints


def _sort(backbone: Backbone, state: Mapping[str, Tensor], source: str, naming: Naming) -> Sorted:
    """Sort the tensors of a source by their names in the backbone, without loading them. Raises CheckpointError, ConfigError."""
    expected = backbone.library.state_dict()
    new_names, counts = rename(list(state), naming.rename, source)
    prefix = naming.prefix
    if prefix is None:
        prefix = best_prefix(list(new_names.values()), expected, source) if naming.match == "names" else ""
    elif not any(name.startswith(prefix) for name in new_names.values()):
        raise CheckpointError(f"transfer.prefix: no tensor of {source} begins with '{clean(prefix)}'")
    report = Report(source, prefix=prefix, renamed=counts, match=naming.match)
    report.left_out = sorted(old for old, new in new_names.items() if not new.startswith(prefix))
    theirs = {new.removeprefix(prefix): old for old, new in new_names.items() if new.startswith(prefix)}
    if naming.match == "order":
        theirs = _by_order(backbone, {new: state[old] for new, old in theirs.items()}, theirs, report)
    available, report.reshaped = backbone.adapt({new: state[old] for new, old in theirs.items()})
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
    report.missing = [name for name in expected if name not in available and not name.endswith(COUNTER)]
    if naming.rename or naming.match == "order":
        report.pairs = {theirs[name]: name for name in report.loaded if name in theirs}
    strange = [described(theirs.get(name, name), available[name]) for name in report.unexpected]
    return Sorted(accepted, strange, report)


def _by_order(
    backbone: Backbone, state: Mapping[str, Tensor], theirs: Mapping[str, str], report: Report
) -> dict[str, str]:
    """Pair all tensors by order. Returns backbone's name -> source's name. Raises CheckpointError if they do not agree.

    theirs: name in `state` -> source's name.
    report: to which tensors that are left out are added.
    """
    pairs, problem, at = in_order(state, backbone)
    if problem:
        lines = [f"transfer.match: order: {report.source} does not fit this backbone in order: {problem}"]
        if at is not None:
            expected = backbone.library.state_dict()
            near = list(pairs.items())[max(0, at - 3) : at + 4]
            left, right = zip(
                *((described(theirs[name], state[name]), described(mine, expected[mine])) for name, mine in near),
                strict=True,
            )
            lines += side_by_side(left, right, ("in the source", "in the backbone"))
        raise CheckpointError(
            "\n  ".join(lines),
            "" if report.renamed else "pair them by name, with rules of transfer.rename where the names differ",
        )
    report.left_out += sorted(theirs[name] for name in state if name not in pairs)
    return {mine: theirs[name] for name, mine in pairs.items()}


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
