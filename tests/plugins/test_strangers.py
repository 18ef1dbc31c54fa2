"""A stranger's plug-ins of every kind, in tests/strangers, import nothing but fmeco.core and torch, and are used like
fmeco's own: from a folder, from files, or from an installed package."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fmeco as api
from fmeco.errors import ConfigError, Stopped
from fmeco.plugins import registry
from tests.conftest import Answer, write

Fmeco = Callable[..., Answer]
FOLDER = Path(__file__).parents[1] / "strangers"
DOCS = Path(__file__).parents[2] / "docs/plugins.md"
CONFIG: dict[str, Any] = {
    "dataset": {"name": "clouds", "classes": ["ball", "rod", "ring"]},
    "backbone": "pointnet",
    "augment": "turned",
    "optimizer": {"name": "lion", "lr": 3e-3},
    "schedule": {"name": "inverse_sqrt", "rise": 6},
    "train": {"epochs": 10, "batch_size": 9, "tensorboard": False},
}


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_EXTRA", {})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that every plug-in of the folder but the strategy had a part in."""
    out = tmp_path_factory.mktemp("strangers") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_EXTRA", {})
        registry.add(FOLDER)
        api.pretrain(CONFIG, out=out)
    return out


def tensors(run: Path, file: str = "backbone") -> dict[str, torch.Tensor]:
    return load_file((run / "checkpoints/last" / f"{file}.safetensors").resolve())


def cloud(path: Path, shape: str = "ball", points: int = 40) -> Path:
    """A file of points on a ball, or on a thin rod."""
    x = torch.randn(points, 3, generator=torch.Generator().manual_seed(5))
    x = x / x.norm(dim=1, keepdim=True) * torch.tensor([1.0, 1.0, 1.0] if shape == "ball" else [0.2, 0.2, 1.3])
    path.write_text("\n".join(" ".join(f"{value:.4f}" for value in row) for row in x.tolist()))
    return path


def test_strangers_and_built_ins_import_nothing_but_the_vocabulary() -> None:
    package = Path(api.__file__).parent
    built_in = [file for kind in ("optimizers", "schedules", "strategies") for file in (package / kind).glob("*.py")]
    for file in [*FOLDER.glob("*.py"), *built_in]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (module := node.module or "").startswith("fmeco"):
                assert module == "fmeco.core" or module.startswith(f"fmeco.{file.parent.name}._"), file


def test_plugins_of_several_sources_work_together(run: Path) -> None:
    blocks = re.findall(r"```python\n# (\w+\.py)(.*?)```", DOCS.read_text(), re.DOTALL)
    for name, text in blocks:
        write(f"examples/{name}", f"# {text}")
    assert {"hinge.py", "lion.py", "inverse_sqrt.py", "surgical.py"} <= {name for name, _ in blocks}
    registry.add(Path("examples"))
    for name in ("clouds", "pointnet"):
        registry.add_file(FOLDER / f"{name}.py")
    config = {**CONFIG, "backbone": None, "augment": "none", "transfer": "surgical"}
    config["dataset"] = {"name": "clouds", "classes": ["ball", "rod"]}
    tuned = api.finetune({**config, "objective": "hinge"}, ref=run, out="tuned")
    assert tuned.metrics["val_accuracy"] > 0.8
    before, after = tensors(run), tensors(tuned.run)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "points.0.weight",
        "points.0.bias",
    }


