"""Define the config keys that several plug-ins share. A signature uses one as in `image_size: ImageSize = None`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge as Ge
from annotated_types import Gt as Gt
from annotated_types import Le as Le
from annotated_types import Lt as Lt
from pydantic import Field

Scalar = str | int | float | bool | None


def Doc(text: str) -> Any:
    """Attach help text to a key, as in `lr: Annotated[float, Doc("step size"), Gt(0)] = 1e-3`."""
    return Field(description=text)


# Marks a key that is a file or folder. A run stores the absolute path, a checkpoint the path relative to itself.
FilePath = str

# Marks a key that names a checkpoint or published weights. `build` gets a core.Teacher, or None if nothing is trained.
Ref = str

# Marks a key that holds sections of its own, as in `tasks: dict[str, ObjectiveSection]`. `build` gets one builder per
# section; a builder takes the injected values by name and returns the objective.
ObjectiveSection = Callable[..., Any]

NESTED = {"ObjectiveSection": "objectives"}

Classes = Annotated[list[str | int] | None, Doc("use only these classes, in this order; null = all, sorted by name")]

LimitPerClass = Annotated[int | None, Doc("at most this many training samples per class (few-shot); null = all"), Gt(0)]

Penalties = Annotated[
    dict[str, Annotated[float, Ge(0)]],
    Doc("weight penalty of the solved head of each target; for others it is chosen by cross-validation"),
]

LimitSeed = Annotated[int, Doc("seed of the random choice of samples for `limit_per_class`"), Ge(0)]

ValFraction = Annotated[
    float,
    Doc("share of each class held out for validation; chosen by a hash of the sample's name, not by order"),
    Gt(0),
    Lt(1),
]

TestFraction = Annotated[float, Doc("share of each class held out for testing; 0 = no test split"), Ge(0), Lt(1)]

Fold = Annotated[
    dict[str, int] | None,
    Doc("{fold: 1, of: 5}: cross-validation; validate on fold 1 of 5 instead of on val_fraction"),
]

GroupSplit = Annotated[
    str | None,
    Doc(
        "keep all samples of a group, such as a speaker or a patient, in one split (by a hash of the group's name). The "
        "group is a table's column, or the one group of a regular expression on the file's path, such as '_([a-z]+)_'"
    ),
]


@dataclass(frozen=True)
class Splitting:
    """Choose and split a dataset's samples. Its fields are keys of `dataset:`, and `build` gets them as one value.

    A signature declares `splitting: Splitting`, or other defaults with `splitting: Splitting = Splitting(val_fraction=0.1)`.
    `Annotated[Splitting, Without("test_fraction")]` removes keys; removed keys keep the values below.
    """

    classes: Classes = None
    limit_per_class: LimitPerClass = None
    limit_seed: LimitSeed = 0
    val_fraction: ValFraction = 0.2
    test_fraction: TestFraction = 0.0
    split: Fold = None
    group_split: GroupSplit = None


ImageSize = Annotated[
    int | None,
    Doc("height and width of the model's input in pixels; null = the checkpoint's size, or the default without one"),
    Gt(0),
]

Color = Annotated[
    Literal["rgb", "gray"] | None, Doc("colour mode; null = the checkpoint's, or the data's without a checkpoint")
]

Background = Annotated[
    list[int] | None,
    Doc("colour behind transparent pixels, [red, green, blue] of 0 to 255; null = the checkpoint's, else white"),
]

DeepRange = Annotated[
    list[int] | None,
    Doc(
        "for pixels of 16 bits: the values [low, high] that become 0 and 255; null = the checkpoint's, else the lowest and the "
        "highest value of the training files"
    ),
]

Mean = Annotated[
    list[float] | None,
    Doc(
        "what is subtracted from pixels of 0 to 1, a value per channel such as [0.485, 0.456, 0.406]; null = the checkpoint's, else "
        "ImageNet's"
    ),
]

Std = Annotated[
    list[float] | None,
    Doc("what pixels are divided by after `mean` is subtracted; null = the checkpoint's, else ImageNet's"),
]

Interpolation = Annotated[
    Literal["nearest", "nearest-exact", "bilinear", "bicubic"] | None,
    Doc("how images are resized; nearest-exact is what Pillow calls nearest. null = the checkpoint's, else bilinear"),
]

Fit = Annotated[
    Literal["crop", "squash", "letterbox"] | None,
    Doc(
        "how an image becomes a square: crop = resize its short side and cut the centre out; squash = resize both sides to one "
        "length; letterbox = resize its long side and fill up with `background`. null = the checkpoint's, else crop"
    ),
]

CropShare = Annotated[
    float | None,
    Doc(
        "side of the centre crop, as a share of the side that images are resized to: 0.875 resizes to 256 for 224. null = the "
        "checkpoint's; without one 0.875, or 1 up to 96 pixels and for squash and letterbox"
    ),
    Gt(0),
    Le(1),
]


@dataclass(frozen=True)
class Pixels:
    """Choose how images become pixels. Its fields are keys of `dataset:`, and `build` gets them as one value.

    A signature declares `pixels: Pixels`; `Annotated[Pixels, Without("range")]` removes a key, as for Splitting.
    """

    image_size: ImageSize = None
    color: Color = None
    background: Background = None
    range: DeepRange = None
    mean: Mean = None
    std: Std = None
    interpolation: Interpolation = None
    fit: Fit = None
    crop_share: CropShare = None


Missing = Annotated[
    list[str | int | float] | None,
    Doc(
        "words and numbers for a missing cell, such as -9999, compared as text without case; [] = only an empty cell is missing; "
        "null = the checkpoint's, else na, n/a, nan, null, none and ?"
    ),
]

Decimal = Annotated[
    dict[str, Literal[".", ","]] | None,
    Doc("column -> its decimal point, for numbers that can be read in two ways: {price: ','} reads 1,234 as 1.234"),
]


@dataclass(frozen=True)
class Spelling:
    """Say how a table writes missing cells and numbers. Its fields are keys of `dataset:`, and `build` gets them as one value."""

    missing: Missing = None
    decimal: Decimal = None


class Without:
    """Remove keys of a group, such as Splitting, from a signature."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys


