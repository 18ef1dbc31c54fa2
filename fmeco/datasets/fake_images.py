"""Generated images for smoke tests and benchmarks: noise around one random pattern per class. Not real data."""

from __future__ import annotations

from typing import Annotated

from fmeco.core import (
    Classes,
    Color,
    Data,
    DataSpec,
    Doc,
    Fold,
    Ge,
    Gt,
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
    samples: Annotated[int, Doc("images in all"), Gt(0)] = 256,
    num_classes: Annotated[int, Doc("classes, named class-0, class-1, ..."), Gt(1)] = 4,
    noise: Annotated[float, Doc("standard deviation of the noise, in units of the pattern's"), Ge(0)] = 1.0,
    pattern_seed: Annotated[int, Doc("another number draws other images"), Ge(0)] = 0,
    classes: Classes = None,
    limit_per_class: LimitPerClass = None,
    limit_seed: LimitSeed = 0,
    val_fraction: ValFraction = 0.2,
    test_fraction: TestFraction = 0.0,
    split: Fold = None,
    image_size: ImageSize = None,
    color: Color = None,
) -> Data:
    import numpy as np
    from PIL import Image

    spec = _images.image_spec(known, size=image_size, color=color, default_size=32)
    rng = np.random.default_rng(pattern_seed)
    side = spec.preprocessing["size"]
    patterns = rng.standard_normal((num_classes, 8, 8, 3))
    codes = np.arange(samples) % num_classes
    images = []
    for code in codes:
        small = patterns[code] + noise * rng.standard_normal((8, 8, 3))
        pixels = (127 + 40 * small).clip(0, 255).astype("uint8")
        images.append(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST))
    return _images.build_arrays(
        known,
        spec,
        images,
        [f"class-{code}" for code in codes],
        names=[f"fake-{i:05}" for i in range(samples)],
        where="fake_images",
        classes=classes,
        limit_per_class=limit_per_class,
        limit_seed=limit_seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        fold=split,
    )
