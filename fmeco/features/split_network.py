"""Cut a backbone in two where its frozen part ends: what can be computed once per sample, and the rest, which trains.

The network is read as a graph (torch.fx). Only modules that are partly frozen are opened, so that whatever lies in one part
as a whole runs as it always does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fmeco.core.data import Inputs
from fmeco.core.model import Backbone, Features


@dataclass(frozen=True)
class Cut:
    """Hold the two parts of a backbone, which share their layers with it.

    lower: Inputs -> the values (B, ...) at the cut.
    upper: those values -> Features, in evaluation and in training.
    shape: of the values of one sample.
    """

    lower: nn.Module
    upper: tuple[nn.Module, nn.Module]
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool

    def rest(self, values: Tensor, training: bool) -> Features:
        if self.channels_last:
            values = values.contiguous(memory_format=torch.channels_last)
        features: Features = self.upper[training](values)
        return features


class Vector(nn.Module):
    """The whole backbone as a lower part: Inputs -> its vectors (B, D)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs: Inputs) -> Tensor:
        return self.backbone(inputs).vector.float()


def cut(backbone: Backbone, example: Inputs) -> Cut | None:
    """Cut a partly frozen backbone at the last value that all of the rest is computed from, and nothing that trains
    goes into. None where there is no such place, or the network cannot be read as a graph.

    example: inputs (B, ...) of a few samples, as the backbone gets them.
    """
    with _modes(backbone):
        graphs = []
        for training in (False, True):  # some layers say in their code what differs
            backbone.train(training)
            try:
                graphs.append(_Tracer().trace(backbone))
            except Exception:  # whatever a stranger's code does when it is handed symbols: it is then not cut
                return None
        backbone.eval()
        for at in _places(graphs[0], backbone):
            lower = _part(backbone, graphs[0], at, below=True)
            with torch.inference_mode():
                values = lower(example)
            size = len(next(iter(example.values())))
            twins = [node for node in graphs[1].nodes if node.name == at.name]
            if isinstance(values, Tensor) and values.ndim > 1 and len(values) == size and twins:
                places = zip(graphs, (at, twins[0]), strict=True)
                upper = [_part(backbone, graph, node, below=False) for graph, node in places]
                last = values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
                made = Cut(lower, (upper[0], upper[1]), tuple(values.shape[1:]), values.dtype, last)
                # What is done in place and used by no name is not in a graph's result, and training may differ below.
                same = _told(graphs[0], at) == _told(graphs[1], twins[0])
                with torch.inference_mode():
                    parted, whole = made.rest(values.clone(), False).vector, backbone(example).vector
                return made if same and torch.allclose(parted, whole, rtol=1e-2, atol=1e-3) else None
    return None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = len({p.requires_grad for p in m.parameters()}) < 2
        return whole or super().is_leaf_module(m, module_qualified_name)


def _places(graph: fx.Graph, root: nn.Module) -> Iterator[fx.Node]:
    """List the places where the graph can be cut, the last one first."""
    trains, varies = (_reached(graph, begins) for begins in (lambda node: _trains(node, root), _is_input))
    output = next(node for node in graph.nodes if node.op == "output")
    needed = _ancestors(output)
    for node in reversed(list(graph.nodes)):
        if node not in needed or node in trains or node not in varies or node.op == "placeholder":
            continue
        below = _ancestors(node)
        crossing = {p for other in needed - below for p in other.all_input_nodes if p in below and p in varies}
        if crossing == {node}:
            yield node


def _trains(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return any(p.requires_grad for p in root.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        value: object = root
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return isinstance(value, Tensor) and value.requires_grad
    return False


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """Collect a node and all that goes into it."""
    found, open_ = {node}, [node]
    while open_:
        fresh = set(open_.pop().all_input_nodes) - found
        found |= fresh
        open_ += fresh
    return found


def _told(graph: fx.Graph, at: fx.Node) -> list[str]:
    """Describe what is computed up to a node."""
    below = _ancestors(at)
    return [f"{node.name} {node.op} {node.target} {node.args} {node.kwargs}" for node in graph.nodes if node in below]


def _part(root: nn.Module, graph: fx.Graph, at: fx.Node, *, below: bool) -> nn.Module:
    """Build a module of the graph up to a node, or from it on."""
    part = fx.Graph()
    lower = _ancestors(at)
    output = next(node for node in graph.nodes if node.op == "output")
    copies: dict[fx.Node, fx.Node] = {}
    if below:
        wanted = lower
    else:
        copies[at] = part.placeholder("values")
        # Constants of the lower part may serve the upper one, too.
        wanted = _ancestors(output) - (lower & _reached(graph, _is_input))
    for node in graph.nodes:
        if node in wanted and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    if below:
        part.output(copies[at])
    return fx.GraphModule(root, part)


def _reached(graph: fx.Graph, begins: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Collect the nodes that `begins` says yes to, and all that depends on one of them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if begins(node) or found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _is_input(node: fx.Node) -> bool:
    return node.op == "placeholder"


@contextlib.contextmanager
def _modes(module: nn.Module) -> Iterator[None]:
    """Restore the mode of every layer afterwards."""
    before = [(one, one.training) for one in module.modules()]
    try:
        yield
    finally:
        for one, training in before:
            one.training = training
