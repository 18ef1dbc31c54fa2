"""Objectives that compare two views of a sample: their formulas, and the alarm when they learn nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fmeco as api
from fmeco.checkpoints import format as checkpoint
from fmeco.config.check import choose
from fmeco.config.parser import peek
from fmeco.core import Batch, ConfigError, DataError, DataSpec, InputSpec, Target, mix
from fmeco.nn.metrics import alignment, effective_rank, neighbours_agree, retrieved, spread, uniformity
from fmeco.objectives import simsiam
from fmeco.objectives.simclr import nt_xent
from fmeco.objectives.supcon import supervised
from fmeco.objectives.vicreg import terms
from tests.conftest import Answer, photos, process, write
from tests.data.test_data import build
from tests.plugins.test_contract import backbone

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


def descended(made: Any, batch: Batch) -> list[float]:
    """The losses of twenty steps on one batch, and after them."""
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(21):
        optimizer.zero_grad()
        loss = made(batch, "loss")
        (loss.sum / loss.count).backward()
        optimizer.step()
        losses.append(float(loss.sum.detach()))
    return losses


@pytest.mark.parametrize("name", ["simclr", "vicreg", "simsiam", "supcon"])
def test_twenty_steps_lower_the_loss(name: str) -> None:
    torch.manual_seed(0)
    spec = DataSpec("table", {"columns": InputSpec((8,))}, targets={"label": Target("class", ("a", "b"), (8, 8))})
    body = backbone("mlp", spec, hidden=[16])
    choice = choose("objective", name)
    made = choice.plugin.build({"backbone": body, "spec": spec}, choice.options)
    x, at = torch.randn(16, 8), torch.arange(16)
    pair = [{"columns": x + 0.1 * torch.randn(16, 8)} for _ in range(2)]
    batch = Batch(pair, {"label": at % 2}, at, mix(0, at).repeat(2, 1))
    losses = descended(made, batch)
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
    one, other = views()
    unit = [[value / math.hypot(*row) for value in row] for row in one.tolist()]
    gaps = [math.dist(unit[i], unit[j]) ** 2 for i in range(B) for j in range(i)]
    assert uniformity(one) == pytest.approx(math.log(sum(math.exp(-2 * d) for d in gaps) / len(gaps)))
    pairs = zip(one.tolist(), other.tolist(), strict=True)
    assert alignment(one, other) == pytest.approx(sum(2 - 2 * cosine(a, b) for a, b in pairs) / B)
    assert retrieved(one, one + 0.01) == 1.0 and retrieved(one, one.roll(1, 0)) == 0.0


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


@pytest.mark.parametrize("name", ["simclr", "simsiam", "vicreg", "supcon", "barlow_twins"])
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


def test_probes_judge_any_objective_by_its_vectors(fmeco: Fmeco) -> None:
    """Masked patches know no classes; the vectors of the validation split do, and pick the best checkpoint."""
    body = {"name": "transformer", "width": 16, "depth": 1, "patch": 4}
    raw = settings("mask", backbone=body, evaluate={"probes": ["linear", "knn"]})
    answer = fmeco("pretrain", write("m.yaml", raw), "--out", "run", "--json")
    assert answer.code == 0, answer.err
    assert {"val_linear", "val_knn", "val_loss", "val_alignment"} <= set(answer.json["metrics"])
    assert answer.json["metrics"]["val_linear"] > 0.3
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    best = max(line["linear"] for line in lines if line["kind"] == "val")
    assert answer.json["metrics"]["val_linear"] >= best - 0.06
    answer = fmeco("pretrain", "m.yaml", "--set", "evaluate.best=lin", "--out", "x")
    assert answer.code == 2 and "did you mean 'linear'" in answer.err
    answer = fmeco("evaluate", "run", "--split", "val", "--json")
    assert answer.code == 0, answer.err


def test_views_that_do_not_differ_are_refused(fmeco: Fmeco) -> None:
    c = write("c.yaml", settings("simclr"))
    answer = fmeco("pretrain", c, "--set", "augment=none")
    assert answer.code == 2 and "compares views of a sample" in answer.err


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
    with pytest.raises(ConfigError, match=r"not a pattern or \.txt file"):
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
    measured = {"retrieval", "alignment", "uniformity", "effective_rank", "projection_rank", "spread"}
    assert set(answer.json["metrics"]) == {f"val_{name}" for name in measured}, "a view is to find its other view"
    answer = fmeco("finetune", "--from", "two", "--dataset", "p/deep/er", "--set", "train.epochs=1", "--out", "three")
    assert answer.code == 0, answer.err


EXACT = '''
"""simclr and supcon in float64 and without batch norm, for sums that can be compared."""
KIND = "objective"
from typing import Annotated
import torch
from fmeco.core import Backbone, DataSpec, Doc, Objective
from fmeco.objectives.simclr import SimCLR
from fmeco.objectives.supcon import SupCon

def build(backbone: Backbone, spec: DataSpec, *, labels: bool = False) -> Objective:
    head = torch.nn.Linear(backbone.width, 6)
    made = SupConExact(backbone, head, "label", 0.3) if labels else Exact(backbone, head, 0.3)
    return made.double()

class Doubled:
    def represent(self, batch):
        return tuple(self.projector(self.backbone({k: x.double() for k, x in v.items()}).vector) for v in batch.views)
    def rows(self, batch):
        z = self.represent(batch)[0]
        return {"vector": z, "projection": z}

class Exact(Doubled, SimCLR): pass
class SupConExact(Doubled, SupCon): pass
'''


@pytest.mark.parametrize("labels", [False, True])
def test_a_step_in_parts_and_on_two_ranks_is_the_whole_step(labels: bool, fmeco: Fmeco) -> None:
    """Every sample is compared with all others of the step, whoever holds them; dropout is the same in both passes."""
    Path("exact.py").write_text(EXACT)
    raw = settings(
        {"name": "exact", "labels": labels},
        backbone={"name": "mlp", "hidden": [8], "batch_norm": False},
        optimizer={"name": "sgd", "lr": 0.1},
        evaluate={"health": "off", "probes": []},
    )
    path = write("c.yaml", raw)
    found = {}
    for out, how in {"whole": [], "parts": ["train.micro_batch=13"], "ranks": ["train.micro_batch=13"]}.items():
        command = ["pretrain", path, "--out", out, "--plugin", "exact.py", *(x for one in how for x in ("--set", one))]
        if out == "ranks":
            child = process(*command, "--nproc", "2")
            _, err = child.communicate(timeout=120)
            assert child.returncode == 0, err
        else:
            answer = fmeco(*command)
            assert answer.code == 0, answer.err
        saved = checkpoint.open_checkpoint(Path(out, "checkpoints/last").resolve())
        found[out] = {**saved.tensors("backbone"), **saved.tensors("objective")}
    for out in ("parts", "ranks"):
        for name, tensor in found["whole"].items():
            assert torch.allclose(tensor, found[out][name], rtol=0, atol=1e-10), (out, name)
    raw["backbone"]["dropout"] = 0.5
    for out in ("a", "b"):
        answer = fmeco("pretrain", write("d.yaml", raw), "--out", out, "--plugin", "exact.py", "--set", "train.micro_batch=13")  # fmt: skip
        assert answer.code == 0 and "computed in micro-batches of 13, with two forward passes" in answer.err, answer.err


def test_rows_of_tables_are_compared_with_columns_of_other_rows(fmeco: Fmeco) -> None:
    """Two views of a row differ in the share of columns that is asked for, and hold values of the same column."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator) + torch.arange(200)[:, None] % 2 * 2
    rows = [",".join(f"{v:.3f}" for v in row) + f",{'uvw'[i % 3]},{'ab'[i % 2]}" for i, row in enumerate(x.tolist())]
    path = str(write("t.csv", "a,b,c,d,e,f,g,label\n" + "\n".join(rows)))
    data = build(name="csv_table", path=path)
    samples = data.split("train")
    made = choose("augment", "corrupt")
    augment = made.plugin.build({"spec": data.spec, "train": samples}, made.options)
    assert samples.tensors is not None
    keys = mix(0, torch.arange(2 * len(samples))).view(2, -1)
    one, other = (augment.batch(dict(samples.tensors), row) for row in keys)
    assert float((one["columns"] != other["columns"]).double().mean()) == pytest.approx(0.6, abs=0.05)
    for column in range(6):
        assert set(one["columns"][:, column].tolist()) <= set(samples.tensors["columns"][:, column].tolist())
    part = augment.batch({name: value[50:60] for name, value in samples.tensors.items()}, keys[0, 50:60])
    assert torch.equal(part["columns"], one["columns"][50:60]), "a row's key decides, whoever is in its batch"

    raw = settings("simclr", dataset={"name": "csv_table", "path": path}, backbone={"name": "mlp", "hidden": [16]})
    raw["optimizer"], raw["train"]["lr_for_batch"] = {"name": "adamw", "lr": 0.001}, 25
    answer = fmeco("pretrain", write("c.yaml", raw), "--out", "run", "--json")
    assert answer.code == 0, answer.err
    assert "optimizer.lr: 0.002 = 0.001 x 50 / 25" in answer.err and answer.json["metrics"]["val_knn"] > 0.7
    assert peek(Path("run/config.yaml"))["optimizer"]["lr"] == 0.002
    assert fmeco("resume", "run", "--epochs", "+1").code == 0
    raw["dataset"] = {"name": "digits", "image_size": 16}
    answer = fmeco("pretrain", write("c.yaml", {**raw, "augment": "corrupt"}), "--out", "no")
    assert answer.code == 2 and "augment: 'corrupt' is for tables" in answer.err


