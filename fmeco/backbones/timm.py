"""Every architecture of timm: `backbone: timm/vit_tiny_patch16_224`. Needs the extra: pip install 'fmeco[timm]'.

Only the class layer is left out, as timm does with num_classes=0, and tensors keep timm's names, so a saved backbone
loads in plain timm. `pooled` is what timm returns then. The prefix timm/ is needed: resnet18 alone is torchvision's.
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

QUALIFIED = True  # hundreds of names are also torchvision's
HUB = "https://huggingface.co/{}/resolve/main/{}"


def build(
    spec: DataSpec,
    arch: str,
    *,
    weights: Annotated[
        FilePath | None, Doc("pretrained weights: a tag of timm such as a1_in1k, DEFAULT, or a file; null = random")
    ] = None,
    options: Annotated[dict[str, Scalar], Doc("further arguments of timm.create_model")] = {},
) -> Backbone:
    """Loading `weights` is the caller's: weights change hands in one place only."""
    name, (channels, height, width) = image_input(spec, f"timm/{arch}")
    size = height if height == width else (height, width)
    timm = _import_timm()
    # timm says of a model whether its constructor is to be told the image size; the others take any.
    about = timm.models.get_pretrained_cfg(arch)
    extra = {"img_size": size} if about is not None and about.fixed_input_size else {}
    try:
        # Named here, so that `options` cannot name them again: weights come by fmeco's own verified way.
        net: nn.Module = timm.create_model(
            arch, pretrained=False, checkpoint_path=None, num_classes=0, in_chans=channels, **{**extra, **options}
        )
        # What timm declares as the width is not that of every model, and some refuse a size only when they run.
        with torch.no_grad():
            made = net.eval()(torch.zeros(1, channels, height, width))
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError) as error:
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise  # explained elsewhere
        raise ConfigError(f"timm/{arch} with image_size {size} and options {dict(options)}: {error}") from None
    if not isinstance(made, Tensor) or made.ndim != 2:
        raise ConfigError(f"timm/{arch} does not give one vector per image", "backbone.options: {global_pool: avg}")
    return Timm(net.train(), name, made.shape[1])


class Timm(Backbone):
    """images or spectrograms (B, C, H, W) -> pooled (B, D)."""

    def __init__(self, net: nn.Module, name: str, width: int) -> None:
        super().__init__()
        self.net, self.input, self.width = net, name, width
        about: Mapping[str, Any] = net.default_cfg  # type: ignore[assignment]
        self.class_layers = tuple(f"{_left_out(net, name)}." for name in _names(about.get("classifier")))
        self.first = [f"{name}.weight" for name in _names(about.get("first_conv"))]

    def forward(self, inputs: Inputs) -> Features:
        return Features(pooled=self.net(inputs[self.input]))  # (B, D)

    @property
    def library(self) -> nn.Module:
        return self.net

    def adapt(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """A first convolution for another number of channels is summed (to one) or spread (from one). What depends on
        the image size is resampled by timm's own function, where the architecture has one."""
        own = self.net.state_dict()
        changed = fit_channels(state, own, self.first)
        state = {**state, **changed}
        odd = [name for name in state if name in own and state[name].shape != own[name].shape]
        convert = getattr(sys.modules[type(self.net).__module__], "checkpoint_filter_fn", None)
        if odd and convert is not None:
            try:
                made = convert(dict(state), self.net)
            except Exception:  # it is written for timm's own files; what of another does not fit is refused by name
                made = {}
            changed |= {name: made[name] for name in odd if name in made and made[name].shape == own[name].shape}
        return {**state, **changed}, list(changed)


def _import_timm() -> Any:
    """timm, imported late: it takes three seconds."""
    import_torchvision()  # timm uses it, and a pair that does not match torch is then one clear sentence
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(f"backbones of timm need timm: {error}", "pip install 'fmeco[timm]'") from None


def _names(declared: Any) -> tuple[str, ...]:
    """timm declares layers as a name, several, or None."""
    return (declared,) if isinstance(declared, str) else tuple(declared or ())


def _left_out(net: nn.Module, name: str) -> str:
    """With the class layer timm leaves out what only it needed (an MLP around it): the largest part without tensors."""
    own = net.state_dict()
    while (parent := name.rpartition(".")[0]) and not any(key.startswith(f"{parent}.") for key in own):
        name = parent
    return name


def pretrained(arch: str, weights: str) -> Published:
    """Where timm publishes these weights: on the hub, as safetensors, else at an address of their own.

    Raises ConfigError for a tag that the architecture does not have.
    """
    timm = _import_timm()
    tags = [name.partition(".")[2] for name in timm.list_models(arch, pretrained=True)]
    if weights not in (*tags, "DEFAULT") or not tags:
        raise ConfigError(
            f"timm/{arch} has no weights '{weights}'{nearest(weights, tags)}; it has: {', '.join(tags) or 'none'}",
            "a file with weights is named by its path",
        )
    about = timm.models.get_pretrained_cfg(arch if weights == "DEFAULT" else f"{arch}.{weights}")
    url = HUB.format(about.hf_hub_id, about.hf_hub_filename or "model.safetensors") if about.hf_hub_id else about.url
    digits = re.search(r"-([0-9a-f]{8,64})\.", os.path.basename(url))
    size = about.input_size[-1]
    spec = DataSpec(
        modality="image",
        reader="image_folder",
        inputs={"image": InputSpec((3, size, size), "uint8", 1 / 255, tuple(about.mean), tuple(about.std))},
        preprocessing={
            "size": size,
            "resize": math.floor(size / about.crop_pct),
            "interpolation": about.interpolation,
            "color": "rgb",
        },
    )
    return Published(url, digits[1] if digits else "", spec, about.license)
