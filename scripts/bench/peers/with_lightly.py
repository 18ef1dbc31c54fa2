"""lightly-train, as its documentation has it. --best: one loader worker; channels_last is not offered, and AdamW is all there
is. Its default precision is bf16-mixed, but in 0.18.0 on a CPU autocast is off in the training step: convolutions take and
give float32.
"""

from __future__ import annotations

import argparse

import lightly_train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--best", action="store_true")
    given = parser.parse_args()
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
