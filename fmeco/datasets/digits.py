"""scikit-learn's handwritten digits: 1,797 real 8x8 images, no download."""

from __future__ import annotations

from fmeco.core import (
    Classes,
    Color,
    Data,
    DataSpec,
    Fold,
    ImageSize,
    LimitPerClass,
    LimitSeed,
    TestFraction,
    ValFraction,
)
from fmeco.datasets import _images


def build(
    known: DataSpec | None,
    *,
    classes: Classes = None,
    limit_per_class: LimitPerClass = None,
    limit_seed: LimitSeed = 0,
    val_fraction: ValFraction = 0.2,
    test_fraction: TestFraction = 0.2,
    split: Fold = None,
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
        classes=classes,
        limit_per_class=limit_per_class,
        limit_seed=limit_seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        fold=split,
    )
