"""Strategies: what each trains, how it goes on after a stop, and that what is frozen is computed once. Sources judged
before finetuning, and runs compared after it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fmeco
from fmeco.checkpoints import format as checkpoint
from fmeco.config.check import choose
from fmeco.config.load import read_config
from fmeco.config.parser import parse_yaml
from fmeco.core import Backbone, Features, Inputs, Role, Target
from fmeco.data import disk_cache as cache
from fmeco.errors import ConfigError, Stopped
from fmeco.features import split_network as cut
from fmeco.nn import intervals, probes
from fmeco.plugins.registry import FINETUNE_LR, plugins
from fmeco.strategies.l2sp import Anchor
from fmeco.strategies.lora import Adapters
from fmeco.training import budget
from tests.conftest import tiny, write

DATA = {"name": "digits", "classes": [0, 1, 2], "image_size": 16, "limit_per_class": 24}
STRATEGIES = [name for name in plugins("strategies") if name != "probe"]  # which takes no step
HEAD = {"strategy": "full", "freeze": ["backbone"]}  # trains the head alone


class Vision(Backbone):
    """A transformer of two blocks over 4x4 patches, with torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16
        self.patches = nn.Conv2d(1, 16, 4, 4)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False)

    def forward(self, inputs: Inputs) -> Features:
        tokens = self.patches(inputs["image"]).flatten(2).transpose(1, 2)  # (B, T, D)
        return Features(pooled=self.blocks(tokens).mean(1))


