"""Provide the command line and the training images to the scripts of the peers."""

from __future__ import annotations

import argparse

from torchvision import transforms
from torchvision.datasets import ImageFolder


def command_line() -> argparse.Namespace:
    """Parse the command line of a peer's script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32", help="of --best")
    return parser.parse_args()


def photos(data: str, size: int) -> ImageFolder:
    """Build the job's training images with torchvision's transforms."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return ImageFolder(f"{data}/train", transform)
