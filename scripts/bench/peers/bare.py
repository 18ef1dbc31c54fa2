"""Repeat a training step on one batch of random tensors in memory: the limit of speed.

--precision: the faster one on this CPU, which precision.py finds out; auto does so here.
--retained: glibc keeps freed memory instead of returning it to the system, which saves page faults in every step.
"""

from __future__ import annotations

import argparse
import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="not read")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=("bf16", "fp32", "auto"), default="auto")
    parser.add_argument("--retained", action="store_true")
    args = parser.parse_args()
    if args.retained:
        libc = ctypes.CDLL(None)
        if not (libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)):
            raise OSError("--retained needs glibc")

    import torch
    import torch.nn.functional as F
    from torchvision.models import resnet18

    precision = args.precision
    if precision == "auto":
        from precision import faster

        precision = faster(args.size, args.batch)["precision"]
    layout = torch.channels_last
    model = resnet18(num_classes=10).to(memory_format=layout)
    images = torch.randn(args.batch, 3, args.size, args.size).contiguous(memory_format=layout)
    labels = torch.randint(10, (args.batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
