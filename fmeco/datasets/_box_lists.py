"""Collect boxes while their annotations are read, and what the user should know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from fmeco.core import DataError, clean, listing, nfc

Array = NDArray[Any]
NAMED = 5  # files or boxes in a message


@dataclass
class Listed:
    """Collect the images of a split and their objects while annotations are read.

    place: where an object is written, for messages: a template with {source}, {number} and {image}.
    relative: boxes are in shares of the picture's width and height.
    names, sources, sizes, annotated, counts: of each image, as `image` takes them, and its number of objects.
    labels, numbers, corners: of each object, as `object` takes them.
    """

    place: str
    relative: bool = False
    names: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    annotated: list[bool] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    corners: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def image(self, name: str, source: str, size: tuple[int, int] = (0, 0), *, annotated: bool = True) -> None:
        """Add an image.

        name: its path, relative to the dataset's folder. source: file of its annotation, for messages.
        size: width and height that the annotation says, or 0.
        """
        self.names.append(name)
        self.sources.append(source)
        self.sizes.append(size)
        self.annotated.append(annotated)
        self.counts.append(0)

    def object(self, label: int, number: int, corners: Sequence[float]) -> None:
        """Add an object of the last image.

        label: position of its class among `Found.classes`. number: of its line or annotation.
        corners: left, top, right, bottom.
        """
        self.counts[-1] += 1
        self.labels.append(label)
        self.numbers.append(number)
        self.corners.extend(corners)

    def where(self, image: int, number: int) -> str:
        """Say where an object is written."""
        return self.place.format(source=clean(self.sources[image]), number=number, image=clean(self.names[image]))


@dataclass
class Found:
    """Hold the annotations that a format's reader found.

    root: folder that the names of images are relative to.
    parts: split -> its images; {"path": ...} where neither folders nor files divide them.
    classes: names of the classes, to whose positions labels refer.
    defined: the data says all classes in an order; else `classes` are those of the objects.
    notes: messages for the user.
    """

    root: str
    parts: dict[str, Listed]
    classes: list[str]
    defined: bool
    notes: list[str]


def check_distinct(names: Sequence[str], where: str) -> None:
    """Raise DataError for classes that share a name, also if it is written in two forms of Unicode."""
    if twice := [name for name, count in Counter(nfc(names)).items() if count > 1]:
        raise DataError(f"{where}: two classes have the name {listing(twice)}", "give each class a name of its own")


def number_of(text: object, where: str) -> float:
    """Read a number. Raises DataError."""
    try:
        if "_" in (plain := str(text).strip()):  # which Python allows within a number
            raise ValueError
        return float(plain)
    except ValueError:
        raise DataError(f"{where}: {clean(text) or 'an empty cell'} is not a number") from None


def size_of(size: Sequence[object], where: str) -> tuple[int, int]:
    """Read the width and height that an annotation says its picture has; 0 and nothing mean that it says none. Raises DataError."""
    sides = [number_of(side, f"{where}: its size") if side not in (None, "") else 0.0 for side in size]
    if not all(side >= 0 and side.is_integer() and side < 1 << 31 for side in sides):
        raise DataError(f"{where}: its width and height are {' and '.join(map(clean, size))}, not whole numbers")
    return (int(sides[0]), int(sides[1])) if all(sides) else (0, 0)


@dataclass
class Tally:
    """Count what the user should know of the boxes, over all splits."""

    clipped: int = 0
    furthest: tuple[float, str] = (0.0, "")  # pixels beyond the edge, and where
    turned: int = 0  # images whose boxes were turned with them
    unsaid: int = 0  # images that are turned upright, and whose annotation says no size
    bad: list[str] = field(default_factory=list)
    left_out: Counter[int] = field(default_factory=Counter)  # by position among the data's classes

    def notes(self, classes: Sequence[str]) -> list[str]:
        """Say it in sentences."""
        said = []
        if self.left_out:
            counts = listing([f"{clean(classes[at])} ({count:,})" for at, count in self.left_out.most_common()])
            said.append(f"boxes of classes that dataset.classes does not name are left out: {counts}")
        if self.clipped:
            pixels, where = self.furthest
            said.append(
                f"{self.clipped:,} boxes reach beyond the edge of their picture, by up to {pixels:.3g} pixels ({where}), and are clipped"
            )
        if self.turned:
            said.append(
                f"{self.turned:,} images have boxes for the pixels as the camera stored them; they are turned with the picture (EXIF)"
            )
        if self.unsaid:
            said.append(
                f"{self.unsaid:,} images are turned upright (EXIF); their boxes are read for the upright pictures"
            )
        if self.bad:
            said.append(f"{len(self.bad):,} boxes cannot be used and are skipped: {'; '.join(self.bad[:NAMED])}")
        return said
