"""Handwritten digits of scikit-learn: 1,797 real 8x8 images, no download."""

from __future__ import annotations

from typing import Annotated

from fmeco.core import Data, DataSpec, Pixels, Splitting, Without
from fmeco.datasets import _image_spec, _images

MODALITY = "image"


def build(
    known: DataSpec | None,
    *,
    splitting: Annotated[Splitting, Without("group_split")] = Splitting(test_fraction=0.2),
    pixels: Annotated[Pixels, Without("background", "range")] = Pixels(),
) -> Data:
    from PIL import Image
    from sklearn.datasets import load_digits

    raw = load_digits()
    values = (raw.images * (255 / 16)).round().astype("uint8")  # (N, 8, 8), 0..16 in the source
    spec = _image_spec.image_spec(known, pixels, default_size=32, native="gray", mirror=False)
    return _images.build_arrays(
        known,
        spec,
        [Image.fromarray(image) for image in values],
        [str(label) for label in raw.target],
        names=[f"digit-{i:04}" for i in range(len(values))],
        where="digits",
        splitting=splitting,
        pixels=pixels,
    )
