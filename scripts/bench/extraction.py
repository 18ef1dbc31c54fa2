"""Compare how fast fmeco computes features with a library's own way, of the same weights, samples, batch and precision.

    python scripts/bench/extraction.py images FOLDER ARCH WEIGHTS [--size 96]      # a plain loop over timm's model
    python scripts/bench/extraction.py texts TABLE.CSV MODEL_FOLDER                # sentence-transformers' encode

FOLDER: photographs in class folders. WEIGHTS: a file with timm's names. TABLE: with the columns text and label.
Both sides read, prepare and compute all samples in fp32, in batches of 64, in this process; they take turns. Prints samples per
second of fmeco divided by the library's: the mean over rounds with its 95% interval (Student's t, on the logarithm). Nothing
is cached on the disk.
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from reading import T
from torch import Tensor

from fmeco.inference.bare import data_and_features

BATCH = 64


def images(folder: Path, arch: str, weights: Path, size: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return what computes the features of a folder's photographs, with fmeco and with timm."""
    import timm
    from safetensors.torch import load_file

    sets = [f"backbone=timm/{arch}", f"dataset.image_size={size}"]
    data, compute = data_and_features(str(weights), str(folder), sets)
    samples = data.split("test")
    net = timm.create_model(arch, num_classes=0).eval()
    net.load_state_dict({n: x for n, x in load_file(weights).items() if n in net.state_dict()})
    prepare = timm.data.create_transform(**timm.data.resolve_data_config({"input_size": (3, size, size)}, model=net))
    paths = [folder / samples.name(i) for i in range(len(samples))]

    def opened(path: Path) -> Tensor:
        with Image.open(path) as image:
            made: Tensor = prepare(image.convert("RGB"))
        return made

    @torch.inference_mode()
    def library() -> Tensor:
        parts = [torch.stack([opened(p) for p in paths[i : i + BATCH]]) for i in range(0, len(paths), BATCH)]
        return torch.cat([net(part) for part in parts])

    return lambda: compute(samples)[0], library


def texts(table: Path, folder: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return what computes the features of a table's texts, with fmeco and with sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    sets = [f"dataset.path={table}"]
    data, compute = data_and_features(f"hf/{folder}@DEFAULT", "text", sets)
    samples = data.split("train")
    with open(table, encoding="utf-8", newline="") as file:
        rows = [row["text"] for row in csv.DictReader(file)]
    chosen = [rows[int(samples.name(i).rpartition(":")[2]) - 2] for i in range(len(samples))]
    model = SentenceTransformer(folder, device="cpu")
    return lambda: compute(samples)[0], lambda: torch.from_numpy(model.encode(chosen, batch_size=BATCH))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("kind", choices=("images", "texts"))
    asked.add_argument("data", type=Path)
    asked.add_argument("model")
    asked.add_argument("weights", type=Path, nargs="?")
    asked.add_argument("--size", type=int, default=96)
    asked.add_argument("--rounds", type=int, default=5, choices=sorted(T))
    given = asked.parse_args()
    logging.getLogger("fmeco").setLevel(logging.ERROR)
    if given.kind == "images":
        ours, theirs = images(given.data, given.model, given.weights, given.size)
    else:
        ours, theirs = texts(given.data, given.model)
    a, b = ours(), theirs()  # warm-up
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double()).min()
    ratios = []
    for number in range(given.rounds):
        seconds = {}
        for side in (ours, theirs) if number % 2 else (theirs, ours):
            began = time.perf_counter()
            side()
            seconds[side] = time.perf_counter() - began
        ratios.append(seconds[theirs] / seconds[ours])
    logs = [math.log(ratio) for ratio in ratios]
    half = T[given.rounds] * statistics.stdev(logs) / math.sqrt(given.rounds)
    low, middle, high = (math.exp(statistics.mean(logs) + sign * half) for sign in (-1, 0, 1))
    rate = len(a) / seconds[ours]
    print(
        f"{given.kind}: {middle:.2f} ({low:.2f} to {high:.2f}) of the library's samples per second; fmeco {rate:.0f} per second; "
        f"lowest cosine {cosine:.6f}; {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