def test_a_folder_of_plugins_trains_predicts_and_is_finetuned(fmeco: Fmeco, run: Path) -> None:
    folder = ("--plugin", FOLDER)
    answer = fmeco("evaluate", run, "--json", *folder)
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["val_accuracy"] > 0.8
    files = [cloud(Path("ball.xyz")), cloud(Path("rod.xyz"), "rod", 90), write("bad.xyz", "1 2\n3")]
    rows = fmeco("predict", run, *files[:2], "--json", *folder).json["predictions"]
    assert [row["prediction"] for row in rows] == ["ball", "rod"]
    *good, bad = fmeco("predict", run, *files, "--json", *folder).json["predictions"]
    assert [row["prediction"] for row in good] == ["ball", "rod"]
    assert "bad.xyz: not a file of `x y z` lines" in bad["error"]
    answer = fmeco("predict", run, "bad.xyz", *folder)
    assert answer.code == 3
    assert "bad.xyz: not a file of `x y z` lines" in answer.err
    config = write(
        "c.yaml", {**CONFIG, "dataset": {"name": "clouds", "each": 12}, "transfer": "surgical"} | {"backbone": None}
    )
    answer = fmeco("finetune", config, "--from", run, "--out", "tuned", "--set", "train.epochs=2", "--json", *folder)
    assert answer.code == 0, answer.err
    before, after = tensors(run), tensors(Path("tuned"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"points.0.weight", "points.0.bias"}, "the first layer of the backbone"
    spec = json.loads((Path("tuned/checkpoints/last/meta.json")).read_text())["spec"]
    assert spec["inputs"]["points"]["shape"] == [64, 3], "clouds are prepared as those of the source were"


def test_a_run_of_strangers_goes_on_bit_for_bit(run: Path) -> None:
    registry.add(FOLDER)
    asked: list[int] = []
    with pytest.raises(Stopped):
        api.pretrain(CONFIG, out="parts", stop=lambda: bool(asked.append(1)) or len(asked) > 25)
    saved = load_file(Path("parts/checkpoints/last/trainer.safetensors").resolve())
    assert any(name.endswith("/average") for name in saved), "the optimizer's own state is saved"
    api.resume("parts")
    for file in ("backbone", "objective"):
        one, two = tensors(run, file), tensors(Path("parts"), file)
        assert all(torch.equal(one[name], two[name]) for name in one), file


def test_rates_follow_the_strategy_and_the_schedule(run: Path) -> None:
    registry.add(FOLDER)
    asked: list[int] = []
    config = {**CONFIG, "transfer": {"strategy": "surgical", "head_lr": 3.0}, "train": {"steps": 4, "log_every": 1}}
    seen = []

    def stop() -> bool:
        asked.append(1)
        return False

    api.finetune({**config, "backbone": None}, ref=run, out="tuned", stop=stop)
    for line in map(json.loads, Path("tuned/metrics.jsonl").read_text().splitlines()):
        if line["kind"] == "train":
            seen.append(line["lr"])
    assert seen == pytest.approx([3e-3 * (step + 1) / 6 for step in range(4)]), "of the first group, the backbone's"


def test_check_shows_the_groups_that_a_strangers_optimizer_gets(fmeco: Fmeco, run: Path) -> None:
    config = write("c.yaml", {**CONFIG, "backbone": None, "transfer": {"strategy": "surgical", "head_lr": 3.0}})
    answer = fmeco("check", config, "--from", run, "--json", "--plugin", FOLDER)
    assert answer.code == 0, answer.err
    rates = {(round(group["lr"], 6), group["decay"]) for group in answer.json["groups"]}
    assert rates == {(3e-3, 0.1), (3e-3, 0.0), (9e-3, 0.1), (9e-3, 0.0)}


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "RUN"),
        ("predict", "RUN", "ball.xyz"),
        ("embed", "RUN", "--output", "e.npz"),
        ("compare", "RUN", "RUN"),
        ("finetune", "--from", "RUN", "--dataset", "digits"),
        ("probe", "RUN", "--dataset", "digits"),
        ("resume", "RUN"),
    ],
    ids=lambda command: command[0],
)
def test_a_checkpoint_without_its_plugins_names_them(fmeco: Fmeco, run: Path, command: tuple[str, ...]) -> None:
    cloud(Path("ball.xyz"))
    answer = fmeco(*(str(run) if word == "RUN" else word for word in command))
    assert answer.code == 2
    assert f"{run} needs " in answer.err
    assert "backbones/pointnet" in answer.err
    assert "--plugin FILE.py" in answer.err
    assert "did you mean" not in answer.err
    if command[0] == "resume":
        assert (
            "datasets/clouds, backbones/pointnet, optimizers/lion, schedules/inverse_sqrt, augment/turned" in answer.err
        )
    else:
        assert "augment" not in answer.err, "it takes part in training alone"


def test_a_checkpoint_without_its_plugins_is_described(fmeco: Fmeco, run: Path) -> None:
    shown = fmeco("info", run, "--json")
    assert shown.code == 0, shown.err
    assert shown.json["needs"] == "datasets/clouds, backbones/pointnet, augment/turned"


def test_one_of_the_plugins_is_not_enough(fmeco: Fmeco, run: Path) -> None:
    answer = fmeco("predict", run, cloud(Path("ball.xyz")), "--plugin", FOLDER / "pointnet.py")
    assert answer.code == 2
    assert "needs datasets/clouds: --plugin FILE.py" in answer.err


