"""Samples behind a wrapper keep all that they say of themselves, but for what the wrapper is there to change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fmeco.core import Inputs, Samples, Wrapped
from fmeco.data.decoded_cache import Decoded
from fmeco.data.subset import Part, fraction
from fmeco.features.extractor import Stored
from fmeco.testing.bench import Labelled
from tests.conftest import write
from tests.data.test_data import build

ATTRIBUTES = [name for name, value in vars(Samples).items() if not (name.startswith("_") or callable(value))]
METHODS = [
    name
    for name, value in vars(Samples).items()
    if callable(value) and (not name.startswith("_") or name in ("__len__", "__getitem__"))
]


class Six(Samples):
    """Six samples; whatever of `Samples` is not written out here is a value that nothing else is."""

    def __init__(self) -> None:
        for name in ATTRIBUTES:
            setattr(self, name, object())
        self.targets = {"label": torch.arange(6), "said": [str(i) for i in range(6)]}
        self.groups = {"who": list("aabbcc")}
        self.tensors = {"x": torch.arange(6.0)}
        self.lengths = torch.arange(6) + 1
        self.content, self.origin, self.block = "six", "a box", 4
        self.stamps, self.sizes = torch.arange(6) * 10, torch.arange(6) * 100
        self.notes = ("one was skipped",)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Inputs:
        return {"x": torch.tensor(float(index))}

    def name(self, index: int) -> str:
        return f"six:{index}"

    def answers(self, index: int, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"place": index, **answer}]

    def digest(self, index: int, *, stored: bool = False) -> bytes | None:
        return None if stored else bytes([index] * 16)


PLACES = torch.tensor([1, 3, 4])
WRAPPERS: dict[str, tuple[Any, set[str]]] = {  # how it is made, and what it changes
    "Wrapped": (lambda inner, folder: Wrapped(inner), set()),
    "Decoded": (lambda inner, folder: Decoded(inner, folder, 1e6), {"__getitem__", "digest"}),
    "Part": (
        lambda inner, folder: Part(inner, PLACES),
        {"targets", "groups", "tensors", "lengths", "content", "stamps", "sizes", "block", *METHODS},
    ),
    "Labelled": (lambda inner, folder: Labelled(inner, {"label": torch.zeros(6)}), {"targets", "__getitem__"}),
    "Stored": (
        lambda inner, folder: Stored(inner, torch.zeros(6, 1, 2)),
        {"tensors", "in_memory", "content", "lengths", "__getitem__"},
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_hands_on_what_it_does_not_change(name: str, tmp_path: Path) -> None:
    make, changed = WRAPPERS[name]
    inner = Six()
    outer = make(inner, tmp_path / "cache")
    for one in ATTRIBUTES:
        assert getattr(inner, one) is not getattr(Samples, one), f"Six must say something of its own as {one}"
        assert (getattr(outer, one) is getattr(inner, one)) == (one not in changed), one
    for one in METHODS:
        own = getattr(type(outer), one)
        assert own is not getattr(Samples, one), f"Wrapped must hand on {one}"
        assert (own is getattr(Wrapped, one)) == (one not in changed), one
    if "name" not in changed:
        assert (len(outer), outer.name(2), outer.answers(2, {"a": 1})) == (6, "six:2", [{"place": 2, "a": 1}])


def test_every_wrapper_is_looked_at() -> None:
    assert {one.__name__ for one in Wrapped.__subclasses__() if one.__module__.startswith("fmeco.")} <= set(WRAPPERS)


def test_a_part_takes_its_rows_of_everything() -> None:
    part = Part(Six(), PLACES)
    assert part.targets["label"].tolist() == [1, 3, 4] and part.targets["said"] == ["1", "3", "4"]  # type: ignore[union-attr]
    assert part.groups == {"who": ["a", "b", "c"]}
    assert part.lengths is not None and part.lengths.tolist() == [2, 4, 5]
    assert (len(part), part.name(2), part[2]["x"].item()) == (3, "six:4", 4.0)
    assert part.answers(2, {}) == [{"place": 4}]
    assert part.stamps is not None and part.stamps.tolist() == [10, 30, 40]
    assert part.sizes is not None and part.sizes.tolist() == [100, 300, 400]
    assert (part.digest(2), part.digest(2, stored=True)) == (bytes([4] * 16), None)
    assert part.block == 2, "of four in a row that are alike, half are left"


def test_a_share_of_the_labels_keeps_groups_and_blocks() -> None:
    rows = [f"{i},{'xyz'[i % 3]},{'ab'[i % 2]}" for i in range(40)]
    table = build(name="csv_table", path=str(write("t.csv", "n,place,label\n" + "\n".join(rows))))
    few = fraction(table, 0.5, seed=0).split("train")
    for i, place in enumerate(few.groups["place"]):
        row = int(few.name(i).rpartition(":")[2]) - 2
        assert place == rows[row].split(",")[1]
    rows = [f"{i},{i * i % 13},{i % 7}" for i in range(200)]
    series = build(
        name="series", path=str(write("s.csv", "time,a,b\n" + "\n".join(rows))), context=8, horizon=5, val_fraction=0.2
    )
    every, half = series.split("train"), fraction(series, 0.5, seed=0).split("train")
    assert every.block == 10, "two series, whose forecasts overlap for five steps"
    assert half.block == 5
    assert len(half.groups["series"]) == len(half)
