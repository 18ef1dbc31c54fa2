"""Compare features with a library's own, of the same weights and photographs: their cosine, and images prepared per second.

    python scripts/features_like.py FOLDER [MODEL ...] [--sizes 224,96] [--count 40] [--phone] [--weights FILE]

    FOLDER: photographs, at any depth.
    MODEL: timm/ARCH, torchvision/ARCH or hf/FOLDER; by default one of each, with new weights.
    --weights: a file of weights of the only MODEL, with the library's names.
    --phone: enlarge the photographs to 4000x3000 pixels first, as JPEG of quality 90 with EXIF data of a turned camera.

A model is prepared, at another size than its own, with the same share of the resized image as at its own. Images per second are
read, decoded and resized in one thread, without the network; the two sides take turns.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fmeco.checkpoints import refs, sources, transplant
from fmeco.config.check import choose
from fmeco.core import fit, standardize
from fmeco.datasets.image_folder import SUFFIXES

Prepare = Callable[[Image.Image], Tensor]  # an upright RGB image -> (3, size, size)
PHONE, QUALITY, TURNED = (4000, 3000), 90, 6
ROUNDS = 3


def timm_model(arch: str, size: int) -> tuple[nn.Module, Prepare]:
    import timm

    net = timm.create_model(arch, num_classes=0)
    stated = timm.data.resolve_data_config({"input_size": (3, size, size)}, model=net)
    return net, timm.data.create_transform(**stated)


def torchvision_model(arch: str, size: int) -> tuple[nn.Module, Prepare]:
    from torchvision import models

    net, stated = models.get_model(arch), models.get_model_weights(arch)["DEFAULT"].transforms()
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    parent, _, leaf = layers[-1].rpartition(".")
    setattr(net.get_submodule(parent), leaf, nn.Identity())
    resize = math.floor(size / (stated.crop_size[0] / stated.resize_size[0]))
    how = models.get_model_weights(arch)["DEFAULT"].transforms
    return net, how(crop_size=size, resize_size=resize)


class Processed:
    """Prepare images by the processor of a folder, scaled to another size."""

    def __init__(self, folder: str, size: int) -> None:
        import transformers

        self.processor = transformers.AutoImageProcessor.from_pretrained(folder)
        cropped = getattr(self.processor, "do_center_crop", False) and self.processor.crop_size
        own = dict(cropped or self.processor.size)
        factor = size / next(iter(own.values()))
        self.keys: dict[str, Any] = {
            "size": {k: math.floor(v * factor) for k, v in dict(self.processor.size).items() if v}
        }
        if cropped:
            self.keys["crop_size"] = {"height": size, "width": size}

    def __call__(self, image: Image.Image) -> Tensor:
        made: Tensor = self.processor(image, return_tensors="pt", **self.keys)["pixel_values"][0]
        return made


class Pooled(nn.Module):
    """Return the vector that the library's classifier reads."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        resized = {"interpolate_pos_encoding": True} if hasattr(self.net.config, "patch_size") else {}
        out = self.net(pixel_values=x, **resized)
        pooled = getattr(out, "pooler_output", None)
        return (out.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1)


def hf_model(folder: str, size: int) -> tuple[nn.Module, Prepare]:
    import transformers

    whole = transformers.AutoModelForImageClassification.from_pretrained(folder)
    return Pooled(whole.base_model), Processed(folder, size)


LIBRARIES = {"timm": timm_model, "torchvision": torchvision_model, "hf": hf_model}


def hf_folder(folder: Path) -> str:
    """Write a small ViT with new weights, and the processor of ViTs. Returns the folder."""
    import transformers

    small = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 192}
    config = transformers.ViTConfig(image_size=224, patch_size=16, **small)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor().save_pretrained(folder)
    return str(folder)


