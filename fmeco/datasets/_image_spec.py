"""Describe how images become inputs: by the keys of the config, a checkpoint's preprocessing or a library's, or by default."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from fmeco.core import ConfigError, DataError, DataSpec, InputSpec, Pixels, clean, decode_rule, listing, same_modality

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WHITE = [255, 255, 255]
UNIT = 1 / 255  # scale of the stored values, to which `mean` and `std` of the config refer


def image_spec(
    known: DataSpec | None,
    pixels: Pixels,
    *,
    default_size: int = 224,
    native: Literal["rgb", "gray"] = "rgb",
    mirror: bool = True,
) -> DataSpec:
    """Describe how images become inputs: by the keys, else as in the checkpoint (`known`), else by default.

    default_size, native: the data's own size and colour mode.
    mirror: whether a mirror image shows the same thing, which is false for digits and text.
    By default the short side is resized to 8/7 of `size` (256 for 224) and the centre is cropped. At 96 pixels and below,
    the whole short side is used, because small images show objects that fill the frame.

    Raises ConfigError that names a key with a wrong value, or with another value than a checkpoint's.
    """
    same_modality(known, "image")
    if known is not None and (absent := {"size", "resize", "color"} - known.preprocessing.keys()):
        raise DataError(
            f"the checkpoint's images were prepared by the dataset '{clean(known.reader)}', whose description of it lacks {listing(sorted(absent))}",
            "use that dataset for the new images, too; or let its plug-in state them in DataSpec.preprocessing",
        )
    old: Mapping[str, Any] = known.preprocessing if known is not None else {}
    wanted = pixels.image_size or old.get("size") or default_size
    mode = pixels.color or old.get("color") or native
    channels = 1 if mode == "gray" else 3
    _check(pixels, mode, channels)
    if known is not None and not known.published:
        for change in _differences(known, pixels):
            raise ConfigError(
                f"dataset.{change.key}: {change.new}: the checkpoint's images were prepared with {change.old}, which cannot change",
                f"leave dataset.{change.key} out",
            )
    values = _values(known, pixels, mode)
    return DataSpec(
        modality="image",
        reader="image_folder",
        inputs={"image": InputSpec((channels, wanted, wanted), "uint8", values.scale, values.mean, values.std)},
        preprocessing={
            "size": wanted,
            "resize": _resize(old, _share(known, pixels), wanted),
            "interpolation": pixels.interpolation or old.get("interpolation", "bilinear"),
            "color": mode,
            "mirror": mirror,
            **_fit(known, pixels),
            **_decoding(known, pixels),
        },
    )


def changes(known: DataSpec | None, pixels: Pixels) -> list[str]:
    """Return a note for each key of the config that differs from the published preprocessing (`known`)."""
    if known is None:
        return []
    return [
        f"dataset.{change.key} is {change.new}, in place of {change.old} for these weights"
        for change in _differences(known, pixels)
    ]


class _Change(NamedTuple):
    """Hold a key of the config, and the values, in words, that the source of the weights and the config have for it."""

    key: str
    old: str
    new: str


def _differences(known: DataSpec, pixels: Pixels) -> Iterator[_Change]:
    """Yield the keys that differ from `known`. `image_size` and `color` do not count: each task may have its own."""
    old = known.preprocessing
    if pixels.color in (None, old["color"]):
        stated = _in_units(known.inputs["image"])
        for key, new, stored in (("mean", pixels.mean, stated.mean), ("std", pixels.std, stated.std)):
            if new is not None and not all(map(math.isclose, new, stored)):
                yield _Change(key, _shown(stored), _shown(new))
    for key, value, stored in (
        ("interpolation", pixels.interpolation, old.get("interpolation", "bilinear")),
        ("fit", pixels.fit, old.get("fit", "crop")),
    ):
        if value not in (None, stored):
            yield _Change(key, stored, str(value))
    if pixels.crop_share is not None and _enlarged(old["size"], pixels.crop_share) != old["resize"]:
        share = old.get("crop_share") or round(old["size"] / old["resize"], 4)
        yield _Change("crop_share", f"{share:g}", f"{pixels.crop_share:g}")


def _shown(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


def _check(pixels: Pixels, mode: str, channels: int) -> None:
    """Raise ConfigError for a mean or standard deviation that cannot be meant."""
    for key, values, low, high in (("mean", pixels.mean, 0, 1), ("std", pixels.std, 1e-4, 10)):
        if values is None:
            continue
        if len(values) != channels:
            raise ConfigError(
                f"dataset.{key}: {_shown(values)}: expected {channels} for dataset.color {mode}, one per channel"
            )
        if not all(low <= value <= high for value in values):
            raise ConfigError(
                f"dataset.{key}: {_shown(values)}: expected values from {low:g} to {high}, for pixels of 0 to 1",
                "divide values for pixels of 0 to 255 by 255",
            )


class _Values(NamedTuple):
    """Hold the normalisation of an InputSpec."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _in_units(described: InputSpec) -> _Values:
    """Return an equal normalisation of pixels of 0 to 1."""
    factor = 1.0 if described.scale == UNIT else described.scale / UNIT
    return _Values(UNIT, *(tuple(value / factor for value in part) for part in (described.mean, described.std)))


