"""Train with lightly-train as in its documentation.

--best: one loader worker. It offers no channels_last, and no optimizer but AdamW. Its default precision is bf16-mixed,
but in 0.18.0 autocast is off in the training step on a CPU: convolutions compute in float32.
"""

from __future__ import annotations

import lightly_train
from common import command_line


def main() -> None:
    args = command_line()
    lightly_train.train_image_classification(
        out="run",
        model="torchvision/resnet18",
        data={
            "train": f"{args.data}/train",
            "val": f"{args.data}/val",
            "classes": {label: f"class{label}" for label in range(10)},
        },
        steps=1000,
        batch_size=args.batch,
        gradient_accumulation_steps=1,
        num_workers=1 if args.best else "auto",
        transform_args={"image_size": (args.size, args.size), "color_jitter": None},
    )


if __name__ == "__main__":
    main()
