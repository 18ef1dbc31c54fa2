"""Objectives that compare two views of a sample: their formulas, and the alarm when they learn nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fmeco as api
from fmeco import checkpoint, config
from fmeco.core import Batch, ConfigError, DataError, DataSpec, InputSpec, Target, mix
from fmeco.objectives import simsiam
from fmeco.objectives._pairs import effective_rank, neighbours_agree, spread
from fmeco.objectives.simclr import nt_xent
from fmeco.objectives.supcon import supervised
from fmeco.objectives.vicreg import terms

from .conftest import Answer, photos, write
from .test_contract import backbone
from .test_data import build

Fmeco = Callable[..., Answer]
B, D = 6, 5


def views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(B, D, generator=generator, dtype=torch.float64)
    return one, one + 0.5 * torch.randn(B, D, generator=generator, dtype=torch.float64)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def contrast(anchor: int, positive: int, z: list[list[float]], temperature: float) -> float:
    """-log of the share of the positive among all others."""
    terms = [math.exp(cosine(z[anchor], z[k]) / temperature) for k in range(len(z)) if k != anchor]
    return -math.log(math.exp(cosine(z[anchor], z[positive]) / temperature) / sum(terms))


def test_simclr_is_its_formula() -> None:
    one, other = views()
    z = one.tolist() + other.tolist()
    for i, got in enumerate(nt_xent(one, other, 0.3).tolist()):
        assert got == pytest.approx((contrast(i, i + B, z, 0.3) + contrast(i + B, i, z, 0.3)) / 2)


def test_supcon_is_its_formula() -> None:
    one, other = views()
    z, labels = one.tolist() + other.tolist(), [0, 1, 0, -1, 1, -1]
    for i, got in enumerate(supervised(one, other, torch.tensor(labels), 0.3).tolist()):
        both = 0.0
        for anchor in (i, i + B):
            same = [k for k in range(2 * B) if k != anchor and (k % B == i or labels[k % B] == labels[i] != -1)]
            both += sum(contrast(anchor, k, z, 0.3) for k in same) / len(same)
        assert got == pytest.approx(both / 2)


def test_vicreg_is_its_formula() -> None:
    one, other = views()
    distance, short, shared = terms(one, other)
    for i in range(B):
        assert float(distance[i]) == pytest.approx(
            sum((a - b) ** 2 for a, b in zip(one[i].tolist(), other[i].tolist(), strict=True)) / D
        )
    wanted_short = wanted_shared = 0.0
    for z in (one.T.tolist(), other.T.tolist()):
        means = [sum(column) / B for column in z]
        covariance = [
            [sum((z[i][n] - means[i]) * (z[j][n] - means[j]) for n in range(B)) / (B - 1) for j in range(D)]
            for i in range(D)
        ]
        wanted_short += sum(max(0.0, 1 - math.sqrt(covariance[j][j] + 1e-4)) for j in range(D)) / D
        wanted_shared += sum(covariance[i][j] ** 2 for i in range(D) for j in range(D) if i != j) / D
    assert (float(short), float(shared)) == pytest.approx((wanted_short, wanted_shared))


def test_simsiam_is_its_formula_and_holds_the_target_still() -> None:
    one, other = (x.requires_grad_() for x in views())
    found = simsiam.similarity(one, other)
    assert found.tolist() == pytest.approx([-cosine(a, b) for a, b in zip(one.tolist(), other.tolist(), strict=True)])
    found.sum().backward()
    assert one.grad is not None and other.grad is None


@pytest.mark.parametrize("name", ["simclr", "vicreg", "simsiam", "supcon"])
def test_twenty_steps_lower_the_loss(name: str) -> None:
    torch.manual_seed(0)
    spec = DataSpec("table", {"columns": InputSpec((8,))}, targets={"label": Target("class", ("a", "b"), (8, 8))})
    body = backbone("mlp", spec, hidden=[16])
    choice = config.choice("objective", name)
    made = choice.plugin.build({"backbone": body, "spec": spec}, choice.options)
    x, at = torch.randn(16, 8), torch.arange(16)
    pair = [{"columns": x + 0.1 * torch.randn(16, 8)} for _ in range(2)]
    batch = Batch(pair, {"label": at % 2}, at, mix(0, at).repeat(2, 1))
    optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
    losses = []
    for _ in range(21):
        optimizer.zero_grad()
        loss = made(batch, "loss")
        (loss.sum / loss.count).backward()
        optimizer.step()
        losses.append(float(loss.sum.detach()))
    assert losses[-1] < losses[0]


def test_what_is_watched_is_what_it_says() -> None:
    x = torch.randn(500, 4, dtype=torch.float64)
    assert spread(x) == pytest.approx(1, abs=0.05)
    assert spread(torch.ones(500, 4) + 1e-4 * x) < 0.01
    assert effective_rank(x) == pytest.approx(4, abs=0.05)
    flat = torch.cat([x[:, :2], torch.zeros(500, 6)], 1) + 100
    assert effective_rank(flat) == pytest.approx(2, abs=0.05), "what all have in common is no direction"
    labels = torch.arange(500) % 2
    apart = torch.randn(500, 4) + 9 * torch.stack([labels, 1 - labels, labels, labels], 1)
    assert neighbours_agree(apart, labels) == 1.0
    assert neighbours_agree(torch.randn(500, 4), labels) < 0.65


def settings(objective: Any, **changes: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "digits", "image_size": 16, "limit_per_class": 20},
        "backbone": {"name": "cnn", "widths": [8, 16]},
        "objective": objective,
        "optimizer": {"name": "adamw", "lr": 0.003},
        "schedule": "constant",
        "train": {"epochs": 2, "batch_size": 50, "tensorboard": False},
        **changes,
    }


@pytest.mark.parametrize("name", ["simclr", "simsiam"])
def test_pretraining_without_labels_resumes_exactly_and_serves_a_task(name: str, fmeco: Fmeco) -> None:
    raw = settings(name)
    answer = fmeco("pretrain", write("p.yaml", raw), "--out", "whole", "--json")
    assert answer.code == 0, answer.err
    assert {"val_knn", "val_effective_rank", "val_spread"} <= set(answer.json["metrics"])
    raw["train"]["epochs"] = 1
    api.pretrain(raw, out="half")
    assert fmeco("resume", "half", "--epochs", "2").code == 0
    whole, half = (checkpoint.open_checkpoint(Path(run, "checkpoints/last").resolve()) for run in ("whole", "half"))
    for part in ("backbone", "objective"):
        other = half.tensors(part)
        for tensor, value in whole.tensors(part).items():
            assert torch.equal(value, other[tensor]), tensor
    answer = fmeco("finetune", "--from", "whole", "--dataset", "digits", "--out", "tuned", "--set", "train.epochs=1", "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    again = fmeco("evaluate", "whole", "--split", "val", "--json")
    assert again.code == 0, again.err


def test_a_collapse_stops_the_run_and_says_so(fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = settings({"name": "vicreg", "variance": 0, "covariance": 0})
    raw["train"]["epochs"] = 12
    answer = fmeco("pretrain", write("c.yaml", raw), "--out", "run", "--json")
    assert answer.code == 5, answer.err
    assert "collapsed" in answer.err and "objective.variance may be too small" in answer.err
    kept = checkpoint.open_checkpoint(Path("run/checkpoints/best").resolve())
    assert kept.meta["metrics"]["val_spread"] >= 0.05, "the last good one is there"
    answer = fmeco("pretrain", "c.yaml", "--set", "evaluate.health=warn", "--out", "on", "--json")
    assert answer.code == 0, answer.err
    assert "collapsed" in answer.err

    moving = lambda predicted, wanted: -torch.nn.functional.cosine_similarity(predicted, wanted)  # noqa: E731
    monkeypatch.setattr(simsiam, "similarity", moving)
    raw = settings("simsiam", optimizer={"name": "adamw", "lr": 0.01})
    raw["train"]["epochs"] = 12
    answer = fmeco("pretrain", write("s.yaml", raw), "--out", "siam", "--json")
    assert answer.code == 5, answer.err
    assert "collapsed" in answer.err


def test_views_that_do_not_differ_are_refused(fmeco: Fmeco) -> None:
    c = write("c.yaml", settings("simclr"))
    answer = fmeco("pretrain", c, "--set", "augment=none")
    assert answer.code == 2 and "compares views of a sample" in answer.err
    answer = fmeco("pretrain", c, "--set", "train.micro_batch=10")
    assert answer.code == 2 and "needs the batch of 50 whole" in answer.err


def test_images_without_labels_come_from_a_folder_a_pattern_or_a_list(fmeco: Fmeco) -> None:
    photos(Path("p/deep/er"))
    names = sorted(str(file) for file in Path("p").rglob("*.png"))
    write("list.txt", "\n".join(names))
    made = [build(name="images", path=path, image_size=16) for path in ("p", "p/**/*.png", "list.txt")]
    for data in made:
        assert sum(data.spec.sizes.values()) == len(names) and not data.spec.targets
    held = [{Path(data.split("val").name(i)).name for i in range(data.spec.sizes["val"])} for data in made[:2]]
    assert held[0] == held[1], "what a sample is called decides its split"
    write("bad.txt", "\n".join([names[0], "absent.png"]))
    with pytest.raises(DataError, match=r"absent\.png: No such file"):
        build(name="images", path="bad.txt")
    with pytest.raises(ConfigError, match="neither a pattern"):
        build(name="images", path="absent")

    # Adapt a network to pictures without labels, then finetune it.
    raw = settings("simclr")
    assert fmeco("pretrain", write("c.yaml", raw), "--out", "one").code == 0
    raw = {
        **raw,
        "dataset": {"name": "images", "path": "p"},
        "train": {"epochs": 1, "batch_size": 8, "tensorboard": False},
    }
    del raw["backbone"]
    answer = fmeco("pretrain", write("d.yaml", raw), "--from", "one", "--out", "two", "--json")
    assert answer.code == 0, answer.err
    assert "100.0% of the backbone" in answer.err
    assert set(answer.json["metrics"]) == {"val_effective_rank", "val_projection_rank", "val_spread"}
    answer = fmeco("finetune", "--from", "two", "--dataset", "p/deep/er", "--set", "train.epochs=1", "--out", "three")
    assert answer.code == 0, answer.err