def body(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the config's backbone section, keywords for Python)."""
    if kind == "vit":
        torch.manual_seed(0)
        return {}, {"backbone": Vision()}
    named = {"cnn": {"name": "cnn", "widths": [8, 8]}, "mlp": {"name": "mlp", "hidden": [24, 16]}}
    return {"backbone": named[kind]}, {}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pretrained run of each kind of network."""
    made = {}
    for kind in ("cnn", "mlp", "vit"):
        section, python = body(kind)
        out = tmp_path_factory.mktemp("sources") / kind
        config = {"dataset": {**DATA, "classes": [3, 4, 5, 6]}, "train": {"steps": 8}, **section}
        made[kind] = fmeco.pretrain(config, out=out, **python).run
    return made


def finetune(source: Path, out: Path, transfer: Any, kind: str, **how: Any) -> fmeco.Result:
    train = {"steps": 20, "batch_size": 12, **how.pop("train", {})}
    config = {"dataset": DATA, "transfer": transfer, "train": train, **how.pop("sections", {})}
    return fmeco.finetune(config, ref=source, out=out, **body(kind)[1], **how)


def tensors(path: Path, file: str = "backbone") -> dict[str, torch.Tensor]:
    return load_file((path / f"{file}.safetensors").resolve())


def trained_by(strategy: str, names: list[str], norms: set[str]) -> set[str]:
    """The backbone's parameters that a strategy says it trains."""
    return {
        "bn": norms,
        "bias": {name for name in names if name.endswith("bias")},
        "lora": {name for name in names if not name.endswith("bias") and name not in norms},
    }.get(strategy, set(names))  # scratch, full and the others: everything


@pytest.mark.parametrize("kind", ["cnn", "mlp", "vit"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_trains_what_it_says_and_resumes_bit_for_bit(
    strategy: str, kind: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    whole = finetune(sources[kind], tmp_path / "whole", strategy, kind)
    before, after = tensors(sources[kind] / "checkpoints/best"), tensors(whole.checkpoint)
    model = fmeco.load(whole.checkpoint, **body(kind)[1]).objective.product.library
    names = [name for name, _ in model.named_parameters()]
    modules = dict(model.named_modules())
    norms = {
        n for n in names if isinstance(modules[n.rpartition(".")[0]], nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm)
    }
    last = tensors(whole.run / "checkpoints/last")
    changed = {name for name in names if not torch.equal(before[name], last[name])}
    assert changed == trained_by(strategy, names, norms)
    if strategy in ("lora", "bias"):
        assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    if strategy == "lora":
        factors = tensors(whole.run / "checkpoints/last", "adapter")
        for name in changed:
            a, b = (next(x for n, x in factors.items() if n.endswith(f"{name}.lora_{which}")) for which in "AB")
            torch.testing.assert_close(last[name], before[name] + 2.0 * (b @ a).view(last[name].shape))

    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 11

    with pytest.raises(Stopped):
        finetune(sources[kind], tmp_path / "parts", strategy, kind, stop=stop)
    fmeco.resume(tmp_path / "parts", **body(kind)[1])
    for file in ("backbone", "objective"):
        one, two = (tensors(tmp_path / run / "checkpoints/last", file) for run in ("whole", "parts"))
        assert all(torch.equal(one[name], two[name]) for name in one), file


def test_a_phase_that_was_stopped_early_is_not_taken_up_again(sources: dict[str, Path], tmp_path: Path) -> None:
    how = {"train": {"steps": 40, "early_stop": 1, "save_every": 1, "log_every": 1}}
    asked: list[int] = []
    whole = finetune(sources["mlp"], tmp_path / "whole", {"strategy": "lp_ft", "probe_share": 0.7}, "mlp", **how)
    meta = json.loads((whole.run / "checkpoints/last/trainer.json").read_text())["state"]
    assert meta["phase"] == 1
    assert meta["phase_start"] < 28, "the head's phase ended early"

    def stop() -> bool:  # the first thing that the next phase does is to ask
        asked.append(1)
        return len(asked) == meta["phase_start"] + 2

    with pytest.raises(Stopped):
        transfer = {"strategy": "lp_ft", "probe_share": 0.7}
        finetune(sources["mlp"], tmp_path / "parts", transfer, "mlp", stop=stop, **how)
    resumed = fmeco.resume(tmp_path / "parts")
    one, two = (tensors(run.run / "checkpoints/last") for run in (whole, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_phases_scale_rates_as_they_say(sources: dict[str, Path]) -> None:
    def scales(strategy: Any) -> list[dict[str, float]]:
        chosen = choose("transfer", strategy)
        roles = {f"l{i}.weight": Role(i, "weight") for i in range(12)} | {"head.weight": Role(None, "weight")}
        return [dict(phase.scales) for phase in chosen.plugin.build({"roles": roles}, chosen.options).phases]

    (layered,) = scales({"strategy": "llrd", "decay": 0.5})
    assert layered["head.weight"] == 1
    assert [layered[f"l{i}.weight"] for i in (11, 10, 0)] == pytest.approx([0.5, 0.25, 0.5**12])
    steps = scales({"strategy": "gradual", "blocks": 4})
    assert [sum(scale > 0 for scale in phase.values()) for phase in steps] == [1, 4, 7, 10, 13]
    assert all(phase["l11.weight"] >= phase["l0.weight"] for phase in steps), "from the top"
    first, then = scales({"strategy": "lp_ft", "probe_lr": 3.0, "backbone_lr": 0.5})
    assert (first["head.weight"], first["l0.weight"], then["head.weight"], then["l0.weight"]) == (3, 0, 1, 0.5)


def test_l2sp_adds_the_gradient_of_its_penalty() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    anchor = Anchor({"w": weight}, alpha=0.5)
    with torch.no_grad():
        weight.add_(torch.tensor([4.0, -2.0]))
    weight.square().sum().backward()
    anchor.gradients(2.0)  # gradients are to be doubled after
    at, start = torch.tensor([5.0, 0.0]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(weight.grad, 2 * at + 0.25 * (at - start))


def test_adapters_get_the_gradients_of_their_product() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, bias=False)
    adapters = Adapters({"w": conv.weight}, rank=2, scale=0.7, rate=1.0)
    a, b = adapters.own["w.lora_A"], adapters.own["w.lora_B"]
    nn.init.normal_(b)
    adapters.stepped()
    x = torch.randn(2, 3, 5, 5)
    conv(x).square().sum().backward()
    adapters.gradients(1.0)
    merged = adapters.base["w"] + 0.7 * (b @ a).view(4, 3, 3, 3)
    loss = nn.functional.conv2d(x, merged).square().sum()
    for got, wanted in zip((a.grad, b.grad), torch.autograd.grad(loss, (a, b)), strict=True):
        torch.testing.assert_close(got, wanted)
    assert conv.weight.grad is None


def test_freezing_by_name(sources: dict[str, Path], tmp_path: Path) -> None:
    run = finetune(sources["cnn"], tmp_path / "run", {"strategy": "full", "freeze": ["layers.2", "*.bias"]}, "cnn")
    before, after = tensors(sources["cnn"] / "checkpoints/best"), tensors(run.run / "checkpoints/last")
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {"layers.2.weight", "layers.4.bias"} <= kept
    assert "layers.5.weight" not in kept
    with pytest.raises(ConfigError, match=r"transfer.freeze: 'layer9' matches no parameter"):
        finetune(sources["cnn"], tmp_path / "typo", {"strategy": "full", "freeze": ["layer9"]}, "cnn")


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_what_is_frozen_is_computed_once_with_the_same_result(
    kind: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    library = type(fmeco.load(sources[kind], **body(kind)[1]).objective.product)
    real = library.forward

    def forward(self: Backbone, inputs: Inputs) -> Features:
        passes.append(len(next(iter(inputs.values()))))
        return real(self, inputs)

    monkeypatch.setattr(library, "forward", forward)
    plain = {"augment": "none", "evaluate": {"every": 1}}
    runs = {}
    for name, views in (("cached", None), ("again", None), ("anew", 0)):
        passes.clear()
        transfer = {**HEAD, "views": views}
        train = {"precision": "fp32"}  # auto would try a step
        runs[name] = finetune(sources[kind], tmp_path / name, transfer, kind, sections=plain, train=train)
        samples = json.loads((runs[name].checkpoint / "meta.json").read_text())["spec"]["sizes"]
        once = samples["train"] + samples["val"]
        assert {"cached": sum(passes) == once, "again": not passes, "anew": sum(passes) > 2 * once}[name], name
    one, two = (tensors(runs[name].run / "checkpoints/last", "objective") for name in ("cached", "anew"))
    torch.testing.assert_close(one, two)
    assert runs["cached"].metrics == pytest.approx(runs["anew"].metrics, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "frozen"),
    [("cnn", [f"layers.{i}" for i in (0, 2, 4, 6, 7, 9, 11)]), ("vit", ["patches", "blocks.layers.0"])],
)
def test_a_frozen_part_is_computed_once_with_the_same_result(
    kind: str, frozen: list[str], sources: dict[str, Path], tmp_path: Path
) -> None:
    plain = {"augment": "none", "evaluate": {"every": 1}}

    def run(name: str, views: int | None, **how: Any) -> fmeco.Result:
        transfer = {"strategy": "full", "freeze": frozen, "views": views}
        return finetune(sources[kind], tmp_path / name, transfer, kind, sections=plain, **how)

    cached = run("cached", None)
    kept = {one["file"]: np.load(one["file"]).shape for one in cache.entries()}
    sizes = json.loads((cached.checkpoint / "meta.json").read_text())["spec"]["sizes"]
    assert sorted(shape[0] for shape in kept.values()) == sorted([sizes["train"], sizes["val"]])
    assert all(len(shape) > 2 for shape in kept.values()), "maps or tokens, not vectors"
    anew = run("anew", 0)
    assert {one["file"] for one in cache.entries()} == set(kept), "the features were computed in every epoch"
    for file in ("backbone", "objective"):
        one, two = (tensors(result.run / "checkpoints/last", file) for result in (cached, anew))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert cached.metrics == pytest.approx(anew.metrics, abs=1e-4)

    asked: list[int] = []
    with pytest.raises(Stopped):
        run("parts", None, stop=lambda: bool(asked.append(1)) or len(asked) > 9)
    fmeco.resume(tmp_path / "parts", **body(kind)[1])
    one, two = (tensors(tmp_path / name / "checkpoints/last") for name in ("cached", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


class Sly(Backbone):
    """Does in place what no name uses, or in training alone."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.width, self.low, self.high = how, 4, nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, inputs: Inputs) -> Features:
        x = self.low(inputs["columns"])
        if self.how == "in place":
            x.clamp_(min=0)
        if self.training and self.how == "in training":
            x = x + 1.0
        return Features(pooled=self.high(x))


@pytest.mark.parametrize(("how", "cuts"), [("plainly", True), ("in place", False), ("in training", True)])
def test_a_network_is_cut_only_where_its_parts_are_the_whole(how: str, cuts: bool) -> None:
    torch.manual_seed(0)
    made = Sly(how)
    made.low.requires_grad_(False)
    inputs = {"columns": torch.randn(6, 3)}
    found = cut.cut(made, inputs)
    assert (found is not None) == cuts
    for training in (True, False) if found is not None else ():
        made.train(training)
        torch.testing.assert_close(found.rest(found.lower(inputs), training).vector, made(inputs).vector)


def test_views_of_frozen_features_vary_and_are_kept(sources: dict[str, Path], tmp_path: Path) -> None:
    light = {"augment": "light"}
    finetune(sources["cnn"], tmp_path / "two", {**HEAD, "views": 2}, "cnn", sections=light)
    kept = [np.load(one["file"]) for one in cache.entries()]
    whole = [one for one in kept if len(one) == 72]
    assert len(whole) == 2
    assert not np.array_equal(*whole)
    assert cache.clear() == (3, sum(one.nbytes + 128 for one in kept))
    assert cache.entries() == []


def test_a_file_of_features_that_is_cut_short_is_made_anew(sources: dict[str, Path], tmp_path: Path) -> None:
    plain = {"augment": "none"}
    first = finetune(sources["mlp"], tmp_path / "a", "probe", "mlp", sections=plain)
    for one in cache.entries():
        with open(one["file"], "r+b") as file:
            file.truncate(200)
    second = finetune(sources["mlp"], tmp_path / "b", "probe", "mlp", sections=plain)
    assert second.metrics == first.metrics


# ---------------------------------------------------------------- sources, judged


def test_logme_is_the_largest_evidence() -> None:
    from scipy.optimize import minimize

    torch.manual_seed(0)
    for n, d in ((60, 5), (20, 30)):
        x, y = torch.randn(n, d).double(), torch.randn(n).double()
        y += x[:, 0]

        def negative(logs: Any, x: torch.Tensor = x, y: torch.Tensor = y, n: int = n) -> float:
            """-log N(y; 0, I / beta + x x^T / alpha) / n, which integrates the weights out."""
            alpha, beta = np.exp(logs)
            covariance = torch.eye(n).double() / beta + x @ x.T / alpha
            return -float(torch.distributions.MultivariateNormal(torch.zeros(n).double(), covariance).log_prob(y)) / n

        best = -minimize(negative, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10}).fun
        assert probes.logme(x, y, Target("number")) == pytest.approx(best, abs=1e-4)


def test_probe_and_rank_from_the_command_line(fmeco: Any, sources: dict[str, Path]) -> None:
    digits = ("--dataset", "digits", "--set", "dataset.classes=[0, 1, 2]")
    one = fmeco("probe", sources["cnn"], *digits, "--json").json
    assert one["metrics"]["accuracy"] > 0.5
    assert one["interval"][0] <= one["metrics"]["accuracy"] <= one["interval"][1]
    answer = fmeco("rank", sources["cnn"], sources["mlp"], *digits, "--json")
    assert answer.code == 0, answer.err
    rows = answer.json["ranking"]
    assert {row["source"] for row in rows} == {str(sources["cnn"]), str(sources["mlp"]), "random weights"}
    scores = [row["metrics"]["accuracy"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    shown = fmeco("rank", sources["cnn"], "nowhere", *digits)
    assert shown.code == 0
    assert "nowhere: no such run" in shown.out.replace("nowhere: nowhere", "nowhere")
    advised = shown.out.partition("transfer.strategy=")[2]
    assert advised.startswith(("auto: accuracy", "full: no source is clearly better"))
    assert "auto, the default, begins with this linear head" in advised or "--control scratch,auto" in advised
    assert fmeco("rank", "nowhere", *digits).code == 2
    listed = fmeco("cache")
    assert "features" in listed.out
    assert "removed" in fmeco("cache", "--clear").out


# ---------------------------------------------------------------- runs, compared


def test_mcnemar_is_the_binomial_test() -> None:
    assert intervals.mcnemar(0, 0) == 1
    assert intervals.mcnemar(5, 0) == pytest.approx(2 * 0.5**5)
    assert intervals.mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 2**10)


def test_controls_are_trained_and_compared(fmeco: Any, sources: dict[str, Path]) -> None:
    answer = fmeco(
        *("finetune", "--from", sources["mlp"], "--dataset", "digits", "--out", "tuned", "--control", "scratch,probe"),
        *("--set", "dataset.classes=[0, 1, 2]", "--set", "train.steps=30"),
    )
    assert answer.code == 0, answer.err
    assert "auto instead of scratch" in answer.out
    found = json.loads(Path("tuned/controls/comparison.json").read_text())
    main, scratch, probe = found["runs"]
    assert scratch["difference"][0] == pytest.approx(main["metrics"]["accuracy"] - scratch["metrics"]["accuracy"])
    assert probe["difference"][1] <= probe["difference"][0] <= probe["difference"][2]
    assert 0 <= scratch["p"] <= 1
    assert (
        fmeco("compare", "tuned", "tuned/controls/scratch", "--json").json["runs"][1]["difference"]
        == scratch["difference"]
    )
    same = fmeco("compare", "tuned", "tuned", "--json").json["runs"][1]
    assert (same["difference"], same["p"]) == ([0, 0, 0], 1)
    other = fmeco("compare", "tuned", sources["mlp"])
    assert other.code == 3, other.out
    wrong = fmeco("finetune", "--from", sources["mlp"], "--dataset", "digits", "--control", "scrach")
    assert wrong.code == 2
    assert "scratch" in wrong.err


def test_labels_are_worth_what_the_curve_says(fmeco: Any, sources: dict[str, Path]) -> None:
    command = (
        *("finetune", "--from", sources["mlp"], "--dataset", "digits", "--out", "curve", "--control", "scratch"),
        *("--set", "dataset.classes=[0, 1, 2]", "--set", "train.steps=12", "--label-fractions", "1,0.1"),
    )
    answer = fmeco(*command, "--json")
    assert answer.code == 0, answer.err
    rows = answer.json["rows"]
    assert [(row["strategy"], row["fraction"]) for row in rows] == [
        *(("auto", 0.1), ("scratch", 0.1)),
        *(("auto", 1.0), ("scratch", 1.0)),
    ]
    few, many = rows[0]["samples"], rows[2]["samples"]
    assert few == pytest.approx(many / 10, abs=2)
    assert Path(answer.json["plot"]).read_bytes().startswith(b"\x89PNG")
    for row in rows:
        assert row["interval"][0] <= row["value"] <= row["interval"][1]
    counts = fmeco("evaluate", "curve/labels-0.1", "--split", "train", "--json").json
    assert counts["samples"] == many, "the fraction is of training, not of what a checkpoint is measured on"
    assert fmeco(*command).code == 2, "the folder is not empty"
    assert fmeco(*command[:-1], "0,0.5").code == 2


def test_more_labels_keep_those_that_fewer_had(sources: dict[str, Path]) -> None:
    from fmeco.assembly.training import assemble

    def names(share: float, seed: int = 0) -> set[str]:
        settings = {"dataset": DATA, "seed": seed, "train": {"label_fraction": share}}
        samples = assemble(read_config(settings, stage="finetune", ref=sources["mlp"])).data.split("train")
        values = samples.targets["label"]
        assert len(values.unique()) == 3
        assert all(torch.equal(samples[i]["image"], samples.tensors["image"][i]) for i in range(len(samples)))
        return {samples.name(i) for i in range(len(samples))}

    assert names(0.01) < names(0.3) < names(1.0)
    assert len(names(0.01)) == 3
    assert names(0.3) != names(0.3, seed=1)


# ---------------------------------------------------------------- rates and lengths


@pytest.mark.parametrize("strategy", ["full", "lora", "lp_ft"])
def test_a_rate_that_is_found_leaves_no_trace(strategy: str, sources: dict[str, Path], tmp_path: Path) -> None:
    adamw = {"name": "adamw", "lr": "auto"}
    found = finetune(sources["cnn"], tmp_path / "auto", strategy, "cnn", sections={"optimizer": adamw})
    tried = [json.loads(line) for line in (found.run / "metrics.jsonl").read_text().splitlines()]
    curve = [line for line in tried if line["kind"] == "range"]
    assert len(curve) >= 10
    assert all(a["lr"] < b["lr"] for a, b in zip(curve, curve[1:], strict=False))
    rate = parse_yaml((found.run / "config.yaml").read_text(), "")[0]["optimizer"]["lr"]
    assert 1e-5 <= rate <= 0.1
    named = finetune(sources["cnn"], tmp_path / "named", strategy, "cnn", sections={"optimizer": {**adamw, "lr": rate}})
    for file in ("backbone", "objective"):
        one, two = (tensors(result.run / "checkpoints/last", file) for result in (found, named))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_range_test_that_tells_nothing_leaves_the_default(sources: dict[str, Path], tmp_path: Path) -> None:
    auto = {"optimizer": {"name": "sgd", "lr": "auto"}}
    run = finetune(
        sources["mlp"], tmp_path / "short", "full", "mlp", sections=auto, train={"steps": None, "budget": "1s"}
    )
    lines = [json.loads(line) for line in (run.run / "metrics.jsonl").read_text().splitlines()]
    rate = parse_yaml((run.run / "config.yaml").read_text(), "")[0]["optimizer"]["lr"]
    assert rate == 0.1 or any(line["kind"] == "range" for line in lines)
    assert rate >= 1e-5


def test_what_more_time_would_do() -> None:
    def told(history: list[float], sign: int = 1, metric: str = "accuracy", **other: Any) -> str:
        return budget.more_time(history, sign, metric, 8.0, **{"steps": 400, "samples": 200, **other})

    rising = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert "too few evaluations" in told([0.5, 0.6])
    assert "likely to help" in told(rising)
    assert "from 0.6000 to 0.8000" in told(rising)
    assert "from 0.6000 to 0.4000" in told([-0.9, -0.8, -0.6, -0.4], -1, "rmse")
    assert "change little" in told([0.5, 0.7, 0.75, 0.76], error=0.02)
    assert "not help" in told([0.5, 0.9, 0.8, 0.8, 0.7, 0.7])
    assert "change little" in told([0.5, 0.6, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9])
    # What a few samples or steps cannot show is not said.
    flat, falling = [0.5, 0.6, 0.6, 0.6, 0.6], [0.5, 0.9, 0.8, 0.8, 0.7]
    for history in (flat, falling, rising):
        assert "15 validation samples are too few to tell" in told(history, samples=15)
    for history in (flat, falling):
        assert "24 steps are too few to tell" in told(history, steps=24)
    assert "likely to help" in told(rising, steps=24)


def test_a_short_budget_claims_nothing_and_figures_say_which_way_is_good(fmeco: Any) -> None:
    data = {"classes": [0, 1], "val_fraction": 0.1}
    config = tiny(dataset=data, train={"epochs": None, "budget": "4s", "batch_size": 16}, evaluate={"every": 0.1})
    write("c.yaml", {**config, "objective": "simclr", "augment": "standard"})
    answer = fmeco("pretrain", "c.yaml", "--out", "run")
    assert answer.code == 0, answer.err
    assert "change little" not in answer.err and "would not help" not in answer.err
    assert "validation samples are too few to tell what more time would do" in answer.err
    lines = [line for line in answer.err.splitlines() if line.startswith("epoch ")]
    assert len(lines) >= 4
    assert all(re.search(r": training loss \d+\.\d{4}, knn ", line) for line in lines), lines
    told = [line for line in answer.err.splitlines() if "lower is better: " in line]
    assert told == [
        "higher is better: knn, effective_rank, projection_rank, spread; lower is better: training loss, alignment, uniformity"
    ]
    assert re.search(r"val_knn +\d\.\d{4} +higher is better", answer.out)
    assert re.search(r"val_alignment +\d\.\d{4} +lower is better", answer.out)
    tuned = fmeco("finetune", "--from", "run", "--dataset", "digits", "--set", "train.steps=1", "--out", "tuned")
    assert tuned.code == 0, tuned.err
    answer = fmeco("evaluate", "tuned")
    assert re.search(r"test_accuracy +\d\.\d{4} +higher is better", answer.out)
    assert re.search(r"test_loss +\d\.\d{4} +lower is better", answer.out)
    assert fmeco("evaluate", "tuned", "--json").json["directions"]["test_ece"] == "min"


def test_several_tasks_read_their_source_once(
    fmeco: Any, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    real = checkpoint.Checkpoint.tensors

    def tensors_of(self: Any, name: str) -> Any:
        if self.path.is_relative_to(sources["mlp"].resolve()) and name == "backbone":
            reads.append(self.path)
        return real(self, name)

    monkeypatch.setattr(checkpoint.Checkpoint, "tensors", tensors_of)
    for name, classes in (("a", [0, 1]), ("b", [2, 3])):
        write(f"{name}.yaml", {"dataset": {**DATA, "classes": classes}, "train": {"steps": 3}})
    answer = fmeco("finetune", "a.yaml", "b.yaml", "--from", sources["mlp"], "--out", "tasks", "--json")
    assert answer.code == 0, answer.err
    assert [task["task"] for task in answer.json["tasks"]] == ["a", "b"]
    assert len(reads) == 1


def test_lora_trains_at_ten_times_the_backbones_own_rate(sources: dict[str, Path], tmp_path: Path) -> None:
    """Ten times adamw's own rate is too much for low-rank factors: it left a published network's features at zero."""
    run = finetune(sources["vit"], tmp_path / "run", "lora", "vit").run
    config = parse_yaml((run / "config.yaml").read_text(), "")[0]
    assert config["optimizer"]["lr"] == FINETUNE_LR
    assert config["transfer"]["lr"] == 10.0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(line["lr"] for line in lines if "lr" in line) <= 10.0 * FINETUNE_LR
