"""Turn boxes that were drawn on a picture as the camera stored it, as the picture is turned upright (EXIF)."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from fmeco.core import DataError, clean
from fmeco.datasets import _files, _pixels
from fmeco.datasets._box_lists import NAMED, Array, Listed, Tally

EDGE = 2.0  # pixels beyond the edge that are no sign of another picture
Turn = Image.Transpose
_MIRRORED_X = (Turn.FLIP_LEFT_RIGHT, Turn.ROTATE_180, Turn.ROTATE_270, Turn.TRANSVERSE)
_MIRRORED_Y = (Turn.FLIP_TOP_BOTTOM, Turn.ROTATE_180, Turn.ROTATE_90, Turn.TRANSVERSE)


def pictures_of(files: _files.Files) -> tuple[Array, Array]:
    """Read the width and height (N, 2) of each picture, upright, and how it was turned (N,): a Transpose, or None.

    The size of a file that cannot be read is 0: reading the sample will say why.
    """

    def look(name: str) -> tuple[tuple[int, int], Turn | None]:
        try:
            return _pixels.size_and_turn(os.path.join(files.root, name))
        except DataError:
            return (0, 0), None

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(look, files.names()))
    turns = np.empty(len(found), dtype=object)
    turns[:] = [turn for _, turn in found]
    return np.array([size for size, _ in found], dtype=np.int64).reshape(-1, 2), turns


def turned(corners: Array, turn: Turn, width: int, height: int) -> Array:
    """Turn boxes (n, 4) as Pillow turns their picture of this size."""
    left, top, right, bottom = corners.T
    if turn in _pixels.ACROSS:
        left, top, right, bottom, width, height = top, left, bottom, right, height, width
    if turn in _MIRRORED_X:
        left, right = width - right, width - left
    if turn in _MIRRORED_Y:
        top, bottom = height - bottom, height - top
    return np.stack([left, top, right, bottom], 1)


def turned_back(listed: Listed, pictures: Array, turns: Array, owners: Array, corners: Array, tally: Tally) -> Array:
    """Turn boxes that were drawn on the pixels as stored, by the sizes that the annotations say.

    A half turn or a mirror image leaves the size as it is. Such boxes are turned if those of quarter turns were drawn on the
    stored pixels.

    Raises DataError for a size that is neither the stored nor the upright picture's, and if half turns leave it open.
    """
    said = np.array(listed.sizes, dtype=np.int64).reshape(-1, 2)
    stated = (said > 0).all(1) & (pictures[:, 0] > 0)
    across = np.array([turn in _pixels.ACROSS for turn in turns], dtype=np.bool_)
    stored = np.where(across[:, None], pictures[:, ::-1], pictures)
    unlike = np.flatnonzero(stated & (said != pictures).any(1) & (said != stored).any(1))
    if len(unlike):
        shown = [
            f"{clean(listed.sources[i])} says {_size(said[i])}, and {clean(listed.names[i])} has {_size(pictures[i])}"
            for i in unlike[:NAMED].tolist()
        ]
        raise DataError(
            f"the annotations of {len(unlike):,} images are for pictures of another size: {'; '.join(shown)}",
            "boxes are in pixels: write them for the pictures as they are, with their width and height",
        )
    square = pictures[:, 0] == pictures[:, 1]
    raw = stated & across & ~square & (said == stored).all(1)
    if not raw.any():
        return corners
    unclear = stated & (turns != None) & (~across | square)  # noqa: E711
    upright = stated & across & ~square & ~raw
    if unclear.any() and upright.any():
        one, other, open_ = (clean(listed.names[np.flatnonzero(which)[0]]) for which in (raw, upright, unclear))
        raise DataError(
            f"the boxes of {one} are for the pixels as the camera stored them, those of {other} for the upright picture; "
            f"the size does not tell which those of {open_} are for",
            "save the pictures upright, without an EXIF orientation, with boxes for these",
        )
    corners = corners.copy()
    for image in np.flatnonzero(raw | unclear).tolist():
        mine = slice(*np.searchsorted(owners, (image, image + 1)).tolist())  # owners are sorted
        corners[mine] = turned(corners[mine], turns[image], *said[image].tolist())
    tally.turned += int((raw | unclear).sum())
    return corners


def _size(size: Array) -> str:
    return "x".join(map(str, size.tolist()))


def check_free(listed: Listed, pictures: Array, turns: Array, owners: Array, corners: Array, numbers: Array) -> None:
    """Raise DataError for boxes that fit the stored picture and not the upright one, where no size is said."""
    free = np.array([size == (0, 0) for size in listed.sizes], dtype=np.bool_)
    across = np.array([turn in _pixels.ACROSS for turn in turns], dtype=np.bool_)
    beyond = (free & across)[owners] & (corners[:, 2:] > pictures[owners] + EDGE).any(1)
    inside = (corners[:, 2:] <= pictures[owners][:, ::-1] + EDGE).all(1) & (corners[:, :2] >= -EDGE).all(1)
    for at in np.flatnonzero(beyond & inside).tolist():
        image = int(owners[at])
        right, bottom = corners[at, 2:].tolist()
        raise DataError(
            f"{listed.where(image, int(numbers[at]))}: the box ends at {right:g}, {bottom:g}, outside of the picture of "
            f"{_size(pictures[image])}, but inside of the {_size(pictures[image][::-1])} pixels that the camera stored",
            "pictures are turned upright (EXIF), and boxes are read for the upright picture: save the pictures upright; or say the size "
            "that the boxes are for (in a table: columns width and height)",
        )
