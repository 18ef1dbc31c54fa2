"""Generated images for smoke tests and benchmarks, not real data: one random pattern per class, plus noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fmeco.core import Data, DataSpec, Doc, Ge, Gt, Pixels, Splitting, Without
from fmeco.datasets import _image_spec, _images

MODALITY = "image"


def build(
    known: DataSpec | None,
    *,
    samples: Annotated[int, Doc("number of images"), Gt(0)] = 256,
    num_classes: Annotated[int, Doc("number of classes, named class-0, class-1, ..."), Gt(1)] = 4,
    noise: Annotated[float, Doc("standard deviation of the noise, in units of the pattern's"), Ge(0)] = 1.0,
    pattern_seed: Annotated[int, Doc("seed of patterns and noise"), Ge(0)] = 0,
    splitting: Annotated[Splitting, Without("group_split")] = Splitting(),
    pixels: Annotated[Pixels, Without("background", "range")] = Pixels(),
) -> Data:
    import numpy as np
    from PIL import Image

    spec = _image_spec.image_spec(known, pixels, default_size=32)
    rng = np.random.default_rng(pattern_seed)
    side = spec.preprocessing["size"]
    patterns = rng.standard_normal((num_classes, 8, 8, 3))
    codes = np.arange(samples) % num_classes
    images = []
    for code in codes:
        small = patterns[code] + noise * rng.standard_normal((8, 8, 3))
        values = (127 + 40 * small).clip(0, 255).astype("uint8")
        images.append(Image.fromarray(values).resize((side, side), Image.Resampling.NEAREST))
    return _images.build_arrays(
        known,
        spec,
        images,
        [f"class-{code}" for code in codes],
        names=[f"fake-{i:05}" for i in range(samples)],
        where="fake_images",
        splitting=splitting,
        pixels=pixels,
    )


def example(folder: Path) -> dict[str, Any]:
    """Return the keys of a few images, for the checks of plug-ins."""
    return {"samples": 48, "num_classes": 2}
