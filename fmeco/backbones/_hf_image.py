"""Build image models of transformers, and read their preprocessing."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fmeco.backbones._hf_body import Body, Pooling
from fmeco.backbones._hf_config import network
from fmeco.backbones._hf_processor import read_processor
from fmeco.backbones._images import image_input
from fmeco.backbones._maps import MapsOfNetwork
from fmeco.core import Backbone, ConfigError, DataSpec, Features, Inputs


class Image(MapsOfNetwork, Body):
    """Compute features of images (B, C, H, W): pooled (B, D), tokens (B, T, D), and their grid if they form one.

    patch: height and width of a patch; None for a model without patches.
    arguments: further arguments of the network's forward.
    """

    def __init__(self, net: nn.Module, pooling: Pooling, name: str, shape: tuple[int, int, int]) -> None:
        super().__init__(net, pooling)
        self.input, self.shape = name, shape
        config: Any = net.config
        convolutions = (key for key, module in net.named_modules() if isinstance(module, nn.Conv2d))
        self.first = [f"{key}.weight" for key in list(convolutions)[:1]]
        patch = getattr(config, "patch_size", None)
        self.patch: tuple[int, int] | None = (patch, patch) if isinstance(patch, int) else patch and tuple(patch)
        size = getattr(config, "image_size", None)
        own_size = (size, size) if isinstance(size, int) else tuple(size or ())
        resized = own_size != shape[1:] and "interpolate_pos_encoding" in inspect.signature(net.forward).parameters
        self.arguments = {"interpolate_pos_encoding": True} if resized else {}

    def compute(self, x: Tensor) -> Any:
        return self.net(pixel_values=x, **self.arguments)

    def forward(self, inputs: Inputs) -> Features:
        images = inputs[self.input]
        out = self.compute(images)
        x, pooled, grid, before = out.last_hidden_state, getattr(out, "pooler_output", None), None, 0
        if x.ndim == 4:  # (B, D, h, w)
            grid, x = (x.shape[2], x.shape[3]), x.flatten(2).transpose(1, 2)
        elif self.patch is not None:
            cells = images.shape[2] // self.patch[0], images.shape[3] // self.patch[1]
            before = x.shape[1] - cells[0] * cells[1]  # class and register tokens
            if before >= 0:
                grid = cells
        if self.pooling.by == "mean":
            pooled = None
        elif pooled is not None:
            pooled = pooled.flatten(1)
        elif before > 0:
            pooled = x[:, 0]
        return Features(pooled=pooled, tokens=x[:, max(before, 0) :], grid=grid)


def build(config: Any, spec: DataSpec, pooling: Pooling, where: str) -> Backbone:
    """Build a model for the images or spectrograms of a dataset. Raises ConfigError if it returns no vector per image."""
    name, shape = image_input(spec, where)
    if pooling.by not in ("model", "mean") or pooling.normalize:
        raise ConfigError(f"backbone.pooling of {where}: images know model and mean, without normalize")
    if hasattr(config, "num_channels"):
        config.num_channels = shape[0]
    made = Image(network(config, "image"), pooling, name, shape)
    with torch.no_grad():  # some models reject an image size only when they run
        vector = made({name: torch.zeros(1, *shape)}).vector
    if vector.ndim != 2:
        raise ConfigError(f"{where} does not return one vector per image")
    made.width = vector.shape[1]
    return made.train()


def preprocessing(arch: str, config: Any) -> DataSpec | None:
    """Read a model's preprocessing; None if it states none. Raises ConfigError for values that fmeco cannot follow."""
    return read_processor(arch, str(config.model_type))