def test_a_teacher_without_its_plugins_names_them(fmeco: Fmeco, run: Path) -> None:
    config = {"dataset": {"name": "digits", "classes": [0, 1]}, "backbone": "mlp"}
    answer = fmeco("pretrain", write("c.yaml", {**config, "objective": {"name": "distill", "teacher": str(run)}}))
    assert answer.code == 2
    assert f"{run} needs backbones/pointnet: --plugin FILE.py" in answer.err


def test_an_objective_within_an_objective_is_needed_too() -> None:
    registry.add_file(write("hinge.py", 'KIND = "objective"\ndef build(backbone, spec, *, target: str = "label"): ...'))
    from fmeco.config.load import load_config

    tasks = {"a": "hinge", "b": "classification"}
    settings = load_config({"backbone": "mlp", "objective": {"name": "multi_task", "tasks": tasks}})
    assert settings.needs == ["objectives/hinge"]


def test_an_installed_package_offers_every_kind(fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path("site/solids")
    package.mkdir(parents=True)
    for file in [*FOLDER.glob("*.py"), package / "__init__.py"]:
        (package / file.name).write_text(file.read_text() if file.parent == FOLDER else "")
    kinds = {
        "datasets": "clouds",
        "backbones": "pointnet",
        "augment": "turned",
        "optimizers": "lion",
        "schedules": "inverse_sqrt",
        "strategies": "surgical",
    }
    write("site/solids-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: solids\nVersion: 1\n")
    entries = "".join(f"[fmeco.{kind}]\n{name} = solids.{name}\n" for kind, name in kinds.items())
    write("site/solids-1.dist-info/entry_points.txt", entries)
    monkeypatch.syspath_prepend(str(Path("site").resolve()))
    for cached in (registry._entry_points, registry._entry_point):
        cached.cache_clear()
    try:
        for kind, name in kinds.items():
            assert fmeco("list", kind, "--json").json[name]["from"] == "solids"
        how = ("--set", "train.epochs=1", "--out", "run", "--json")
        answer = fmeco("pretrain", write("c.yaml", CONFIG), *how)
        assert answer.code == 0, answer.err
        assert json.loads(Path("run/checkpoints/last/meta.json").read_text())["needs"] == [
            *("datasets/clouds", "backbones/pointnet", "augment/turned")
        ]
        twins = fmeco("list", "optimizers", "--plugin", FOLDER / "lion.py")
        assert twins.code == 2
        assert str(FOLDER / "lion.py") in twins.err
        assert "solids/lion.py" in twins.err
    finally:
        for cached in (registry._entry_points, registry._entry_point):
            cached.cache_clear()
        for name in [name for name in sys.modules if name.partition(".")[0] == "solids"]:
            del sys.modules[name]


# ---------------------------------------------------------------- what is wrong with a plug-in


def test_a_name_is_that_of_one_file(fmeco: Fmeco) -> None:
    one, two = (write(f"{folder}/calm.py", 'KIND = "augment"\ndef build(): ...') for folder in ("a", "b"))
    answer = fmeco("list", "augment", "--plugin", one, "--plugin", two)
    assert answer.code == 2
    assert str(one.resolve()) in answer.err
    assert str(two.resolve()) in answer.err
    assert fmeco("list", "augment", "--plugin", one, "--plugin", "a").code == 0, "the same file twice is one file"
    assert fmeco("list", "augment", "--plugin", two).code == 0, "each command has its own plug-ins"
    assert "calm" not in fmeco("list", "augment").out


@pytest.mark.parametrize(
    ("kind", "name", "where"),
    [
        ("optimizer", "adamw", "optimizers/adamw.py"),
        ("schedule", "cosine", "schedules/cosine.py"),
        ("strategy", "lora", "strategies/lora.py"),
        ("backbone", "resnet18", "backbones/torchvision.py"),
    ],
)
def test_a_plugin_cannot_take_the_name_of_a_built_in(kind: str, name: str, where: str) -> None:
    file = write(f"{name}.py", f'KIND = "{kind}"\ndef build(*, lr: float = 1.0): ...')
    with pytest.raises(ConfigError, match="two files are named") as caught:
        registry.add_file(file)
    assert where in caught.value.message
    assert str(file.resolve()) in caught.value.message


def test_a_folder_names_the_file_that_is_no_plugin(fmeco: Fmeco) -> None:
    write("plug/_shared.py", "x = 1")
    answer = fmeco("list", "augment", "--plugin", "plug")
    assert answer.code == 2
    assert "plug: the folder holds no plug-in" in answer.err
    write("plug/notes.py", "x = 1")
    answer = fmeco("list", "augment", "--plugin", "plug")
    assert answer.code == 2
    assert "plug/notes.py: a plug-in file needs a line with its kind" in answer.err


def test_files_beside_a_plugin_are_imported_relative_to_it() -> None:
    for folder, value in (("a", 1), ("b", 2)):
        write(f"{folder}/_shared.py", f"VALUE = {value}")
        text = 'KIND = "schedule"\ndef build(*, x: int = 1):\n    from ._shared import VALUE\n    return VALUE'
        write(f"{folder}/flat_{folder}.py", text)
    registry.add(Path("a"))
    registry.add(Path("b"))
    found = registry.plugins("schedules")
    assert [found[f"flat_{folder}"].build({}, {"x": 1}) for folder in "ab"] == [1, 2], "each its own _shared.py"
    registry.add_file(write("a/lost.py", 'import _shared\nKIND = "schedule"\ndef build(): ...'))
    with pytest.raises(ConfigError, match="could not be imported") as caught:
        registry.plugins("schedules")["lost"].load()
    assert "from ._shared import" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def build(params, *, momentum: float = 0.9): ...",
            "wrong.py:2: an optimizer needs a key `lr` for the learning rate",
        ),
        ("def build(params, *, lr: float = 1.0): return 3", "wrong.py: build() must return a torch.optim.Optimizer"),
        (
            "import torch\ndef build(params, *, lr: float = 1.0):\n"
            "    return torch.optim.SGD([p for group in params for p in group['params']], lr=lr)",
            "wrong.py: build() puts parameters of several learning rates into one group",
        ),
    ],
)
def test_what_is_wrong_with_an_optimizer_is_said(fmeco: Fmeco, run: Path, body: str, message: str) -> None:
    file = write("wrong.py", f'KIND = "optimizer"\n{body}')
    write("c.yaml", {**CONFIG, "backbone": None, "optimizer": "wrong", "transfer": "llrd", "train": {"steps": 1}})
    plain = [word for path in sorted(FOLDER.glob("[a-z]*.py")) for word in ("--plugin", str(path))]
    answer = fmeco("finetune", "c.yaml", "--from", run, "--plugin", file, *plain)
    assert answer.code == 2
    assert message in answer.err


