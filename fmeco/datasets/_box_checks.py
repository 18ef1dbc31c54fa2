"""Check boxes against the pictures that they are for, and count what the user should know of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from fmeco.core import DataError, clean, listing
from fmeco.datasets import _box_turns, _files
from fmeco.datasets._box_lists import NAMED, Array, Listed, Tally
from fmeco.datasets._boxes import BoxedFiles


def verified(listed: Listed, root: str, codes: Array, bad_boxes: Literal["error", "skip"], tally: Tally) -> BoxedFiles:
    """Look up the images, and bring their boxes to the pixels of the upright pictures.

    codes: class number of each of the data's classes, or -1 to leave its boxes out.

    Raises DataError that names absent files, pictures of another size than is said, and boxes that cannot be used.
    """
    files = _stored(listed, root)
    owners = np.repeat(np.arange(len(files)), np.array(listed.counts, dtype=np.int64))
    labels = np.array(listed.labels, dtype=np.int64)
    chosen = codes[labels] >= 0
    tally.left_out.update(labels[~chosen].tolist())
    owners, labels = owners[chosen], codes[labels[chosen]]
    numbers = np.array(listed.numbers, dtype=np.int64)[chosen]
    corners = np.array(listed.corners, dtype=np.float64).reshape(-1, 4)[chosen]
    pictures, turns = _box_turns.pictures_of(files)
    if listed.relative:
        corners = corners * pictures[owners][:, [0, 1, 0, 1]]
    else:
        corners = _box_turns.turned_back(listed, pictures, turns, owners, corners, tally)
        _box_turns.check_free(listed, pictures, turns, owners, corners, numbers)
    free = np.array([size == (0, 0) for size in listed.sizes], dtype=np.bool_)
    tally.unsaid += int((free & (turns != None)).sum())  # noqa: E711
    reasons = _reasons(corners, pictures[owners])
    wrong = np.flatnonzero(reasons != "")
    if len(wrong):
        said = [
            f"{listed.where(owners[i], numbers[i])}: {_shown(corners[i], reasons[i], pictures[owners[i]])}"
            for i in wrong.tolist()
        ]
        if bad_boxes == "error":
            raise DataError(
                f"{len(said):,} boxes cannot be used: {'; '.join(said[:NAMED])}" + ("; ..." if said[NAMED:] else ""),
                "correct them, or leave these boxes out: dataset.bad_boxes=skip",
            )
        tally.bad += said
        good = reasons == ""
        owners, labels, corners, numbers = owners[good], labels[good], corners[good], numbers[good]
    corners = _clipped(listed, corners, pictures[owners], owners, numbers, tally)
    return BoxedFiles(
        files.root,
        files.packed,
        files.ends,
        files.sizes,
        files.times,
        pictures,
        np.concatenate([corners, labels[:, None] + 1.0], 1).astype(np.float32),
        np.cumsum(np.bincount(owners, minlength=len(files))),
        np.array(listed.annotated, dtype=np.bool_),
    )


def _stored(listed: Listed, root: str) -> _files.Files:
    """Look up the size and time of each image. Raises DataError that names absent images, and those listed twice."""
    sizes, times, absent = [], [], []
    for at, name in enumerate(listed.names):
        try:
            status = os.stat(os.path.join(root, name))
            if not os.path.isfile(os.path.join(root, name)):
                raise FileNotFoundError
        except OSError:
            absent.append(at)
            continue
        sizes.append(status.st_size)
        times.append(_files.times_of(status))
    if absent:
        first = clean(listed.sources[absent[0]])
        raise DataError(
            f"{first}: {len(absent):,} of {len(listed.names):,} images do not exist in {clean(root)}: "
            f"{listing([listed.names[at] for at in absent], NAMED)}",
            "if they lie elsewhere: dataset.images=FOLDER",
        )
    _files.check_once(listed.names, listed.sources[0] if listed.sources else root)
    return _files.Files.of(Path(root), listed.names, sizes, times)


def _reasons(corners: Array, pictures: Array) -> Array:
    """Say why each box (M, 4) cannot be used; "" = it can."""
    starts, ends = corners[:, :2], corners[:, 2:]
    with np.errstate(invalid="ignore"):
        outside = ((ends <= 0) | (starts >= pictures)).any(1) & (pictures[:, 0] > 0)
        # A file that cannot be read has no size, by which shares of it would become pixels.
        empty = (ends == starts).any(1) & (pictures[:, 0] > 0)
        conditions = [~np.isfinite(corners).all(1), (ends < starts).any(1), empty, outside]
    return np.select(conditions, ["not finite", "inverted", "empty", "outside"], default="")


def _shown(corners: Array, reason: str, picture: Array) -> str:
    """Say in words why a box cannot be used."""
    left, top, right, bottom = (f"{value:.6g}" for value in corners.tolist())
    box = f"from {left}, {top} to {right}, {bottom}"
    return {
        "not finite": f"{box} is not finite",
        "inverted": f"{box} ends before it begins",
        "empty": f"{box} has no area",
        "outside": f"{box} lies outside of the picture of {'x'.join(map(str, picture.tolist()))}",
    }[str(reason)]


def _clipped(listed: Listed, corners: Array, pictures: Array, owners: Array, numbers: Array, tally: Tally) -> Array:
    """Clip boxes to their pictures, and count them."""
    limits = np.where(pictures[:, :1] > 0, pictures, np.inf)
    clipped = np.concatenate([corners[:, :2].clip(min=0), np.minimum(corners[:, 2:], limits)], 1)
    beyond = np.abs(clipped - corners).max(1, initial=0)
    over = beyond > 1e-3  # less is what decimals of shares leave
    tally.clipped += int(over.sum())
    if over.any() and (most := float(beyond.max())) > tally.furthest[0]:
        at = int(beyond.argmax())
        tally.furthest = (most, listed.where(int(owners[at]), int(numbers[at])))
    return clipped