def ours(model: str, file: str | None, folder: Path, size: int) -> tuple[Any, Any, Any]:
    """Read the photographs as a run that starts from the weights does. Returns (samples, spec, backbone)."""
    choice = sources.completed(choose("backbone", {"name": model}))
    source = refs.resolve(file, choice) if file is not None else sources.published(choice, "DEFAULT")
    chosen = choose("dataset", {"name": "images", "path": str(folder), "image_size": size})
    data = chosen.plugin.build(
        {"known": source.spec.preprocessing_only(), "whole": True, "arch": chosen.arch}, chosen.options
    )
    made = choice.plugin.build({"spec": data.spec, "arch": choice.arch}, choice.options).eval()
    transplant.transplant(made, source.state, source=source.ref)
    return data.split("test"), data.spec, made


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def speed(read: Callable[[int], Any], count: int) -> float:
    start = time.perf_counter()
    for i in range(count):
        read(i)
    return count / (time.perf_counter() - start)


@torch.no_grad()
def compare(model: str, file: str | None, folder: Path, size: int) -> dict[str, float]:
    """Compute both sides' features of all photographs. Returns the cosines, and images per second."""
    library, _, arch = model.partition("/")
    net, prepare = LIBRARIES[library](arch, size)
    state = load_file(file) if file is not None else None
    if state is not None:
        net.load_state_dict({name: x for name, x in state.items() if name in net.state_dict()})
    samples, spec, backbone = ours(model, file, folder, size)
    paths = [folder / samples.name(i) for i in range(len(samples))]

    def mine(i: int) -> Tensor:
        return fit(samples[i], spec)["image"]

    def theirs(i: int) -> Tensor:
        return prepare(opened(paths[i]))

    cosines, pixels = [], []
    for i in range(len(paths)):
        wanted, found = theirs(i)[None], standardize({"image": mine(i)[None]}, spec)["image"]
        a, b = net.eval()(wanted).flatten(1), backbone({"image": found}).vector
        cosines.append(torch.nn.functional.cosine_similarity(a.double(), b.double()).item())
        pixels.append((wanted - found).abs().mean().item())
    rounds = [(speed(mine, len(paths)), speed(theirs, len(paths))) for _ in range(ROUNDS)]
    return {
        "lowest cosine": min(cosines),
        "mean cosine": sum(cosines) / len(cosines),
        "pixel difference": sum(pixels) / len(pixels),
        "fmeco images/s": sorted(a for a, _ in rounds)[ROUNDS // 2],
        "library images/s": sorted(b for _, b in rounds)[ROUNDS // 2],
    }


def photographs(folder: Path, count: int, into: Path, phone: bool) -> None:
    """Link photographs to a folder, taken at even distances; or write them as a phone would."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    chosen = found[:: max(1, len(found) // count)][:count]
    for number, path in enumerate(chosen):
        if not phone:
            (into / f"{number:03}{path.suffix}").symlink_to(path.resolve())
            continue
        exif = Image.Exif()
        exif[0x0112] = TURNED
        large = opened(path).resize(PHONE, Image.Resampling.BICUBIC)
        large.save(into / f"{number:03}.jpg", quality=QUALITY, exif=exif)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("models", nargs="*")
    asked.add_argument("--sizes", default="224,96")
    asked.add_argument("--count", type=int, default=40)
    asked.add_argument("--phone", action="store_true")
    asked.add_argument("--weights")
    given = asked.parse_args()
    logging.getLogger("fmeco").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch, "photographs")
        photos.mkdir()
        photographs(given.folder, given.count, photos, given.phone)
        models = given.models or [
            "timm/tf_efficientnet_lite0",
            "torchvision/resnet18",
            f"hf/{hf_folder(Path(scratch, 'vit'))}",
        ]
        print("| model | pixels | cosine, lowest | mean | pixel difference | fmeco images/s | library images/s |")
        print("|---|---|---|---|---|---|---|")
        for model in models:
            library, _, arch = model.partition("/")
            file = given.weights
            if file is None and library != "hf":
                file = str(Path(scratch, f"{library}.safetensors"))
                save_file(LIBRARIES[library](arch, 224)[0].state_dict(), file)
            for size in map(int, given.sizes.split(",")):
                found = compare(model, file, photos, size)
                shown = [f"{found[key]:.5f}" for key in ("lowest cosine", "mean cosine", "pixel difference")]
                shown += [f"{found[key]:.3g}" for key in ("fmeco images/s", "library images/s")]
                print(f"| {model if library != 'hf' else 'hf/ViT'} | {size} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
