"""A stranger's plug-in of each kind is one file, used by --plugin; fmeco's own rules hold for its own files."""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fmeco as api
from fmeco.config.check import choose
from fmeco.core import Splitting
from fmeco.errors import ConfigError
from fmeco.plugins import registry as plugins
from tests.conftest import Answer, tiny, write

Fmeco = Callable[..., Answer]
PACKAGE = Path(api.__file__).parent

DATASET = '''
"""Two moons of points; a CSV of x,y rows predicts."""
from __future__ import annotations
import dataclasses
from typing import Annotated
import torch
from fmeco.core import Data, DataSpec, Doc, Gt, Inputs, InputSpec, Samples, Target, TestFraction

KIND = "dataset"

class Points(Samples):
    in_memory = True
    def __init__(self, x, y, names):
        self.x, self.targets, self.names = x, {"label": y} if y is not None else {}, names
    def __len__(self): return len(self.x)
    def __getitem__(self, index) -> Inputs: return {"point": self.x[index]}
    def name(self, index): return self.names[index]

def build(known: DataSpec | None, *, samples: Annotated[int, Doc("points in all"), Gt(10)] = 200, spread: float = 0.1) -> Data:
    g = torch.Generator().manual_seed(0)
    t, y = torch.rand(samples, generator=g) * 3.14, torch.arange(samples) % 2
    x = torch.stack([torch.cos(t) + y, torch.sin(t) * (1 - 2 * y) + y * 0.5], 1) + spread * torch.randn(samples, 2, generator=g)
    names = [f"moon-{i}" for i in range(samples)]
    cut = samples * 4 // 5
    spec = DataSpec("points", {"point": InputSpec((2,))}, {"label": Target("class", ("up", "down"))}, {}, "moons", {"train": cut, "val": samples - cut}, f"moons-{samples}-{spread}")
    return Data(spec, Points(x[:cut], y[:cut], names[:cut]), Points(x[cut:], y[cut:], names[cut:]))

def read(spec: DataSpec, sources):
    rows = [line.split(",") for source in sources for line in open(source).read().split()]
    return Points(torch.tensor([[float(v) for v in row] for row in rows]), None, [",".join(row) for row in rows])
'''
BACKBONE = '''
"""Random Fourier features and a layer."""
from __future__ import annotations
from typing import Annotated
import torch
from torch import nn
from fmeco.core import Backbone, DataSpec, Doc, Features, Gt, Inputs

KIND = "backbone"
RENAMED = {"dim": "width"}

class Fourier(Backbone):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.width = width
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)
    def forward(self, inputs: Inputs) -> Features:
        x = torch.cat([v.flatten(1) for v in inputs.values()], 1)
        return Features(pooled=torch.relu(self.second(torch.sin(self.first(x)))))

def build(spec: DataSpec, *, width: Annotated[int, Doc("features"), Gt(0)] = 32) -> Backbone:
    return Fourier(sum(torch.Size(one.shape).numel() for one in spec.inputs.values()), width)
'''
OBJECTIVE = '''
"""The hinge loss of two classes."""
from __future__ import annotations
import torch
from torch import nn
from fmeco.core import Backbone, Batch, ConfigError, DataSpec, Loss, Objective

KIND = "objective"

def check(margin: float) -> list[str]:
    return [] if margin > 0 else [f"margin must be positive, not {margin}"]

def build(backbone: Backbone, spec: DataSpec, *, margin: float = 1.0) -> Objective:
    if len(spec.targets["label"].classes) != 2:
        raise ConfigError("hinge is for two classes")
    return Hinge(backbone, spec.targets["label"].classes, margin)

def majority(data, samples, rows):
    labels = data.split("train").targets["label"]
    score = torch.full_like(rows["score"], float(labels.double().mean() - 0.5))
    return {"score": score, "label": samples.targets["label"][rows["index"]]}, len(labels)

class Hinge(Objective):
    directions = {"accuracy": "max"}
    baselines = {"majority": majority}
    def __init__(self, backbone, classes, margin):
        super().__init__()
        self.backbone, self.classes, self.margin = backbone, classes, margin
        self.head = nn.Linear(backbone.width, 1)
    def score(self, batch: Batch): return self.head(self.backbone(batch.views[0]).vector)[:, 0]
    def loss(self, batch: Batch) -> Loss:
        s, y = self.score(batch), 2 * batch.target["label"] - 1
        return Loss((self.margin - y * s).clamp_min(0).sum(), len(batch))
    def rows(self, batch: Batch): return {"score": self.score(batch), "label": batch.target["label"]}
    def metrics(self, rows): return {"accuracy": float(((rows["score"] > 0) == (rows["label"] == 1)).double().mean())}
    def predict(self, batch: Batch): return {"score": self.score(batch)}
    def decode(self, outputs): return [{"prediction": self.classes[int(s > 0)]} for s in outputs["score"]]
'''
AUGMENT = '''
"""A little noise on every input."""
from __future__ import annotations
from typing import Annotated
import torch
from fmeco.core import Augment, Doc, Ge, Inputs

KIND = "augment"

class Jitter(Augment):
    def __init__(self, scale): self.scale = scale
    def sample(self, inputs: Inputs, key: int) -> Inputs:
        g = torch.Generator().manual_seed(key & (2**63 - 1))
        return {name: x + self.scale * torch.randn(x.shape, generator=g) for name, x in inputs.items()}

def build(*, scale: Annotated[float, Doc("standard deviation"), Ge(0)] = 0.05) -> Augment:
    return Jitter(scale)
'''
SPLIT = '''
"""Say how it is to be split."""
from typing import Annotated
from fmeco.core import DataSpec, Splitting, Without

KIND = "dataset"

def build(known: DataSpec | None, *, path: str = "", splitting: {}):
    return path, splitting
'''
FILES = {"moons": DATASET, "fourier": BACKBONE, "hinge": OBJECTIVE, "jitter": AUGMENT}


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(plugins, "_EXTRA", {})
    arguments = []
    for name, text in FILES.items():
        arguments += ["--plugin", str(write(f"plug/{name}.py", text))]
    return arguments


