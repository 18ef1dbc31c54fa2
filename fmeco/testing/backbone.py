"""The promises of a backbone: a vector of its width for each sample, which depends on that sample alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fmeco.checkpoints.transplant import Naming, transplant
from fmeco.config.run_config import Choice
from fmeco.core.data import Batch, Data, Inputs
from fmeco.core.model import Backbone, Features
from fmeco.core.random import seed_torch
from fmeco.errors import CheckpointError, ConfigError, listing
from fmeco.testing.bench import Bench, batches
from fmeco.testing.report import Broken, Checks

TOLERANCE = 1e-4  # between a sample alone and in a batch: kernels add up in another order


def checks(choice: Choice, bench: Bench) -> Checks:
    """Check a backbone with each kind of data that it takes."""
    taken, refused = 0, list[str]()
    for name, data in bench.trials():
        make = functools.partial(_build, choice, data)
        try:
            backbone = make()
        except ConfigError as error:
            refused.append(error.message)
            continue
        except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise Broken(
                f"build() fails for {name}: {reason}; raise core.ConfigError for data that it cannot take"
            ) from error
        taken += 1
        batch = batches(data)[0]
        if not (yield f"output for {name}", functools.partial(_output, backbone, batch)):
            continue
        yield f"gradient for {name}", functools.partial(_gradient, backbone, batch)
        if not (yield f"evaluation for {name}", functools.partial(_evaluation, backbone, batch)):
            continue
        yield f"state dict for {name}", functools.partial(_state, make, batch)
        yield f"one sample for {name}", functools.partial(_alone, backbone, data, batch)
        if (yield f"maps for {name}", functools.partial(_maps, backbone, batch)) and backbone.map_strides:
            yield f"gradient of maps for {name}", functools.partial(_map_gradient, backbone, batch)
            yield f"maps of one sample for {name}", functools.partial(_maps_alone, backbone, batch)
        yield f"depth_of for {name}", functools.partial(_depths, backbone)
    if not taken:
        reasons = listing(dict.fromkeys(refused), 3)
        raise Broken(f"it takes none of the data there is ({reasons}); give its dataset with --plugin or --dataset")


def _build(choice: Choice, data: Data) -> Backbone:
    backbone = choice.build(spec=data.spec)
    if not isinstance(backbone, Backbone):
        raise Broken(f"build() must return a core.Backbone, not {type(backbone).__name__}")
    if type(backbone).calibrate is not Backbone.calibrate:
        with torch.no_grad():
            backbone.calibrate(batches(data, size=64)[0].views[0])
    return backbone


def _features(backbone: Backbone, inputs: Inputs) -> Features:
    features = backbone(inputs)
    if not isinstance(features, Features):
        raise Broken(f"forward() must return core.Features, not {type(features).__name__}")
    return features


def _vector(backbone: Backbone, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return _features(backbone, inputs).vector


def _output(backbone: Backbone, batch: Batch) -> str | None:
    features, width = _features(backbone.train(), batch.views[0]), getattr(backbone, "width", None)
    vector = features.vector
    if width is None:
        raise Broken("self.width, the number of features of the vector, is not set")
    if tuple(vector.shape) != (len(batch), width):
        raise Broken(f"the vector is {tuple(vector.shape)}; width {width} promises {(len(batch), width)}")
    if vector.dtype != torch.float32:
        raise Broken(f"the vector is {vector.dtype}, not torch.float32")
    if not vector.isfinite().all():
        raise Broken("the vector is not finite")
    if features.tokens is not None and features.mask is not None:
        if features.mask.shape != features.tokens.shape[:2] or features.mask.dtype != torch.bool:
            raise Broken(f"Features.mask must be bool of shape {tuple(features.tokens.shape[:2])}")
    return f"width {width}"


def _gradient(backbone: Backbone, batch: Batch) -> str | None:
    backbone.train().zero_grad()
    features = _features(backbone, batch.views[0])
    parts = [features.vector, *([features.tokens] if features.tokens is not None else [])]
    torch.stack([part.square().sum() for part in parts]).sum().backward()
    learning = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    if without := [name for name, p in learning.items() if p.grad is None]:
        raise Broken(f"no gradient reaches {listing(without, 5)}")
    if strange := [name for name, p in learning.items() if p.grad is not None and not p.grad.isfinite().all()]:
        raise Broken(f"the gradient of {listing(strange, 5)} is not finite")
    return None if learning else "no parameter learns"


def _state(make: Callable[[], Backbone], batch: Batch) -> str | None:
    """A checkpoint stores the state dict of `library`, and a model that is built anew loads it."""
    one, other = make(), make()
    state = {name: x.clone() for name, x in one.library.state_dict().items()}
    if strange := sorted(set(state) ^ set(other.library.state_dict())):
        raise Broken(f"two builds have other names in their state dict: {listing(strange, 5)}")
    try:
        transplant(other, state, source="the state dict", naming=Naming(prefix=""))
    except CheckpointError as error:
        raise Broken(" ".join(error.message.split())) from None
    inputs = batch.views[0]
    if not torch.equal(_vector(one.eval(), inputs), _vector(other.eval(), inputs)):
        raise Broken(
            "a model that loads the state dict computes something else: what it needs is no parameter or buffer"
        )
    return None


def _evaluation(backbone: Backbone, batch: Batch) -> str | None:
    inputs = batch.views[0]
    backbone.eval()
    before = {name: x.clone() for name, x in backbone.library.state_dict().items()}
    seed_torch(1)
    first = _vector(backbone, inputs)
    seed_torch(2)
    if not torch.allclose(first, _vector(backbone, inputs), rtol=0, atol=0, equal_nan=True):
        raise Broken("in evaluation mode the same inputs give another vector the second time")
    after = backbone.library.state_dict()
    if moved := [name for name, x in before.items() if not torch.equal(x, after[name])]:
        raise Broken(f"in evaluation mode a forward pass changes {listing(moved, 5)}")
    return None


def _alone(backbone: Backbone, data: Data, batch: Batch) -> str | None:
    """A sample's vector does not depend on who shares its batch, nor on how long the batch is padded."""
    backbone.eval()
    together = _vector(backbone, batch.views[0])
    for i, one in enumerate(batches(data, size=1, count=len(batch))):
        alone = _vector(backbone, one.views[0])[0]
        scale = float(together[i].abs().max().clamp_min(1))
        if not torch.allclose(alone, together[i], rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
            padding = "; padding, zeros at the end, may change nothing" if data.spec.ragged else ""
            raise Broken(f"the vector of sample {i} is another one in a batch of {len(batch)} than alone{padding}")
    return None


def _maps(backbone: Backbone, batch: Batch) -> str | None:
    """`maps` returns what `map_widths` and `map_strides` say; a backbone without them says so."""
    backbone.eval()
    inputs, strides, widths = batch.views[0], backbone.map_strides, backbone.map_widths
    if not strides and not widths:
        with contextlib.suppress(TypeError), torch.no_grad():
            backbone.maps(inputs)
            raise Broken("maps() returns maps; set map_widths and map_strides")
        return "none"
    if len(strides) != len(widths) or list(strides) != sorted(set(strides) & {2, 4, 8, 16, 32}):
        raise Broken(
            f"map_strides {strides} and map_widths {widths}: a width for each of rising strides among 2, 4, 8, 16, 32"
        )
    images = [x for x in inputs.values() if x.ndim == 4]
    if len(images) != 1:
        raise Broken("maps are of an image (B, C, H, W)")
    height, width = images[0].shape[2:]
    _map_shapes(backbone, inputs, height, width)
    odd = height - 1 + height % 2, width - 1 + width % 2
    if odd == (height, width):
        return f"strides {listing(strides)}"
    cut = {name: x[:, :, : odd[0], : odd[1]] if x.ndim == 4 else x for name, x in inputs.items()}
    try:
        _vector(backbone, cut)
    except Exception:  # a network for one size may refuse another in any way
        return f"strides {listing(strides)}, this size only"
    _map_shapes(backbone, cut, *odd)
    return f"strides {listing(strides)}"


def _map_shapes(backbone: Backbone, inputs: Inputs, height: int, width: int) -> None:
    with torch.no_grad():
        maps = backbone.maps(inputs)
    size = len(next(iter(inputs.values())))
    wanted = [
        (size, channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(backbone.map_widths, backbone.map_strides, strict=True)
    ]
    if (found := [tuple(x.shape) for x in maps]) != wanted:
        raise Broken(
            f"the maps of an image of {height}x{width} are {found}; map_widths and map_strides promise {wanted}"
        )
    if not all(x.isfinite().all() for x in maps):
        raise Broken("the maps are not finite")


def _map_gradient(backbone: Backbone, batch: Batch) -> str | None:
    """The gradient of the maps reaches all parameters but those in `unmapped`."""
    backbone.train().zero_grad()
    torch.stack([x.square().sum() for x in backbone.maps(batch.views[0])]).sum().backward()
    learning = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    without = {name for name, p in learning.items() if p.grad is None}
    if missing := sorted(without - set(backbone.unmapped)):
        raise Broken(
            f"no gradient of the maps reaches {listing(missing, 5)}; `unmapped` must name what maps() does not use"
        )
    if used := sorted(set(backbone.unmapped) - without):
        raise Broken(f"`unmapped` names {listing(used, 5)}, which maps() uses or which does not exist")
    return f"{len(without)} parameters unused" if without else None


def _maps_alone(backbone: Backbone, batch: Batch) -> str | None:
    """The maps of a sample do not depend on who shares its batch."""
    backbone.eval()
    with torch.no_grad():
        together = backbone.maps(batch.views[0])
        for i in range(len(batch)):
            alone = backbone.maps({name: x[i : i + 1] for name, x in batch.views[0].items()})
            for stride, one, many in zip(backbone.map_strides, alone, together, strict=True):
                scale = float(many[i].abs().max().clamp_min(1))
                if not torch.allclose(one[0], many[i], rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
                    raise Broken(
                        f"the map of stride {stride} of sample {i} is another one in a batch of {len(batch)} than alone"
                    )
    return None


def _depths(backbone: Backbone) -> str | None:
    depths: dict[str, object] = {}
    for name, _ in backbone.library.named_parameters():
        try:
            depths[name] = backbone.depth_of(name)
        except Exception as error:
            raise Broken(f"depth_of('{name}') fails: {type(error).__name__}: {error}") from error
    if strange := [name for name, depth in depths.items() if type(depth) is not int or depth < 0]:
        raise Broken(f"depth_of('{strange[0]}') must be a whole number from 0 on, not {depths[strange[0]]!r}")
    return f"{len(set(depths.values()))} layers"
