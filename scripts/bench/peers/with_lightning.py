"""Train with Lightning as in its documentation.

--best: the faster precision, channels_last and one loader worker.
"""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from common import command_line, photos
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models import resnet18


class Classifier(L.LightningModule):
    def __init__(self, best: bool) -> None:
        super().__init__()
        self.model = resnet18(num_classes=10)
        self.layout = torch.channels_last if best else torch.contiguous_format
        self.model.to(memory_format=self.layout)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.model(images.contiguous(memory_format=self.layout)), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main() -> None:
    args = command_line()
    data = photos(args.data, args.size)
    loader = DataLoader(data, args.batch, shuffle=True, num_workers=int(args.best))
    trainer = L.Trainer(max_epochs=1, precision="bf16-mixed" if args.best and args.precision == "bf16" else None)
    trainer.fit(Classifier(args.best), loader)


if __name__ == "__main__":
    main()
