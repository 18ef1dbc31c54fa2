"""Fracast-0, a small published forecaster, as a backbone for series. Needs: pip install fracast

    fmeco finetune --from fracast/fracast0@fp32 --dataset load.csv

The network and its weights are those of the installed package. Each window is scaled to 0..1 by its minimum and maximum and
filled up at its beginning to 2,048 steps, which are marked as unknown, as the package does. The tokens are the package's own
forecasts, and objective forecast solves or trains a linear head on them, for any horizon.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmeco.core import Backbone, ConfigError, DataSpec, Features, Inputs, InputSpec, Published

KIND = "backbone"
NAMES = ("fracast0",)  # an architecture that has published weights
QUALIFIED = True  # a config writes fracast/fracast0
FINETUNE_LR = 5e-4  # of so small a network
LEAST = 8  # steps that the package demands
NARROW = 1e-5  # what a window that does not vary is divided by, as in the package


def build(spec: DataSpec) -> Backbone:
    if set(spec.inputs) != {"series"}:
        raise ConfigError("the backbone fracast takes series", "dataset: {name: series}")
    library, _, settings = _package()
    steps, longest = spec.inputs["series"].shape[0], int(settings["model"]["W"])
    if not LEAST <= steps <= longest:
        raise ConfigError(
            f"the backbone fracast takes windows of {LEAST} to {longest} steps, not {steps}: dataset.context"
        )
    return Fracast(*library.build_from_cfg(settings))


def pretrained(arch: str, weights: str) -> Published:
    """Name the file in the installed package, whose weights are not rounded. Windows are the user's, 48 steps ahead by default."""
    if weights not in ("fp32", "DEFAULT"):
        raise ConfigError(f"fracast/{arch} has no weights '{weights}'; it has: fp32")
    _, folder, settings = _package()
    context, horizon = 512, int(settings["model"]["horizon"])
    spec = DataSpec("series", {"series": InputSpec((context,))}, preprocessing={"context": context, "horizon": horizon})
    return Published(str(folder / "model.safetensors"), "", spec, "apache-2.0")


def _package() -> tuple[Any, Path, dict[str, Any]]:
    """Return the package's module with the network, its folder of weights, and the content of its config.json there."""
    try:
        import fracast
        from fracast._core import model
    except ImportError:
        raise ConfigError("the backbone fracast needs a package", "pip install fracast==0.1.0") from None
    folder = Path(fracast.__file__).parent / "weights"
    return model, folder, json.loads((folder / "config.json").read_text("utf-8"))


class Fracast(Backbone):
    """Series (B, T) -> tokens (B, H, Q): the package's forecast of each quantile, H steps ahead. The vector is the newest state."""

    def __init__(self, core: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.core, self.head = core, head
        self.longest, self.width = int(core.W), int(core.d)

    def forward(self, inputs: Inputs) -> Features:
        x = inputs["series"].float()  # (B, T)
        with torch.autocast(x.device.type, enabled=False):  # periods are found by a Fourier transform
            low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
            span = (high - low).clamp_min(NARROW)
            before = (self.longest - x.shape[1], 0)
            values = F.pad((x - low) / span, before)  # (B, W)
            known = F.pad(torch.ones_like(x), before)
            states: Tensor = self.core(values[:, None], known[:, None].bool(), known[:, None])  # (B, W, D)
            ahead: Tensor = self.head.forward_horizon(states, ctx=values, ctx_mask=known.bool())  # (B, H, Q)
            return Features(pooled=states[:, -1], tokens=low[:, None] + span[:, None] * ahead)

    def depth_of(self, name: str) -> int:
        first, part, *_ = name.split(".")
        return 2 if first == "head" else {"in_proj": 0, "periodic": 0}.get(part, 1)