def test_one_strangers_plugin_of_each_kind(strangers: list[str], fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "dataset": {"name": "moons", "samples": 400},
        "backbone": {"name": "fourier", "dim": 48},
        "objective": {"name": "hinge", "margin": 0.5},
        "augment": {"name": "jitter", "scale": 0.02},
        "train": {"epochs": 15},
        "optimizer": {"lr": 0.01},
    }
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "run", "--json", *strangers)
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["val_accuracy"] > 0.85
    assert set(fmeco("info", "run", "--json").json["needs"].split(", ")) == {
        "datasets/moons",
        "backbones/fourier",
        "objectives/hinge",
        "augment/jitter",
    }
    answer = fmeco("predict", "run", write("p.csv", "0.0,1.0\n1.0,-0.5\n"), "--json", *strangers)
    assert [row["prediction"] for row in answer.json["predictions"]] == ["up", "down"]
    assert "points in all" in fmeco("describe", "dataset", "moons", *strangers).out
    assert "Two moons" in fmeco("list", "datasets", *strangers).out
    assert fmeco("finetune", "--from", "run", "--dataset", "moons", "--set", "train.epochs=1", *strangers).code == 0
    assert fmeco("resume", "run", "--epochs", "+1", *strangers).code == 0
    found = fmeco("evaluate", "run", "--baseline", "majority", "--json", *strangers).json["baseline"]
    assert found["trained_on"] == 320 and found["metrics"] == {"val_accuracy": 0.5}
    assert found["difference"][1] > 0.2
    bad = fmeco("pretrain", "c.yaml", "--set", "dataset.sample=3", "--set", "objective.margin=-1", *strangers)
    assert bad.code == 2
    assert "did you mean 'samples'" in bad.err
    bad = fmeco("pretrain", "c.yaml", "--set", "objective.margin=-1", *strangers)
    assert bad.code == 2
    assert "margin must be positive" in bad.err
    monkeypatch.setattr(plugins, "_EXTRA", {})
    without = fmeco("predict", "run", "p.csv")
    assert without.code == 2
    assert "run needs backbones/fourier, objectives/hinge: --plugin FILE.py" in without.err


