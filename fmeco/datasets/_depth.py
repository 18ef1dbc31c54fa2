"""Find the range of values in 16-bit images, such as 0 to 4095 from a 12-bit camera, a microscope or a scanner."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmeco.core import DECODE_RULE, ConfigError, DataError, DataSpec, Inputs, clean
from fmeco.data import decoded_cache
from fmeco.datasets import _files, _pixels

SUFFIXES = (
    ".png",
    ".tif",
    ".tiff",
    ".pgm",
    ".ppm",
    ".gif",
    ".webp",
    ".apng",
)  # of formats with 16 bits or with several frames
LOOKED_AT = 32  # training files that are opened to see what images there are


class Levels(_files.FileSamples):
    """Measure the values of 16-bit images, through the cache of decoded samples.

    Each sample is "levels" (5,) int64: lowest value, highest value, pixels below the range, pixels above it, all pixels. The
    range is `prep["levels"]`. All five are 0 for images of 8 bits.
    """

    one, many = "image", "images"

    def decode(self, path: str) -> Inputs:
        low, high = self.prep["levels"]
        with _pixels.opened(path) as image:
            if not _pixels.is_deep(image):
                return {"levels": torch.zeros(5, dtype=torch.int64)}
            values = _pixels.deep(image, negative=_pixels.facts(image).negative)
            counts = (int((values < low).sum()), int((values > high).sum()), values.size)
            return {"levels": torch.tensor([int(values.min()), int(values.max()), *counts])}


def with_range(spec: DataSpec, labelled: _files.Labelled, *, measure: bool) -> DataSpec:
    """Add the range of 16-bit images to a spec, and notes on it to `labelled`.

    measure: take the range from the training files, if the spec has none.
    Returns the spec unchanged for images of 8 bits. Raises ConfigError for training images with a single value.
    """
    known = spec.preprocessing.get("range")
    files, _ = next(iter(labelled.parts.values()))
    if known is None and not measure:
        return spec
    deep, frames = _look(files)
    if frames:
        labelled.notes.append(f"{frames} has several frames; of such files, only the first frame is used")
    if not deep:
        return spec
    found = _measured(files) if known is None else list(known)
    labelled.notes.append(_said(found, {part: files for part, (files, _) in labelled.parts.items()}, known is None))
    return dataclasses.replace(spec, preprocessing={**spec.preprocessing, "range": found})


def _measured(files: _files.Files) -> list[int]:
    """Return the lowest and the highest value of the 16-bit images that can be read. Raises ConfigError if they are equal."""
    levels = _levels(files, _pixels.FULL)
    levels = levels[levels[:, 4] > 0]
    if not len(levels):
        return _pixels.FULL  # each of them ends as a sample that cannot be read
    low, high = int(levels[:, 0].min()), int(levels[:, 1].max())
    if low == high:
        raise ConfigError(
            f"dataset.range: all pixels of the 16-bit training images have the value {low}",
            "set dataset.range=[LOW, HIGH]",
        )
    return [low, high]


def _said(found: list[int], parts: Mapping[str, _files.Files], measured: bool) -> str:
    """Describe a range in a note, with the share of the pixels that lie outside it."""
    if found == _pixels.FULL:
        return "images of 16 bits per pixel, with their full range of values"
    shares = []
    for part, files in parts.items():
        levels = _levels(files, found).sum(0)
        if levels[2] + levels[3]:
            shares.append(f"{(levels[2] + levels[3]) / levels[4]:.2%} of the {part} pixels")
    whose = "the training images have" if measured else "dataset.range is"
    clipped = f"; {', '.join(shares)} lie outside and are clipped" if shares else "; no pixel lies outside"
    return f"images of 16 bits per pixel: {whose} values from {found[0]} to {found[1]}, which become 0 to 255{clipped}"


def _look(files: _files.Files) -> tuple[bool, str]:
    """Look at a few files, taken at even distances.

    Returns whether one is a 16-bit image, and the name of one that has several frames ("" for none).
    """
    deep, frames = False, ""
    for index in dict.fromkeys(np.linspace(0, len(files) - 1, LOOKED_AT).astype(int).tolist()):
        name = files.name(index)
        if name.lower().endswith(SUFFIXES):
            try:
                with _pixels.opened(os.path.join(files.root, name)) as image:
                    deep = deep or _pixels.is_deep(image)
                    if getattr(image, "is_animated", False):
                        frames = clean(name)
            except DataError:  # reported when it is read as a sample
                continue
    return deep, frames


def _levels(files: _files.Files, levels: list[int]) -> NDArray[np.int64]:
    """Measure the levels (N, 5) of all files that can be read, with threads."""
    samples = decoded_cache.decoded(Levels(files, {}, {"decode": DECODE_RULE, "levels": levels}), "auto")

    def read(index: int) -> list[int]:
        try:
            values: Any = samples[index]["levels"].tolist()
            return list(values)
        except DataError:  # reported when it is read as a sample
            return [0] * 5

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(read, range(len(files)))), dtype=np.int64)