def test_groups_that_an_optimizer_makes_itself_keep_their_rates() -> None:
    from fmeco.assembly.optimizer import build_optimizer
    from fmeco.config.check import choose
    from fmeco.core import parameter_groups

    text = """KIND = "optimizer"
import torch
def build(params, *, lr: float = 1.0, weight_decay: float = 0.5):
    own = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 7 * lr}
    return torch.optim.SGD([{"params": group["params"], "lr": 2 * lr} for group in params] + [own], lr=lr)
"""
    registry.add_file(write("plain.py", text))
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    scales = {name: 0.1 if name.startswith("0") else 3.0 for name, _ in model.named_parameters()}
    groups = parameter_groups(model.named_parameters(), scales)
    optimizer = build_optimizer(choose("optimizer", {"name": "plain", "lr": 0.01}), groups)
    rates = [group["base_lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.002, 0.002, 0.06, 0.06, 0.07]), "a group without our parameters keeps its own"
    assert rates == [group["lr"] for group in optimizer.param_groups]


def test_a_rate_that_is_not_found_must_be_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.add(FOLDER)
    text = """import torch
from fmeco.core import Rate
KIND = "optimizer"
def build(params, *, lr: Rate): return torch.optim.SGD(params, lr=lr)
"""
    registry.add_file(write("bare.py", text))
    monkeypatch.setattr("fmeco.training.lr_range_test.range_test", lambda *_: (None, []))
    with pytest.raises(ConfigError, match="found no rate at which the loss falls"):
        api.pretrain({**CONFIG, "optimizer": {"name": "bare", "lr": "auto"}}, out="none")


def test_a_phase_that_forgets_a_parameter_is_said(fmeco: Fmeco, run: Path) -> None:
    text = 'from fmeco.core import Phase, Transfer\nKIND = "strategy"\ndef build(roles): return Transfer((Phase({}),))'
    write("c.yaml", {**CONFIG, "backbone": None, "transfer": "idle", "train": {"steps": 1}})
    answer = fmeco("finetune", "c.yaml", "--from", run, "--plugin", write("idle.py", text), "--plugin", FOLDER)
    assert answer.code == 2
    assert "idle.py: phase 1 gives no scale for" in answer.err
