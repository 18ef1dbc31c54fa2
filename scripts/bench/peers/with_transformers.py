"""Train with the Trainer of transformers, as its documentation does for custom models.

--best: the faster precision, channels_last and one loader worker.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from common import command_line, photos
from torch import Tensor, nn
from torchvision.models import resnet18
from transformers import Trainer, TrainingArguments


class Classifier(nn.Module):
    def __init__(self, best: bool) -> None:
        super().__init__()
        self.model = resnet18(num_classes=10)
        self.layout = torch.channels_last if best else torch.contiguous_format
        self.model.to(memory_format=self.layout)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(pixel_values.contiguous(memory_format=self.layout))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def collate(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([image for image, _ in samples]),
        "labels": torch.tensor([label for _, label in samples]),
    }


def main() -> None:
    args = command_line()
    data = photos(args.data, args.size)
    model = Classifier(args.best)
    arguments = TrainingArguments(
        num_train_epochs=1,
        per_device_train_batch_size=args.batch,
        remove_unused_columns=False,
        use_cpu=True,
        bf16=args.best and args.precision == "bf16",
        dataloader_num_workers=int(args.best),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = Trainer(
        model=model, args=arguments, data_collator=collate, train_dataset=data, optimizers=(optimizer, None)
    )
    trainer.train()


if __name__ == "__main__":
    main()
