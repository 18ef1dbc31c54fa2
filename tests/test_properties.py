"""Properties that hold for whatever hypothesis comes up with: the same examples in every run."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fmeco.config.parser import parse_yaml
from fmeco.core import DataError, Splitting
from fmeco.data.order import WINDOW, by_length, chunks, epoch_order
from fmeco.datasets import _columns, _splits
from fmeco.errors import ConfigError

few = settings(derandomize=True, max_examples=60, deadline=2000)

LETTERS = st.characters(categories=("L", "N", "P", "S", "Zs"))
WORDS = st.text(LETTERS, max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.dictionaries(
    WORDS,
    st.recursive(
        SCALARS | WORDS, lambda x: st.lists(x, max_size=3) | st.dictionaries(WORDS, x, max_size=3), max_leaves=12
    ),
    max_size=4,
)
# Text that is nearly YAML: what YAML gives a meaning, and words between.
NEARLY = st.lists(
    st.sampled_from(["a", "b", "1", "1e-3", ".nan", ": ", ":", "- ", "\n", "\n  ", "{", "}", "[", "]", ", ", "#", "&x ",
                     "*x", "!!int ", "|", ">", "'", '"', "? ", "---\n", "...", "%", "~", "<<: ", "\t", "\0", "\x85"])
    | st.text(max_size=3),
    max_size=30,
).map("".join)  # fmt: skip


@few
@given(st.text() | NEARLY)
def test_any_text_is_a_tree_or_one_config_error(text: str) -> None:
    try:
        tree, marks = parse_yaml(text, "c.yaml")
    except ConfigError as error:
        assert error.message.startswith("c.yaml")
        return
    assert all(mark.startswith("c.yaml:") for mark in marks.values())
    json.dumps(tree)  # plain data, and nothing that repeats itself


@few
@given(PLAIN)
def test_a_plain_config_is_read_as_it_was_written(config: dict[str, Any]) -> None:
    tree, marks = parse_yaml(json.dumps(config, ensure_ascii=False, indent=1), "c.yaml")
    assert tree == config
    assert repr(tree) == repr(config), "1 is no true, and 1.0 no 1"
    assert {path[0] for path in marks if len(path) == 1} == set(config)


NAMES = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=40, unique=True)
SPLITTINGS = st.builds(
    Splitting,
    val_fraction=st.sampled_from([0.0, 0.1, 0.2, 0.5]),
    test_fraction=st.sampled_from([0.0, 0.1, 0.3]),
    split=st.none() | st.sampled_from([{"fold": 1, "of": 3}, {"fold": 3, "of": 3}]),
)


def places(names: list[str], codes: list[int], how: Splitting) -> dict[str, str]:
    parts = _splits.split(names, np.array(codes), how)
    found = [(names[i], part) for part, at in parts.items() for i in at.tolist()]
    assert len(found) == len(names) == len(dict(found)), "every sample is in one split"
    return dict(found)


@few
@example([f"{i}" for i in range(8)], Splitting(val_fraction=0.2, test_fraction=0.0), Random(0))  # 1.6 of 8 are 2
@given(NAMES, SPLITTINGS, st.randoms(use_true_random=False))
def test_a_split_depends_on_names_alone_and_has_the_shares_that_were_asked_for(
    names: list[str], how: Splitting, random: Any
) -> None:
    codes = [len(name) % 2 for name in names]
    found = places(names, codes, how)
    mixed = random.sample(range(len(names)), len(names))
    assert found == places([names[i] for i in mixed], [codes[i] for i in mixed], how), "the order of files is nothing"
    for code in set(codes):
        members = [name for name, own in zip(names, codes, strict=True) if own == code]
        held = Counter(found[name] for name in members)
        asked = max(1, round(how.test_fraction * len(members))) if how.test_fraction and len(members) > 2 else 0
        assert held["test"] == min(asked, len(members) - 1)
        rest = len(members) - held["test"]
        if how.split is not None:
            assert held["val"] == len(range(how.split["fold"] - 1, rest, how.split["of"]))
        else:
            assert held["val"] == (min(max(1, round(how.val_fraction * len(members))), rest - 1) if rest > 1 else 0)


@few
@given(NAMES, SPLITTINGS.filter(lambda how: how.split is None))
def test_a_file_that_is_added_moves_one_other_at_most(names: list[str], how: Splitting) -> None:
    """Three, where there is a test split: the second border moves by as much as both shares grow."""
    fewer = names[:-1]
    assume(fewer)
    before, after = places(fewer, [0] * len(fewer), how), places(names, [0] * len(names), how)
    moved = [name for name in fewer if before[name] != after[name]]
    assert len(moved) <= (3 if how.test_fraction else 1)


@few
@given(st.lists(st.integers(0, 9), min_size=4, max_size=60), SPLITTINGS, st.data())
def test_a_group_is_never_shared_and_stays_where_it_is(numbers: list[int], how: Splitting, data: Any) -> None:
    groups = [f"group {number}" for number in numbers]
    try:
        parts = _splits.by_group(groups, how)
    except DataError as error:
        assert "too few" in error.message
        assert len(set(groups)) < 4
        return
    assert sorted(i for at in parts.values() for i in at.tolist()) == list(range(len(groups)))
    of = {part: {groups[i] for i in at.tolist()} for part, at in parts.items()}
    assert sum(map(len, of.values())) == len(set(groups)), "no group is in two splits"
    more = [*data.draw(st.permutations(groups)), groups[0]]
    again = _splits.by_group(more, how)
    assert of == {part: {more[i] for i in at.tolist()} for part, at in again.items()}, "more of the same move nobody"


@few
@given(st.integers(1, 400), st.integers(1, 9), st.integers(0, 2**31), st.integers(0, 5), st.integers(1, 30))
def test_batches_by_length_hold_every_sample_once(n: int, size: int, seed: int, epoch: int, longest: int) -> None:
    lengths = 1 + (torch.arange(n) * 7919 + seed) % longest
    order, steps = epoch_order(n, seed, epoch), chunks(n, size)
    found = by_length(order, lengths, steps, seed, epoch)
    assert sorted(found.tolist()) == list(range(n))
    assert torch.equal(found, by_length(order, lengths, steps, seed, epoch))
    window = max(1, min(WINDOW, len(steps) // 4))
    batches = {tuple(sorted(found[a:b].tolist())) for a, b in steps}
    for first in range(0, len(steps), window):
        a, b = steps[first][0], steps[min(first + window, len(steps)) - 1][1]
        ranked = order[a:b][lengths[order[a:b]].argsort(stable=True)]
        cut = [tuple(sorted(ranked[one - a : other - a].tolist())) for one, other in steps[first : first + window]]
        assert set(cut) <= batches, "a batch is samples of like length of its window"


@few
@given(
    st.lists(st.lists(st.text(LETTERS | st.sampled_from('\n";,\t'), max_size=8), min_size=3, max_size=3), min_size=1)
)
def test_cells_of_a_table_are_read_as_they_were_written(rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["first", "second", "third"], *rows])
    Path("t.csv").write_text(text.getvalue(), "utf-8", newline="")
    table = _columns.read_table("t.csv")
    assert list(table) == ["first", "second", "third"]
    assert [list(row) for row in zip(*table.values(), strict=True)] == [[cell.strip() for cell in row] for row in rows]


@few
@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False)
        | st.integers(-(2**53), 2**53)
        | st.sampled_from(["", "NA", "?", "x", "inf"])
    )
)
def test_numbers_of_a_column_are_those_that_were_written(column: list[Any]) -> None:
    found = _columns.cells([str(value) for value in column])
    for at, value in enumerate(column):
        assert found.missing[at] == (value in ("", "NA", "?"))
        assert (at in found.strange.tolist()) == (value in ("x", "inf"))
        assert found.values[at] == (value if isinstance(value, float | int) else 0.0)
