"""Check every torchvision architecture: build, forward, backward, save and load. Takes some minutes.

python scripts/sweep.py [NAME ...]
"""

from __future__ import annotations

import sys
import time

import torch

from fmeco.checkpoints import transplant
from fmeco.config.check import choose
from fmeco.core import DataSpec, InputSpec
from fmeco.plugins.registry import find

SIZES = {"inception_v3": 96, "alexnet": 64, "maxvit_t": 224, "squeezenet1_0": 64, "squeezenet1_1": 64, "vit_h_14": 56}


def main() -> int:
    names = sys.argv[1:] or list(find("backbones", "resnet18")[0].names)
    failed = []
    for name in names:
        size, start = SIZES.get(name, 32), time.monotonic()
        spec = DataSpec("image", {"image": InputSpec((3, size, size), "uint8", 1 / 255, (0.5,) * 3, (0.25,) * 3)})
        choice = choose("backbone", name)
        try:
            backbone, second = (
                choice.plugin.build({"spec": spec, "arch": choice.arch}, choice.options) for _ in range(2)
            )
            features = backbone({"image": torch.randn(2, 3, size, size)}).vector
            assert features.shape == (2, backbone.width), features.shape
            features.square().sum().backward()
            assert all(p.grad is not None for p in backbone.parameters()), "a parameter without gradient"
            report = transplant.transplant(second, backbone.library.state_dict(), source=name)
            assert report.share == 1.0
            assert not report.missing
            assert not report.unexpected
            print(
                f"{name:22} width {backbone.width:5}  {sum(p.numel() for p in backbone.parameters()) / 1e6:7.1f} M  {time.monotonic() - start:.1f} s",
                flush=True,
            )
        except Exception as error:
            failed.append(name)
            print(f"{name:22} FAILED: {type(error).__name__}: {error}", flush=True)
    print(f"{len(names) - len(failed)} of {len(names)} architectures pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
