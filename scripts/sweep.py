"""The contract of every torchvision architecture: build, forward, backward, save and load. Takes some minutes.

python scripts/sweep.py [NAME ...]

tests/plugins/test_contract.py asks the same of the small ones.
"""

from __future__ import annotations

import sys
import time

import torch

from fmeco.checkpoints import transplant
from fmeco.config.check import choose
from fmeco.core import Backbone, DataSpec, InputSpec
from fmeco.plugins.registry import find

SIZES = {"inception_v3": 96, "alexnet": 64, "maxvit_t": 224, "squeezenet1_0": 64, "squeezenet1_1": 64, "vit_h_14": 56}


def keeps_the_contract(name: str, channels: int, size: int) -> Backbone:
    """Build an architecture twice for images of a size, and hand the weights of one to the other.

    Raises AssertionError where a parameter has no gradient, a tensor is not carried over, the outputs differ, all
    parameters are at one depth, or feature maps have other shapes than announced.
    """
    spread = ((0.5,) * channels, (0.25,) * channels)
    spec = DataSpec("image", {"image": InputSpec((channels, size, size), "uint8", 1 / 255, *spread)})
    choice = choose("backbone", name)
    made, other = (choice.plugin.build({"spec": spec, "arch": choice.arch}, choice.options) for _ in range(2))
    made.train()
    x = {"image": torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))}
    features = made(x).vector
    assert features.shape == (2, made.width), features.shape
    features.square().sum().backward()
    without = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without, f"no finite gradient: {without}"
    report = transplant.transplant(other, made.library.state_dict(), source=name)
    assert report.share == 1.0
    assert not report.missing
    assert not report.unexpected
    assert not report.left_out
    made.eval(), other.eval()
    with torch.inference_mode():
        assert torch.equal(made(x).vector, other(x).vector), "the same weights give other vectors"
        maps = [tuple(one.shape) for one in made.maps(x)] if made.map_strides else []
    announced = zip(made.map_widths, made.map_strides, strict=True)
    assert maps == [(2, width, -(-size // stride), -(-size // stride)) for width, stride in announced], maps
    depths = [made.depth_of(name) for name, _ in made.library.named_parameters()]
    assert min(depths) == 0
    assert len(set(depths)) > 1
    found: Backbone = made
    return found


def main() -> int:
    names = sys.argv[1:] or list(find("backbones", "resnet18")[0].names)
    failed = []
    for name in names:
        start = time.monotonic()
        try:
            made = keeps_the_contract(name, 3, SIZES.get(name, 32))
            print(
                f"{name:22} width {made.width:5}  {sum(p.numel() for p in made.parameters()) / 1e6:7.1f} M  {time.monotonic() - start:.1f} s"
                f"  maps {made.map_widths} at {made.map_strides}",
                flush=True,
            )
        except Exception as error:
            failed.append(name)
            print(f"{name:22} FAILED: {type(error).__name__}: {error}", flush=True)
    print(f"{len(names) - len(failed)} of {len(names)} architectures keep the contract")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