def _values(known: DataSpec | None, pixels: Pixels, mode: str) -> _Values:
    """Choose the normalisation: of the keys, else of `known` for its colour mode, else of ImageNet.

    For gray images, values of colours are averaged over the channels.
    """
    if known is None:
        found = _Values(UNIT, IMAGENET_MEAN, IMAGENET_STD)
    elif mode == known.preprocessing["color"]:
        described = known.inputs["image"]
        found = _Values(described.scale, described.mean, described.std)
    else:
        found = _Values(UNIT, IMAGENET_MEAN, IMAGENET_STD) if mode == "rgb" else _in_units(known.inputs["image"])
    if mode == "gray" and len(found.mean) > 1:
        mean, std = (round(math.fsum(part) / len(part), 6) for part in found[1:])
        found = _Values(found.scale, (mean,), (std,))
    if pixels.mean is None and pixels.std is None:
        return found
    units = _in_units(InputSpec((), scale=found.scale, mean=found.mean, std=found.std))
    return _Values(UNIT, tuple(pixels.mean or units.mean), tuple(pixels.std or units.std))


def _enlarged(size: int, share: float) -> int:
    """Return the side that images are resized to, of which the crop is a share."""
    return math.floor(size / share)  # as timm does


def _share(known: DataSpec | None, pixels: Pixels) -> float | None:
    """Return the crop's share of the resized side, as far as the keys decide it: squash and letterbox show the whole image."""
    free = known is None or (known.published and pixels.fit != known.preprocessing.get("fit", "crop"))
    if pixels.crop_share is None and free and pixels.fit in ("squash", "letterbox"):
        return 1.0
    return pixels.crop_share


def _resize(old: Mapping[str, Any], share: float | None, size: int) -> int:
    """Return the side that images are resized to for inputs of a size. share: that the keys decide."""
    if share is not None:
        return _enlarged(size, share)
    if old and size == old["size"]:
        return int(old["resize"])
    if "crop_share" in old:
        return _enlarged(size, float(old["crop_share"]))
    if old:
        return round(size * int(old["resize"]) / int(old["size"]))
    return size if size <= 96 else round(size * 8 / 7)


def _fit(known: DataSpec | None, pixels: Pixels) -> dict[str, Any]:
    """Return the keys `fit`, `crop_share` and `crop_rounding` of the preprocessing. A checkpoint without them does not get them."""
    old = known.preprocessing if known is not None else {}
    kept = {key: old[key] for key in ("fit", "crop_share", "crop_rounding") if key in old}
    if known is not None and not known.published:
        return kept
    chosen = {"fit": pixels.fit, "crop_share": _share(known, pixels)}
    return {"fit": "crop", **kept, **{key: value for key, value in chosen.items() if value is not None}}


def _decoding(known: DataSpec | None, pixels: Pixels) -> dict[str, Any]:
    """Return the part of the preprocessing that came with rule 2: decode, background and, if it is known, range.

    Raises ConfigError that names a key with a wrong value, or one that a checkpoint of rule 1 cannot have.
    """
    set_here = {"background": pixels.background, "range": pixels.range}
    if decode_rule(known) == 1:
        if key := next((key for key, value in set_here.items() if value is not None), None):
            raise ConfigError(
                f"dataset.{key}: the checkpoint is older than this key, and its images are read as they were then",
                "leave the key out, or train from published weights",
            )
        return {}
    if pixels.background is not None and (
        len(pixels.background) != 3 or not all(0 <= c <= 255 for c in pixels.background)
    ):
        raise ConfigError(f"dataset.background: {pixels.background}: expected [red, green, blue] of 0 to 255")
    if pixels.range is not None:
        if len(pixels.range) != 2 or not -32768 <= pixels.range[0] < pixels.range[1] <= 65535:
            raise ConfigError(
                f"dataset.range: {pixels.range}: expected [LOW, HIGH], from -32768 to 65535, such as [0, 4095]"
            )
    old = known.preprocessing if known is not None else {}
    range_ = pixels.range or old.get("range")
    return {
        "decode": decode_rule(known),
        "background": pixels.background or old.get("background") or WHITE,
        **({"range": list(range_)} if range_ is not None else {}),
    }
