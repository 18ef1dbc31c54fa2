"""Split a partly frozen backbone into a frozen part, which is computed once per sample, and the rest, which trains.

The network is traced as a graph (torch.fx). Only partly frozen modules are traced into; any other module stays one
node, and runs as it always does.
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
    """Hold the two parts of a backbone. They share its layers.

    lower: Inputs -> values (B, ...) at the cut.
    upper: values -> Features, in evaluation and in training.
    shape: of the values of one sample.
    dtype: of the values.
    channels_last: whether the values have that memory format.
    """

    lower: nn.Module
    upper: tuple[nn.Module, nn.Module]
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool

    def rest(self, values: Tensor, training: bool) -> Features:
        """Run the upper part on values (B, ...)."""
        if self.channels_last:
            values = values.contiguous(memory_format=torch.channels_last)
        features: Features = self.upper[training](values)
        return features


class Vector(nn.Module):
    """Wrap a whole backbone as a lower part: Inputs -> its vectors (B, D), in float32."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs: Inputs) -> Tensor:
        return self.backbone(inputs).vector.float()


def cut(backbone: Backbone, example: Inputs) -> Cut | None:
    """Split a partly frozen backbone at the last value that all later layers depend on and no trainable parameter
    affects.

    example: inputs (B, ...) of a few samples, as the backbone receives them.

    Returns None if there is no such value, or if the network cannot be traced.
    """
    with _modes(backbone):
        graphs = []
        for training in (False, True):  # the code of some layers differs between the two
            backbone.train(training)
            try:
                graphs.append(_Tracer().trace(backbone))
            except Exception:  # code of a plug-in may fail in any way when it is traced
                return None
        backbone.eval()
        for at in _places(graphs[0], backbone):
            lower = _part(backbone, graphs[0], at, below=True)
            with torch.inference_mode():
                values = lower(example)
            size = len(next(iter(example.values())))
            same_node = [node for node in graphs[1].nodes if node.name == at.name]
            if isinstance(values, Tensor) and values.ndim > 1 and len(values) == size and same_node:
                cuts = zip(graphs, (at, same_node[0]), strict=True)
                upper = [_part(backbone, graph, node, below=False) for graph, node in cuts]
                channels_last = values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
                candidate = Cut(lower, (upper[0], upper[1]), tuple(values.shape[1:]), values.dtype, channels_last)
                # A graph lacks in-place operations whose result is not used, and the frozen part may differ in
                # training: accept the cut only if both parts together compute what the backbone does.
                same_below = _description(graphs[0], at) == _description(graphs[1], same_node[0])
                with torch.inference_mode():
                    from_parts, direct = candidate.rest(values.clone(), False).vector, backbone(example).vector
                return candidate if same_below and torch.allclose(from_parts, direct, rtol=1e-2, atol=1e-3) else None
    return None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = len({p.requires_grad for p in m.parameters()}) < 2
        return whole or super().is_leaf_module(m, module_qualified_name)


def _places(graph: fx.Graph, root: nn.Module) -> Iterator[fx.Node]:
    """Yield the nodes where the graph can be cut, the last one first."""
    trained, from_input = (_reached(graph, is_start) for is_start in (lambda node: _trains(node, root), _is_input))
    output = next(node for node in graph.nodes if node.op == "output")
    needed = _ancestors(output)
    for node in reversed(list(graph.nodes)):
        if node not in needed or node in trained or node not in from_input or node.op == "placeholder":
            continue
        below = _ancestors(node)
        crossing = {p for other in needed - below for p in other.all_input_nodes if p in below and p in from_input}
        if crossing == {node}:
            yield node


def _trains(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node uses a parameter that trains."""
    if node.op == "call_module":
        return any(p.requires_grad for p in root.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        value: object = root
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return isinstance(value, Tensor) and value.requires_grad
    return False


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """Collect a node and all nodes that it depends on."""
    ancestors, pending = {node}, [node]
    while pending:
        inputs = set(pending.pop().all_input_nodes) - ancestors
        ancestors |= inputs
        pending += inputs
    return ancestors


def _description(graph: fx.Graph, at: fx.Node) -> list[str]:
    """Describe the computation up to a node, to compare it between graphs."""
    below = _ancestors(at)
    return [f"{node.name} {node.op} {node.target} {node.args} {node.kwargs}" for node in graph.nodes if node in below]


def _part(root: nn.Module, graph: fx.Graph, at: fx.Node, *, below: bool) -> nn.Module:
    """Build a module from the graph up to a node, or from that node on."""
    part = fx.Graph()
    lower = _ancestors(at)
    output = next(node for node in graph.nodes if node.op == "output")
    copies: dict[fx.Node, fx.Node] = {}
    if below:
        copied = lower
    else:
        copies[at] = part.placeholder("values")
        # The upper part may need constants of the lower one, too.
        copied = _ancestors(output) - (lower & _reached(graph, _is_input))
    for node in graph.nodes:
        if node in copied and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    if below:
        part.output(copies[at])
    return fx.GraphModule(root, part)


def _reached(graph: fx.Graph, is_start: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Collect the nodes for which `is_start` is true, and all nodes that depend on one of them."""
    reached: set[fx.Node] = set()
    for node in graph.nodes:
        if is_start(node) or reached.intersection(node.all_input_nodes):
            reached.add(node)
    return reached


def _is_input(node: fx.Node) -> bool:
    return node.op == "placeholder"


@contextlib.contextmanager
def _modes(module: nn.Module) -> Iterator[None]:
    """Restore the training mode of every layer at the end of the context."""
    before = [(layer, layer.training) for layer in module.modules()]
    try:
        yield
    finally:
        for layer, training in before:
            layer.training = training
