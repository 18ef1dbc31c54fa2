"""Train with fastai as in its documentation, with torch's SGD.

--best: the faster precision and channels_last by a wrapper around the model, as fastai's callbacks for them support CUDA only; and
one loader worker.
"""

from __future__ import annotations

from functools import partial

import torch
from common import command_line
from fastai.vision.all import (
    CrossEntropyLossFlat,
    FlipItem,
    ImageDataLoaders,
    Learner,
    Normalize,
    OptimWrapper,
    RandomResizedCrop,
    imagenet_stats,
)
from torch import Tensor, nn
from torchvision.models import resnet18


class Fast(nn.Module):
    """Run a model in a precision, bf16 or fp32, and channels_last."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.precision = precision
        self.model = model.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model(images.contiguous(memory_format=torch.channels_last)).float()


def main() -> None:
    args = command_line()
    loaders = ImageDataLoaders.from_folder(
        args.data,
        train="train",
        valid="val",
        bs=args.batch,
        item_tfms=[RandomResizedCrop(args.size), FlipItem()],
        batch_tfms=Normalize.from_stats(*imagenet_stats),
        **({"num_workers": 1} if args.best else {}),
    )
    model = resnet18(num_classes=10)
    learner = Learner(
        loaders,
        Fast(model, args.precision) if args.best else model,
        loss_func=CrossEntropyLossFlat(),
        opt_func=partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9),
    )
    learner.fit(1, lr=0.05)


if __name__ == "__main__":
    main()
