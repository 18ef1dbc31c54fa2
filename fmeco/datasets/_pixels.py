"""Open images, and convert images of any mode to 8 bits per channel: transparent, palette and 16-bit ones."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fmeco.core import DataError, clean
from fmeco.datasets import _files
from fmeco.files import regular

MAX_PIXELS = 100_000_000  # checked in the header before decoding: a 20 kB file can declare a gigapixel
FULL = [0, 65535]  # all values of 16 bits
LOW = 16384  # 16-bit images with only values below this probably hold 10 to 14 bits, whose range must be known
# Set once per process, because all threads share the filters of `warnings`. MAX_PIXELS limits the size instead.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Palette images with Transparency")


@contextlib.contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """Open an image, as a context manager. Raises DataError, also for errors inside the block: it names file and reason."""
    try:
        with open(path, "rb", opener=regular) as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels is more than {MAX_PIXELS:,}")
            if min(image.size) < 1:
                raise ValueError("no pixels")
            yield image
    except Exception as error:  # a damaged file can raise anything in a decoder
        reason = "not an image in a known format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"cannot read the image {clean(path)}: {_files.reason(path, reason)}") from None


def is_deep(image: Image.Image) -> bool:
    """Tell whether an image has one channel of more than 8 bits."""
    return image.mode.startswith("I")


def deep(image: Image.Image) -> NDArray[np.int32]:
    """Return the values (H, W) of an image with one channel of 16 bits. Raises ValueError for more bits."""
    values = np.asarray(image, dtype=np.int32)
    if values.max(initial=0) > 65535 or values.min(initial=0) < -32768:
        raise ValueError("more than 16 bits per channel; save it with 8 or 16 bits")
    return values


def is_coarse(image: Image.Image) -> bool:
    """Tell whether an image that is not decoded yet has colours of 16 bits, of which Pillow keeps the upper 8 only."""
    tiles: Any = getattr(image, "tile", ())
    return not is_deep(image) and any(";16" in str(tile.args) for tile in tiles)


def eight_bit(image: Image.Image, mode: str, prep: Mapping[str, Any], *, coarse: bool = False) -> Image.Image:
    """Convert an image to 8 bits per channel.

    mode: "L" or "RGB".
    prep: the preprocessing of a spec. By rule 1 of `decode`, alpha is dropped and 65535 becomes 255; by rule 2, images are
        composited on `background`, and `range` becomes 0 to 255.
    coarse: the answer of `is_coarse` before the image was decoded.

    Raises ValueError for floating-point values, for more than 16 bits, and by rule 2 for values of unknown range.
    """
    first_rule = prep.get("decode", 1) == 1
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    if is_deep(image):
        image = _shallow(image, prep, first_rule)
    if first_rule:
        return image if image.mode == mode else (image.convert("RGBA") if image.mode == "P" else image).convert(mode)
    if coarse and 0 < (highest := max(high for _, high in _extrema(image))) < LOW // 256:
        raise ValueError(
            f"colours of 16 bits per channel, with no value above {highest * 256 + 255}: their lower 8 bits would be lost; "
            "save it with 8 bits per channel"
        )
    if image.has_transparency_data:
        behind = Image.new("RGBA", image.size, (*prep["background"], 255))
        image = Image.alpha_composite(behind, image.convert("RGBA"))
    elif image.mode == "P":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    """Return the lowest and highest value of each channel, apart from alpha."""
    extrema: Any = image.getextrema()
    pairs = [extrema] if isinstance(extrema[0], int) else list(extrema)
    return pairs[:-1] if image.mode in ("RGBA", "LA") else pairs


def _shallow(image: Image.Image, prep: Mapping[str, Any], first_rule: bool) -> Image.Image:
    """Convert an image of 16 bits to 8. Its transparent value, if it has one, becomes an alpha channel."""
    values, known = deep(image), prep.get("range")
    if known is None:
        highest = int(values.max(initial=0))
        if values.min(initial=0) < 0:
            raise ValueError("negative pixels; set dataset.range=[LOW, HIGH] for training, or save it with 8 bits")
        if not first_rule and 0 < highest < LOW:
            raise ValueError(
                f"16 bits per pixel, with no value above {highest}, and the range of the training images is not known; "
                f"set dataset.range=[0, {highest}] for training, or save it with 8 bits"
            )
    if known is None or known == FULL:
        scaled = values // 257
    else:
        low, high = known
        span = high - low
        scaled = ((values.clip(low, high) - low) * 255 + span // 2) // span
    small = Image.fromarray(scaled.astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and not first_rule:
        small.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return small
