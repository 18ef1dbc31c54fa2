"""Objectives with a teacher that moves, views of sizes of their own, and barlow_twins: their formulas, and what they promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fmeco as api
from fmeco.checkpoints import format as checkpoint
from fmeco.config.check import choose
from fmeco.core import Augment, Batch, ConfigError, DataSpec, InputSpec, View, mix
from fmeco.data.loader import Loader
from fmeco.data.reading import choose_reading
from fmeco.errors import Stopped
from fmeco.objectives import byol
from fmeco.objectives._teacher import MovingTeacher, momentum
from fmeco.objectives.barlow_twins import correlation_loss
from fmeco.objectives.byol import distance
from fmeco.objectives.dino import sorted_alike
from tests.conftest import Answer, write
from tests.data.test_data import build
from tests.objectives.test_pairs import B, D, cosine, descended, settings, views
from tests.plugins.test_contract import backbone
from tests.training.test_resume import After, assert_same

Fmeco = Callable[..., Answer]


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def test_barlow_twins_is_its_formula() -> None:
    one, other = views()
    columns = []
    for z in (one.T.tolist(), other.T.tolist()):
        columns.append([[value - sum(column) / B for value in column] for column in z])
    wanted = 0.0
    for i, a in enumerate(columns[0]):
        for j, b in enumerate(columns[1]):
            c = sum(x * y for x, y in zip(a, b, strict=True))
            c /= math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
            wanted += (1 - c) ** 2 if i == j else 0.3 * c**2
    assert float(correlation_loss(one, other, 0.3)) == pytest.approx(wanted)


def test_byol_is_its_formula() -> None:
    one, other = views()
    for got, a, b in zip(distance(one, other).tolist(), one.tolist(), other.tolist(), strict=True):
        assert got == pytest.approx(2 - 2 * cosine(a, b))
        unit = [[x / math.hypot(*row) for x in row] for row in (a, b)]
        assert got == pytest.approx(sum((x - y) ** 2 for x, y in zip(*unit, strict=True)))
    assert [momentum(0.9, share) for share in (0, 0.5, 1)] == pytest.approx([0.9, 0.95, 1])


def make(name: str, **options: Any) -> tuple[Any, Batch]:
    """An objective over a table, and a batch of it in double precision."""
    torch.manual_seed(0)
    spec = DataSpec("table", {"columns": InputSpec((8,))})
    choice = choose("objective", {"name": name, **options})
    made = choice.plugin.build({"backbone": backbone("mlp", spec, hidden=[16]), "spec": spec}, choice.options)
    x, at = torch.randn(16, 8), torch.arange(16)
    pair = [{"columns": x + 0.1 * torch.randn(16, 8)} for _ in range(2)]
    return made, Batch(pair, {}, at, mix(0, at).repeat(2, 1))


def test_byol_compares_each_view_with_the_other_as_the_teacher_sees_it() -> None:
    made, batch = make("byol")
    with torch.no_grad():
        for p in made.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    predicted, wanted = (
        [model(view) for view in batch.views]
        for model in (
            lambda view: made.predictor(made.projector(made.backbone(view).vector)).double(),
            lambda view: made.teacher(view).double(),
        )
    )
    loss = sum(
        2 - 2 * cosine(predicted[k][i].tolist(), wanted[1 - k][i].tolist()) for k in range(2) for i in range(len(batch))
    )
    assert float(made(batch, "loss").sum.detach()) == pytest.approx(loss, rel=1e-4)


def test_dino_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(B, n, D, generator=generator, dtype=torch.float64).softmax(2) for n in (5, 2))
    for i, got in enumerate(sorted_alike(student.log(), teacher).tolist()):
        terms = [
            -sum(p * math.log(q) for p, q in zip(teacher[i, g].tolist(), student[i, v].tolist(), strict=True))
            for g in range(2)
            for v in range(5)
            if g != v
        ]
        assert len(terms) == 8
        assert got == pytest.approx(sum(terms) / 8)

    made, batch = make("dino", local=0, prototypes=6, teacher_temperature=[0.04, 0.08], warmup=0.5)
    for step, (progress, temperature) in enumerate([(0.25, 0.04), (0.5, 0.06), (0.75, 0.08)]):
        with torch.no_grad():
            s, t = ([net(view) for view in batch.views] for net in (lambda v: made.projector(made.backbone(v).vector), made.teacher))  # fmt: skip
        centre = made.centre.tolist()
        wanted = 0.0
        for i in range(len(batch)):
            for g in range(2):
                p = softmax([x - c for x, c in zip(t[g][i].tolist(), centre, strict=True)], temperature)
                q = softmax(s[1 - g][i].tolist(), 0.1)
                wanted -= sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / 2
        assert float(made(batch, "loss").sum.detach()) == pytest.approx(wanted, rel=1e-3), step
        made.after_step(progress)
        mean = torch.cat(t).double().mean(0)
        assert made.centre.tolist() == pytest.approx((0.9 * torch.tensor(centre) + 0.1 * mean).tolist(), rel=1e-4)


def test_a_step_in_parts_moves_the_centre_as_a_whole_one() -> None:
    made, batch = make("dino", local=0)
    made.eval()  # batch norm apart
    made.training = True
    made(batch, "loss")
    whole = made.seen / made.count
    made.seen.zero_(), made.count.zero_()
    for part in batch.split([10, 6]):
        made(part, "loss")
    assert torch.allclose(made.seen / made.count, whole, atol=1e-6)


@pytest.mark.parametrize("name", ["barlow_twins", "byol", "dino"])
def test_twenty_steps_lower_the_loss(name: str) -> None:
    made, batch = make(name, **({"local": 0} if name == "dino" else {}))
    losses = descended(made, batch)  # against a teacher that stands still: what it says may become harder to say
    assert losses[-1] < losses[0]


def test_a_teacher_is_the_average_of_its_student_and_learns_nothing_else() -> None:
    made, batch = make("byol", momentum=0.5)
    before = {name: p.clone() for name, p in made.teacher.named_parameters()}
    made(batch, "loss").sum.backward()
    assert all(p.grad is None and not p.requires_grad for p in made.teacher.parameters())
    with torch.no_grad():
        for p in made.backbone.parameters():
            p.add_(1.0)
    made.after_step(0.0)
    for name, p in made.teacher.named_parameters():
        moved = 0.5 if name.startswith("backbone") else 0.0
        assert torch.allclose(p, before[name] + moved), name
    made.train()
    modes = {type(module).__name__: module.training for module in made.teacher.modules()}
    assert modes["BatchNorm1d"] and not modes["Linear"]
    made.eval()
    assert not any(module.training for module in made.teacher.modules())


def test_a_teacher_has_no_dropout() -> None:
    spec = DataSpec("image", {"image": InputSpec((1, 8, 8), "uint8")})
    teacher = MovingTeacher(backbone("transformer", spec, patch=4, depth=1, dropout=0.5), torch.nn.Identity()).train()
    x = {"image": torch.randn(4, 1, 8, 8)}
    assert torch.equal(teacher(x), teacher(x))


@pytest.mark.parametrize("name", ["byol", "dino"])
def test_stopped_anywhere_teacher_and_centre_end_the_same(name: str) -> None:
    raw = settings({"name": name, **({"local": 2, "prototypes": 32} if name == "dino" else {})})
    raw["train"] |= {"ema": 0.9, "epochs": 2} if name == "byol" else {}
    api.pretrain(raw, out="whole")
    with pytest.raises(Stopped):
        api.pretrain(raw, out="cut", stop=After(3))
    api.resume("cut")
    assert_same(Path("whole"), Path("cut"))
    saved = checkpoint.open_checkpoint(Path("whole/checkpoints/last").resolve())
    tensors = saved.tensors("objective")
    assert not any("teacher" in name for name in saved.tensors("backbone"))
    teacher, student = tensors["teacher.projector.0.weight" if name == "byol" else "teacher.projector.0.0.weight"], tensors["projector.0.weight" if name == "byol" else "projector.0.0.weight"]  # fmt: skip
    assert not torch.equal(teacher, student)
    if name == "dino":
        assert tensors["centre"].abs().sum() > 0 and float(tensors["progress"]) == 1
    learning = sum(x.numel() for n, x in {**saved.tensors("backbone"), **tensors}.items() if learns(n))
    assert saved.meta["parameters"] == learning, "a teacher's are not counted"


def learns(name: str) -> bool:
    buffers = ("running_mean", "running_var", "num_batches_tracked", "centre", "seen", "count", "progress")
    return not name.startswith("teacher.") and not name.endswith(buffers) and name != "layers.0.weight"


def test_continued_pretraining_begins_with_a_teacher_of_the_same_weights(fmeco: Fmeco, monkeypatch: Any) -> None:
    """Also of what a new backbone computes from the data: the whitening of cnn."""
    from fmeco.objectives.byol import BYOL

    seen = []
    real = BYOL.represent

    def represent(self: BYOL, batch: Batch) -> Any:
        if not seen or seen[-1] is not self:
            seen.append(self)
            theirs = self.teacher.backbone.state_dict()
            assert all(torch.equal(x, theirs[name]) for name, x in self.backbone.state_dict().items())
        return real(self, batch)

    monkeypatch.setattr(BYOL, "represent", represent)
    c = write("c.yaml", settings("byol", train={"epochs": 1, "batch_size": 50, "tensorboard": False}))
    assert fmeco("pretrain", c, "--out", "one").code == 0
    raw = settings("byol", train={"epochs": 1, "batch_size": 50, "tensorboard": False})
    del raw["backbone"]
    answer = fmeco("pretrain", write("d.yaml", raw), "--from", "one", "--out", "two")
    assert answer.code == 0, answer.err
    assert len(seen) == 2
    answer = fmeco("finetune", "--from", "two", "--dataset", "digits", "--set", "train.epochs=1", "--out", "three")
    assert answer.code == 0, answer.err
    assert fmeco("evaluate", "two", "--split", "val").code == 0
    answer = fmeco("pretrain", c, "--set", "augment=none")
    assert answer.code == 2 and "compares views of a sample" in answer.err
    answer = fmeco("pretrain", c, "--set", "train.micro_batch=25", "--out", "parts")
    assert answer.code == 0, "samples are compared with their own other view alone"


SMALL = (View("whole", area=(0.4, 1.0)), View("part", size=0.5, area=(0.05, 0.4)))


@pytest.mark.parametrize("arch", ["views", "light"])
def test_views_have_their_size_and_depend_on_keys_alone(arch: str) -> None:
    data = build(name="digits", image_size=16, limit_per_class=5)
    choice = choose("augment", arch)
    augment = choice.plugin.build({"spec": data.spec, "arch": choice.arch}, choice.options)
    samples = data.split("train")

    def made(seed: int, workers: Any) -> list[Tensor]:
        reading = choose_reading(workers, data, samples, torch.device("cpu"), views=SMALL, augment=augment)
        assert reading.held is None
        loader = Loader(data, samples, SMALL, augment, 8, 8, seed, reading, torch.device("cpu"))
        torch.manual_seed(7 * seed)  # must not matter
        return [view["image"] for one in loader.batches(0, 3) for view in one.views]

    first, same, other = made(0, "auto"), made(0, 1), made(1, 0)
    assert all(x.shape[1:] == (1, 16, 16) for x in first[::2]) and all(x.shape[1:] == (1, 8, 8) for x in first[1::2])
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_smaller_view_shows_a_smaller_part() -> None:
    """Of an image whose values say where they are: the values' range is the part's side."""
    spec = DataSpec("image", {"image": InputSpec((1, 64, 64), "uint8")})
    choice = choose("augment", {"name": "views", "color": 0, "flip": 0})
    augment = choice.plugin.build({"spec": spec, "arch": choice.arch}, choice.options)
    image = torch.stack([torch.arange(64).expand(64, 64), torch.arange(64)[:, None].expand(64, 64)]).to(torch.uint8)
    for view in SMALL:
        for key in range(40):
            got = augment.for_view(view).sample({"image": image}, key)["image"].float()
            assert got.shape == (2, view.side(64), view.side(64))
            area = math.prod(float(plane.max() - plane.min() + 1) / 64 for plane in got)
            assert view.area is not None and 0.6 * view.area[0] < area < 1.2 * view.area[1]


def test_what_cannot_have_smaller_views_says_so(fmeco: Fmeco) -> None:
    bodies = {"transformer": {"name": "transformer", "patch": 4, "depth": 1, "width": 16}, "mlp": "mlp"}
    for name, body in bodies.items():
        c = write("c.yaml", settings("dino", backbone=body))
        answer = fmeco("pretrain", c, "--out", name)
        assert (
            answer.code == 2
            and "cannot run on smaller views of 8x8" in answer.err
            and "objective.local: 0" in answer.err
        )
        answer = fmeco("pretrain", c, "--out", name, "--set", "objective.local=0", "--set", "evaluate.health=off")
        assert answer.code == 0, answer.err
    answer = fmeco("pretrain", write("d.yaml", settings("dino", dataset="wine", backbone="mlp")))
    assert answer.code == 2 and "objective.local: smaller views are for images" in answer.err
    with pytest.raises(ConfigError, match="cannot make 'part'"):
        Augment().for_view(SMALL[1])
    answer = fmeco("pretrain", write("e.yaml", settings({"name": "dino", "teacher_temperature": [0.04]})))
    assert answer.code == 2 and "expected two numbers above 0" in answer.err


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "byol", "momentum": 0},
        {"name": "dino", "teacher_temperature": [1.0, 1.0], "local": 0},
    ],
)
def test_a_collapse_stops_the_run_and_says_so(
    objective: dict[str, Any], fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of byol without a predictor, of dino whose teacher does not sharpen."""
    real = byol.BYOL
    monkeypatch.setattr(byol, "BYOL", lambda body, head, _, kept: real(body, head, torch.nn.Identity(), kept))
    raw = settings(objective, optimizer={"name": "adamw", "lr": 0.01})
    raw["train"]["epochs"] = 20
    answer = fmeco("pretrain", write("c.yaml", raw), "--out", "run", "--json")
    assert answer.code == 5, answer.err
    assert "collapsed" in answer.err and "objective." in answer.err
