"""Train a peer's model for masks or boxes over EfficientNet-Lite0, and answer for the test images. See results_dense.py.

    python dense.py JOB.json

- lraspp: torchvision's LR-ASPP, trained as its reference script does: SGD at 0.01, momentum 0.9, poly schedule, weight decay
  1e-4, cross-entropy, images resized by 0.5 to 2 and cropped, flips.
- unet: segmentation-models-pytorch's Unet, trained as in its examples: Adam at 2e-4, Dice loss, cosine schedule, and with
  the augmentation of lraspp.
- fcos: torchvision's FCOS with its FPN and frozen batch norms, flips. `fcos_sgd` trains as its reference script does: SGD at 0.01 for 16
  images a batch, scaled to the batch, warm-up, weight decay 1e-4, with a cosine in place of its epochs of decay; `fcos` with AdamW at
  1e-3 in place of SGD.

All train in fp32 until the time is used up, counted from the first step, and keep the last weights.
"""

from __future__ import annotations

import json
import math
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.models.detection import FCOS
from torchvision.models.segmentation.lraspp import LRASPP
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.transforms import v2

MODEL, BATCH, IGNORED = "tf_efficientnet_lite0", 8, 255
MEAN = STD = (0.5, 0.5, 0.5)
WARM_UP = 100  # steps


def load_body(body: nn.Module, weights: str) -> None:
    """Load Lite0's weights into a feature extractor of timm; whatever it has, they must have."""
    state = load_file(weights)
    body.load_state_dict({name: state[name] for name in body.state_dict()})


class Features(nn.Module):
    """Name the maps of a backbone, as torchvision's heads want them; with a pyramid of `width` channels if that is given."""

    def __init__(self, weights: str, names: dict[str, int], width: int = 0, **options: Any) -> None:
        super().__init__()
        self.body = timm.create_model(MODEL, features_only=True, out_indices=tuple(names.values()), **options)
        load_body(self.body, weights)
        self.names, self.widths = list(names), self.body.feature_info.channels()
        self.fpn = FeaturePyramidNetwork(self.widths, width, LastLevelP6P7(width, width)) if width else None
        self.out_channels = width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = dict(zip(self.names, self.body(x), strict=True))
        return self.fpn(maps) if self.fpn is not None else maps


def freeze_batch_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)


# --- masks ---


def read_masks(folder: Path) -> list[tuple[Image.Image, Image.Image]]:
    found = []
    for path in sorted((folder / "images").iterdir()):
        found.append((Image.open(path).convert("RGB"), Image.open(folder / "masks" / f"{path.stem}.png")))
    return found


def mask_batches(job: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    size = job["size"]
    change = v2.Compose(
        [
            v2.ScaleJitter((size, size), (0.5, 2.0)),
            v2.RandomCrop((size, size), pad_if_needed=True, fill={tv_tensors.Mask: IGNORED, tv_tensors.Image: 128}),
            v2.RandomHorizontalFlip(),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=False),
        ]
    )
    pairs = [
        (tv_tensors.Image(v2.functional.pil_to_tensor(image)), tv_tensors.Mask(np.array(mask, np.uint8)))
        for image, mask in read_masks(Path(job["task"]) / "train")
    ]
    mean = torch.tensor(MEAN)[:, None, None]
    for batch in shuffled(len(pairs)):
        changed = [change(*pairs[i]) for i in batch]
        images = torch.stack([(image.as_subclass(Tensor) / 255 - mean) / mean for image, _ in changed])
        yield images, torch.stack([mask.as_subclass(Tensor) for _, mask in changed])


@torch.no_grad()
def answer_masks(job: dict[str, Any], model: Callable[[Tensor], Tensor]) -> None:
    """Write a mask of the test image's own size for each, under its stem."""
    out, size = Path(job["answers"]), job["size"]
    out.mkdir()
    mean = torch.tensor(MEAN)[:, None, None]
    for path in sorted((Path(job["task"]) / "test/images").iterdir()):
        image = v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))
        height, width = image.shape[1:]
        scale = size / max(height, width)
        inner = [round(height * scale), round(width * scale)]
        x = (v2.functional.resize(image, inner).float() / 255 - mean) / mean
        x = v2.functional.pad(x, [0, 0, size - inner[1], size - inner[0]])
        scores = model(x[None])[..., : inner[0], : inner[1]]
        scores = nn.functional.interpolate(scores, (height, width), mode="bilinear")
        Image.fromarray(scores.argmax(1)[0].byte().numpy()).save(out / f"{path.stem}.png")


# --- boxes ---


def read_voc(path: Path, classes: list[str]) -> tuple[Image.Image, Tensor, Tensor]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    boxes, labels = [], []
    for one in ElementTree.parse(path.with_suffix(".xml")).getroot().iter("object"):
        sides = [float(one.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        boxes.append([sides[0] - 1, sides[1] - 1, sides[2], sides[3]])
        labels.append(classes.index(one.findtext("name")))
    return image, torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64)


def photographs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".png"))


