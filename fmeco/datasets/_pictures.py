"""Find the pictures that samples were made of, in their own size and upright, for answers that lie on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fmeco.core import Samples
from fmeco.datasets import _files, _pixels
from fmeco.files import replacing


def columns(samples: Samples, index: int) -> dict[str, Path]:
    """Return the column of a table that names a sample's file; none for an image that was passed in Python."""
    return {"image": Path(samples.path(index))} if isinstance(samples, _files.FileSamples) else {}


def size(samples: Samples, index: int) -> tuple[int, int]:
    """Return the width and height of a sample's picture. Raises DataError that names the file."""
    if isinstance(samples, _files.FileSamples):
        return _pixels.upright_size(samples.path(index))
    return _pixels.upright(_given(samples, index)).size


def picture(samples: Samples, index: int, prep: Mapping[str, Any]) -> Image.Image:
    """Return a sample's picture in RGB. prep: the preprocessing of the spec. Raises DataError that names the file."""
    if isinstance(samples, _files.FileSamples):
        with _pixels.opened(samples.path(index)) as opened:
            return _in_rgb(opened, _pixels.facts(opened), prep)
    image = _given(samples, index)
    value = _value(samples, index)
    return _in_rgb(image, _pixels.facts(value if isinstance(value, Image.Image) else image), prep)


def write(image: Image.Image, stem: Path) -> Path:
    """Write an image to STEM.png, whole or not at all. Returns the file. Raises DiskError."""
    file = stem.with_name(f"{stem.name}.png")
    with replacing(file) as temporary:
        image.save(temporary, format="PNG")
    return file


def _value(samples: Samples, index: int) -> Any:
    assert isinstance(samples, _files.GivenSamples)
    return samples.given[index].value


def _given(samples: Samples, index: int) -> Image.Image:
    """Return an image that was passed in Python, and that could be decoded, as an image of Pillow of our own."""
    value = _value(samples, index)
    if isinstance(value, Image.Image):
        return value.copy()
    array = np.asarray(value)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


def _in_rgb(image: Image.Image, facts: _pixels.Facts, prep: Mapping[str, Any]) -> Image.Image:
    return _pixels.eight_bit(_pixels.upright(image), "RGB", prep, facts)
