"""Build models of transformers that see images, and read how their images are prepared."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from fmeco.backbones._hf_body import Body
from fmeco.backbones._hf_config import network
from fmeco.backbones._hf_published import local_file, read_json
from fmeco.backbones._images import image_input
from fmeco.core import Backbone, ConfigError, DataSpec, Features, Inputs, InputSpec, clean

# Pillow's number -> fmeco's name; Lanczos is nearest to bicubic.
INTERPOLATIONS = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}


class Image(Body):
    """Images (B, C, H, W) -> pooled (B, D), tokens (B, T, D), and their grid where they are patches or cells of one."""

    def __init__(self, net: nn.Module, pooling: str, name: str, shape: tuple[int, int, int]) -> None:
        super().__init__(net, pooling)
        self.input = name
        config: Any = net.config
        convolutions = (key for key, one in net.named_modules() if isinstance(one, nn.Conv2d))
        self.first = [f"{key}.weight" for key in list(convolutions)[:1]]
        patch = getattr(config, "patch_size", None)
        self.cells: tuple[int, int] | None = None
        if patch is not None:
            high, wide = (patch, patch) if isinstance(patch, int) else tuple(patch)
            self.cells = (shape[1] // high, shape[2] // wide)
        size = getattr(config, "image_size", None)
        known = (size, size) if isinstance(size, int) else tuple(size or ())
        resized = known != shape[1:] and "interpolate_pos_encoding" in inspect.signature(net.forward).parameters
        self.given = {"interpolate_pos_encoding": True} if resized else {}

    def forward(self, inputs: Inputs) -> Features:
        out = self.net(pixel_values=inputs[self.input], **self.given)
        x, pooled, grid, before = out.last_hidden_state, getattr(out, "pooler_output", None), None, 0
        if x.ndim == 4:  # (B, D, h, w)
            grid, x = (x.shape[2], x.shape[3]), x.flatten(2).transpose(1, 2)
        elif self.cells is not None:
            before = x.shape[1] - self.cells[0] * self.cells[1]  # class and register tokens
            if before >= 0:
                grid = self.cells
        if self.pooling == "mean":
            pooled = None
        elif pooled is not None:
            pooled = pooled.flatten(1)
        elif before > 0:
            pooled = x[:, 0]
        return Features(pooled=pooled, tokens=x[:, max(before, 0) :], grid=grid)


def build(config: Any, spec: DataSpec, pooling: str, where: str) -> Backbone:
    """Build a model for the images or spectrograms of a dataset. Raises ConfigError where it gives no vector of them."""
    name, shape = image_input(spec, where)
    if hasattr(config, "num_channels"):
        config.num_channels = shape[0]
    made = Image(network(config, "image"), pooling, name, shape)
    with torch.no_grad():  # some refuse a size only when they run
        vector = made({name: torch.zeros(1, *shape)}).vector
    if vector.ndim != 2:
        raise ConfigError(f"{where} does not give one vector per image")
    made.width = vector.shape[1]
    return made.train()


def preprocessing(arch: str, config: Any) -> DataSpec | None:
    """Translate preprocessor_config.json to fmeco's terms: the shorter side is resized, and the middle is cut out."""
    path = local_file(arch, "preprocessor_config.json")
    if path is None:
        return None
    raw = {"size": 224, "crop_size": None, "crop_pct": None, "resample": 2, "rescale_factor": 1 / 255} | read_json(path)
    try:
        short = _side(raw["size"])
        size = _side(raw["crop_size"]) if raw["crop_size"] and raw.get("do_center_crop") else short
        if raw["crop_pct"] and size == short:
            short = int(short / float(raw["crop_pct"]))
        scale = float(raw["rescale_factor"]) if raw.get("do_rescale", True) else 1.0
        mean, std = (
            tuple(float(x) for x in raw[key]) if raw.get("do_normalize", True) else (default,) * 3
            for key, default in (("image_mean", 0.0), ("image_std", 1.0))
        )
        if not (0 < size <= short < 1 << 14 and len(mean) == len(std) == 3 and min(std) > 0 and scale > 0):
            raise ValueError("sizes or colours are out of range")
        interpolation = INTERPOLATIONS.get(raw["resample"], "bilinear")
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise ConfigError(f"{clean(path)}: not how images are prepared: {clean(error)}") from None
    return DataSpec(
        "image",
        {"image": InputSpec((3, size, size), "uint8", scale, mean, std)},
        preprocessing={"size": size, "resize": max(short, size), "interpolation": interpolation, "color": "rgb"},
        reader="image_folder",
    )


def _side(size: Any) -> int:
    """Read a size: 224, {"height": 224, "width": 224} or {"shortest_edge": 224}. Images of fmeco's are square."""
    if isinstance(size, dict):
        size = size["shortest_edge"] if "shortest_edge" in size else min(size["height"], size["width"])
    return int(size)