def box_batches(job: dict[str, Any]) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    size, read = job["size"], []
    for path in photographs(Path(job["task"]) / "train"):
        image, boxes, labels = read_voc(path, job["classes"])
        scale = size / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        read.append((v2.functional.pil_to_tensor(image), boxes * scale, labels))
    for batch in shuffled(len(read)):
        images, targets = [], []
        for i in batch:
            image, boxes, labels = read[i]
            if torch.rand(()) < 0.5:
                width = image.shape[2]
                image = image.flip(2)
                boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
            images.append(image / 255)
            targets.append({"boxes": boxes, "labels": labels})
        yield images, targets


@torch.no_grad()
def answer_boxes(job: dict[str, Any], model: nn.Module) -> None:
    answers: dict[str, Any] = {}
    for path in photographs(Path(job["task"]) / "test"):
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        scale = job["size"] / max(image.size)
        small = image.resize((round(image.width * scale), round(image.height * scale)))
        (found,) = model([v2.functional.pil_to_tensor(small) / 255])
        answers[path.name] = {
            "boxes": (found["boxes"] / scale).tolist(),
            "scores": found["scores"].tolist(),
            "labels": found["labels"].tolist(),
        }
    Path(job["answers"]).write_text(json.dumps(answers))


# --- training ---


def shuffled(count: int) -> Iterator[list[int]]:
    """Yield batches of positions for ever, epoch by epoch; the last batch of an epoch is dropped if it is not full."""
    while True:
        order = torch.randperm(count).tolist()
        yield from (order[at : at + BATCH] for at in range(0, max(1, count - BATCH + 1), BATCH))


def train(
    job: dict[str, Any], model: nn.Module, batches: Iterator[Any], loss_of: Any, optimizer: Any, rate: Any
) -> int:
    """Train until the time is used up. Returns the number of steps."""
    step, progress, began = 0, 0.0, time.perf_counter()
    factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: rate(step, progress))
    while progress < 1:
        loss = loss_of(model, next(batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step, progress = step + 1, (time.perf_counter() - began) / job["seconds"]
        if not math.isfinite(loss.item()):
            raise ValueError(f"the loss is not finite at step {step}")
        factor.step()
    return step


def poly(step: int, progress: float) -> float:
    return max(0.0, 1 - progress) ** 0.9


def cosine(step: int, progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warm_cosine(step: int, progress: float) -> float:
    return min(1.0, (step + 1) / WARM_UP) * cosine(step, progress)


def lraspp(job: dict[str, Any]) -> int:
    body = Features(job["weights"], {"low": 2, "high": 4}, output_stride=16)
    model = LRASPP(body, *body.widths, num_classes=len(job["classes"]))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)

    def loss_of(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0])["out"], batch[1], ignore_index=IGNORED)

    steps = train(job, model.train(), mask_batches(job), loss_of, optimizer, poly)
    model.eval()
    answer_masks(job, lambda x: model(x)["out"])
    return steps


def unet(job: dict[str, Any]) -> int:
    import segmentation_models_pytorch as smp

    model = smp.Unet(f"tu-{MODEL}", encoder_weights=None, classes=len(job["classes"]))
    load_body(model.encoder.model, job["weights"])
    dice = smp.losses.DiceLoss("multiclass", ignore_index=IGNORED)
    optimizer = torch.optim.Adam(model.parameters(), 2e-4)

    def loss_of(model: nn.Module, batch: Any) -> Tensor:
        return dice(model(batch[0]), batch[1])

    steps = train(job, model.train(), mask_batches(job), loss_of, optimizer, cosine)
    answer_masks(job, model.eval())
    return steps


def fcos(job: dict[str, Any]) -> int:
    body = Features(job["weights"], {"0": 2, "1": 3, "2": 4}, width=256)
    size = job["size"]
    model = FCOS(
        body,
        num_classes=len(job["classes"]),
        min_size=size,
        max_size=size,
        image_mean=MEAN,
        image_std=STD,
        anchor_generator=None,
        score_thresh=0.05,
    )
    model.train()
    freeze_batch_norms(body)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if job["model"] == "fcos_sgd":
        optimizer: Any = torch.optim.SGD(trained, 0.01 * BATCH / 16, momentum=0.9, weight_decay=1e-4)
    else:
        optimizer = torch.optim.AdamW(trained, 1e-3)

    def loss_of(model: nn.Module, batch: Any) -> Tensor:
        return sum(model(*batch).values())

    steps = train(job, model, box_batches(job), loss_of, optimizer, warm_cosine)
    answer_boxes(job, model.eval())
    return steps


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(job["seed"])
    began = time.perf_counter()
    steps = {"lraspp": lraspp, "unet": unet, "fcos": fcos, "fcos_sgd": fcos}[job["model"]](job)
    print(json.dumps({"steps": steps, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
