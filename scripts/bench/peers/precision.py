"""Find out whether this CPU trains resnet18 faster in bfloat16 or in float32. Prints bf16 or fp32, and the seconds of a step in each.

A CPU without instructions for bfloat16 converts every number, and can be fifty times slower in it.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torchvision.models import resnet18

FEW, HOPELESS = 2, 4.0  # images of a first trial; bf16 is given up if it is this many times as slow in it
STEPS = 3  # timed steps per precision, after one for warm-up


def faster(size: int, batch: int) -> dict[str, object]:
    """Time a few steps in each precision. Returns {"precision": the faster one, "fp32": seconds of a step, "bf16": seconds}."""
    model = resnet18(num_classes=10).to(memory_format=torch.channels_last)
    seconds = step_seconds(model, size, FEW)
    if seconds["bf16"] < HOPELESS * seconds["fp32"]:
        seconds = step_seconds(model, size, batch)
    return {"precision": min(seconds, key=seconds.__getitem__), **seconds}


def step_seconds(model: torch.nn.Module, size: int, batch: int) -> dict[str, float]:
    """Time a step in each precision, in turns. Takes the shortest time: what else the machine does only adds to it."""
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(1 + STEPS):
        for precision, taken in times.items():
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            taken.append(time.perf_counter() - began)
            model.zero_grad()
    return {precision: round(min(taken[1:]), 4) for precision, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    print(json.dumps(faster(args.size, args.batch)))


if __name__ == "__main__":
    main()
