"""All classification architectures of torchvision: `backbone: resnet18`, or torchvision/resnet18.

Only the final class layer is removed, and parameters keep the library's names, so a saved backbone loads in plain
torchvision. `pooled` is the input of that layer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from fmeco.backbones._images import assumed as assumed
from fmeco.backbones._images import channels_as, fit_channels, image_input
from fmeco.backbones._maps import MapsOfNetwork
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

_CLASSES = 1000  # the final class layer is found by this number of outputs
_SQUARE = ("vit_", "maxvit_")  # architectures built for one square image size


def build(
    spec: DataSpec,
    arch: str,
    *,
    weights: Annotated[
        FilePath | None,
        Doc("pretrained weights: a torchvision name such as DEFAULT or IMAGENET1K_V1, or a file; null = random"),
    ] = None,
    stem: Annotated[
        Literal["library", "small"],
        Doc("small = 3x3 first convolution of stride 1 and no max-pool, for resnets on images of about 32 pixels"),
    ] = "library",
    options: Annotated[dict[str, Scalar], Doc("additional arguments of the library's constructor")] = {},
) -> Backbone:
    """Build the network with new weights. The caller loads `weights`. Raises ConfigError."""
    name, (channels, size, width) = image_input(spec, f"torchvision/{arch}")
    if size != width and arch.startswith(_SQUARE):
        raise ConfigError(
            f"torchvision/{arch} takes square inputs only, and '{name}' is {size} by {width}",
            "a spectrogram is square if it has as many mels as frames (seconds / hop); other architectures take any shape",
        )
    models = import_torchvision().models
    extra: dict[str, Any] = {"image_size": size} if arch.startswith("vit_") else {}
    if arch in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "init_weights": True}
    if arch == "maxvit_t":
        extra = {"input_size": (size, size)}
    try:
        net: nn.Module = models.get_model(arch, weights=None, num_classes=_CLASSES, **{**extra, **options})
    except (TypeError, ValueError, AssertionError, ZeroDivisionError) as error:
        raise ConfigError(f"torchvision/{arch} with image_size {size} and options {dict(options)}: {error}") from None

    if stem == "small":
        if not isinstance(net, models.ResNet):
            raise ConfigError(f"backbone.stem: small is for resnets only, not for {arch}")
        net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    return Torchvision(net, name, (channels, size, width), arch)


class Torchvision(MapsOfNetwork):
    """Compute features of images or spectrograms (B, C, H, W): pooled (B, D)."""

    def __init__(self, net: nn.Module, name: str, shape: tuple[int, int, int], arch: str) -> None:
        super().__init__()
        self.input, self.shape, channels = name, shape, shape[0]
        layers = dict(net.named_modules())
        final = [
            name for name, m in layers.items() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == _CLASSES
        ]
        if not final:
            raise ConfigError(f"torchvision/{arch}: no layer with {_CLASSES} outputs, so the class layer is unknown")
        last = layers[final[-1]]
        self.width = int(last.in_features if isinstance(last, nn.Linear) else last.in_channels)
        _replace(net, final[-1], nn.Identity())
        self.class_layers = (f"{final[-1]}.", "AuxLogits.", "aux1.", "aux2.")
        self.first = next(name for name, m in layers.items() if isinstance(m, nn.Conv2d))
        conv = layers[self.first]
        assert isinstance(conv, nn.Conv2d)
        if channels != conv.in_channels:
            size: Any = conv.kernel_size
            pad: Any = conv.padding
            stride: Any = conv.stride
            narrow = nn.Conv2d(channels, conv.out_channels, size, stride, pad, bias=conv.bias is not None)
            with torch.no_grad():
                narrow.weight.copy_(channels_as(conv.weight, channels))
                if conv.bias is not None and narrow.bias is not None:
                    narrow.bias.copy_(conv.bias)
            _replace(net, self.first, narrow)
        self.net = net

    def forward(self, inputs: Inputs) -> Features:
        return Features(pooled=self.net(inputs[self.input]).flatten(1))  # (B, D)

    def compute(self, x: Tensor) -> Any:
        return self.net(x)

    def mapped(self, inputs: Inputs) -> Features:
        """Compute `forward` with tokens: the cells of the map before average pooling, or a ViT's patches; without either, none."""
        pooling = getattr(self.net, "avgpool", None)
        maps: list[Tensor] = []
        if isinstance(self.net, import_torchvision().models.VisionTransformer):
            return self._patches(inputs[self.input])
        if not isinstance(pooling, nn.AdaptiveAvgPool2d):
            return self(inputs)
        hook = pooling.register_forward_pre_hook(lambda _, arguments: maps.append(arguments[0]))
        try:
            pooled = self(inputs).pooled
        finally:
            hook.remove()
        (x,) = maps  # (B, D, h, w)
        return Features(pooled, x.flatten(2).transpose(1, 2), grid=(x.shape[2], x.shape[3]))

    def _patches(self, x: Tensor) -> Features:
        """Compute the tokens of a ViT's patches; the class token is `pooled`."""
        net: Any = self.net
        encoded: list[Tensor] = []
        hook = net.encoder.register_forward_hook(lambda *call: encoded.append(call[-1]))
        try:
            pooled = net(x)
        finally:
            hook.remove()
        side = x.shape[2] // net.patch_size
        return Features(pooled, encoded[0][:, 1:], grid=(side, side))

    @property
    def library(self) -> nn.Module:
        return self.net

    def adapt(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Fit a file's tensors to this network.

        A first convolution for another number of channels is summed (to one channel) or spread (from one channel). The
        positions of a ViT for another image size are interpolated.
        """
        own = self.net.state_dict()
        changed = fit_channels(state, own, [f"{self.first}.weight"])
        name = "encoder.pos_embedding"
        if name in own and name in state and state[name].ndim == 3 and state[name].shape != own[name].shape:
            changed[name] = _positions(state[name], own[name].shape[1])
        return {**state, **changed}, list(changed)


def _positions(embedding: Tensor, count: int) -> Tensor:
    """Interpolate a ViT's position embeddings, (1, 1 + h * h, D) -> (1, count, D), and keep that of the class token.

    https://arxiv.org/abs/2010.11929 section 3.2.
    """
    old, new = math.isqrt(embedding.shape[1] - 1), math.isqrt(count - 1)
    if 1 + old * old != embedding.shape[1] or 1 + new * new != count:
        return embedding
    grid = embedding[:, 1:].transpose(1, 2).unflatten(2, (old, old))  # (1, D, h, h)
    grid = nn.functional.interpolate(grid.float(), (new, new), mode="bicubic", antialias=True).to(embedding.dtype)
    return torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule called `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)


def pretrained(arch: str, weights: str) -> Published:
    """Find where the library publishes weights, and their preprocessing. The file's name ends in digits of its SHA-256.

    Raises ConfigError for a name that the architecture does not have.
    """
    models = import_torchvision().models
    names = list(models.get_model_weights(arch).__members__)
    if weights not in (*names, "DEFAULT"):
        raise ConfigError(
            f"torchvision/{arch} has no weights '{weights}'{nearest(weights, names)}; it has: {', '.join(names)}",
            "name a file of weights by its path",
        )
    weight = models.get_model_weights(arch)[weights]
    size = int(weight.meta.get("_file_size", 0) * 2**20)  # stated in MiB
    return Published(weight.url, Path(weight.url).stem.rpartition("-")[2], _spec(weight.transforms()), size=size)


def preprocessing(arch: str) -> DataSpec:
    """Return the preprocessing of the architecture's default weights, for a file of weights."""
    return _spec(import_torchvision().models.get_model_weights(arch)["DEFAULT"].transforms())


def _spec(transforms: Any) -> DataSpec:
    """Describe images by the transforms that come with weights of the library."""
    return DataSpec(
        modality="image",
        reader="image_folder",
        inputs={
            "image": InputSpec(
                (3, transforms.crop_size[0], transforms.crop_size[0]),
                "uint8",
                1 / 255,
                tuple(transforms.mean),
                tuple(transforms.std),
            )
        },
        preprocessing={
            "size": transforms.crop_size[0],
            "resize": transforms.resize_size[0],
            "interpolation": transforms.interpolation.value,
            "color": "rgb",
            "fit": "crop",
            "crop_share": transforms.crop_size[0] / transforms.resize_size[0],
        },
    )
