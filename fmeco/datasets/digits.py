"""Handwritten digits of scikit-learn: 1,797 real 8x8 images, no download."""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Color, Data, DataSpec, ImageSize, Splitting, Without
from fmeco.datasets import _images

MODALITY = "image"


def build(
    known: DataSpec | None,
    *,
    splitting: Annotated[Splitting, Without("group_split")] = Splitting(test_fraction=0.2),
    image_size: ImageSize = None,
    color: Color = None,
) -> Data:
    from PIL import Image
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = (raw.images * (255 / 16)).round().astype("uint8")  # (N, 8, 8), 0..16 in the source
    spec = _images.image_spec(known, size=image_size, color=color, default_size=32, native="gray", mirror=False)
    return _images.build_arrays(
        known,
        spec,
        [Image.fromarray(image) for image in pixels],
        [str(label) for label in raw.target],
        names=[f"digit-{i:04}" for i in range(len(pixels))],
        where="digits",
        splitting=splitting,
    )
