"""All architectures of timm: `backbone: timm/vit_tiny_patch16_224`. Needs the extra: pip install 'fmeco[timm]'.

The network is timm's with num_classes=0: only the class layer is removed, and tensors keep timm's names, so a saved
backbone loads in plain timm. `pooled` is the output of that network. The prefix timm/ is required: resnet18 alone is
torchvision's.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from fmeco.backbones._images import assumed as assumed
from fmeco.backbones._images import fit_channels, image_input
from fmeco.backbones._maps import MapsOfNetwork, Place, read_map
from fmeco.core import (
    Backbone,
    ConfigError,
    DataSpec,
    Doc,
    Features,
    FilePath,
    Inputs,
    InputSpec,
    Published,
    Scalar,
    nearest,
)
from fmeco.nn.libraries import import_torchvision

FITS = {"center": "crop", "squash": "squash", "border": "letterbox"}  # timm's crop mode -> fmeco's name for it

QUALIFIED = True  # torchvision has many of the same names
HUB = "https://huggingface.co/{}/resolve/main/{}"


def build(
    spec: DataSpec,
    arch: str,
    *,
    weights: Annotated[
        FilePath | None, Doc("pretrained weights: a tag of timm such as a1_in1k, DEFAULT, or a file; null = random")
    ] = None,
    options: Annotated[dict[str, Scalar], Doc("additional arguments of timm.create_model")] = {},
) -> Backbone:
    """Build the network with new weights. The caller loads `weights`. Raises ConfigError."""
    name, (channels, height, width) = image_input(spec, f"timm/{arch}")
    size = height if height == width else (height, width)
    timm = _import_timm()
    # timm's config says whether a model's constructor needs the image size; other models take any size.
    about = timm.models.get_pretrained_cfg(arch)
    extra = {"img_size": size} if about is not None and about.fixed_input_size else {}
    try:
        # Passed by name, so that `options` cannot set them: fmeco downloads, verifies and loads weights itself.
        net: nn.Module = timm.create_model(
            arch, pretrained=False, checkpoint_path=None, num_classes=0, in_chans=channels, **{**extra, **options}
        )
        # The width that timm declares is wrong for some models, and some reject an image size only when they run.
        with torch.no_grad():
            output = net.eval()(torch.zeros(1, channels, height, width))
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError) as error:
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise  # the command line explains these
        raise ConfigError(f"timm/{arch} with image_size {size} and options {dict(options)}: {error}") from None
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ConfigError(f"timm/{arch} does not return one vector per image", "backbone.options: {global_pool: avg}")
    return Timm(net.train(), name, (channels, height, width), output.shape[1])


class Timm(MapsOfNetwork):
    """Compute features of images or spectrograms (B, C, H, W): pooled (B, D)."""

    def __init__(self, net: nn.Module, name: str, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.net, self.input, self.shape, self.width = net, name, shape, width
        self.lists_maps = hasattr(net, "forward_intermediates")  # older releases have architectures without it
        about: Mapping[str, Any] = net.default_cfg  # type: ignore[assignment]
        self.class_layers = tuple(f"{_left_out(net, name)}." for name in _names(about.get("classifier")))
        self.first = [f"{name}.weight" for name in _names(about.get("first_conv"))]

    def forward(self, inputs: Inputs) -> Features:
        return Features(pooled=self.net(inputs[self.input]))  # (B, D)

    def compute(self, x: Tensor) -> Any:
        return self.net(x)

    def find(self, x: Tensor) -> tuple[Place, ...]:
        if not self.lists_maps:
            return super().find(x)
        found = [read_map(one, x) for one in self._intermediates(x)]
        return tuple(place._replace(call=i) for i, place in enumerate(found) if place is not None)

    def take(self, x: Tensor, places: tuple[Place, ...]) -> list[Tensor]:
        if not self.lists_maps:
            return super().take(x, places)
        indices = sorted(place.call for place in places)
        maps = self._intermediates(x, indices=indices)
        return [maps[indices.index(place.call)] for place in places]

    def one_map(self, x: Tensor) -> Tensor | None:
        if not self.lists_maps:
            return super().one_map(x)
        maps = self._intermediates(x, indices=1, norm=True)
        return maps[0] if maps[0].ndim == 4 else None

    def _intermediates(self, x: Tensor, **how: Any) -> list[Tensor]:
        """Run the network up to the last of the maps that `how` names, with timm's own function; by default, all of its maps."""
        net: Any = self.net
        maps: list[Tensor] = net.forward_intermediates(x, stop_early=True, intermediates_only=True, **how)
        return maps

    @property
    def library(self) -> nn.Module:
        return self.net

    def adapt(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Fit a file's tensors to this network.

        A first convolution for another number of channels is summed (to one channel) or spread (from one channel). Tensors
        that depend on the image size are resampled by timm's own function, if the architecture has one.
        """
        own = self.net.state_dict()
        changed = fit_channels(state, own, self.first)
        state = {**state, **changed}
        odd = [name for name in state if name in own and state[name].shape != own[name].shape]
        convert = getattr(sys.modules[type(self.net).__module__], "checkpoint_filter_fn", None)
        if odd and convert is not None:
            try:
                converted = convert(dict(state), self.net)
            except Exception:  # it expects timm's own files; other tensors that do not fit are reported by name later
                converted = {}
            changed |= {
                name: converted[name] for name in odd if name in converted and converted[name].shape == own[name].shape
            }
        return {**state, **changed}, list(changed)


def _import_timm() -> Any:
    """Import timm when it is first needed: importing takes three seconds. Raises ConfigError if it is not installed."""
    import_torchvision()  # timm imports it; if it does not match torch, this raises a clear error
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(f"backbones of timm need timm: {error}", "pip install 'fmeco[timm]'") from None


def _names(declared: Any) -> tuple[str, ...]:
    """Return the layers that timm declares as one name, several names or None, as a tuple."""
    return (declared,) if isinstance(declared, str) else tuple(declared or ())


def _left_out(net: nn.Module, name: str) -> str:
    """Return the outermost module around the class layer that has no tensors left: timm may remove an MLP around it, too."""
    own = net.state_dict()
    while (parent := name.rpartition(".")[0]) and not any(key.startswith(f"{parent}.") for key in own):
        name = parent
    return name


def pretrained(arch: str, weights: str) -> Published:
    """Find where timm publishes weights: as safetensors on the hub, else at the URL that timm states.

    Raises ConfigError for a tag that the architecture does not have.
    """
    timm = _import_timm()
    tags = [name.partition(".")[2] for name in timm.list_models(arch, pretrained=True)]
    if weights not in (*tags, "DEFAULT") or not tags:
        raise ConfigError(
            f"timm/{arch} has no weights '{weights}'{nearest(weights, tags)}; it has: {', '.join(tags) or 'none'}",
            "name a file of weights by its path",
        )
    published = timm.models.get_pretrained_cfg(arch if weights == "DEFAULT" else f"{arch}.{weights}")
    url = (
        HUB.format(published.hf_hub_id, published.hf_hub_filename or "model.safetensors")
        if published.hf_hub_id
        else published.url
    )
    digits = re.search(r"-([0-9a-f]{8,64})\.", os.path.basename(url))
    return Published(url, digits[1] if digits else "", _spec(published), published.license)


def preprocessing(arch: str) -> DataSpec | None:
    """Return the preprocessing of the architecture's default weights, for a file of weights. None if timm states none."""
    stated = _import_timm().models.get_pretrained_cfg(arch)
    return _spec(stated) if stated is not None else None


def _spec(stated: Any) -> DataSpec:
    """Describe images by a configuration of timm."""
    size = stated.input_size[-1]
    return DataSpec(
        modality="image",
        reader="image_folder",
        inputs={"image": InputSpec((3, size, size), "uint8", 1 / 255, tuple(stated.mean), tuple(stated.std))},
        preprocessing={
            "size": size,
            "resize": math.floor(size / stated.crop_pct),
            "interpolation": stated.interpolation,
            "color": "rgb",
            "fit": (fit := FITS.get(stated.crop_mode, "crop")),
            "crop_share": stated.crop_pct,
            # timm fills the rest of the square with its mean colour.
            **({"background": [round(255 * value) for value in stated.mean]} if fit == "letterbox" else {}),
        },
    )
