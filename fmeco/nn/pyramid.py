"""Combine the feature maps of a backbone in a feature pyramid, for objectives that answer pixel by pixel or place by place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core.data import Inputs
from fmeco.core.model import Backbone
from fmeco.errors import ConfigError

GROUP = 16  # channels per group of a group norm, which does not depend on the other images of a batch


class FeaturePyramid(nn.Module):
    """Give maps of all strides the same number of channels and the context of the coarser ones.

    https://arxiv.org/abs/1612.03144 section 3.

    widths: channels of the maps, finest first.
    width: channels of the result, a multiple of GROUP.
    """

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(own, width, 1) for own in widths)
        self.smooth = nn.ModuleList(conv_block(width) for _ in widths)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Turn maps (B, C_i, H_i, W_i), finest first, into maps (B, width, H_i, W_i)."""
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for at in reversed(range(len(levels) - 1)):
            levels[at] = levels[at] + resized_like(levels[at + 1], levels[at])
        return [smooth(x) for smooth, x in zip(self.smooth, levels, strict=True)]


def conv_block(width: int, stride: int = 1) -> nn.Sequential:
    """Build a convolution of 3x3 with group norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
        nn.GroupNorm(width // GROUP, width),
        nn.ReLU(inplace=True),
    )


def resized_like(x: Tensor, like: Tensor) -> Tensor:
    """Resize a map (B, C, h, w) to the height and width of another one."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def freeze_unmapped(backbone: Backbone) -> tuple[str, ...]:
    """Freeze the parameters that the feature maps do not depend on, for which DDP would wait for ever. Returns their names."""
    for name in backbone.unmapped:
        backbone.get_parameter(name).requires_grad_(False)
    return tuple(backbone.unmapped)


def check_maps(backbone: Backbone, width: int, objective: str) -> None:
    """Raise ConfigError for a backbone without feature maps, and for a width that FeaturePyramid cannot have."""
    if not backbone.map_strides:
        raise ConfigError(
            f"objective {objective} needs a backbone with feature maps, and this one has none",
            "architectures of torchvision and timm have them: backbone: resnet18",
        )
    if width % GROUP:
        raise ConfigError(f"objective.width: {width} is not a multiple of {GROUP}")


def image_in(inputs: Inputs) -> tuple[str, Tensor]:
    """Find the images (B, C, H, W) of a view. Returns their name and them."""
    return next((name, x) for name, x in inputs.items() if x.ndim == 4)