def test_hidden_patches_do_not_enter_the_backbone_that_has_a_decoder(fmeco: Fmeco) -> None:
    spec = DataSpec("image", {"image": InputSpec((1, 8, 8), "uint8", 1 / 255, (0.5,), (0.25,))})
    body = backbone("transformer", spec, width=16, depth=1, patch=2, dropout=0.0)
    choice = choose("objective", {"name": "mask", "decoder": 2})
    made = choice.plugin.build({"backbone": body, "spec": spec}, choice.options)
    image, at = torch.randn(3, 1, 8, 8), torch.arange(3)
    batch = Batch([{"image": image}], {}, at, mix(0, at)[None])
    inputs, _, hidden = made.hide(batch)
    assert hidden.sum(1).tolist() == [12, 12, 12], "three quarters of the 16 patches"
    seen = body(inputs).tokens
    assert seen.shape == (3, 4, 16)
    outside = (~hidden).view(3, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    other = torch.where(outside, image, torch.randn(3, 1, 8, 8))
    again = body({**inputs, "image": other}).tokens
    assert torch.equal(seen, again), "what is hidden changes nothing"
    found = made.decoder(seen, hidden)
    assert found.shape == (3, 16, 8)
    made(batch, "loss").sum.backward()
    assert all(p.grad is not None for p in made.parameters())

    raw = settings(
        {"name": "mask", "decoder": 1}, backbone={"name": "transformer", "width": 16, "depth": 1, "patch": 4}
    )
    assert fmeco("pretrain", write("m.yaml", raw), "--out", "run").code == 0
    answer = fmeco("finetune", "--from", "run", "--dataset", "digits", "--set", "train.epochs=1", "--out", "tuned")
    assert answer.code == 0 and "100.0% of the backbone" in answer.err, answer.err
    answer = fmeco("pretrain", "m.yaml", "--set", "backbone=mlp", "--out", "x")
    assert answer.code == 2
    answer = fmeco("pretrain", "m.yaml", "--set", "objective.rate=0.99", "--out", "x")
    assert answer.code == 2 and "leaves no patch visible" in answer.err
