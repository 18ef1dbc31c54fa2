"""Measure what masks cost: training steps on images with masks, and on the same images without.

    python scripts/bench/riders.py [--side 224] [--batch 16] [--steps 12] [--rounds 7] [--augment standard]

Both train resnet18 to classify the images, by turns in one process, so that the masks are only carried: read from memory,
augmented with their images, stacked, moved. Prints the time of a step with masks divided by that without: the mean over rounds
with its 95% interval (Student's t, on the logarithm).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time

import torch
from torch import Tensor

from fmeco.config.check import choose
from fmeco.core import Data, DataSpec, Inputs, InputSpec, Samples, Target, View
from fmeco.data.loader import Loader
from fmeco.data.reading import Reading
from fmeco.nn.intervals import t_interval

CPU = torch.device("cpu")


class Pictures(Samples):
    """Serve random pictures of a side with random masks, or without, from memory."""

    in_memory = True

    def __init__(self, count: int, side: int, masks: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
        self.masks = torch.randint(0, 2, (count, side, side), dtype=torch.uint8, generator=generator) if masks else None
        self.targets = {"label": torch.arange(count) % 2}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Inputs:
        riders: dict[str, Tensor] = {} if self.masks is None else {"mask": self.masks[index]}
        return {"image": self.images[index], **riders}

    def name(self, index: int) -> str:
        return str(index)


def loader(side: int, batch: int, augment: str, masks: bool) -> Loader:
    """Make the loader of a training run over pictures that are an eighth larger than the model's input."""
    inputs = {"image": InputSpec((3, side, side), "uint8", 1 / 255, (0.5,) * 3, (0.25,) * 3)}
    spec = DataSpec("image", inputs, {"label": Target("class", ("a", "b"))}, {"size": side, "decode": 2})
    if masks:
        mask = InputSpec((side, side), "uint8", rides="image", form="mask")
        spec = dataclasses.replace(spec, inputs={**inputs, "mask": mask})
    samples = Pictures(256, side * 9 // 8, masks)
    made = choose("augment", augment).build(spec=spec, train=samples)
    return Loader(Data(spec, samples), samples, (View(),), made, batch, batch, 0, Reading(0, 2, None), CPU)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--augment", default="standard")
    args = parser.parse_args()
    loaders = {masks: loader(args.side, args.batch, args.augment, masks) for masks in (False, True)}
    spec = loaders[False].data.spec
    backbone = choose("backbone", "resnet18").build(spec=spec)
    objective = choose("objective", "classification").build(backbone=backbone, spec=spec)
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-3)

    def seconds(masks: bool, steps: int) -> float:
        began = time.perf_counter()
        for batch in loaders[masks].batches(0, steps):
            loss = objective(batch, "loss")
            (loss.sum / loss.count).backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - began

    for masks in (False, True):
        seconds(masks, 2)
    ratios = []
    for number in range(args.rounds):
        times = {masks: seconds(masks, args.steps) for masks in ((False, True) if number % 2 else (True, False))}
        ratios.append(math.log(times[True] / times[False]))
        print(
            f"{times[False] / args.steps:.3f} s a step without masks, {times[True] / args.steps:.3f} with", flush=True
        )
    low, high = t_interval(ratios)
    print(
        f"with masks / without: {math.exp(statistics.mean(ratios)):.3f} ({math.exp(low):.3f} to {math.exp(high):.3f})"
    )


if __name__ == "__main__":
    main()
