"""Compare how long two commits take to scan a folder, to read a table and to decode images.

    python scripts/bench/reading.py OLD [NEW] [--rounds 7]      NEW: default HEAD

Makes 50,000 files in 100 class folders, a CSV of 1,000,000 rows and 1,000 JPEGs of 400 x 300 pixels in a temporary folder.
In each round, both commits do each part in a process of their own, the first of them by turns. Prints, for each part, the
processor seconds of NEW divided by those of OLD: the mean over rounds with its 95% interval (Student's t, on the logarithm).
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PARTS = {
    "scan": "build(name='image_folder', path='files')",
    "table": "build(name='csv_table', path='table.csv', target='label')",
    "decode": "data = build(name='image_folder', path='photos')\nbegan = time.process_time()\n"
    "for i in range(len(data.train)): data.train[i]",
}
PROGRAM = """
import time
import torch
torch.set_num_threads(1)
from fmeco.config.check import choose
def build(**raw):
    chosen = choose("dataset", raw)
    return chosen.plugin.build({{"known": None, "whole": False, "arch": chosen.arch}}, chosen.options)
build(name="fake_images", samples=8)  # what is loaded once
began = time.process_time()
{part}
print(time.process_time() - began)
"""
T = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # 97.5% quantiles, by rounds


def make(folder: Path) -> None:
    """Write the files, the table and the images."""
    for i in range(50_000):
        file = folder / "files" / f"class{i % 100:02}" / f"{i:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    rng = np.random.default_rng(0)
    numbers, words = rng.normal(size=(1_000_000, 4)).round(3), rng.integers(0, 50, 1_000_000)
    with open(folder / "table.csv", "w", encoding="utf-8") as file:
        file.write("a,b,c,d,word,label\n")
        for row, word in zip(numbers.tolist(), words.tolist(), strict=True):
            file.write(f"{row[0]},{row[1]},{row[2]},{row[3]},w{word},{'yes' if row[0] > 0 else 'no'}\n")
    for i in range(1_250):  # a fifth is for validation
        file = folder / "photos" / "ab"[i % 2] / f"{i:04}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 255, (30, 40, 3)).astype("uint8")
        Image.fromarray(coarse).resize((400, 300)).save(file, quality=90)


def seconds(tree: Path, part: str, folder: Path) -> float:
    """Run one part with the code of a tree. Returns its processor seconds."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HOME": str(folder / "home")}
    program = PROGRAM.format(part=PARTS[part])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default="HEAD")
    parser.add_argument("--rounds", type=int, default=7, choices=sorted(T))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        trees = {}
        for name in (chosen.old, chosen.new):
            trees[name] = folder / f"tree{len(trees)}"
            trees[name].mkdir()
            archive = subprocess.run(["git", "archive", name, "fmeco"], check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", trees[name]], input=archive, check=True)
        make(folder)
        taken: dict[str, list[tuple[float, float]]] = {part: [] for part in PARTS}
        for number in range(chosen.rounds):
            for part, pairs in taken.items():
                order = (chosen.old, chosen.new) if number % 2 else (chosen.new, chosen.old)
                times = {name: seconds(trees[name], part, folder) for name in order}
                pairs.append((times[chosen.old], times[chosen.new]))
        for part, pairs in taken.items():
            logs = [math.log(new / old) for old, new in pairs]
            half = T[chosen.rounds] * statistics.stdev(logs) / math.sqrt(chosen.rounds)
            low, middle, high = (math.exp(statistics.mean(logs) + sign * half) for sign in (-1, 0, 1))
            old, new = (statistics.mean(column) for column in zip(*pairs, strict=True))
            print(f"{part}: {middle:.3f} ({low:.3f} to {high:.3f}); {old:.2f} s -> {new:.2f} s of processor time")


if __name__ == "__main__":
    main()