def test_a_strangers_published_weights_of_another_modality(strangers: list[str], fmeco: Fmeco) -> None:
    """Nothing about their inputs is known to fmeco: not the modality, not the keys, and perhaps not the reader."""
    import torch
    from safetensors.torch import save_file

    publishing = """
NAMES = ("small",)

def pretrained(arch, weights):
    from pathlib import Path
    from fmeco.core import InputSpec, Published
    how = {"unit": "metres", "radius": 2, "corners": [[0, 0], [1, 1]]}
    spec = DataSpec("points", {"point": InputSpec((2,))}, {}, how, READERS[weights])
    return Published(str(Path("w.safetensors").resolve()), "", None if weights == "SILENT" else spec)

READERS = {"DEFAULT": "moons", "OTHER": "stars", "SILENT": ""}
"""
    write("plug/fourier.py", BACKBONE + publishing)
    width = {"first.weight": (32, 2), "first.bias": (32,), "second.weight": (32, 32), "second.bias": (32,)}
    save_file({name: torch.ones(shape) for name, shape in width.items()}, "w.safetensors")
    command = (
        "finetune",
        "--dataset",
        "moons",
        "--set",
        "train.epochs=1",
        "--set",
        "train.tensorboard=false",
        *strangers,
    )
    for weights in ("DEFAULT", "OTHER"):
        answer = fmeco(*command, "--from", f"fourier/small@{weights}", "--out", weights)
        assert answer.code == 0, answer.err
        assert f"fourier/small@{weights}: preprocessing of these weights: unit metres, radius 2\n" in answer.err
    write("plug/moons.py", DATASET + "\ndef shown(spec): return f\"a circle of {spec.preprocessing['radius']}\"\n")
    for name in [name for name in sys.modules if name.endswith(".moons")]:
        del sys.modules[name]
    answer = fmeco(*command, "--from", "fourier/small@DEFAULT", "--out", "shown")
    assert "preprocessing of these weights: a circle of 2\n" in answer.err
    for source in (("fourier/small@SILENT",), ("w.safetensors", "--set", "backbone=fourier/small")):
        answer = fmeco(*command, "--from", *source)
        assert answer.code == 2
        assert f"neither {source[0]} nor the backbone fourier/small states how inputs were preprocessed" in answer.err
        assert "a function preprocessing(arch)" in answer.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(spec): ...", "KIND"),
        ('KIND = "objective"', "needs a function"),
        ('KIND = "poet"\ndef build(): ...', "poet"),
        ('KIND = "augment"\ndef build(spec, backbone): ...', "backbone"),
        ('KIND = "augment"\ndef build(**keys): ...', "kwargs"),
        ('KIND = "augment"\ndef build(*, x): ...', "needs a type annotation"),
        ('KIND = "augment"\ndef build(*, x: Foo = 1): ...', "cannot read the type"),
        ('KIND = "augment"\ndef build(*, x: int = f()): ...', "x"),
        ("def build(:", "invalid syntax"),
        (SPLIT.format("Splitting | None = None"), "its type must be Splitting or Annotated[Splitting"),
        (SPLIT.format("Splitting = {'val_fraction': 0.1}"), "its default must be written Splitting(key=value)"),
        (SPLIT.format("Splitting = Splitting(val_fractoin=0.1)"), "no key val_fractoin (did you mean 'val_fraction'?)"),
        (SPLIT.format('Annotated[Splitting, Without("fold")] = Splitting()'), "no key fold"),
        (SPLIT.format("Splitting = Splitting(), split: str = ''"), "the key split is defined twice"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plugins.add_file(write("p.py", text))
    assert message in caught.value.message
    assert "p.py" in caught.value.message


def test_keys_of_a_group_are_flat_in_a_config_and_one_value_for_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_EXTRA", {})
    text = SPLIT.format(
        'Annotated[Splitting, Without("limit_seed", "split", "group_split")] = Splitting(val_fraction=0.5)'
    )
    plugins.add_file(write("apart.py", text))
    choice = choose("dataset", {"name": "apart", "classes": ["a", "b"], "test_fraction": 0.1})
    options = {"classes": ["a", "b"], "limit_per_class": None, "val_fraction": 0.5, "test_fraction": 0.1}
    assert choice.to_dict() == {"name": "apart", "path": "", **options}
    assert choice.plugin.build({"known": None}, choice.options) == ("", Splitting(**options))
    for raw, message in (
        ({"val_fraction": 1.5}, "dataset.val_fraction: expected a number < 1.0, got 1.5"),
        ({"val_fractoin": 0.5}, "dataset.val_fractoin: unknown key (did you mean 'val_fraction'?)"),
        ({"limit_seed": 1}, "dataset.limit_seed: unknown key"),
        ({"splitting": {}}, "dataset.splitting: unknown key"),
    ):
        with pytest.raises(ConfigError) as caught:
            choose("dataset", {"name": "apart", **raw})
        assert message in caught.value.message


def test_reading_a_plugin_does_not_run_it() -> None:
    plugin = plugins.add_file(write("loud.py", 'KIND = "augment"\nopen("marker", "w")\ndef build(*, x: int = 1): ...'))
    assert plugin.model(x=2)
    assert not Path("marker").exists()
    plugins._EXTRA.clear()


def test_the_loop_names_no_plugin_and_no_modality() -> None:
    text = (PACKAGE / "training/loop.py").read_text()
    names = {
        name
        for kind in plugins.INJECTED
        if kind not in ("optimizers", "schedules", "strategies")
        for name in plugins.plugins(kind)
    }
    tree = ast.parse(text)
    named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    words = {name for name in named if not hasattr(builtins, name)} | {  # `next` is a function, too
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    assert not words & (names - {"none"} | {"image", "table", "text", "label", "resnet18"})


def test_weights_change_hands_and_pickles_are_read_in_one_place() -> None:
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text()
        if file.name != "transplant.py" and file.parent.name != "foreign":
            for banned in ("torch.load", "pickle", "strict=False", "load_state_dict("):
                # the optimizer's and scaler's own
                allowed = banned == "load_state_dict(" and file.name in ("session.py", "muon.py")
                assert banned not in text or allowed, f"{file} has {banned}"
        # Only who this process is among its ranks, and where the system keeps caches, come from the environment.
        assert "os.environ" not in text or file.name in ("launch.py", "disk_cache.py"), (
            f"{file}: settings are in the config"
        )


def test_a_torchvision_that_does_not_match_torch_is_one_sentence(fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str) -> object:
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist\nand much more")
        return real(name)

    monkeypatch.setattr("fmeco.nn.libraries.importlib.import_module", broken)
    answer = fmeco("pretrain", write("c.yaml", tiny(backbone="resnet18")))
    assert answer.code == 2
    assert "torchvision cannot be used with this torch" in answer.err
    assert "from the same index" in answer.err
    assert "much more" not in answer.err


_HEAD = '"""D."""\nfrom __future__ import annotations\nimport torch\nfrom fmeco.core import Groups, Phase, Rate, Roles, Transfer\n'
_SCHEDULE = _HEAD + 'KIND = "schedule"\ndef build(step: float, total: float) -> float:\n    {}\n'
_STRATEGY = _HEAD + 'KIND = "strategy"\ndef build(roles: Roles) -> Transfer:\n    return {}\n'
_OPTIMIZER = (
    _HEAD
    + 'KIND = "optimizer"\nclass Own(torch.optim.SGD):\n    def step(self, closure=None):\n        super().step()\n'
    + "        {}\ndef build(params: Groups, *, lr: Rate = 0.1) -> torch.optim.Optimizer:\n    return {}\n"
)
_STATE = 'self.state[self.param_groups[0]["params"][0]][{}] = {}'


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("schedule", _SCHEDULE.format("return -1.0"), "schedule: odd returned -1.0 at step 0"),
        (
            "schedule",
            _SCHEDULE.format("return 1.0 if step < total - 1 else float('nan')"),
            "odd returned nan at step 11",
        ),
        ("schedule", _SCHEDULE.format("return 1 / 0"), "odd.py:7 failed: ZeroDivisionError"),
        ("schedule", _SCHEDULE.format("raise SystemExit(0)"), "odd.py:7 ended the program"),
        (
            "optimizer",
            _OPTIMIZER.format("pass", "Own(params[:1], lr=lr)"),
            "odd.py: the optimizer that build() returns",
        ),
        (
            "optimizer",
            _OPTIMIZER.format(_STATE.format("'h'", "[1]"), "Own(params, lr=lr)"),
            "'h' of a parameter's state",
        ),
        ("optimizer", _OPTIMIZER.format(_STATE.format("3", "1"), "Own(params, lr=lr)"), "the key 3 of a parameter's"),
        ("optimizer", _OPTIMIZER.format("self.state['n'] = {'a': 1}", "Own(params, lr=lr)"), "belongs to no parameter"),
        ("transfer", _STRATEGY.format("None"), "odd.py: build() must return Transfer("),
        ("transfer", _STRATEGY.format("Transfer(())"), "odd.py: build() must return Transfer("),
        ("transfer", _STRATEGY.format("Transfer((Phase({**{n: 1.0 for n in roles}, 'x': 1.0}),))"), "a scale for x"),
        ("transfer", _STRATEGY.format("Transfer((Phase({}),))"), "odd.py: phase 1 gives no scale for backbone."),
        (
            "transfer",
            _STRATEGY.format("Transfer((Phase({n: -1.0 for n in roles}),))"),
            "is -1.0, but must be a finite number",
        ),
        (
            "transfer",
            _STRATEGY.format("Transfer((Phase({n: 1.0 for n in roles}, 0.0),))"),
            "phase is 0.0, not a number",
        ),
    ],
)
def test_what_a_plug_in_gets_wrong_is_named_with_its_file(fmeco: Fmeco, kind: str, source: str, message: str) -> None:
    config = write("c.yaml", tiny())
    command = ["pretrain", config]
    if kind == "transfer":
        assert fmeco("pretrain", config, "--out", "base").code == 0
        command = ["finetune", config, "--from", "base"]
    answer = fmeco(*command, "--plugin", write("odd.py", source), "--set", f"{kind}=odd", "--out", "run")
    assert answer.code == 2
    assert message in answer.err


