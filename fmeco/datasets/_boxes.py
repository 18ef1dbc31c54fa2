"""Hold the boxes of images as flat arrays, and read images with their boxes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fmeco.core import MISSING_CLASS, DataError, Inputs, clean
from fmeco.datasets import _files, _geometry, _images, _pixels
from fmeco.datasets._box_lists import Array
from fmeco.datasets._splits import Indices


@dataclasses.dataclass(frozen=True)
class BoxedFiles(_files.Files):
    """Hold images and, in the same order, the boxes of their objects.

    Arrays in place of an object per box: those of a million boxes would be copied page by page into every loader worker.

    pictures: (N, 2) width and height of each picture, upright; 0 of a file that cannot be read.
    boxes: (M, 5) float32, as `core.geometry` stores them, in pixels of the picture.
    box_ends: (N,) end of each image's boxes in `boxes`.
    annotated: (N,) bool, whether it is known which objects are in the image.
    """

    pictures: Array
    boxes: Array
    box_ends: Array
    annotated: Array

    @property
    def counts(self) -> Array:
        """Return the number of boxes of each image (N,)."""
        return np.diff(self.box_ends, prepend=0)

    def of_image(self, index: int) -> Array:
        """Return the boxes (n, 5) of one image."""
        start = self.box_ends[index - 1] if index else 0
        found: Array = self.boxes[start : self.box_ends[index]]
        return found

    def take(self, at: Indices) -> Self:
        counts = self.counts[at]
        ends = np.cumsum(counts)
        firsts = self.box_ends[at] - counts
        rows = np.repeat(firsts - (ends - counts), counts) + np.arange(int(counts.sum()))
        return dataclasses.replace(
            super().take(at),
            pictures=self.pictures[at],
            boxes=self.boxes[rows],
            box_ends=ends,
            annotated=self.annotated[at],
        )

    def target(self) -> Tensor:
        """Return the target (N,): 0 for an annotated image, also one without objects; else MISSING_CLASS."""
        return torch.from_numpy(np.where(self.annotated, 0, MISSING_CLASS))

    def rows(self) -> Iterator[tuple[object, ...]]:
        """Yield what identifies each image and its boxes, for a fingerprint."""
        sizes = self.sizes.tolist()
        for index, name in enumerate(self.names()):
            yield name, sizes[index], bool(self.annotated[index]), self.of_image(index).tolist()


class BoxedImages(_images.ImageFiles):
    """Read images from disk, with the boxes of their objects."""

    def __init__(self, files: _files.Files, targets: Mapping[str, Tensor | list[Any]], prep: Mapping[str, Any]) -> None:
        super().__init__(files, targets, prep)
        assert isinstance(files, BoxedFiles)
        self.boxed = files
        if self.content and self.stamps is not None:
            digest = hashlib.sha256(self.content.encode())
            for part in (files.boxes, files.box_ends, files.annotated, files.pictures):
                digest.update(part.tobytes())
            self.content = digest.hexdigest()
            numbers = b"".join(hashlib.blake2b(self._state(i), digest_size=8).digest() for i in range(len(files)))
            self.stamps = self.stamps ^ torch.from_numpy(np.frombuffer(numbers, dtype=np.int64).copy())

    def _state(self, index: int) -> bytes:
        """Return what decides a sample beside its file, as bytes."""
        return b"".join((self.boxed.pictures[index].tobytes(), self.boxed.of_image(index).tobytes()))

    def __getitem__(self, index: int) -> Inputs:
        path, (width, height) = self.path(index), self.boxed.pictures[index].tolist()
        image = _images.decode(path, self.prep)
        if (size := _pixels.upright_size(path)) != (width, height):
            raise DataError(
                f"{clean(path)}: the picture has {size[0]}x{size[1]} pixels; it had {width}x{height} when its boxes were read"
            )
        place = _geometry.Place.of(width, height, self.prep)
        boxes = place.forth(torch.from_numpy(self.boxed.of_image(index).copy()), "boxes")
        return {"image": image, "boxes": boxes[boxes[:, 4] > 0]}

    def digest(self, index: int, *, stored: bool = False) -> bytes | None:
        own = super().digest(index, stored=stored)
        return None if own is None else hashlib.blake2b(own + self._state(index), digest_size=16).digest()


def shrunk(files: BoxedFiles, prep: Mapping[str, Any]) -> Array:
    """Tell which boxes (M,) are narrower or lower than a pixel once their picture is resized: they are dropped then."""
    sizes, which = np.unique(files.pictures, axis=0, return_inverse=True)
    scales = np.ones((len(sizes), 2))
    for at, (width, height) in enumerate(sizes.tolist()):
        if width and (resized := _geometry.Place.of(width, height, prep).picture) != (height, width):
            scales[at] = resized[1] / width, resized[0] / height
    of_box = np.repeat(scales[which.reshape(-1)], files.counts, axis=0)
    small: Array = np.any((files.boxes[:, 2:4] - files.boxes[:, :2]) * of_box < 1, axis=1)
    return small
