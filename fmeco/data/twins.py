"""Find samples that a dataset holds twice: in two splits, or under two labels."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fmeco.core.data import Data, Samples
from fmeco.core.target import known
from fmeco.errors import clean, listing

LARGEST_READ = 256e6  # bytes that a run reads at most to compare files of which no cache holds a hash
SHOWN = 3  # pairs that a message names


class Place(NamedTuple):
    """Locate a sample: its split, position, and label (None = it has none)."""

    split: str
    position: int
    label: str | None


def twins(data: Data, *, whole: bool) -> list[str]:
    """Compare the bytes of samples of equal size. Returns a message on those in two splits, and one on those with two labels.

    whole: read any number of files; False reads at most LARGEST_READ bytes, beside the hashes that a cache holds.
    """
    splits = {name: samples for name in ("train", "val", "test") if (samples := getattr(data, name)) is not None}
    found: dict[bytes, list[Place]] = defaultdict(list)
    reads = whole or _bytes(splits) <= LARGEST_READ
    for name, index in _of_equal_size(splits):
        samples = splits[name]
        digest = samples.digest(index, stored=True)
        if digest is None and reads:
            digest = samples.digest(index)
        if digest is not None:
            found[digest].append(Place(name, index, _label(data, samples, index)))
    groups = [places for places in found.values() if len(places) > 1]
    apart = [places for places in groups if len({place.split for place in places}) > 1]
    torn = [places for places in groups if len({place.label for place in places} - {None}) > 1]
    messages = []
    for kind, several in (("two splits", apart), ("two classes", torn)):
        if several:
            shown = [_pair(splits, places, by_label=kind == "two classes") for places in several[:SHOWN]]
            messages.append(f"{len(several):,} samples occur in {kind}, with equal bytes: {listing(shown)}")
    return messages


def _of_equal_size(splits: dict[str, Samples]) -> list[tuple[str, int]]:
    """List the (split, position) of samples that share their size with another sample."""
    parts = [(name, samples.sizes) for name, samples in splits.items() if samples.sizes is not None]
    if not parts:
        return []
    sizes = np.concatenate([values.numpy() for _, values in parts])
    _, code, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    starts = np.cumsum([0, *(len(values) for _, values in parts)])
    at = np.flatnonzero(counts[code] > 1)
    owners = np.searchsorted(starts, at, side="right") - 1
    return [(parts[owner][0], int(i - starts[owner])) for owner, i in zip(owners.tolist(), at.tolist(), strict=True)]


def _bytes(splits: dict[str, Samples]) -> int:
    """Add up the sizes of all samples."""
    return sum(int(samples.sizes.sum()) for samples in splits.values() if samples.sizes is not None)


def _label(data: Data, samples: Samples, index: int) -> str | None:
    """Return the class of a sample, by the first target with one class per sample."""
    for name, target in data.spec.targets.items():
        values = samples.targets.get(name)
        if target.traits.one_class and isinstance(values, Tensor):
            return target.classes[int(values[index])] if bool(known(values[index : index + 1])) else None
    return None


def _pair(splits: dict[str, Samples], places: list[Place], *, by_label: bool) -> str:
    """Name two of the places, in different splits or of different classes."""
    first = places[0]
    other = next(place for place in places if (place.label != first.label if by_label else place.split != first.split))
    named = [f"{place.split} {clean(splits[place.split].name(place.position), 80)}" for place in (first, other)]
    return " = ".join(named)
