"""Keys that several plug-ins share, each written once: a signature says `image_size: ImageSize = None`."""

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
    """Help for a key: `lr: Annotated[float, Doc("step size"), Gt(0)] = 1e-3`."""
    return Field(description=text)


FilePath = str  # in a signature it marks a file or folder: a run stores it absolute, a checkpoint relative

Ref = str  # in a signature it marks a checkpoint, or published weights: `build` is handed a core.Teacher, or None

# A section of its own inside a plug-in's: `tasks: dict[str, ObjectiveSection]`. `build` is handed builders: each takes the
# injected values by name and returns what its section describes.
ObjectiveSection = Callable[..., Any]

NESTED = {"ObjectiveSection": "objectives"}

Classes = Annotated[list[str | int] | None, Doc("use only these classes, in this order; null = all, sorted by name")]

LimitPerClass = Annotated[int | None, Doc("at most this many training samples per class (few-shot); null = all"), Gt(0)]

LimitSeed = Annotated[int, Doc("which samples `limit_per_class` draws; another number draws others"), Ge(0)]

ValFraction = Annotated[
    float, Doc("share of each class held out for validation, chosen by name, not by order"), Gt(0), Lt(1)
]

TestFraction = Annotated[float, Doc("share of each class held out for testing; 0 = no test split"), Ge(0), Lt(1)]

Fold = Annotated[
    dict[str, int] | None,
    Doc("{fold: 1, of: 5}: validate on that fold of a cross-validation instead of on val_fraction"),
]

GroupSplit = Annotated[
    str | None,
    Doc(
        "keeps each group, such as a speaker, a patient or a customer, in one split, by a hash of its name: a table's column, "
        "or a regular expression whose one group is that name in a file's path, such as '_([a-z]+)_'"
    ),
]


@dataclass(frozen=True)
class Splitting:
    """Choose a dataset's samples and split them: keys of `dataset:` that `build` is handed as one value.

    A signature says `splitting: Splitting`, or with defaults of its own `splitting: Splitting = Splitting(val_fraction=0.1)`;
    `Annotated[Splitting, Without("test_fraction")]` leaves keys out, which then have the values below.
    """

    classes: Classes = None
    limit_per_class: LimitPerClass = None
    limit_seed: LimitSeed = 0
    val_fraction: ValFraction = 0.2
    test_fraction: TestFraction = 0.0
    split: Fold = None
    group_split: GroupSplit = None


class Without:
    """Leave keys of a group out of a signature."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys


KEY_GROUPS: dict[str, type] = {"Splitting": Splitting}  # several keys that `build` is handed as one value

TeacherMomentum = Annotated[
    float,
    Doc(
        "what the teacher keeps of itself at the first step; it rises to 1 over the run. 0.99 looks back over about 100 "
        "steps; runs of a hundred thousand steps take 0.996"
    ),
    Ge(0),
    Lt(1),
]

ImageSize = Annotated[
    int | None,
    Doc("height and width of the model's input, pixels; null = the checkpoint's, else the default"),
    Gt(0),
]

Color = Annotated[Literal["rgb", "gray"] | None, Doc("colour mode; null = the checkpoint's, else that of the data")]

Rate = float  # in a signature it marks the learning rate, which a user may leave to a range test

RATE = Annotated[
    Annotated[float, Gt(0)] | Literal["auto"],
    Doc("learning rate; auto = by a range test of a few steps, which leaves no trace"),
]
