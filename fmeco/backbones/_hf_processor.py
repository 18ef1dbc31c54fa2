"""Read how an image processor of transformers prepares images, from its files and the library's defaults for its class."""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

from fmeco.backbones._hf_config import import_transformers
from fmeco.backbones._hf_published import local_file, read_json
from fmeco.core import ConfigError, DataSpec, InputSpec, clean

# Pillow's number -> fmeco's name; fmeco has no Lanczos, and bicubic is the closest.
INTERPOLATIONS = {0: "nearest-exact", 1: "bicubic", 2: "bilinear", 3: "bicubic"}  # 1 is Lanczos
STEPS = {"preprocess", "_preprocess", "resize", "center_crop", "rescale"}  # methods that classes may define anew
# Classes that define some of these anew, for labels that are masks, or as `_Plan` repeats it.
KNOWN = (
    *("BeitImageProcessor", "MobileNetV2ImageProcessor", "MobileViTImageProcessor", "SegformerImageProcessor"),
    *("ConvNextImageProcessor", "LevitImageProcessor", "PoolFormerImageProcessor", "EfficientNetImageProcessor"),
)
# Keys that the library's class gets from the file.
KEYS = (
    *("size", "crop_size", "crop_pct", "default_to_square", "resample", "image_mean", "image_std"),
    *("do_resize", "do_center_crop", "do_rescale", "rescale_factor", "do_normalize", "do_pad"),
    *("do_flip_channel_order", "rescale_offset", "include_top"),
)
# Keys that ask for something that fmeco does not have -> what it is.
REFUSED = {"do_flip_channel_order": "images are read as BGR", "do_pad": "images are padded"}
WAY_OUT = "to train it anyway, set the key to false in a copy of the model's folder (backbone: hf/./FOLDER)"


class _Plan(NamedTuple):
    """Describe how an image is resized and cropped.

    resize: side that it is resized to. size: side of the input. fit: as the key of image datasets.
    """

    resize: int
    size: int
    fit: str


def read_processor(arch: str, model: str) -> DataSpec | None:
    """Translate preprocessor_config.json, or the part of processor_config.json about images, into a DataSpec.

    model: `model_type` of config.json, which decides the class of a processor that does not state its own.
    Returns None if the model has no such file. Raises ConfigError for values that fmeco cannot follow.
    """
    path = local_file(arch, "preprocessor_config.json") or local_file(arch, "processor_config.json")
    if path is None:
        return None
    raw = read_json(path)
    raw = inner if isinstance(inner := raw.get("image_processor"), dict) else raw
    where = clean(path)
    if raw.get("auto_map"):
        raise ConfigError(f"{where}: auto_map: it names code of its own, which fmeco does not run")
    name, processor = _processor(raw, model, where)
    for key, what in REFUSED.items():
        if getattr(processor, key, None):
            raise ConfigError(f"{where}: {key}: {what}, which fmeco does not do", WAY_OUT)
    try:
        plan = _plan(processor, name)
        if not 0 < plan.size <= plan.resize < 1 << 14:
            raise ValueError(f"images are resized to {plan.resize} pixels for inputs of {plan.size}")
        interpolation = INTERPOLATIONS[2 if processor.resample is None else int(processor.resample)]
        described = _normalisation(processor, plan.size)
    except KeyError as error:
        raise ConfigError(f"{where}: not a valid image preprocessing: resample {clean(error)}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"{where}: not a valid image preprocessing: {clean(error)}") from None
    return DataSpec(
        "image",
        {"image": described},
        preprocessing={
            "size": plan.size,
            "resize": plan.resize,
            "interpolation": interpolation,
            "color": "rgb",
            "fit": plan.fit,
            "crop_share": plan.size / plan.resize,
            "crop_rounding": "down",
        },
        reader="image_folder",
    )


def _processor(raw: dict[str, Any], model: str, where: str) -> tuple[str, Any]:
    """Build the library's processor, which fills in its defaults. Returns the name of its class, and the processor.

    Raises ConfigError for a class that the library does not have, or whose steps fmeco does not know.
    """
    hf = import_transformers()
    mapping = importlib.import_module("transformers.models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES
    mapped = dict(mapping).get(model)
    name = raw.get("image_processor_type") or raw.get("feature_extractor_type")
    if name is None:
        name = mapped.get("torchvision") if isinstance(mapped, dict) else mapped
        name = name if isinstance(name, str) else "ViTImageProcessor"  # as plain as a processor can be
    name = str(name).removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    kind = getattr(hf, name, None) if name.endswith("ImageProcessor") else None
    if kind is None:
        raise ConfigError(f"{where}: transformers {hf.__version__} has no image processor {clean(name)}")
    if name not in KNOWN and STEPS & vars(kind).keys():
        raise ConfigError(f"{where}: {clean(name)}: fmeco does not know how it prepares images")
    try:
        return name, kind(**{key: raw[key] for key in KEYS if key in raw})
    except Exception as error:  # the library raises anything for values that it does not expect
        raise ConfigError(f"{where}: not a valid image preprocessing: {clean(error)}") from None


def _plan(processor: Any, name: str) -> _Plan:
    """Repeat in numbers how the library's class resizes and crops. Raises ValueError for shapes that are not square."""
    size: dict[str, int] = dict(processor.size)
    fit = "crop" if "shortest_edge" in size else "squash"
    side = _square(size, "size")
    resize = side
    if name == "ConvNextImageProcessor":  # up to 384 pixels the centre is cropped, from then on the image is squashed
        return _Plan(side, side, "squash") if side >= 384 else _Plan(int(side / processor.crop_pct), side, "crop")
    if name == "LevitImageProcessor" and fit == "crop":
        resize = int(256 / 224 * side)
    if name == "PoolFormerImageProcessor" and processor.crop_pct is not None:
        resize, fit = int(side / processor.crop_pct), "crop"
    crop = _square(dict(processor.crop_size), "crop_size") if getattr(processor, "do_center_crop", False) else None
    return _Plan(resize, side if crop is None else crop, fit)


def _square(size: dict[str, int], key: str) -> int:
    """Return the side of a square. Raises ValueError for another shape."""
    sides = {int(side) for side in size.values()}
    if len(sides) != 1 or not size.keys() <= {"height", "width", "shortest_edge"}:
        raise ValueError(f"{key} {size} is not square")
    return sides.pop()


def _normalisation(processor: Any, size: int) -> InputSpec:
    """Return the input's scale, mean and deviation. Raises ValueError for values that are not positive, or not three."""
    scale = float(processor.rescale_factor) if processor.do_rescale else 1.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if processor.do_normalize:
        mean, std = (_three(values) for values in (processor.image_mean, processor.image_std))
    if processor.do_rescale and getattr(processor, "rescale_offset", None):
        mean = tuple(1 + value for value in mean)  # 1 is subtracted first
    if getattr(processor, "include_top", None):
        std = tuple(a * b for a, b in zip(std, _three(processor.image_std), strict=True))  # it divides twice
    if not (0 < scale <= 1 and len(mean) == len(std) == 3 and min(std) > 0 and all(map(math.isfinite, (*mean, *std)))):
        raise ValueError("image_mean, image_std or rescale_factor is out of range")
    return InputSpec((3, size, size), "uint8", scale, mean, std)


def _three(values: Any) -> tuple[float, ...]:
    """Return a value per channel; the library takes one for all of them, too."""
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(float(value) for value in values)
