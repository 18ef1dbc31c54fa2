"""Targets, and what is drawn from data: statistics, batches cut in parts, keys of repeated samples, intervals."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from fmeco.assembly.data import described
from fmeco.config.check import choose
from fmeco.core import Augment, Batch, Data, Target, View
from fmeco.data.loader import Loader
from fmeco.data.reading import Reading
from fmeco.errors import DataError
from fmeco.nn.intervals import bootstrap


def digits(**options: object) -> Data:
    choice = choose("dataset", {"name": "digits", "image_size": 8, **options})
    data: Data = choice.plugin.build({"known": None, "whole": False, "arch": choice.arch}, choice.options)
    return data


def test_statistics_of_targets_are_those_of_the_values_that_there_are() -> None:
    kind = Target("class", ("a", "b", "c")).described(torch.tensor([0, 0, 1, -1]))
    assert kind.counts == (2, 1, 0) and kind.missing == 1
    size = Target("number").described(torch.tensor([1.0, 2.0, 6.0, math.nan, math.nan]))
    assert size.mean == pytest.approx(3) and size.std == pytest.approx(math.sqrt((4 + 1 + 9) / 3)) and size.missing == 2
    assert Target("number").described(torch.tensor([4.0, 4.0])).std == 1, "what does not vary is not divided by 0"
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0], [math.nan, math.nan]])
    traits = Target("multilabel", ("x", "y")).described(rows)
    assert traits.counts == (2, 1) and traits.missing == 1


def test_a_batch_is_cut_with_all_that_belongs_to_it() -> None:
    target = {"label": torch.arange(5), "said": [torch.tensor([c]) for c in range(5)]}
    whole = Batch([{"x": torch.arange(10.0).view(5, 2)}], target, torch.arange(5), torch.arange(5)[None])
    one, other = whole.split([2, 3])
    assert (len(one), len(other)) == (2, 3)
    for part, at in ((one, slice(0, 2)), (other, slice(2, 5))):
        assert torch.equal(part.views[0]["x"], whole.views[0]["x"][at])
        assert [int(said) for said in part.target["said"]] == part.index.tolist() == list(range(5))[at]
        assert torch.equal(part.keys, whole.keys[:, at])


def test_keys_of_a_sample_that_an_epoch_shows_twice_differ() -> None:
    data = digits(classes=[0, 1], limit_per_class=20)
    labels = data.split("train").targets["label"].clone()  # type: ignore[union-attr]
    labels[labels.nonzero().flatten()[:18]] = 0  # a class of two samples
    reading, device = Reading(0, 1, None), torch.device("cpu")
    loader = Loader(data, data.split("train"), (View(),), Augment(), 8, 8, 0, reading, device, balance=labels)
    batches = list(loader.batches(0, loader.steps_per_epoch))
    index, keys = torch.cat([one.index for one in batches]), torch.cat([one.keys[0] for one in batches])
    assert len(index.unique()) < len(index) == len(keys.unique())


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    low, high = bootstrap(1000, 2000, 1, lambda at: float(values[at].mean()))
    assert high - low == pytest.approx(2 * 1.96 * float(values.std()) / math.sqrt(1000), rel=0.06)


def test_a_class_that_only_validation_has_is_never_learned() -> None:
    data = digits(classes=[0, 1, 2], limit_per_class=20)
    train = data.split("train")
    label = train.targets["label"]
    assert isinstance(label, torch.Tensor)
    train.targets = {"label": label.clamp(max=1)}
    with pytest.raises(DataError, match=r"no training samples of 2 \(label\), but the validation split has some"):
        described(data)
    train.targets, val = {"label": label}, data.split("val")
    val.targets = {"label": val.targets["label"].clamp(max=1)}  # type: ignore[union-attr]
    assert described(dataclasses.replace(data)).spec.targets["label"].counts == (20, 20, 20), "said, and no error"