# Types that bundle several keys into one parameter of `build`.
KEY_GROUPS: dict[str, type] = {"Splitting": Splitting, "Pixels": Pixels, "Spelling": Spelling}

TeacherMomentum = Annotated[
    float,
    Doc(
        "decay of the teacher's moving average (EMA) at the first step; it rises to 1 over the run. 0.99 averages over "
        "about 100 steps; for runs of about 100000 steps use 0.996"
    ),
    Ge(0),
    Lt(1),
]

Rate = float  # marks the key of the learning rate: its schema is RATE, so a user may also write auto

RATE = Annotated[
    Annotated[float, Gt(0)] | Literal["auto"],
    Doc("learning rate; auto = found by a range test of a few steps, after which the model is restored"),
]

# The names that a signature may use as types, and what they stand for.
VOCABULARY: dict[str, Any] = {
    **{t.__name__: t for t in (bool, int, float, str, list, dict, tuple)},
    **{"None": None, "Any": Any, "Annotated": Annotated, "Literal": Literal, "Scalar": Scalar},
    **{"Doc": Doc, "Gt": Gt, "Ge": Ge, "Lt": Lt, "Le": Le},
    **{"Classes": Classes, "LimitPerClass": LimitPerClass, "LimitSeed": LimitSeed, "ValFraction": ValFraction},
    **{"TestFraction": TestFraction, "Fold": Fold, "ImageSize": ImageSize, "Color": Color},
    **{"TeacherMomentum": TeacherMomentum, "Penalties": Penalties, "FilePath": FilePath, "Ref": Ref, "Rate": RATE},
    **dict.fromkeys(NESTED, Any),
    **KEY_GROUPS,
    "Without": Without,
}