def test_weights_that_are_not_finite_are_not_saved(fmeco: Fmeco) -> None:
    # Without a validation split nothing else looks at what the last step did.
    source = _OPTIMIZER.format('self.param_groups[0]["params"][0].data.fill_(float("inf"))', "Own(params, lr=lr)")
    write("t.csv", "x,label,part\n" + "".join(f"{i},{'ab'[i % 2]},train\n" for i in range(20)))
    config = {"dataset": {"name": "csv_table", "path": "t.csv", "split_column": "part"}, "optimizer": "odd"}
    config |= {"backbone": {"name": "mlp", "hidden": [4]}, "train": {"steps": 1, "batch_size": 20}}
    answer = fmeco("pretrain", write("c.yaml", config), "--plugin", write("odd.py", source), "--out", "run")
    assert answer.code == 5
    assert "the weights are not finite" in answer.err
    assert not list(Path("run/checkpoints").glob("step-*"))


def test_freezing_all_that_would_train_is_refused(fmeco: Fmeco) -> None:
    config = write("c.yaml", tiny())
    assert fmeco("pretrain", config, "--out", "base").code == 0
    for freeze in ("[head]", "['*']"):
        settings = ["--set", "transfer.strategy=probe", "--set", f"transfer.freeze={freeze}"]
        answer = fmeco("finetune", config, "--from", "base", *settings)
        assert answer.code == 2
        assert "nothing is left to train in phase 1" in answer.err
