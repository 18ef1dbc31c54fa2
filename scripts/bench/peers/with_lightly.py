"""lightly-train, as its documentation has it. --best: one loader worker; channels_last is not offered, and AdamW is all there
is. Its default precision is bf16-mixed, but in 0.18.0 on a CPU autocast is off in the training step: convolutions take and
give float32.
"""

from __future__ import annotations

import lightly_train
from common import command_line


def main() -> None:
    given = command_line()
    lightly_train.train_image_classification(
        out="run",
        model="torchvision/resnet18",
        data={
            "train": f"{given.data}/train",
            "val": f"{given.data}/val",
            "classes": {label: f"class{label}" for label in range(10)},
        },
        steps=1000,
        batch_size=given.batch,
        gradient_accumulation_steps=1,
        num_workers=1 if given.best else "auto",
        transform_args={"image_size": (given.size, given.size), "color_jitter": None},
    )


if __name__ == "__main__":
    main()
