"""Find the feature maps of a library's network, and take them from the library's own forward pass.

The network is not described by hand: a dry run on the meta device, which computes shapes alone, records what each module
returns. The last map of each stride is what the network offers.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fmeco.core import Backbone, Inputs, grid_strides, map_size, resample
from fmeco.core.feature_maps import STRIDES

T = TypeVar("T")
B = TypeVar("B", bound=Backbone)

DRY = (512, 640)  # unequal sides, so that rows and columns cannot be confused; strides up to 32 divide both
SEEN = (1, 2, *STRIDES, 64, 128)  # strides that are recognised; beyond 32, none is offered
OFF = 0.25  # a convolution without padding makes a map of stride 16 that is up to 2 ** OFF smaller than ceil(H / 16)


class Place(NamedTuple):
    """Describe a feature map, and where the network has it.

    module, call: name of the module whose output it is, and which of its calls.
    layout: order of the dimensions: bchw, bhwc, or blc with L = h * w.
    """

    stride: int
    width: int
    module: str = ""
    call: int = 0
    layout: str = "bchw"


@dataclass
class Call:
    """Record a call of a module. before, after: map that it takes, and map that it returns; None = something else."""

    before: Place | None
    after: Place | None = None
    inner: list[Call] = field(default_factory=list)


class MapsOfNetwork(Backbone):
    """Give the feature maps of `net`, a library's network for images.

    They are found when they are first asked for, so that a backbone without use for them loses no time.
    shape: (C, H, W) of the images that the network was built for.
    """

    net: nn.Module
    input: str
    shape: tuple[int, int, int]

    @abstractmethod
    def compute(self, x: Tensor) -> Any:
        """Run `net` on images (B, C, H, W)."""

    def find(self, x: Tensor) -> tuple[Place, ...]:
        """Find the last map of each stride by a run on images x (B, C, H, W)."""
        return tuple(find_places(self.net, lambda: self.compute(x), x))

    def take(self, x: Tensor, places: tuple[Place, ...]) -> list[Tensor]:
        """Run `net` on images, and return its maps (B, C_i, h_i, w_i) at these places, of whatever size it gives them."""
        return take_places(self.net, lambda: self.compute(x), places, x)

    def one_map(self, x: Tensor) -> Tensor | None:
        """Run `net` on images, and return the map (B, D, h, w) of a network without stages, such as a ViT. None = it has none."""
        found = self.mapped({self.input: x})
        if found.tokens is None or found.grid is None:
            return None
        grid: Tensor = found.tokens.transpose(1, 2).unflatten(2, found.grid)
        return grid

    @functools.cached_property
    def places(self) -> tuple[Place, ...]:
        """Return the network's own feature maps, finest first; () for a network that keeps one stride, such as a ViT."""
        return offered(dry_run(self, lambda copy, x: copy.find(x), (self.shape[0], *DRY), self.shape))

    @functools.cached_property
    def pyramid(self) -> tuple[tuple[int, ...], int]:
        """Return the strides and the width of a pyramid of `one_map`; no strides if there is no such map."""
        x = dry_run(self, lambda copy, x: copy.one_map(x), self.shape)
        if x is None:
            return (), 0
        patch = max(side // cells for side, cells in zip(self.shape[1:], x.shape[2:], strict=True))
        return grid_strides(patch), x.shape[1]

    @functools.cached_property
    def map_strides(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(place.stride for place in self.places) or self.pyramid[0]

    @functools.cached_property
    def map_widths(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(place.width for place in self.places) or (self.pyramid[1],) * len(self.pyramid[0])

    @functools.cached_property
    def unmapped(self) -> tuple[str, ...]:  # type: ignore[override]
        if not self.map_strides:
            return ()
        return dry_run(self, _unused, self.shape)

    def maps(self, inputs: Inputs) -> list[Tensor]:
        x = inputs[self.input]
        if self.places:
            taken = self.take(x, self.places)
        elif not self.map_strides or (grid := self.one_map(x)) is None:
            return super().maps(inputs)  # raises
        else:
            taken = [grid] * len(self.map_strides)
        sizes = [map_size(x.shape[2], x.shape[3], stride) for stride in self.map_strides]
        return [resample(one, size) for one, size in zip(taken, sizes, strict=True)]


# ---------------------------------------------------------------- the dry run


def dry_run(backbone: B, run: Callable[[B, Tensor], T], *shapes: tuple[int, ...]) -> T:
    """Call `run` with a copy of a backbone, in evaluation mode, and two images of zeros, without computing more than shapes.

    shapes: (C, H, W) of the images; each is tried until one is accepted. If none is, `run` computes values, of the last one.
    """
    own = next(backbone.parameters()).device
    trials = [(shape, torch.device("meta")) for shape in shapes] + [(shapes[-1], own)]
    for shape, device in trials:
        # A copy, since some networks keep what they computed for an image size; its tensors take no memory.
        copied: dict[int, Any] = {id(p): nn.Parameter(p.detach().to(device)) for p in backbone.parameters()}
        copied |= {id(x): x.detach().to(device) for x in backbone.buffers()}
        try:
            copy = deepcopy(backbone, copied).eval()
            with torch.inference_mode(False), torch.enable_grad():
                return run(copy, torch.zeros(2, *shape, device=device))
        except Exception as error:  # code of libraries raises anything on sizes and devices that it does not expect
            if device == own:
                # No AttributeError, which nn.Module would take for the lack of the property that asks.
                raise RuntimeError(f"cannot find the feature maps of {type(backbone).__name__}: {error}") from error
    raise AssertionError


def _unused(backbone: MapsOfNetwork, x: Tensor) -> tuple[str, ...]:
    """Name the parameters that no gradient of the maps of images reaches."""
    maps = backbone.maps({backbone.input: x})
    named = dict(backbone.named_parameters())
    found = torch.autograd.grad([one.sum() for one in maps], list(named.values()), allow_unused=True)
    return tuple(name for name, gradient in zip(named, found, strict=True) if gradient is None)


def offered(places: Iterable[Place]) -> tuple[Place, ...]:
    """Choose the maps of strides 4 to 32, or of stride 2 if there are no others. () if all have the same stride."""
    last = {place.stride: place for place in places}
    if len(last) < 2:
        return ()
    wanted = [stride for stride in STRIDES if stride in last] or [2]
    return tuple(last[stride] for stride in wanted if stride in last)


def find_places(net: nn.Module, run: Callable[[], Any], x: Tensor) -> list[Place]:
    """Record what the modules of a network return in a run on images x (B, C, H, W); return the maps along its trunk in order."""
    calls: dict[str, int] = {}
    root = Call(Place(1, x.shape[1]))
    stack = [root]

    def enter(name: str, _: nn.Module, arguments: Any, keywords: Any) -> None:
        call = Call(read_map([*arguments, *keywords.values()], x))
        stack[-1].inner.append(call)
        stack.append(call)

    def leave(name: str, _: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        found = read_map(output, x)
        stack.pop().after = found and found._replace(module=name, call=calls.get(name, 0))
        calls[name] = calls.get(name, 0) + 1

    hooks = []
    try:
        for name, module in net.named_modules():
            if module is net:
                continue
            hooks += [
                module.register_forward_pre_hook(functools.partial(enter, name), with_kwargs=True),
                module.register_forward_hook(functools.partial(leave, name), with_kwargs=True),
            ]
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return list(trunk(root))


def trunk(call: Call) -> Iterator[Place]:
    """Yield the maps that a call returns along the way that all of its input takes.

    What happens inside a block, such as the wide layers of a bottleneck, is left out; so are heads, which turn a map into
    something else.
    """
    inner = [one for one in call.inner if one.after is not None] or call.inner
    for one in inner:
        if _is_stages(one):
            yield from trunk(one)
        if one.after is not None:
            yield one.after


def _is_stages(call: Call) -> bool:
    """Tell whether a call runs several stages after each other, so that there are maps to find inside it."""
    if call.before is None or not call.inner:
        return False
    if call.after is None or call.after.stride > 2 * call.before.stride:
        return True
    return any(_halves_at_end(one) for one in (call, *call.inner))


def _halves_at_end(call: Call) -> bool:
    """Tell whether a call is a stage whose blocks return a finer map than the stage, since it halves the map after them."""
    if call.before is None or call.after is None or len(call.inner) < 2:
        return False
    *blocks, last = call.inner
    finer = call.before.stride
    if last.before is None or last.before.stride != finer or last.after is None or last.after[:2] != call.after[:2]:
        return False
    return call.after.stride > finer and any(one.inner and one.after and one.after.stride == finer for one in blocks)


def read_map(value: Any, images: Tensor) -> Place | None:
    """Describe a module's input or output if it is a map of the images (B, C, H, W), or the first part of it is one."""
    while isinstance(value, list | tuple | Mapping):
        value = next(iter(value.values() if isinstance(value, Mapping) else value), None)
    if not isinstance(value, Tensor) or value.shape[:1] != images.shape[:1]:
        return None
    height, width = images.shape[2:]
    if value.ndim == 3:
        for stride in SEEN:
            if value.shape[1] == math.prod(map_size(height, width, stride)):
                return Place(stride, value.shape[2], layout="blc")
    if value.ndim == 4:
        for layout, rows, columns, channels in (("bchw", 2, 3, 1), ("bhwc", 1, 2, 3)):
            strides = _stride(height, value.shape[rows]), _stride(width, value.shape[columns])
            if strides[0] == strides[1] and strides[0] in SEEN:
                return Place(strides[0], value.shape[channels], layout=layout)
    return None


def _stride(side: int, cells: int) -> int | None:
    """Return the power of two that is nearest to side / cells; None if it is not near."""
    octaves = math.log2(side / max(cells, 1))
    return 2 ** round(octaves) if abs(octaves - round(octaves)) <= OFF and octaves > -OFF else None


# ---------------------------------------------------------------- the maps of a run


def take_places(net: nn.Module, run: Callable[[], Any], places: tuple[Place, ...], images: Tensor) -> list[Tensor]:
    """Run a network, and return its maps (B, C, h, w) at these places."""
    outputs: dict[str, list[Tensor]] = {place.module: [] for place in places}
    # Hooks that stay for one call: they are no part of the state, nor of copies and compiled forms of the network.
    hooks = [net.get_submodule(name).register_forward_hook(_keep(kept)) for name, kept in outputs.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [_as_map(outputs[place.module][place.call], place, images) for place in places]


def _keep(outputs: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    """Return a forward hook that appends a module's output, or the first tensor of it, to `outputs`."""

    def hook(_: nn.Module, arguments: Any, output: Any) -> None:
        while not isinstance(output, Tensor):
            output = next(iter(output.values() if isinstance(output, Mapping) else output))
        outputs.append(output)

    return hook


def _as_map(x: Tensor, place: Place, images: Tensor) -> Tensor:
    """Bring an output to the layout (B, C, h, w)."""
    if place.layout == "bhwc":
        return x.permute(0, 3, 1, 2)
    if place.layout == "blc":
        height, width = images.shape[2:]
        size = map_size(height, width, place.stride)
        if math.prod(size) != x.shape[1]:  # patches that do not fill the image are cut off
            size = height // place.stride, width // place.stride
        x = x.transpose(1, 2).unflatten(2, size)
    return x
