"""Open images, and convert images of any mode to 8 bits per channel: transparent, palette and 16-bit ones."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from fmeco.core import DataError, clean
from fmeco.datasets import _files
from fmeco.files import regular

MAX_PIXELS = 100_000_000  # checked in the header before decoding: a 20 kB file can declare a gigapixel
FULL = [0, 65535]  # all values of 16 bits
LOW = 16384  # 16-bit images with only values below this probably hold 10 to 14 bits, whose range must be known
_PHOTOMETRIC, _EXTRA_SAMPLES = 262, 338  # tags of TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ACROSS = {Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90}
# PNG files of image generators hold more than Pillow's limit of 1 MB of text, and cameras larger profiles.
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24
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


class Facts(NamedTuple):
    """Hold facts of an image file that Pillow no longer tells once the image is decoded.

    coarse: colours of 16 bits per channel, of which Pillow keeps the upper 8.
    negative: TIFF of 16 bits in which white is 0, as in X-rays; Pillow inverts only 8 bits.
    bands: bands of a TIFF that are neither a colour nor alpha, which Pillow drops.
    profile: ICC profile; empty = none.
    """

    coarse: bool
    negative: bool
    bands: int
    profile: bytes


def facts(image: Image.Image) -> Facts:
    """Collect the facts of an image that is opened, but not decoded."""
    tags: Any = getattr(image, "tag_v2", {})
    tiles: Any = getattr(image, "tile", ())
    return Facts(
        coarse=not is_deep(image) and any(";16" in str(tile.args) for tile in tiles),
        negative=is_deep(image) and tags.get(_PHOTOMETRIC) == 0,
        bands=sum(meaning == 0 for meaning in tags.get(_EXTRA_SAMPLES, ())),
        profile=image.info.get("icc_profile") or b"",
    )


def upright(image: Image.Image) -> Image.Image:
    """Turn an image by the camera's orientation, as EXIF states it."""
    image.load()  # which turns a TIFF, and forgets its orientation
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises many kinds of errors for damaged EXIF data, which says nothing of the pixels
        return None


def upright_size(path: str) -> tuple[int, int]:
    """Return the width and height of a file's picture as `upright` turns it. Raises DataError that names the file."""
    return size_and_turn(path)[0]


def size_and_turn(path: str) -> tuple[tuple[int, int], Image.Transpose | None]:
    """Return what `upright_size` does, and how `upright` turns the picture (None = it does not), from one look at the file."""
    with opened(path) as image:
        if image.format == "TIFF":
            image.load()
        return upright_size_of(image), _turn(image)


def upright_size_of(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of an opened image as `upright` turns it."""
    width, height = image.size
    return (height, width) if _turn(image) in ACROSS else (width, height)


def is_deep(image: Image.Image) -> bool:
    """Tell whether an image has one channel of more than 8 bits."""
    return image.mode.startswith("I")


def deep(image: Image.Image, *, negative: bool = False) -> NDArray[np.int32]:
    """Return the values (H, W) of an image with one channel of 16 bits. Raises ValueError for more bits.

    negative: white is 0 in the file; it is the highest value in the result.
    """
    values = np.asarray(image, dtype=np.int32)
    if values.max(initial=0) > 65535 or values.min(initial=0) < -32768:
        raise ValueError("more than 16 bits per channel; save it with 8 or 16 bits")
    return 65535 - values if negative else values


def eight_bit(image: Image.Image, mode: str, prep: Mapping[str, Any], known: Facts) -> Image.Image:
    """Convert an image to 8 bits per channel.

    mode: "L" or "RGB".
    prep: the preprocessing of a spec. By rule 1 of `decode`, alpha and profile are ignored and 65535 becomes 255; by rule 2,
        images are composited on `background`, colours are converted to sRGB, and `range` becomes 0 to 255.
    known: the image's facts, from before it was decoded.

    Raises ValueError for floating-point values, for more than 16 bits, and by rule 2 for values that cannot be known.
    """
    first_rule = prep.get("decode", 1) == 1
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    if is_deep(image):
        image = _shallow(image, prep, known, first_rule)
    if first_rule:
        return image if image.mode == mode else (image.convert("RGBA") if image.mode == "P" else image).convert(mode)
    if known.bands:
        raise ValueError(
            f"{known.bands} of its bands are neither a colour nor alpha; save the three that are to be seen"
        )
    if known.coarse and 0 < (highest := max(high for _, high in _extrema(image))) < LOW // 256:
        raise ValueError(
            f"colours of 16 bits per channel, with no value above {highest * 256 + 255}: their lower 8 bits would be lost; "
            "save it with 8 bits per channel"
        )
    if known.profile:
        image = _in_srgb(image, known.profile)
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


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert colours from the file's ICC profile to sRGB, as viewers do. A profile that does not fit is ignored, as there."""
    alpha = None
    if image.mode == "P" or (image.has_transparency_data and image.mode in ("RGB", "RGBA")):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode == "RGBA":
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    change = _to_srgb(profile, image.mode) if image.mode in ("RGB", "CMYK") else None
    if change is None:
        seen = image
    else:
        seen = change.apply(image)
    if alpha is not None:
        seen.putalpha(alpha)
    return seen


@functools.lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform from a profile to sRGB; None for sRGB itself, and for a profile that is damaged or of another mode."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != mode or "sRGB" in (source.profile.profile_description or ""):
            return None
        return ImageCms.ImageCmsTransform(
            source,
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            mode,
            "RGB",
            intent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.NOCACHE
            | ImageCms.Flags.BLACKPOINTCOMPENSATION,  # without a cache, threads can share it
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _shallow(image: Image.Image, prep: Mapping[str, Any], origin: Facts, first_rule: bool) -> Image.Image:
    """Convert an image of 16 bits to 8. Its transparent value, if it has one, becomes an alpha channel."""
    values, known = deep(image, negative=origin.negative and not first_rule), prep.get("range")
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
